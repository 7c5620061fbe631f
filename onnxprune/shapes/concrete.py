"""Concrete shapes of every tensor, for concrete inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import TypeAlias

import numpy as np
import onnx
from onnx import TypeProto, helper

from onnxprune.errors import DataError, ModelError, ResourceError, UsageError
from onnxprune.files import MAX_BYTES
from onnxprune.graph import (
    Constant,
    Model,
    Node,
    dtype_of,
    element_type,
    is_constant,
    shape_of,
    write_node,
    write_tensor,
)
from onnxprune.runtime import random_inputs, session
from onnxprune.shapes.symbolic import interpret

Shape: TypeAlias = tuple[int, ...]
_FEW, _FEWER = 1024, 16  # elements of an integer and of a float constant that shape inference may have to read
_HINT = "give it as --input-shape name:1,3,224,224"


def parse_input_shape(text: str) -> tuple[str, Shape]:
    """Read `name:1,3,224,224`; UsageError where it is something else."""
    name, _, dims = text.rpartition(":")  # names such as "input:0" hold a colon themselves
    try:
        shape = tuple(int(d) for d in dims.split(","))
    except ValueError:
        shape = ()
    if not name or not shape or min(shape) < 1:
        raise UsageError(f"--input-shape {text!r} is not of the form name:1,3,224,224 (sizes of at least 1)")
    return name, shape


def concrete_shapes(model: Model, input_shapes: Mapping[str, Shape] | None = None) -> dict[str, Shape]:
    """Shape of every tensor (initializers too) for concrete inputs.

    input_shapes: full shape of the inputs that need one; a symbolic batch size (first dimension) is 1 unless given, and
    a symbol takes the size that it has in another input that is given. A tensor whose shape cannot be found is left
    out. Raises UsageError where a size is missing, contradicts the model, or names no input; ResourceError where a
    tensor would not fit into memory.
    """
    inputs = _input_shapes(model, input_shapes or {})
    proto = skeleton(model)
    for info in proto.graph.input:
        if info.name in inputs:
            info.type.CopyFrom(helper.make_tensor_type_proto(info.type.tensor_type.elem_type, inputs[info.name]))
    proto.graph.value_info.extend(_declared_shapes(model, inputs))
    shapes = inputs | {name: shape_of(t) for name, t in model.constants().items()}
    wanted = {o for n in proto.graph.node for o in n.output if o}
    for find in (_inferred, _followed):
        if wanted - shapes.keys():
            shapes |= find(proto)
    _refuse_giants(shapes)
    if wanted - shapes.keys():
        shapes |= _run(model, inputs, wanted - shapes.keys())
    return shapes


def _declared_shapes(model: Model, inputs: Mapping[str, Shape]) -> Iterable[onnx.ValueInfoProto]:
    """What the file declares of custom operators: symbols get the inputs' numbers, a leading one is a batch of 1."""
    bound: dict[str, int] = {}
    for info in (i for i in model.header.graph.input if i.name in inputs):
        bound |= _match(info, inputs[info.name])
    for info in model.declared.values():
        declared = onnx.ValueInfoProto()
        declared.CopyFrom(info)
        for i, dim in enumerate(declared.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and (dim.dim_param in bound or i == 0):
                dim.dim_value = bound.get(dim.dim_param, 1)
        yield declared


def _refuse_giants(shapes: Mapping[str, Shape]) -> None:
    """A file of a hundred bytes can ask for a terabyte: refuse before anything is run."""
    name = max(shapes, key=lambda n: prod(shapes[n]), default="")
    if name and 4 * prod(shapes[name]) > MAX_BYTES:
        size = f"{4 * prod(shapes[name]) / 2**30:.0f} GB"
        raise ResourceError(
            f"tensor {name!r} of shape {_text(shapes[name])} would need {size} to run; the limit is "
            f"{MAX_BYTES >> 30} GB. If the model is what you think it is, try a smaller --input-shape"
        )


def _input_shapes(model: Model, given: Mapping[str, Shape]) -> dict[str, Shape]:
    infos = {i.name: i for i in model.header.graph.input if i.type.HasField("tensor_type")}
    for name in given:
        if name not in infos:
            raise UsageError(f"--input-shape {name}: the model has no such input; it has {', '.join(infos) or 'none'}")
    bound: dict[str, int] = {}
    for name, shape in given.items():
        bound |= _match(infos[name], shape)
    return {n: given[n] if n in given else _default(i, bound) for n, i in infos.items()}


def _match(info: onnx.ValueInfoProto, shape: Shape) -> dict[str, int]:
    """Sizes of the symbols of an input; UsageError where the shape contradicts what the model fixes."""
    tensor = info.type.tensor_type
    dims = list(tensor.shape.dim)
    fits = len(dims) == len(shape) and all(d.dim_value in (0, s) for d, s in zip(dims, shape, strict=True))
    if tensor.HasField("shape") and not fits:
        raise UsageError(f"--input-shape {info.name}:{_text(shape)} contradicts the model, which has {_declared(info)}")
    return {d.dim_param: s for d, s in zip(dims, shape, strict=False) if d.dim_param}


def _default(info: onnx.ValueInfoProto, bound: Mapping[str, int]) -> Shape:
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        raise UsageError(f"input {info.name!r} has no shape in the model: {_HINT}")
    shape = [d.dim_value if d.HasField("dim_value") else bound.get(d.dim_param, 0) for d in tensor.shape.dim]
    if shape and not tensor.shape.dim[0].HasField("dim_value"):
        shape[0] = shape[0] or 1
    if any(not s and not d.HasField("dim_value") for s, d in zip(shape, tensor.shape.dim, strict=True)):
        raise UsageError(f"input {info.name!r} has a symbolic size besides the batch, {_declared(info)}: {_HINT}")
    return tuple(shape)


def _declared(info: onnx.ValueInfoProto) -> str:
    dims = info.type.tensor_type.shape.dim
    return "[" + ", ".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in dims) + "]"


def _text(shape: Iterable[int]) -> str:
    return ",".join(map(str, shape))


def _inferred(proto: onnx.ModelProto) -> dict[str, Shape]:
    """What onnx finds by itself, on concrete inputs."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    known = {i.name: _fixed(i.type) for i in (*graph.value_info, *graph.output)}
    return {name: shape for name, shape in known.items() if shape is not None}


def _followed(proto: onnx.ModelProto) -> dict[str, Shape]:
    """What following the shape arithmetic finds: slower, and knows more."""
    known = {name: _fixed(kind) for name, kind in interpret(proto).types.items()}
    return {name: shape for name, shape in known.items() if shape is not None}


def _fixed(kind: TypeProto) -> Shape | None:
    tensor = kind.tensor_type
    fixed = tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim)
    return tuple(d.dim_value for d in tensor.shape.dim) if fixed else None


def _run(model: Model, inputs: Mapping[str, Shape], wanted: set[str]) -> dict[str, Shape]:
    """What one run on random inputs shows; nothing where the model does not run."""
    proto = model.to_proto()
    extra = sorted(wanted - {o.name for o in proto.graph.output})
    try:
        found = session(proto, extra=extra).run(random_inputs(proto, inputs, seed=0), sorted(wanted))
    except (ModelError, DataError):
        return {}
    return {name: a.shape for name, a in found.items() if isinstance(a, np.ndarray)}


def skeleton(model: Model, nodes: Iterable[Node] | None = None) -> onnx.ModelProto:
    """The model, or some of its nodes, without weights: larger constants become inputs with their type and shape."""
    proto = onnx.ModelProto(ir_version=model.header.ir_version, opset_import=model.header.opset_import)
    proto.functions.extend(model.header.functions)
    graph = proto.graph
    graph.name = "skeleton"
    if nodes is None:
        graph.input.extend(model.header.graph.input)
        graph.output.extend(onnx.ValueInfoProto(name=o.name) for o in model.header.graph.output)
    chosen = list(model.graph.nodes if nodes is None else nodes)
    for node in chosen:
        write_node(graph.node.add(), model, node)
    constants = {t.name: t for n in chosen for t in n.inputs if is_constant(t)}
    for name, constant in constants.items():
        if _is_small(constant):
            write_tensor(graph.initializer.add(), name, constant)
        else:
            _declare(graph.input.add(), constant)
    outer = [t for name, t in model.captured_tensors.items() if name not in constants] if nodes is None else []
    graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in outer)
    return proto


def _is_small(constant: Constant) -> bool:
    dtype, size = dtype_of(constant), prod(shape_of(constant))
    return dtype is not None and size <= (_FEW if dtype.kind in "iub" else _FEWER)


def _declare(target: onnx.ValueInfoProto, constant: Constant) -> None:
    """A constant as an input: its type and shape."""
    kind = constant.dtype
    target.name = constant.name
    target.type.tensor_type.elem_type = kind if isinstance(kind, int) else element_type(kind)
    dims = target.type.tensor_type.shape.dim
    for size in shape_of(constant):
        dims.add().dim_value = size
