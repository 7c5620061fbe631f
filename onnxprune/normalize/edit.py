"""What the passes share: which tensors they may touch, and how a tensor is replaced and a node removed."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from onnx import TensorProto

from onnxprune.graph import Array, Constant, Model, Node, Tensor, constant, is_constant, shape_of

_T = TensorProto
SAFE = {  # element types that the graph view reads and writes faithfully
    *(_T.FLOAT, _T.DOUBLE, _T.FLOAT16, _T.BFLOAT16, _T.BOOL),
    *(_T.INT8, _T.INT16, _T.INT32, _T.INT64, _T.UINT8, _T.UINT16, _T.UINT32, _T.UINT64),
}


def is_standard(node: Node) -> bool:
    """Whether the node's op is one of the default ONNX domain."""
    return node.domain in (None, "", "ai.onnx")


def protected(model: Model) -> frozenset[str]:
    """Tensors that must neither be renamed nor removed: graph outputs, and what If, Loop and Scan bodies read."""
    return model.captured | {t.name for t in model.graph.outputs}


def elements(tensor: Constant) -> int:
    """Number of elements of an initializer, without loading it."""
    return prod(shape_of(tensor))


def replace(old: Tensor, new: Tensor) -> None:
    """Let every consumer of `old` read `new`."""
    for node in list(old.outputs):
        for i, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[i] = new


def to_constant(tensor: Tensor, array: Array) -> None:
    """Let every consumer of an activation read an initializer of its name; the producer is then to be dropped."""
    replace(tensor, constant(tensor.name, array))


def drop(model: Model, nodes: Iterable[Node]) -> None:
    """Remove nodes from the graph."""
    gone = {id(n): n for n in nodes}
    for node in gone.values():
        node.inputs.clear()
        node.outputs.clear()
    model.graph.nodes = [n for n in model.graph.nodes if id(n) not in gone]


def has_body(model: Model, node: Node) -> bool:
    """Whether the node holds subgraphs."""
    source = model.origin.get(next((t.name for t in node.outputs if t.name), ""))
    return source is not None and any(a.HasField("g") or a.graphs for a in source.node.attribute)


def all_constant(tensors: Iterable[Tensor]) -> bool:
    """Whether the tensors, but for omitted ones, are initializers."""
    return all(is_constant(t) for t in tensors if t.name)
