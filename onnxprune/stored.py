"""The tensors that a model stores: finding them all, their bytes, and splitting the large ones off.

Pure: nothing here reads a file, and no weight is kept in a second copy.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

PAGE = 4096  # data that starts on a page can be mapped into memory
_MIN_SPLIT = 1024  # bytes; smaller tensors may be shapes, which must be readable without the data
_SPLIT = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8")  # element types that are never shapes
_PACKED = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
BITS: dict[int, int] = {
    kind: _PACKED.get(name) or 8 * helper.tensor_dtype_to_np_dtype(kind).itemsize
    for name, kind in TensorProto.DataType.items()
    if name not in ("UNDEFINED", "STRING")
}


def stored_tensors(proto: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """All stored tensors with their names: initializers and attributes of nodes, in bodies and functions too."""
    queue: deque[GraphProto | FunctionProto] = deque([proto.graph, *proto.functions])
    while queue:
        body = queue.popleft()
        if isinstance(body, GraphProto):
            yield from _initializers(body)
        for node in body.node:
            yield from _attribute_tensors(node)
            queue.extend(subgraphs(node))


def _initializers(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    yield from ((t.name, t) for t in graph.initializer)
    for sparse in graph.sparse_initializer:
        yield sparse.values.name, sparse.values
        yield f"indices of {sparse.values.name}", sparse.indices


def _attribute_tensors(node: NodeProto) -> Iterator[tuple[str, TensorProto]]:
    for attr in node.attribute:
        if attr.HasField("t") or attr.tensors or attr.HasField("sparse_tensor"):
            name = node.output[0] if node.op_type == "Constant" and node.output else f"{attr.name} of {title(node)}"
            found = [attr.t] if attr.HasField("t") else []
            found += [attr.sparse_tensor.values] if attr.HasField("sparse_tensor") else []
            yield from ((name, t) for t in (*found, *attr.tensors))


def title(node: NodeProto) -> str:
    """The node as messages name it."""
    if node.name:
        return f"node '{node.name}' ({node.op_type})"
    return f"the {node.op_type} node that makes '{next(iter(node.output), '')}'"


def kind_name(tensor: TensorProto) -> str:
    """Element type as ONNX spells it."""
    kind = tensor.data_type
    return str(TensorProto.DataType.Name(kind)) if kind in TensorProto.DataType.values() else f"type {kind}"


def nbytes(tensor: TensorProto) -> int:
    """Bytes of a tensor in raw form, by its shape and element type; strings count as 0."""
    size: int = math.prod(tensor.dims)
    return (size * BITS.get(tensor.data_type, 0) + 7) // 8


def weights_bytes(proto: ModelProto) -> int:
    """Bytes of all stored tensors (by shape and type: works for models over 2 GB)."""
    return sum(nbytes(t) for _, t in stored_tensors(proto))


def split_weights(proto: ModelProto, location: str) -> tuple[ModelProto, list[TensorProto]]:
    """The model with its large initializers as external data in `location`, and those initializers in file order.

    proto: not changed, and its weights are not copied. Every tensor starts on a page of the file.
    """
    light = ModelProto()
    copy_fields(proto, light, "graph")
    copy_fields(proto.graph, light.graph, "initializer")
    moved, offset = [], 0
    for tensor in proto.graph.initializer:
        size = nbytes(tensor)
        if size < _MIN_SPLIT or kind_name(tensor) not in _SPLIT or not tensor.HasField("raw_data"):
            light.graph.initializer.append(tensor)
            continue
        entry = light.graph.initializer.add()
        copy_fields(tensor, entry, "raw_data", "data_location", "external_data")
        externalise(entry, location, offset, size)
        moved.append(tensor)
        offset += size + -size % PAGE
    return light, moved


def file_bytes(proto: ModelProto) -> int:
    """Bytes of the model as one file, without serialising its weights (`ByteSize` would)."""
    outer, graph = ModelProto(), GraphProto()
    copy_fields(proto, outer, "graph")
    copy_fields(proto.graph, graph, "initializer")
    inner = graph.ByteSize() + sum(_field(_tensor_bytes(t)) for t in proto.graph.initializer)
    return int(outer.ByteSize()) + _field(inner)


def serialised(proto: ModelProto) -> Iterator[bytes]:
    """The bytes of `SerializeToString(deterministic=True)` in pieces, so that the weights are not copied as a whole."""
    head, tail = _halves(proto, ModelProto.GRAPH_FIELD_NUMBER)
    first, last = _halves(proto.graph, GraphProto.INITIALIZER_FIELD_NUMBER)
    inner = len(first) + len(last) + sum(_field(_tensor_bytes(t)) for t in proto.graph.initializer)
    yield head + _tag(ModelProto.GRAPH_FIELD_NUMBER, inner) + first
    for tensor in proto.graph.initializer:
        content = tensor.SerializeToString(deterministic=True)
        yield _tag(GraphProto.INITIALIZER_FIELD_NUMBER, len(content))
        yield content
    yield last + tail


def _halves(message: Message, number: int) -> tuple[bytes, bytes]:
    """What is written of a message before and after one of its fields."""
    fields = message.DESCRIPTOR.fields
    halves = []
    for other in ({f.name for f in fields if f.number >= number}, {f.name for f in fields if f.number <= number}):
        half = type(message)()
        copy_fields(message, half, *other)
        halves.append(half.SerializeToString(deterministic=True))
    return halves[0], halves[1]


def _tag(number: int, size: int) -> bytes:
    """How a length-delimited field with a number up to 15 begins; lengths are written in groups of 7 bits."""
    out = [number << 3 | 2]
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


def _tensor_bytes(tensor: TensorProto) -> int:
    if not tensor.HasField("raw_data"):
        return int(tensor.ByteSize())
    light = TensorProto()
    copy_fields(tensor, light, "raw_data")
    return int(light.ByteSize()) + _field(nbytes(tensor))


def _field(size: int) -> int:
    """Bytes of a length-delimited field of up to 15 as its number: tag, length, content."""
    return 1 + max(1, -(-size.bit_length() // 7)) + size


def externalise(entry: TensorProto, location: str, offset: int, size: int) -> None:
    """Let a tensor without data say that its bytes are in a file."""
    entry.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(size))):
        entry.external_data.add(key=key, value=value)


def copy_fields(source: Message, target: Message, *but: str) -> None:
    """Copy every field that is set, but for those named `but`."""
    for fd, value in source.ListFields():
        if fd.name in but:
            continue
        if isinstance(value, int | float | str | bytes):
            setattr(target, fd.name, value)
        else:
            getattr(target, fd.name).MergeFrom(value)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Bodies of a control-flow node."""
    for attr in node.attribute:
        if attr.type == AttributeProto.GRAPH:
            yield attr.g
        yield from attr.graphs


def reads(node: NodeProto) -> set[str]:
    """Tensors that a node reads, in its bodies too."""
    names, bodies = {i for i in node.input if i}, list(subgraphs(node))
    while bodies:
        body = bodies.pop()
        names |= {i for n in body.node for i in n.input if i} | {o.name for o in body.output}
        bodies += [inner for n in body.node for inner in subgraphs(n)]
    return names
