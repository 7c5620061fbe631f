"""The graph view: onnx-graphsurgeon, and what it forgets on a round trip.

The only module that imports onnx-graphsurgeon. A `Model` holds a `gs.Graph` (its nodes and tensors are edited in place by
the passes and by the cut) beside the *header*: all that the library drops on export (metadata, doc strings, domain,
subgraph bodies, attribute kinds it does not know, the exact graph inputs and outputs) and that `to_proto` puts back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.logger import G_LOGGER

G_LOGGER.severity = G_LOGGER.CRITICAL  # the library prints to stdout, where our results go

Array = NDArray[Any]
Graph = gs.Graph
Node = gs.Node
Tensor = gs.Tensor
Constant = gs.Constant
Variable = gs.Variable

FLOATS = frozenset({np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64), np.dtype(ml_dtypes.bfloat16)})
_SAFE = FLOATS | {np.dtype(t) for t in ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")}
_A = onnx.AttributeProto
# Kinds of attribute that onnx-graphsurgeon drops or rewrites: they travel as they are.
_OPAQUE = frozenset({_A.GRAPH, _A.GRAPHS, _A.SPARSE_TENSOR, _A.SPARSE_TENSORS, _A.TENSORS, _A.TYPE_PROTO, _A.TYPE_PROTOS})
_EMPTY_LISTS = frozenset({_A.INTS, _A.FLOATS, _A.STRINGS})


@dataclass
class Model:
    """A graph to edit and what is needed to write it back.

    graph: nodes, tensors, inputs and outputs; header: the original without nodes, initializers and value_info;
    origin: output name -> original NodeProto; captured: names that If/Loop/Scan bodies read from the outer graph;
    notes: what normalisation did, for the report.
    """

    graph: Graph
    header: onnx.ModelProto
    origin: dict[str, onnx.NodeProto]
    captured: frozenset[str]
    captured_tensors: dict[str, onnx.TensorProto]
    notes: list[str] = field(default_factory=list)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return max((o.version for o in self.header.opset_import if o.domain in ("", "ai.onnx")), default=1)

    def copy(self) -> Model:
        """Copy nodes and tensors; the arrays of constants and the header are shared."""
        return Model(self.graph.copy(), self.header, self.origin, self.captured, self.captured_tensors, list(self.notes))

    def to_proto(self) -> onnx.ModelProto:
        """Export with everything that the original had beside its graph."""
        return _export(self)

    def constants(self) -> dict[str, Constant]:
        """Initializers by name, in order of first use."""
        return {t.name: t for n in self.graph.nodes for t in n.inputs if isinstance(t, Constant)}

    def names(self) -> set[str]:
        """All tensor names in use, captured ones included."""
        used = {t.name for n in self.graph.nodes for t in (*n.inputs, *n.outputs)}
        return used | {t.name for t in (*self.graph.inputs, *self.graph.outputs)} | self.captured


def from_proto(proto: onnx.ModelProto) -> Model:
    """View a model as a graph. The arrays are not copied: treat `proto` as read-only from here on."""
    header = _header(proto)
    captured = frozenset(_captured(proto.graph))
    graph = gs.import_onnx(proto)
    given = {i.name for i in header.graph.input}
    graph.inputs = [t for t in graph.inputs if t.name in given]
    origin = {next((o for o in n.output if o), ""): n for n in proto.graph.node}
    for node in graph.nodes:
        source = origin[next((t.name for t in node.outputs if t.name), "")]
        for attr in source.attribute:
            if _is_opaque(attr):
                node.attrs.pop(attr.name, None)
    tensors = {t.name: t for t in proto.graph.initializer if t.name in captured}
    return Model(graph, header, origin, captured, tensors)


def _header(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Everything but nodes, initializers and value_info; initializers leave the inputs, which needs IR 4."""
    header = onnx.ModelProto()
    for fd, value in proto.ListFields():
        if fd.name == "graph":
            continue
        getattr(header, fd.name).extend(value) if fd.is_repeated else setattr(header, fd.name, value)
    g, h = proto.graph, header.graph
    weights = {t.name for t in g.initializer} | {t.values.name for t in g.sparse_initializer}
    h.name, h.doc_string = g.name, g.doc_string
    h.input.extend(i for i in g.input if i.name not in weights)
    h.output.extend(g.output)
    h.metadata_props.extend(g.metadata_props)
    h.quantization_annotation.extend(g.quantization_annotation)
    header.ir_version = max(header.ir_version, 4)
    return header


def _is_opaque(attr: onnx.AttributeProto) -> bool:
    empty = attr.type in _EMPTY_LISTS and not (attr.ints or attr.floats or attr.strings)
    return attr.type in _OPAQUE or empty


def subgraphs(node: onnx.NodeProto) -> Iterable[onnx.GraphProto]:
    """Bodies of a control-flow node."""
    for attr in node.attribute:
        if attr.type == _A.GRAPH:
            yield attr.g
        yield from attr.graphs


def _captured(graph: onnx.GraphProto) -> set[str]:
    """Names read inside bodies (at any depth) and not defined there."""
    free: set[str] = set()
    stack = [(body, frozenset[str]()) for n in graph.node for body in subgraphs(n)]
    while stack:
        body, outer = stack.pop()
        own = outer | {i.name for i in body.input} | {t.name for t in body.initializer}
        own |= {o for n in body.node for o in n.output}
        free |= {i for n in body.node for i in n.input if i and i not in own}
        free |= {o.name for o in body.output if o.name not in own}
        stack += [(inner, own) for n in body.node for inner in subgraphs(n)]
    return free


def _export(model: Model) -> onnx.ModelProto:
    proto: onnx.ModelProto = gs.export_onnx(model.graph, do_type_check=False, opset_imports=list(model.header.opset_import))
    for fd in proto.DESCRIPTOR.fields:
        if fd.name != "graph":
            proto.ClearField(fd.name)
    inner = onnx.ModelProto()
    inner.CopyFrom(model.header)
    signature = inner.graph
    g = proto.graph
    for name in ("input", "output", "value_info", "metadata_props", "quantization_annotation"):
        g.ClearField(name)
    present = {t.name for t in g.initializer}
    g.initializer.extend(t for name, t in model.captured_tensors.items() if name not in present)
    alive = {o for n in g.node for o in n.output} | {t.name for t in g.initializer} | {i.name for i in signature.input}
    kept = [q for q in signature.quantization_annotation if q.tensor_name in alive]
    signature.ClearField("quantization_annotation")
    signature.quantization_annotation.extend(kept)
    g.name, g.doc_string = "", ""
    proto.MergeFrom(inner)
    for node in g.node:
        _restore(node, model.origin.get(next((o for o in node.output if o), "")))
    return proto


def _restore(node: onnx.NodeProto, source: onnx.NodeProto | None) -> None:
    """Give a surviving node its doc string, metadata and opaque attributes back."""
    if source is None or source.op_type != node.op_type:
        return
    node.doc_string = source.doc_string
    node.overload = source.overload
    node.metadata_props.extend(source.metadata_props)
    if source.HasField("name"):
        node.name = source.name
    if not source.HasField("doc_string"):
        node.ClearField("doc_string")
    if not source.HasField("overload"):
        node.ClearField("overload")
    node.attribute.extend(a for a in source.attribute if _is_opaque(a))


def is_constant(tensor: Tensor) -> bool:
    """Whether the tensor is an initializer."""
    return isinstance(tensor, Constant)


def dtype_of(tensor: Tensor) -> np.dtype[Any] | None:
    """Element type as a numpy dtype; None for types that must not be touched (4-bit, float8, strings, unknown)."""
    kind = tensor.dtype
    if kind is None:
        return None
    if isinstance(kind, int):
        kind = ml_dtypes.bfloat16 if kind == onnx.TensorProto.BFLOAT16 else None
    dtype = None if kind is None else np.dtype(kind)
    return dtype if dtype in _SAFE else None


def values(tensor: Tensor) -> Array | None:
    """Array of an initializer; None for an activation and for element types that must not be touched."""
    if not isinstance(tensor, Constant) or dtype_of(tensor) is None:
        return None
    array: Array = tensor.values
    return array


def shape_of(constant: Constant) -> tuple[int, ...]:
    """Shape of an initializer, without loading it."""
    return tuple(int(d) for d in constant.shape)


def constant(name: str, array: Array) -> Constant:
    """A new initializer."""
    return Constant(name, np.ascontiguousarray(array) if array.ndim else array)


def make_node(op: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], name: str = "", **attrs: Any) -> Node:
    """A new node of the default domain; not yet part of a graph."""
    return Node(op, name=name, attrs=dict(attrs), inputs=list(inputs), outputs=list(outputs))


def fresh_name(base: str, taken: set[str]) -> str:
    """`base`, or `base_1`, `base_2`, ... : the first name not in `taken`; the result is added to it."""
    name, i = base, 0
    while name in taken:
        i += 1
        name = f"{base}_{i}"
    taken.add(name)
    return name
