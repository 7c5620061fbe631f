"""Where a network's scores and the tensor before its classifier are, in the pruned model and in its original."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from onnxprune import files
from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.graph import Array, Model, Node, from_proto, is_constant, shape_of
from onnxprune.plan import Plan, loads

_BEHIND = {"Add", "Flatten", "Identity", "LogSoftmax", "Reshape", "Sigmoid", "Softmax", "Squeeze"}
_INPUTS = {"Conv": 1, "MatMul": 0}  # axis of the weight that its inputs lie along; Gemm: by transB


def scores_tensor(proto: onnx.ModelProto, output: str) -> str:
    """The tensor that holds the scores of an output before any softmax: its softmax is that of the output."""
    node = next((n for n in proto.graph.node if output in n.output), None)
    return node.input[0] if node is not None and node.op_type in ("Softmax", "LogSoftmax") else output


def pre_classifier(
    student: onnx.ModelProto, teacher: onnx.ModelProto, output: str, plan: Plan | str | Path | None
) -> tuple[str, str, Array | None]:
    """The student's tensor before its last layer, the teacher's, and the channels of it that the student has (None:
    all).

    plan: of the cut, needed where channels were removed. Raises UnsupportedError, UsageError.
    """
    model, original = from_proto(student), from_proto(teacher)
    node, other = _classifier(model, output), _classifier(original, output)
    tensor, wide = node.inputs[0].name, other.inputs[0].name
    axis = _INPUTS.get(node.op, 1 if node.attrs.get("transB") else 0)
    weight = node.inputs[1].name
    sizes = [shape_of(n.inputs[1])[axis] for n in (node, other)]
    if sizes[0] == sizes[1]:
        return tensor, wide, None
    if plan is None:
        raise UsageError(
            f"--beta compares '{tensor}', which has {sizes[0]} of {sizes[1]} channels: give the plan with --plan"
        )
    decided = plan if isinstance(plan, Plan) else loads(files.read_bytes(plan))
    kept = decided.keep.get(weight, {}).get(axis)
    if kept is None or len(kept) != sizes[0] or max(kept) >= sizes[1]:
        raise UsageError(f"the plan does not say which {sizes[0]} of {sizes[1]} inputs of '{weight}' were kept")
    return tensor, wide, np.asarray(kept)


def _classifier(model: Model, output: str) -> Node:
    """The last layer with weights before an output."""
    node = next((n for n in model.graph.nodes if any(o.name == output for o in n.outputs)), None)
    while node is not None and node.op in _BEHIND:
        above = [t.inputs[0] for t in node.inputs if t.inputs]
        node = above[0] if above else None
    if node is None or node.op not in ("Conv", "Gemm", "MatMul") or not is_constant(node.inputs[1]):
        raise UnsupportedError(f"--beta: there is no layer with stored weights right before the output '{output}'")
    return node
