"""Shape arithmetic whose result is certain, whatever the batch size, becomes constants.

A value that is known in full becomes an initializer; the target of a Reshape or Expand becomes one when -1, 0 or 1 can
stand where a dynamic size is, and the sizes of a Resize become scales where the dynamic sizes are kept. The nodes that
computed them are then dead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import helper

from onnxprune.graph import Array, Constant, Model, Node, Tensor, constant, fresh_name, is_constant
from onnxprune.normalize.edit import drop, has_body, is_standard, protected, to_constant
from onnxprune.shapes.sizes import Dims, Element, Size, divide, known, volume
from onnxprune.shapes.symbolic import Facts

_OPERAND = {"Reshape": 1, "Expand": 1, "Resize": 3}  # where the computed shape comes in


def fix_shape_values(model: Model, follow: Callable[[], Facts]) -> int:
    """Replace what shape arithmetic is certain to compute; returns the number of tensors that became constants.

    follow: gives the shapes and values that are known of this model.
    """
    if not any(n.op in ("Shape", "Size") and is_standard(n) for n in model.graph.nodes):
        return 0
    facts = follow()
    done = _fix_values(model, facts)
    taken = model.names()
    for node in model.graph.nodes:
        index = _OPERAND.get(node.op, len(node.inputs))
        if index < len(node.inputs) and is_standard(node) and not is_constant(node.inputs[index]):
            array = _target(node, node.inputs[index], facts)
            if array is not None:
                _set_target(node, constant(fresh_name(f"{node.outputs[0].name}_shape", taken), array))
                done += 1
    return done


def _set_target(node: Node, target: Constant) -> None:
    if node.op == "Resize":  # scales instead of sizes
        node.inputs.pop()
        node.inputs[2] = target
    else:
        node.inputs[1] = target


def _fix_values(model: Model, facts: Facts) -> int:
    keep = protected(model)
    done: list[Node] = []
    for node in model.graph.nodes:
        outputs = [t for t in node.outputs if t.name]
        arrays = [_array(t, facts) for t in outputs]
        if has_body(model, node) or not keep.isdisjoint(t.name for t in outputs):
            continue
        if outputs and all(a is not None for a in arrays):
            for tensor, array in zip(outputs, arrays, strict=True):
                if array is not None:
                    to_constant(tensor, array)
            done.append(node)
    if done:
        drop(model, done)
    return len(done)


def _array(tensor: Tensor, facts: Facts) -> Array | None:
    """Value of an activation, where every element is certain."""
    value = facts.values.get(tensor.name)
    if value is None or not known(value) or tensor.name not in facts.types:
        return None
    return value.astype(helper.tensor_dtype_to_np_dtype(facts.types[tensor.name].tensor_type.elem_type))


def _target(node: Node, computed: Tensor, facts: Facts) -> Array | None:
    """A constant that does what the computed target does; None where that is not certain."""
    value, dims = facts.values.get(computed.name), facts.shapes.get(node.inputs[0].name)
    if value is None or dims is None:
        return None
    if node.op == "Resize":
        scales = None if _SPECIAL & node.attrs.keys() else resize_scales(dims, value.tolist())
        return None if scales is None else np.asarray(scales, np.float32)
    if node.op == "Expand":
        found = expand_target(dims, value.tolist())
    else:
        found = reshape_target(dims, value.tolist(), bool(node.attrs.get("allowzero", 0)))
    return None if found is None else np.asarray(found, np.int64)


_SPECIAL = {"axes", "keep_aspect_ratio_policy"}  # of a Resize whose sizes mean something else


def resize_scales(dims: Dims, target: Sequence[Element]) -> list[float] | None:
    """Scales of a Resize to these sizes, exactly as onnxruntime derives them; None where they would not lead back."""
    if len(dims) != len(target):
        return None
    scales: list[float] = []
    for d, t in zip(dims, target, strict=True):
        if isinstance(d, int) and isinstance(t, int) and d > 0:
            scale = np.float32(t) / np.float32(d)
            if int(np.float32(d) * scale) != t or int(d * float(scale)) != t:  # onnxruntime's arithmetic, and onnx's
                return None
            scales.append(float(scale))
        elif d is not None and d == t:
            scales.append(1.0)
        else:
            return None
    return scales


def reshape_target(dims: Dims, target: Sequence[Element], allowzero: bool) -> list[int] | None:
    """Constant target of a Reshape: 0 for a size that is kept, -1 for one other that is not a number.

    dims: shape of the input. Known sizes stay as they are: a channel number must remain visible.
    """
    if allowzero and 0 in target:
        return None
    out: list[int] = []
    for i, size in enumerate(target):
        if size == -1:
            rest = [dims[j] if t == 0 and j < len(dims) else t for j, t in enumerate(target) if j != i]
            found = divide(volume(dims), volume(rest))
            out.append(found if isinstance(found, int) else -1)
        elif isinstance(size, int):
            out.append(size)
        else:
            out.append(0 if not allowzero and _keeps(dims, i, size) else -1)
    return out if out.count(-1) <= 1 else None


def _keeps(dims: Dims, axis: int, size: Size | None) -> bool:
    return size is not None and axis < len(dims) and dims[axis] == size


def expand_target(dims: Dims, target: Sequence[Element]) -> list[int] | None:
    """Constant target of an Expand: 1 for every size that the input has already."""
    padded = (1,) * (len(target) - len(dims)) + dims
    aligned = (1,) * (len(dims) - len(target)) + tuple(target)
    out = [1 if t is not None and t == d else t for t, d in zip(aligned, padded, strict=True)][-len(target) :]
    numbers = [t for t in out if isinstance(t, int)]
    return numbers if len(numbers) == len(out) else None
