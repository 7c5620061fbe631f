"""Channel shuffles become one Gather with constant indices.

ShuffleNet writes Reshape - Transpose - Reshape, FastestDet Reshape - Transpose - Reshape - Gather: seen as a whole they
only permute or select positions of one axis. torch's as_strided is Reshape - Gather and often changes nothing at all.
What a chain does is found out by running it on the indices of its input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph import Model, Node, Tensor, constant, fresh_name, is_constant, make_node
from onnxprune.normalize.edit import is_standard, protected, replace
from onnxprune.normalize.probe import Probe
from onnxprune.shapes.shape_ops import FAILURES, SHAPE_OPS
from onnxprune.shapes.sizes import Dims, Size
from onnxprune.shapes.symbolic import Facts

_MOVES = {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Gather", "Split", "Slice", "Identity"}
_MIX = {"Transpose", "Gather", "Split", "Slice"}
_MOST = 1 << 25  # elements of the index tensor; a larger shuffle stays
_LONGEST = 16  # nodes of a chain

Image: TypeAlias = NDArray[np.int32] | None


class End(NamedTuple):
    """A tensor with a selection of the root's positions along one axis; no indices: all of them, in order."""

    tensor: Tensor
    axis: int
    indices: tuple[int, ...]


class Chain(NamedTuple):
    """Movement nodes, the first one first, and their ends; nothing else reads what is in between."""

    nodes: list[Node]
    ends: list[End]


IsEnd: TypeAlias = Callable[[Tensor, Image], End | None]


def merge_shuffles(model: Model, follow: Callable[[], Facts]) -> int:
    """Replace chains that permute or select along one axis by Gather nodes; returns the number of chains.

    follow: gives the shapes and values that are known of this model.
    """
    starts = [n for n in model.graph.nodes if _is_start(n)]
    if not starts:
        return 0
    facts, keep = follow(), protected(model)
    chains: dict[int, Chain] = {}
    gone: set[int] = set()
    for start in starts:
        chain = None if id(start) in gone else _find(start, keep, facts)
        if chain is not None:
            chains[id(start)] = chain
            gone.update(id(n) for n in chain.nodes)
    if chains:
        _rewrite(model, chains, gone)
    return len(chains)


def _is_move(node: Node, tensor: Tensor) -> bool:
    """Whether the node moves the positions of this tensor, which is not one of its shapes or indices."""
    return node.op in _MOVES and is_standard(node) and [i for i, t in enumerate(node.inputs) if t is tensor] == [0]


def _is_start(node: Node) -> bool:
    """A Reshape of an activation whose result goes on to be mixed."""
    if node.op != "Reshape" or not is_standard(node) or is_constant(node.inputs[0]):
        return False
    tensor = node.outputs[0]
    return any(n.op in _MIX for n in tensor.outputs) and all(_is_move(n, tensor) for n in tensor.outputs)


def _find(start: Node, keep: frozenset[str], facts: Facts) -> Chain | None:
    """The chain from this node, where it is a selection for every size of the symbolic dimensions (two are tried)."""
    dims = facts.shapes.get(start.inputs[0].name)
    if dims is None or _explore(start, keep, None, None, _guess(dims, facts)) is None:
        return None
    found = []
    for which in (0, 1):
        probe = Probe(facts, which)
        try:
            shape = probe.shape(dims)
        except ValueError:
            return None
        if 0 in shape or prod(shape) > _MOST:
            return None
        image = np.arange(prod(shape), dtype=np.int32).reshape(shape)
        found.append(_explore(start, keep, image, probe, _test(image)))
        if not any(isinstance(d, Size) for d in dims):
            break
    first, last = found[0], found[-1]
    if first is None or last is None or not first.ends or [e[1:] for e in first.ends] != [e[1:] for e in last.ends]:
        return None
    bypassed = [e.tensor.name for e in first.ends if not e.indices]
    return first if keep.isdisjoint(bypassed) else None


def _explore(start: Node, keep: frozenset[str], image: Image, probe: Probe | None, is_end: IsEnd) -> Chain | None:
    """Follow the positions until every branch has come to an end; None where one leads out of the chain."""
    chain = Chain([], [])
    pending = [(start, image)]
    while pending:
        node, image = pending.pop()
        results = _move(node, image, probe)
        chain.nodes.append(node)
        if results is None or len(chain.nodes) > _LONGEST:
            return None
        for tensor, result in zip(node.outputs, results, strict=True):
            end = is_end(tensor, result) if node is not start else None
            if end is not None:
                chain.ends.append(end)
            elif tensor.name in keep or not all(_is_move(n, tensor) for n in tensor.outputs):
                return None
            else:
                pending += [(n, result) for n in tensor.outputs]
    return chain


def _move(node: Node, image: Image, probe: Probe | None) -> list[Image] | None:
    """Where the positions are after a node, for each output; None where the node does not apply."""
    if image is None or probe is None:
        return [None] * len(node.outputs)
    attrs = {"num_outputs": len(node.outputs), **node.attrs}
    try:
        inputs = [probe.value(t) if t.name else None for t in node.inputs[1:]]
        out = SHAPE_OPS[node.op](attrs, image, *inputs)
    except FAILURES:
        return None
    results = out if isinstance(out, list) else [out]
    return list(results) if len(results) == len(node.outputs) else None


def _guess(root: Dims, facts: Facts) -> IsEnd:
    """By the shape alone: cheap, and rules out nearly everything that is not a shuffle."""

    def is_end(tensor: Tensor, _: Image) -> End | None:
        dims = facts.shapes.get(tensor.name)
        if dims is None:
            return End(tensor, 0, ())
        same = len(dims) == len(root) and sum(a != b for a, b in zip(dims, root, strict=True)) <= 1
        return End(tensor, 0, ()) if same else None

    return is_end


def _test(origin: NDArray[np.int32]) -> IsEnd:
    """By the positions: a selection along one axis at most."""
    shape = origin.shape

    def is_end(tensor: Tensor, image: Image) -> End | None:
        if image is None or image.ndim != len(shape) or 0 in image.shape:
            return None
        lines = [_line(image, shape, axis) for axis in range(image.ndim)]
        moved = [a for a, line in enumerate(lines) if not np.array_equal(line, np.arange(shape[a]))]
        if not moved:
            return End(tensor, 0, ()) if np.array_equal(image, origin) else None
        if len(moved) > 1 or not np.array_equal(image, np.take(origin, lines[moved[0]], axis=moved[0])):
            return None
        return End(tensor, moved[0], tuple(lines[moved[0]].tolist()))

    return is_end


def _line(image: NDArray[np.int32], shape: Sequence[int], axis: int) -> NDArray[np.int32]:
    """Which positions of this axis of the root the first line of the image along it shows."""
    line: NDArray[np.int32] = np.moveaxis(image, axis, -1).reshape(-1, image.shape[axis])[0]
    return line // prod(shape[axis + 1 :]) % shape[axis]


def _rewrite(model: Model, chains: dict[int, Chain], gone: set[int]) -> None:
    """Put one Gather per end in place of each chain, where it starts; the ends keep their names."""
    taken, names = model.names(), {n.name for n in model.graph.nodes if id(n) not in gone}
    nodes: list[Node] = []
    for node in model.graph.nodes:
        if id(node) in chains:
            nodes += _gathers(chains[id(node)], taken, names)
        elif id(node) not in gone:
            nodes.append(node)
    model.graph.nodes = nodes


def _gathers(chain: Chain, taken: set[str], names: set[str]) -> list[Node]:
    root = chain.nodes[0].inputs[0]  # by now: a chain before this one may have been bypassed
    producers = [end.tensor.inputs[0].name for end in chain.ends]
    for node in chain.nodes:
        node.inputs.clear()
        node.outputs.clear()
    gathers = []
    for end, producer in zip(chain.ends, producers, strict=True):
        if not end.indices:
            replace(end.tensor, root)
            continue
        indices = constant(fresh_name(f"{end.tensor.name}_indices", taken), np.asarray(end.indices, np.int64))
        name = fresh_name(producer, names) if producer else ""
        gathers.append(make_node("Gather", [root, indices], [end.tensor], name, axis=end.axis))
    return gathers
