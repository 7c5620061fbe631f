"""The masked original: what the cut model must equal, built without cutting anything.

The columns of whoever reads a removed position are zeroed. Producers and vectors keep their values, so that anything
which leaks is seen (and because filters of zeros can divide zero by zero where the original does not). Sums over
activations get an explicit mask. Renormalising nodes are bracketed: they run on the kept positions only, independently
of the cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.analysis import Analysis, Mask
from onnxprune.graph import FLOATS, Array, Constant, Model, Node, Variable, constant, fresh_name, make_node, values
from onnxprune.stored import subgraphs
from onnxprune.trace import IN, Bracket, Contracted

_CAST_LIKE = 15  # the first operator set that has it
_HALF = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
HALF = frozenset({np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)})


def masked(analysis: Analysis, kept: Mask) -> Model:
    """The cleaned model with everything that is not kept silenced, at its original shapes."""
    model = analysis.model.copy()
    constants, trace = model.constants(), analysis.trace.trace
    for axis in analysis.axes:
        read = trace.roles[trace.owners[axis.param, axis.axis]] & IN > 0
        gone = ~kept[axis.classes] & read
        if gone.any():
            _silence(constants[axis.param], axis.axis, gone)
    taken, removed = model.names(), ~kept[analysis.trace.classes]
    nodes = {o.name: n for n in model.graph.nodes for o in n.outputs if o.name}
    for contracted in trace.contracted:
        gone = removed[contracted.atoms]
        if gone.any():
            _mask(model, nodes[contracted.node], contracted, gone, taken)
    for bracket, gone in _merged(trace.brackets, removed):
        if gone.any():
            _bracket(model, nodes[bracket.node], bracket, gone, taken)
    return model


def _merged(brackets: list[Bracket], removed: Array) -> Iterable[tuple[Bracket, Array]]:
    """One bracket per node and axis, with the positions that any of its records loses."""
    found: dict[tuple[str, int], tuple[Bracket, Array]] = {}
    for b in brackets:
        _, gone = found.get((b.node, b.axis), (b, np.zeros(b.atoms.size, bool)))
        found[b.node, b.axis] = b, gone | removed[b.atoms]
    return found.values()


def _silence(weight: Constant, axis: int, gone: Array) -> None:
    """Zero the slices that are read; of a quantised weight, set them to its zero point."""
    array = values(weight)
    assert array is not None, "only types that can be read get atoms"
    array = np.moveaxis(array.copy(), axis, 0)
    zero = np.moveaxis(_zero_point(weight, array.ndim, np.moveaxis(array, 0, axis).shape), axis, 0)
    array[gone] = zero[gone]
    weight.values = np.ascontiguousarray(np.moveaxis(array, 0, axis))


def _zero_point(weight: Constant, rank: int, shape: tuple[int, ...]) -> Array:
    node: Node | None = next((n for n in weight.outputs if n.op == "DequantizeLinear" and len(n.inputs) > 2), None)
    point = values(node.inputs[2]) if node is not None else None
    if node is None or point is None:
        return np.broadcast_to(np.zeros((), values(weight).dtype), shape)  # type: ignore[union-attr]
    if point.ndim == 1 and point.size > 1:
        point = point.reshape([-1 if a == node.attrs.get("axis", 1) % rank else 1 for a in range(rank)])
    return np.broadcast_to(point, shape)


def _place(model: Model, node: Node) -> int:
    return next(i for i, n in enumerate(model.graph.nodes) if n is node)


def _float_type(model: Model) -> np.dtype[Any]:
    """The element type of a mask in a model of one float type; half types are widened before anything runs."""
    kinds = {np.dtype(c.dtype) for c in model.constants().values() if not isinstance(c.dtype, int)} & FLOATS
    return np.dtype(np.float64) if kinds == {np.dtype(np.float64)} else np.dtype(np.float32)


def _mask(model: Model, node: Node, record: Contracted, gone: Array, taken: set[str]) -> None:
    """Multiply one operand by 0 where positions are gone."""
    at = _place(model, node)
    operand = node.inputs[record.operand]
    mask = constant(fresh_name(f"{operand.name}_mask", taken), (~gone).astype(_float_type(model)))
    out = Variable(fresh_name(f"{operand.name}_masked", taken))
    node.inputs[record.operand] = out
    if model.opset >= _CAST_LIKE and any(n.op == "Cast" for n in model.graph.nodes):
        like = Variable(fresh_name(f"{mask.name}_like", taken))
        model.graph.nodes.insert(at, make_node("CastLike", [mask, operand], [like], name=like.name))
        mask, at = like, at + 1
    model.graph.nodes.insert(at, make_node("Mul", [operand, mask], [out], name=out.name))


def _bracket(model: Model, node: Node, record: Bracket, gone: Array, taken: set[str]) -> None:
    """Gather the kept positions, run the node on them, and spread its output over the original positions again."""
    at = _place(model, node)
    kept = np.flatnonzero(~gone)
    source, small = node.inputs[0], Variable(fresh_name(f"{record.node}_kept", taken))
    gather = make_node(
        "Gather", [source, constant(fresh_name(f"{small.name}_at", taken), kept)], [small], axis=record.axis
    )
    for i, p in enumerate(node.inputs):
        vector = values(p) if p.name in record.params else None
        if vector is not None:
            node.inputs[i] = constant(fresh_name(f"{p.name}_kept", taken), vector.take(kept, -1))
    node.inputs[0] = small
    model.graph.nodes.insert(at, gather)
    if record.restores:
        y, inner = node.outputs[0], Variable(fresh_name(f"{record.node}_small", taken))
        node.outputs[0] = inner
        spread = np.clip(np.cumsum(~gone) - 1, 0, None)
        at_all = constant(fresh_name(f"{inner.name}_at", taken), spread)
        model.graph.nodes.insert(at + 2, make_node("Gather", [inner, at_all], [y], axis=record.axis))


def widened(proto: onnx.ModelProto, weights: dict[str, Array]) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A split model with float16 and bfloat16 replaced by float32; the same objects where it holds neither.

    Differences of rounding would hide a wrong rewrite in half precision, and onnxruntime's CPU lacks most bfloat16
    kernels.
    """
    if not has_half(proto):
        return proto, weights
    wide = onnx.ModelProto()
    wide.CopyFrom(proto)
    g = wide.graph
    g.ClearField("value_info")
    for tensor in g.initializer:
        _widen_tensor(tensor)
    _widen_values([*g.input, *g.output])
    _widen_nodes(g)
    return wide, {n: a.astype(np.float32) if a.dtype in HALF else a for n, a in weights.items()}


def _widen_nodes(graph: onnx.GraphProto) -> None:
    """Casts and constants, those in bodies too."""
    for node in graph.node:
        for attr in node.attribute:
            if attr.name in ("to", "dtype") and attr.i in _HALF:
                attr.i = TensorProto.FLOAT
            elif attr.type == onnx.AttributeProto.TENSOR:
                _widen_tensor(attr.t)
        for body in subgraphs(node):
            for tensor in body.initializer:
                _widen_tensor(tensor)
            _widen_values([*body.input, *body.output, *body.value_info])
            _widen_nodes(body)


def _widen_values(values: Iterable[onnx.ValueInfoProto]) -> None:
    for value in values:
        kind = value.type.tensor_type
        if kind.elem_type in _HALF:
            kind.elem_type = TensorProto.FLOAT


def has_half(proto: onnx.ModelProto) -> bool:
    """Whether parameters, inputs or outputs are of half precision."""
    signature = (v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output))
    return any(t.data_type in _HALF for t in proto.graph.initializer) or any(k in _HALF for k in signature)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type not in _HALF:
        return
    if tensor.data_location == TensorProto.EXTERNAL:
        tensor.data_type = TensorProto.FLOAT
    else:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
