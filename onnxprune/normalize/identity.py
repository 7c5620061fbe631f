"""Identity and inference Dropout are taken out: their consumers read their input."""

from __future__ import annotations

from onnxprune.graph import Model, Node, is_constant, values
from onnxprune.normalize.edit import drop, is_standard, protected, replace


def remove_identities(model: Model) -> int:
    """Bypass Identity and Dropout nodes that change nothing; one that writes a graph output stays."""
    keep = protected(model)
    gone = [n for n in model.graph.nodes if is_standard(n) and _is_identity(model, n) and n.outputs[0].name not in keep]
    for node in gone:
        replace(node.outputs[0], node.inputs[0])
    if gone:
        drop(model, gone)
    return len(gone)


def _is_identity(model: Model, node: Node) -> bool:
    return node.op == "Identity" or (node.op == "Dropout" and _is_inert(model, node))


def _is_inert(model: Model, node: Node) -> bool:
    """Whether a Dropout drops nothing and nobody reads its mask."""
    mask = [t for t in node.outputs[1:] if t.name]
    return drops_nothing(node, model.opset) and not any(t.outputs or t.name in protected(model) for t in mask)


def drops_nothing(node: Node, opset: int) -> bool:
    """Whether a Dropout passes its input on: opset 7 to 11 always, later without training mode or with a ratio of 0."""
    if opset < 12:
        return opset >= 7
    ratio, training = (*node.inputs[1:], None, None)[:2]
    if training is None or not training.name:
        return True
    flags = [values(t) for t in (ratio, training) if t is not None and t.name and is_constant(t)]
    return any(v is not None and not v.any() for v in flags)
