"""The model as a file: shapes of inner tensors (value_info) are inferred again where the original gave any."""

from __future__ import annotations

import onnx

from onnxprune.graph import Model
from onnxprune.shapes import skeleton


def export(model: Model) -> onnx.ModelProto:
    """Write a model back; stale shapes never survive, and none are added to a file that had none."""
    proto = model.to_proto()
    if model.described:
        inferred = onnx.shape_inference.infer_shapes(skeleton(model)).graph.value_info
        outputs = {o.name for o in proto.graph.output}
        proto.graph.value_info.extend(v for v in inferred if v.name not in outputs)
    return proto
