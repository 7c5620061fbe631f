"""Constant nodes become initializers under the name of their output."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.graph import Array, Model, Node
from onnxprune.normalize.edit import SAFE, drop, is_standard, protected, to_constant

_NUMBERS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def constants_to_initializers(model: Model) -> int:
    """Turn Constant nodes into initializers; strings, 4-bit and sparse values and graph outputs stay."""
    keep = protected(model)
    done: list[Node] = []
    for node in model.graph.nodes:
        if node.op != "Constant" or not is_standard(node) or node.outputs[0].name in keep:
            continue
        array = _value(model.origin[node.outputs[0].name].node)
        if array is not None:
            to_constant(node.outputs[0], array)
            del model.origin[node.outputs[0].name]
            done.append(node)
    if done:
        drop(model, done)
    return len(done)


def _value(node: onnx.NodeProto) -> Array | None:
    """The array that a Constant node holds; None for kinds of element that the graph view must not touch."""
    attr = node.attribute[0]
    if attr.name == "value":
        return numpy_helper.to_array(attr.t) if attr.t.data_type in SAFE else None
    dtype = _NUMBERS.get(attr.name)
    return None if dtype is None else np.asarray(onnx.helper.get_attribute_value(attr), dtype)
