"""The graph view: onnx-graphsurgeon, and what it forgets on a round trip.

The only module that imports onnx-graphsurgeon. A `Model` holds a `gs.Graph` (its nodes and tensors are edited in place
by the passes and by the cut) beside the *header*: all that the library drops on export (metadata, doc strings, domain,
subgraph bodies, attribute kinds it does not know, the exact graph inputs and outputs) and that `to_proto` puts back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnxprune.stored import copy_fields, externalise, subgraphs

G_LOGGER.severity = G_LOGGER.CRITICAL  # the library prints to stdout, where our results go

Array: TypeAlias = NDArray[Any]
Graph: TypeAlias = gs.Graph
Node: TypeAlias = gs.Node
Tensor: TypeAlias = gs.Tensor
Constant: TypeAlias = gs.Constant
Variable: TypeAlias = gs.Variable

_LARGE = 1 << 16  # bytes; smaller weights stay in the graph when it is split
FLOATS = frozenset({np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64), np.dtype(ml_dtypes.bfloat16)})
_SAFE = FLOATS | {np.dtype(t) for t in ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")}
_A = onnx.AttributeProto
# Kinds of attribute that onnx-graphsurgeon drops or rewrites: they travel as they are.
_OPAQUE = frozenset(
    {_A.GRAPH, _A.GRAPHS, _A.SPARSE_TENSOR, _A.SPARSE_TENSORS, _A.TENSORS, _A.TYPE_PROTO, _A.TYPE_PROTOS}
)
_EMPTY_LISTS = frozenset({_A.INTS, _A.FLOATS, _A.STRINGS})


@dataclass
class Model:
    """A graph to edit and what is needed to write it back.

    graph: nodes, tensors, inputs and outputs; header: the original without nodes, initializers and value_info; origin:
    output name -> original NodeProto; captured: names that If/Loop/Scan bodies read from the outer graph;
    captured_tensors: the initializers among them; described: whether the file gave shapes of inner tensors
    (value_info); notes: what normalisation did, for the report.
    """

    graph: Graph
    header: onnx.ModelProto
    origin: dict[str, onnx.NodeProto]
    captured: frozenset[str]
    captured_tensors: dict[str, onnx.TensorProto]
    described: bool
    declared: dict[str, onnx.ValueInfoProto]
    notes: list[str] = field(default_factory=list)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return max((o.version for o in self.header.opset_import if o.domain in ("", "ai.onnx")), default=1)

    def copy(self) -> Model:
        """Copy nodes and tensors; the arrays of constants and the header are shared."""
        return replace(self, graph=self.graph.copy(), notes=list(self.notes))

    def to_proto(self) -> onnx.ModelProto:
        """Export with everything that the original had beside its graph."""
        return _export(self, None)

    def split(self) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """Export with the large weights beside it, as arrays by name, and left out of it as external data: no copy of
        them.
        """
        weights: dict[str, Array] = {}
        return _export(self, weights), weights

    def constants(self) -> dict[str, Constant]:
        """Initializers by name, in order of first use."""
        return {t.name: t for n in self.graph.nodes for t in n.inputs if is_constant(t)}

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
    origin = {next((o for o in n.output if o), ""): _essence(n) for n in proto.graph.node}
    for node in graph.nodes:
        for attr in origin[next((t.name for t in node.outputs if t.name), "")].attribute:
            if _is_opaque(attr):
                node.attrs.pop(attr.name, None)
    tensors = {t.name: t for t in proto.graph.initializer if t.name in captured}
    return Model(graph, header, origin, captured, tensors, bool(proto.graph.value_info), _declared(proto))


def _declared(proto: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """What the file says of the outputs of custom operators: nobody else can infer their shapes."""
    custom = {o for n in proto.graph.node if n.domain not in ("", "ai.onnx") for o in n.output}
    found = {}
    for info in (v for v in proto.graph.value_info if v.name in custom):
        found[info.name] = onnx.ValueInfoProto()
        found[info.name].CopyFrom(info)
    return found


def _header(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Everything but nodes, initializers and value_info; initializers leave the inputs, which needs IR 4."""
    header = onnx.ModelProto()
    copy_fields(proto, header, "graph")
    g, h = proto.graph, header.graph
    weights = {t.name for t in g.initializer} | {t.values.name for t in g.sparse_initializer}
    h.name, h.doc_string = g.name, g.doc_string
    h.input.extend(i for i in g.input if i.name not in weights)
    h.output.extend(g.output)
    h.metadata_props.extend(g.metadata_props)
    h.quantization_annotation.extend(g.quantization_annotation)
    header.ir_version = max(header.ir_version, 4)
    return header


def _essence(node: onnx.NodeProto) -> onnx.NodeProto:
    """What the graph view drops of a node, and Constants whole.

    A message of its own: a reference to one field of the model would keep all of it in memory.
    """
    essence = onnx.NodeProto()
    copy_fields(node, essence, "input", "output", "attribute", "domain")
    essence.attribute.extend(a for a in node.attribute if _is_opaque(a) or node.op_type == "Constant")
    return essence


def _is_opaque(attr: onnx.AttributeProto) -> bool:
    empty = attr.type in _EMPTY_LISTS and not (attr.ints or attr.floats or attr.strings)
    return attr.type in _OPAQUE or empty


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


def _export(model: Model, weights: dict[str, Array] | None) -> onnx.ModelProto:
    """Nodes as onnx-graphsurgeon writes them; everything else from the header, and initializers with one copy of their
    data.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.header)
    g = proto.graph
    for node in model.graph.nodes:
        g.node.append(OnnxExporter.export_node(node))
        _restore(g.node[-1], model.origin.get(next((o for o in g.node[-1].output if o), "")))
    constants = _outer_constants(model)
    for name, tensor in constants.items():
        _write_tensor(g.initializer.add(), name, tensor, weights)
    g.initializer.extend(t for name, t in model.captured_tensors.items() if name not in constants)
    alive = {o for n in g.node for o in n.output} | {t.name for t in g.initializer} | {i.name for i in g.input}
    annotations = [q for q in g.quantization_annotation if q.tensor_name in alive]
    g.ClearField("quantization_annotation")
    g.quantization_annotation.extend(annotations)
    return proto


def _outer_constants(model: Model) -> dict[str, Constant]:
    """Initializers in order of first use, then those that are only results of the graph."""
    outputs = {t.name: t for t in model.graph.outputs if is_constant(t)}
    return model.constants() | outputs


def _write_tensor(target: onnx.TensorProto, name: str, tensor: Constant, weights: dict[str, Array] | None) -> None:
    array = values(tensor) if weights is not None else None
    if array is not None and weights is not None and array.nbytes >= _LARGE:
        weights[name] = array
        target.name, target.data_type = name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        target.dims.extend(array.shape)
        externalise(target, "weights", 0, array.nbytes)
        return
    held = tensor._values
    if isinstance(held, LazyValues):
        target.CopyFrom(held.tensor)
        return
    array = np.asarray(held)
    target.name, target.data_type = name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    target.dims.extend(array.shape)
    target.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


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
    return isinstance(tensor, gs.Constant)


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
    """Array of an initializer; None for an activation and for element types that must not be touched.

    Read-only where the file's bytes are shown: they are read anew each time, so that weights are not held twice.
    """
    if not is_constant(tensor) or dtype_of(tensor) is None:
        return None
    held = tensor._values
    array: Array = onnx.numpy_helper.to_array(held.tensor) if isinstance(held, LazyValues) else held
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
