"""Which initializers of a graph are weights that training may change, and how trained ones are put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph import FLOATS, Array, Constant, Model, Node, Tensor, dtype_of, is_constant, shape_of
from onnxprune.runtime import input_specs

# op -> inputs that are weights; everything else (statistics, bounds, anchors, input scaling) stays as it is
SLOTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "GRU": (1, 2, 3),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
    "SimplifiedLayerNormalization": (1,),
}
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_MOVES = {"Cast", "DequantizeLinear", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


def trainable(model: Model) -> list[str]:
    """Names of the initializers that layers read as weights, in order of first use; those stored as whole numbers are
    among them where DequantizeLinear makes floats of them.
    """
    return list(dict.fromkeys(t.name for node in model.graph.nodes for slot in _weights(node) for t in _origin(slot)))


def _weights(node: Node) -> Iterator[Tensor]:
    """Tensors that a node reads as weights; of an Add, the bias of the layer that makes the other operand."""
    for slot in SLOTS.get(node.op, ()):
        if slot < len(node.inputs):
            yield node.inputs[slot]
    if node.op == "Add":
        a, b = node.inputs
        for bias, other in ((a, b), (b, a)):
            if other.inputs and other.inputs[0].op in _LAYERS:
                yield bias


def _origin(tensor: Tensor) -> Iterator[Constant]:
    """The initializer that a tensor is, or is a rearranged copy of."""
    op = ""
    while tensor.inputs and tensor.inputs[0].op in _MOVES:
        op = tensor.inputs[0].op
        tensor = tensor.inputs[0].inputs[0]
    if is_constant(tensor) and (dtype_of(tensor) in FLOATS or (op == "DequantizeLinear" and dtype_of(tensor))):
        yield tensor


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Shapes of all initializers."""
    return {name: shape_of(tensor) for name, tensor in model.constants().items()}


def with_weights(proto: onnx.ModelProto, arrays: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy of a model with other values in some initializers; all else stays as it is.

    arrays: by initializer, of its shape and element type. Raises ModelError where one does not fit, or is not there.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    held = {t.name: t for t in result.graph.initializer}
    for name, array in arrays.items():
        tensor = held.get(name)
        if tensor is None:
            raise ModelError(f"the model has no initializer '{name}'")
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if tuple(tensor.dims) != array.shape or kind != array.dtype:
            raise ModelError(
                f"'{name}' is {kind} {list(tensor.dims)} in the model; it cannot become {array.dtype} "
                f"{list(array.shape)}"
            )
        doc = tensor.doc_string
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
        if doc:
            tensor.doc_string = doc
    return result


def check_signature(student: onnx.ModelProto, teacher: onnx.ModelProto) -> None:
    """Raise ModelError unless both take and give the same."""
    problems = []
    for what, a, b in (
        ("inputs", *([(s.name, str(s.dtype)) for s in input_specs(m)] for m in (student, teacher))),
        ("outputs", *([(o.name, "") for o in m.graph.output] for m in (student, teacher))),
    ):
        if a != b:
            shown = [", ".join(" ".join(filter(None, pair)) for pair in names) for names in (a, b)]
            problems.append(f"the {what} of the model are {shown[0]}, those of the teacher {shown[1]}")
    if problems:
        raise ModelError(f"{'; '.join(problems)}: the teacher must be the original of the model")
