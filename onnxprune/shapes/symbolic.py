"""Shapes, and values of shape arithmetic, with symbolic dimensions: one walk over a model without weights.

onnx infers the outputs of each node; what it cannot follow (a Reshape to a target computed from a dynamic batch size)
is followed here. Unlike `infer_shapes(data_prop=True)` the walk is exact for products such as 12*N, resolves a whole
chain of such Reshapes at once, and cannot be made to fill the memory (24 nodes of Concat(x, x) make onnx take 5 GB).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, TypeProto, helper, numpy_helper

from onnxprune.shapes import sizes
from onnxprune.shapes.shape_ops import LIMIT, evaluate
from onnxprune.shapes.sizes import Dims, Element, Size, Vector

_INTEGERS: dict[int, type[np.generic]] = {
    TensorProto.INT64: np.int64,
    TensorProto.INT32: np.int32,
    TensorProto.BOOL: np.bool_,
}
_SAME = {"GroupNormalization", "MeanVarianceNormalization"}  # not inferred by onnx; the output is like the input
_NO_NAME = {"", "?", "None", "none"}  # what exporters write for "unknown": not one and the same size


@dataclass
class Facts:
    """What is certain about the tensors of a model.

    types: onnx type of each tensor, every dimension a number or a name; shapes: the same as Elements;
    values: integer tensors of at most 1,024 elements.
    """

    types: dict[str, TypeProto] = field(default_factory=dict)
    shapes: dict[str, Dims] = field(default_factory=dict)
    values: dict[str, Vector] = field(default_factory=dict)


def interpret(proto: onnx.ModelProto) -> Facts:
    """Follow shapes and shape arithmetic through a model (subgraphs and unknown ops: nothing is known)."""
    walk = _Walk(proto)
    for node in proto.graph.node:
        walk.visit(node)
    return walk.facts


class _Walk:
    def __init__(self, proto: onnx.ModelProto) -> None:
        self.opsets = list(proto.opset_import)
        self.versions = {o.domain or "ai.onnx": o.version for o in self.opsets}
        self.tensors: dict[str, TensorProto] = {}
        self.sizes: dict[str, Size] = {}  # name of a dimension -> what it stands for
        self.schemas: dict[tuple[str, str], onnx.defs.OpSchema | None] = {}
        self.facts = Facts()
        for info in proto.graph.input:
            self.set_type(info.name, _distinct(info))
        for tensor in proto.graph.initializer:
            self.set_tensor(tensor)

    def set_tensor(self, tensor: TensorProto) -> None:
        self.set_type(tensor.name, helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims)))
        self.tensors[tensor.name] = tensor
        if tensor.data_type in _INTEGERS and prod(tensor.dims) <= LIMIT:
            self.facts.values[tensor.name] = numpy_helper.to_array(tensor).astype(np.int64).astype(object)

    def set_type(self, name: str, kind: TypeProto, dims: Dims | None = None) -> None:
        """Note the type of a tensor; a dimension without a size gets a name of its own."""
        self.facts.types[name] = kind
        tensor = kind.tensor_type
        if not tensor.HasField("shape") and dims is None:
            return
        old = [self.element(d) for d in tensor.shape.dim] if tensor.HasField("shape") else [None] * len(dims or ())
        merged = [a if isinstance(a, int) or b is None else b for a, b in zip(old, dims or old, strict=True)]
        final = tuple(Size(1, (f"{name}@{i}",)) if e is None else e for i, e in enumerate(merged))
        self.sizes.update({str(e): e for e in final if isinstance(e, Size)})
        shape = [str(e) if isinstance(e, Size) else e for e in final]
        self.facts.types[name] = helper.make_tensor_type_proto(tensor.elem_type, shape)
        self.facts.shapes[name] = final

    def element(self, dim: onnx.TensorShapeProto.Dimension) -> Element:
        if dim.HasField("dim_value"):
            return int(dim.dim_value)
        return self.sizes.get(dim.dim_param, Size(1, (dim.dim_param,))) if dim.dim_param else None

    def visit(self, node: NodeProto) -> None:
        kinds = self.infer(node)
        values = self.evaluate(node)
        for i, name in enumerate(node.output):
            value = values[i] if i < len(values) else None
            if name in kinds:
                dims = self.shape(node) if value is None else value.shape
                known = _rank(kinds[name])
                self.set_type(name, kinds[name], dims if dims is not None and known in (None, len(dims)) else None)
            if value is not None:
                self.facts.values[name] = value

    def infer(self, node: NodeProto) -> Mapping[str, TypeProto]:
        """Types of the outputs according to onnx; empty where it does not know the op or its inputs."""
        names = [n for n in node.input if n]
        schema = self.schema(node)
        if schema is None or any(n not in self.facts.types for n in names) or _has_body(node):
            return {}
        data = {n: t for n in names if (t := self.tensor(n)) is not None}
        types = {n: self.facts.types[n] for n in names}
        if not schema.has_type_and_shape_inference_function and node.op_type in _SAME:
            return {node.output[0]: types[names[0]]}
        try:
            kinds = onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=self.opsets)
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
            return {}
        if any(isinstance(d, Size) for n in names for d in self.facts.shapes.get(n, ())):
            _drop_zeros(kinds.values())
        return kinds

    def schema(self, node: NodeProto) -> onnx.defs.OpSchema | None:
        key = (node.op_type, node.domain)
        if key not in self.schemas:
            version = self.versions.get(node.domain or "ai.onnx", 1)
            has = onnx.defs.has(node.op_type, version, node.domain)
            self.schemas[key] = onnx.defs.get_schema(node.op_type, version, node.domain) if has else None
        return self.schemas[key]

    def tensor(self, name: str) -> TensorProto | None:
        """A constant, or the result of shape arithmetic that is known in full."""
        value = self.facts.values.get(name)
        if name not in self.tensors and value is not None and sizes.known(value) and name in self.facts.types:
            dtype = _INTEGERS[self.facts.types[name].tensor_type.elem_type]
            self.tensors[name] = numpy_helper.from_array(value.astype(dtype), name)
        return self.tensors.get(name)

    def evaluate(self, node: NodeProto) -> Sequence[Vector]:
        if node.domain not in ("", "ai.onnx"):
            return []
        attrs = {"num_outputs": len(node.output)} | {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in ("Shape", "Size"):
            return self.dimensions(node, attrs)
        inputs = [self.facts.values.get(n) for n in node.input]
        if any(n and v is None for n, v in zip(node.input, inputs, strict=True)):
            return []
        return [_checked(v) for v in evaluate(node.op_type, attrs, inputs)]

    def dimensions(self, node: NodeProto, attrs: Mapping[str, Any]) -> Sequence[Vector]:
        dims = self.facts.shapes.get(node.input[0])
        if dims is None:
            return []
        if node.op_type == "Size":
            return [sizes.vector([sizes.volume(dims)]).reshape([])]
        return [sizes.vector(dims[attrs.get("start", 0) : attrs.get("end")])]

    def shape(self, node: NodeProto) -> Dims | None:
        """Shape of the output of an op that takes its shape from a value."""
        value = self.facts.values.get(node.input[-1]) if node.input else None
        if node.op_type not in _FROM_VALUE or value is None or node.domain not in ("", "ai.onnx"):
            return None
        dims = self.facts.shapes.get(node.input[0])
        target: list[Element] = value.tolist()
        if node.op_type == "Reshape":
            return sizes.reshaped(dims, target, any(a.name == "allowzero" and a.i for a in node.attribute))
        if node.op_type == "ConstantOfShape":
            return tuple(target)
        if dims is None:
            return None
        if node.op_type == "Tile":
            return tuple(map(sizes.multiply, dims, target))
        return sizes.expanded(dims, target)


_FROM_VALUE = {"Reshape", "Expand", "Tile", "ConstantOfShape"}


def _checked(value: Vector) -> Vector:
    """What does not fit into 64 bits is not known."""
    return sizes.each(lambda e: e if not isinstance(e, int) or -(2**63) <= e < 2**63 else None, value)


def _rank(kind: TypeProto) -> int | None:
    tensor = kind.tensor_type
    return len(tensor.shape.dim) if tensor.HasField("shape") else None


def _drop_zeros(kinds: Iterable[TypeProto]) -> None:
    """Some ops of onnx (Attention) calculate with a symbolic size as if it were 0."""
    for kind in kinds:
        for dim in kind.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value == 0:
                dim.ClearField("dim_value")


def _has_body(node: NodeProto) -> bool:
    return any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)


def _distinct(info: onnx.ValueInfoProto) -> TypeProto:
    """Type of an input; a name that means nothing, or stands for two of its dimensions, is dropped."""
    kind = TypeProto()
    kind.CopyFrom(info.type)
    params = [d.dim_param for d in kind.tensor_type.shape.dim]
    for dim in kind.tensor_type.shape.dim:
        if dim.dim_param in _NO_NAME or params.count(dim.dim_param) > 1:
            dim.ClearField("dim_param")
    return kind
