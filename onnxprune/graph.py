"""The graph view: onnx-graphsurgeon, and what it forgets on a round trip.

The only module that imports onnx-graphsurgeon. A `Model` holds a `gs.Graph` (its nodes and tensors are edited in place
by the passes and by the cut) beside the *header*: all that the library drops on export (metadata, doc strings, domain,
subgraph bodies, attribute kinds it does not know, the exact graph inputs and outputs) and that `to_proto` puts back.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.importers.onnx_importer import get_numpy_type
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.misc import SynchronizedList

from onnxprune.header import captured_by, declared, header_of
from onnxprune.stored import externalise

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
# Attributes that a node shows, by kind. Others (bodies, types, sparse tensors) and empty lists travel as they are.
_SHOWN = {_A.FLOAT: "f", _A.INT: "i", _A.STRING: "s", _A.TENSOR: "t"}
_SHOWN |= {_A.FLOATS: "floats", _A.INTS: "ints", _A.STRINGS: "strings"}


class Origin(NamedTuple):
    """A node as it was read: its message, and the attributes that the graph view shows, whose values nobody edits in
    place.
    """

    node: onnx.NodeProto
    attrs: dict[str, Any]


@dataclass
class Model:
    """A graph to edit and what is needed to write it back.

    graph: nodes, tensors, inputs and outputs; header: the original without nodes, initializers and value_info; origin:
    output name -> the node as it was read; captured: names that If/Loop/Scan bodies read from the outer graph;
    captured_tensors: the initializers among them; described: whether the file gave shapes of inner tensors
    (value_info); notes: what normalisation did, for the report.
    """

    graph: Graph
    header: onnx.ModelProto
    origin: dict[str, Origin]
    captured: frozenset[str]
    captured_tensors: dict[str, onnx.TensorProto]
    described: bool
    declared: dict[str, onnx.ValueInfoProto]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def opset(self) -> int:
        """Version of the default operator set."""
        return max((o.version for o in self.header.opset_import if o.domain in ("", "ai.onnx")), default=1)

    def copy(self) -> Model:
        """Copy nodes and tensors; the arrays of constants and the header are shared."""
        return replace(self, graph=_copied_graph(self.graph), notes=list(self.notes))

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
    header = header_of(proto)
    tensors: dict[str, Tensor] = {t.name: _constant(t.name, _Stored(t)) for t in proto.graph.initializer}
    origins = [_origin(n) for n in proto.graph.node]
    nodes = [_import_node(o, tensors) for o in origins]
    origin = {next((o for o in n.node.output if o), ""): n for n in origins}
    ends = [[_named(tensors, v.name) for v in values] for values in (header.graph.input, header.graph.output)]
    captured = frozenset(captured_by(o.node for o in origins if len(o.attrs) < len(o.node.attribute)))
    kept = {t.name: t for t in proto.graph.initializer if t.name in captured}
    return Model(_graph(nodes, *ends), header, origin, captured, kept, bool(proto.graph.value_info), declared(proto))


def _import_node(origin: Origin, tensors: dict[str, Tensor]) -> Node:
    source, attrs = origin
    inputs, outputs = ([_named(tensors, name) for name in names] for names in (source.input, source.output))
    domain = source.domain if source.HasField("domain") else None
    return _node(source.op_type, source.name, dict(attrs), inputs, outputs, domain)


def _named(tensors: dict[str, Tensor], name: str) -> Tensor:
    """The tensor of that name, new where there is none; an omitted input or output is a tensor of its own."""
    if not name:
        return _variable("")
    found = tensors.get(name)
    if found is None:
        found = tensors[name] = _variable(name)
    return found


def _shown(attributes: Iterable[onnx.AttributeProto]) -> dict[str, Any]:
    """Attributes as Python values; tensors as constants."""
    found: dict[str, Any] = {}
    for attr in attributes:
        field = _SHOWN.get(attr.type)
        if field is None:
            continue
        value = getattr(attr, field)
        if field == "s":
            value = value.decode()
        elif field == "t":
            value = _constant(value.name, _Stored(value))
        elif field not in ("f", "i"):
            value = [v.decode() for v in value] if field == "strings" else list(value)
            if not value:
                continue
        found[attr.name] = value
    return found


def _origin(node: onnx.NodeProto) -> Origin:
    """With a message of its own: a reference to one field of the model would keep all of it in memory."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return Origin(copy, _shown(copy.attribute))


class _Stored(LazyValues):  # type: ignore[misc]
    """The values of a tensor of the file, which are read when they are asked for."""

    def __init__(self, tensor: onnx.TensorProto) -> None:
        self.tensor, self.shape, self.dtype = tensor, tuple(tensor.dims), _kind(tensor.data_type)


element_type = cache(onnx.helper.np_dtype_to_tensor_dtype)  # ONNX's number of a numpy type; it builds a table each time


@cache
def _kind(data_type: int) -> np.dtype[Any] | int:
    """The numpy type, or ONNX's number where onnx-graphsurgeon knows none."""
    dtype = get_numpy_type(data_type)
    return data_type if dtype is None else np.dtype(dtype)


# ---- what the constructors of onnx-graphsurgeon do, in a fraction of the time -------------------------------------


def _variable(name: str) -> Variable:
    tensor = Variable.__new__(Variable)
    ends = {"inputs": _synced(tensor, "outputs"), "outputs": _synced(tensor, "inputs")}
    tensor.__dict__.update(name=name, dtype=None, shape=None, type="tensor_type", **ends)
    return tensor


def _constant(name: str, held: LazyValues | Array) -> Constant:
    tensor = Constant.__new__(Constant)
    ends = {"inputs": _synced(tensor, "outputs"), "outputs": _synced(tensor, "inputs")}
    tensor.__dict__.update(name=name, _values=held, data_location=None, _export_dtype=None, **ends)
    return tensor


def _node(
    op: str, name: str, attrs: dict[str, Any], inputs: list[Tensor], outputs: list[Tensor], domain: str | None
) -> Node:
    node = Node.__new__(Node)
    ends = {"inputs": _synced(node, "outputs", inputs), "outputs": _synced(node, "inputs", outputs)}
    node.__dict__.update(op=op, name=name, attrs=attrs, domain=domain, **ends)
    for tensor in inputs:
        list.append(tensor.outputs, node)
    for tensor in outputs:
        list.append(tensor.inputs, node)
    return node


def _synced(owner: Node | Tensor, field: str, items: Iterable[Any] = ()) -> Any:
    """A list that keeps the lists named `field` of its items up to date."""
    result = SynchronizedList.__new__(SynchronizedList)
    list.extend(result, items)
    result.parent_obj, result.field_name = owner, field
    return result


def _graph(nodes: list[Node], inputs: list[Tensor], outputs: list[Tensor]) -> Graph:
    graph = Graph([], inputs, outputs)
    graph.nodes = nodes  # given to the constructor, they would be searched for bodies
    return graph


def _copied_graph(graph: Graph) -> Graph:
    """New nodes and tensors; arrays and the values of attributes are shared."""
    tensors: dict[int, Tensor] = {}

    def new(old: Tensor) -> Tensor:
        if id(old) not in tensors:
            tensors[id(old)] = _constant(old.name, old._values) if is_constant(old) else _variable(old.name)
        return tensors[id(old)]

    nodes = [
        _node(n.op, n.name, dict(n.attrs), [new(t) for t in n.inputs], [new(t) for t in n.outputs], n.domain)
        for n in graph.nodes
    ]
    return _graph(nodes, [new(t) for t in graph.inputs], [new(t) for t in graph.outputs])


def _export(model: Model, weights: dict[str, Array] | None) -> onnx.ModelProto:
    """Nodes as onnx-graphsurgeon writes them; everything else from the header, and initializers with one copy of their
    data.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.header)
    g = proto.graph
    for node in model.graph.nodes:
        write_node(g.node.add(), model, node)
    constants = _outer_constants(model)
    for name, tensor in constants.items():
        target = g.initializer.add()
        if weights is None or not _move(target, name, tensor, weights):
            write_tensor(target, name, tensor)
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


def _move(target: onnx.TensorProto, name: str, tensor: Constant, weights: dict[str, Array]) -> bool:
    """Move a large weight to `weights`."""
    array = values(tensor)
    if array is None or array.nbytes < _LARGE:
        return False
    weights[name] = array
    target.name, target.data_type = name, element_type(array.dtype)
    target.dims.extend(array.shape)
    externalise(target, "weights", 0, array.nbytes)
    return True


def write_tensor(target: onnx.TensorProto, name: str, tensor: Constant) -> None:
    """Export an initializer with a copy of its data."""
    held = tensor._values
    if isinstance(held, LazyValues):
        target.CopyFrom(held.tensor)
        target.name = name
        return
    array = np.asarray(held)
    target.name, target.data_type = name, element_type(array.dtype)
    target.dims.extend(array.shape)
    target.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def write_node(target: onnx.NodeProto, model: Model, node: Node) -> None:
    """Export a node: a surviving one with its doc string, its metadata, and every attribute that did not change."""
    inputs, outputs = [t.name for t in node.inputs], [t.name for t in node.outputs]
    source = model.origin.get(next((o for o in outputs if o), ""))
    if source is None or source.node.op_type != node.op:
        target.CopyFrom(OnnxExporter.export_node(node))
        return
    target.CopyFrom(source.node)
    for names, now in ((target.input, inputs), (target.output, outputs)):
        if names != now:
            del names[:]
            names.extend(now)
    if node.attrs != source.attrs:
        _write_attributes(target, source, node.attrs)


def _write_attributes(target: onnx.NodeProto, source: Origin, attrs: dict[str, Any]) -> None:
    """Those that the graph view shows in their present order, then the others."""
    given = {a.name: a for a in source.node.attribute}
    target.ClearField("attribute")
    for name, value in attrs.items():
        same = name in source.attrs and value == source.attrs[name]
        target.attribute.append(given[name] if same else onnx.helper.make_attribute(name, value))
    target.attribute.extend(a for name, a in given.items() if name not in source.attrs)


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
    array: Array = _read(held) if isinstance(held, LazyValues) else held
    return array


def _read(held: LazyValues) -> Array:
    """What `numpy_helper.to_array` gives, without its detours for the usual case."""
    array: Array
    if sys.byteorder == "little" and isinstance(held.dtype, np.dtype) and held.tensor.HasField("raw_data"):
        array = np.frombuffer(held.tensor.raw_data, held.dtype).reshape(held.shape)
    else:
        array = onnx.numpy_helper.to_array(held.tensor)
    return array


def shape_of(constant: Constant) -> tuple[int, ...]:
    """Shape of an initializer, without loading it."""
    return tuple(constant.shape)


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
