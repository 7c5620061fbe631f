"""Nodes whose outputs nobody reads are removed. (The graph library's own clean-up of unused outputs breaks Split.)"""

from __future__ import annotations

from onnxprune.graph import Model, Node
from onnxprune.normalize.edit import drop, has_body, protected


def remove_dead(model: Model) -> int:
    """Remove nodes that do not contribute to a graph output or a subgraph; nodes with subgraphs stay."""
    needed = protected(model)
    pending = [n for n in model.graph.nodes if _is_needed(model, n, needed)]
    alive = {id(n) for n in pending}
    while pending:
        for tensor in pending.pop().inputs:
            fresh = [n for n in tensor.inputs if id(n) not in alive]
            alive.update(map(id, fresh))
            pending += fresh
    dead = [n for n in model.graph.nodes if id(n) not in alive]
    if dead:
        drop(model, dead)
    return len(dead)


def _is_needed(model: Model, node: Node, needed: frozenset[str]) -> bool:
    names = [t.name for t in node.outputs if t.name]
    return not names or not needed.isdisjoint(names) or has_body(model, node)
