"""What changed between two models: widths, parameters, attributes, nodes, signature, versions, metadata, size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar
from zlib import crc32

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper, numpy_helper

from onnxprune.stored import kind_name, nbytes, weights_bytes

_SMALL = 64  # elements of an integer constant that is shown, such as the target of a Reshape
_PROTOBUF_LIMIT = 2 << 30
_CONSTANTS = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
_A = AttributeProto
_PLAIN = (_A.INT, _A.INTS, _A.FLOAT, _A.FLOATS, _A.STRING, _A.STRINGS)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change:
    """A named value before and after, JSON-ready; None where it does not exist."""

    name: str
    before: Any
    after: Any

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "before": self.before, "after": self.after}


Changes = tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Everything that differs between two models; empty members where nothing does.

    widths: parameters whose shape changed; types: whose element type changed; values: parameters of the same shape with
    other values, shown where they are few integers (Reshape targets) and else as a checksum; parameters, nodes: those
    that only one of the models has (shape or op type); attributes: named node.attribute; size: parameters, their bytes
    and those of the whole model, always given.
    """

    widths: Changes
    types: Changes
    values: Changes
    parameters: Changes
    nodes: Changes
    attributes: Changes
    inputs: Changes
    outputs: Changes
    versions: Changes
    metadata: Changes
    size: Changes

    def __bool__(self) -> bool:
        """Whether anything differs."""
        told = any(getattr(self, f.name) for f in fields(self) if f.name != "size")
        return told or any(c.before != c.after for c in self.size)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with stable keys."""
        members = {f.name: [c.as_dict() for c in getattr(self, f.name)] for f in fields(self)}
        return {"differs": bool(self), **members}


def diff(before: ModelProto, after: ModelProto) -> Difference:
    """Compare two models by the names of their parameters and nodes; a Constant node counts as a parameter."""
    old, new = _parameters(before), _parameters(after)
    both = [n for n in old if n in new]
    same = [n for n in both if _dims(old[n]) == _dims(new[n]) and old[n].data_type == new[n].data_type]
    nodes, other_nodes = _nodes(before), _nodes(after)
    size, other_size = _size(before, old), _size(after, new)
    return Difference(
        widths=_differing(both, old, new, _dims),
        types=_differing(both, old, new, lambda t: kind_name(t).lower()),
        values=_differing([n for n in same if not _equal(old[n], new[n])], old, new, _shown),
        parameters=_only(old, new, _dims),
        nodes=_only(nodes, other_nodes, lambda n: n.op_type),
        attributes=_changes(_attributes(nodes, other_nodes), _attributes(other_nodes, nodes)),
        inputs=_changes(_signature(before.graph.input, old), _signature(after.graph.input, new)),
        outputs=_changes(_signature(before.graph.output, {}), _signature(after.graph.output, {})),
        versions=_changes(_versions(before), _versions(after)),
        metadata=_changes(_metadata(before), _metadata(after)),
        size=tuple(Change(name, size[name], other_size[name]) for name in size),
    )


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """Entries of two tables that differ, those of the first in their order, then the new ones."""
    names = dict.fromkeys([*before, *after])
    return tuple(Change(n, before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n))


def _differing(
    names: Iterable[str], before: Mapping[str, T], after: Mapping[str, T], show: Callable[[T], object]
) -> Changes:
    """Entries of both tables that show different things."""
    return _changes({n: show(before[n]) for n in names}, {n: show(after[n]) for n in names})


def _only(before: Mapping[str, T], after: Mapping[str, T], show: Callable[[T], object]) -> Changes:
    """Entries that one table lacks."""
    gone = [Change(n, show(v), None) for n, v in before.items() if n not in after]
    return (*gone, *(Change(n, None, show(v)) for n, v in after.items() if n not in before))


# ---- parameters ---------------------------------------------------------------------------------------------------


def _parameters(proto: ModelProto) -> dict[str, TensorProto]:
    """Initializers, and the values of Constant nodes, which normalisation turns into initializers."""
    constants = ((n.output[0], _constant(n)) for n in proto.graph.node if n.op_type == "Constant")
    return {t.name: t for t in proto.graph.initializer} | {name: t for name, t in constants if t is not None}


def _constant(node: NodeProto) -> TensorProto | None:
    """Value of a Constant node as a tensor; None where it is text or sparse."""
    attribute = next(iter(node.attribute), AttributeProto())
    if attribute.HasField("t"):
        return attribute.t
    dtype = _CONSTANTS.get(attribute.name)
    if dtype is None:
        return None
    tensor: TensorProto = numpy_helper.from_array(np.asarray(helper.get_attribute_value(attribute), dtype))
    return tensor


def _dims(tensor: TensorProto) -> list[int]:
    return list(tensor.dims)


def _equal(a: TensorProto, b: TensorProto) -> bool:
    return _bytes(a) == _bytes(b)


def _bytes(tensor: TensorProto) -> bytes:
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    if tensor.data_type == TensorProto.STRING:
        return b"\0".join(tensor.string_data)
    return numpy_helper.to_array(tensor).tobytes()


def _shown(tensor: TensorProto) -> object:
    """The value of a few integers; a checksum of anything else."""
    if tensor.data_type in (TensorProto.INT64, TensorProto.INT32) and math.prod(tensor.dims) <= _SMALL:
        return numpy_helper.to_array(tensor).tolist()
    return f"crc32 {crc32(_bytes(tensor)):08x}"


def _size(proto: ModelProto, parameters: Mapping[str, TensorProto]) -> dict[str, int]:
    weights = weights_bytes(proto)
    return {
        "parameters": sum(math.prod(t.dims) for t in parameters.values()),
        "parameter_bytes": sum(map(nbytes, parameters.values())),
        "bytes": proto.ByteSize() if weights < _PROTOBUF_LIMIT else weights,  # protobuf cannot measure more
    }


# ---- nodes --------------------------------------------------------------------------------------------------------


def _nodes(proto: ModelProto) -> dict[str, NodeProto]:
    """Nodes by name, or by their first output where they have none or share it."""
    found: dict[str, NodeProto] = {}
    for node in proto.graph.node:
        if node.op_type != "Constant" or _constant(node) is None:
            key = node.name if node.name and node.name not in found else next((o for o in node.output if o), "")
            found[key] = node
    return found


def _attributes(nodes: Mapping[str, NodeProto], others: Mapping[str, NodeProto]) -> dict[str, Any]:
    """Op type, domain and attributes of the nodes that both models have."""
    table: dict[str, Any] = {}
    for name, node in nodes.items():
        if name in others:
            table[f"{name}.op_type"] = f"{node.domain}.{node.op_type}".lstrip(".")
            table |= {f"{name}.{a.name}": _attribute(a) for a in node.attribute}
    return table


def _attribute(attribute: AttributeProto) -> object:
    """Numbers and texts as they are; of graphs and tensors what is enough to see a difference."""
    if attribute.type in _PLAIN:
        return _plain(helper.get_attribute_value(attribute))
    content = attribute.SerializeToString(deterministic=True)
    kind = AttributeProto.AttributeType.Name(attribute.type).lower()
    return f"{kind} of {len(content)} bytes, crc32 {crc32(content):08x}"


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return [_plain(v) for v in value] if isinstance(value, list) else value


# ---- header -------------------------------------------------------------------------------------------------------


def _signature(infos: Iterable[ValueInfoProto], weights: Mapping[str, Any]) -> dict[str, str]:
    return {i.name: _type(i.type) for i in infos if i.name not in weights}


def _type(kind: TypeProto) -> str:
    if not kind.HasField("tensor_type"):
        return kind.WhichOneof("value") or "unknown"
    tensor = kind.tensor_type
    name = TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return f"{name} of any shape"
    dims = (str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
    return f"{name} [{', '.join(dims)}]"


def _versions(proto: ModelProto) -> dict[str, Any]:
    table: dict[str, Any] = {"IR version": proto.ir_version}
    table |= {f"opset {o.domain or 'ai.onnx'}": o.version for o in proto.opset_import}
    names = ("producer_name", "producer_version", "domain", "model_version", "doc_string")
    table |= {n: getattr(proto, n) for n in names if proto.HasField(n)}
    return table | {f"function {f.domain}.{f.name}": len(f.node) for f in proto.functions}


def _metadata(proto: ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in proto.metadata_props}
