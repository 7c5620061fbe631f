"""Shape arithmetic whose result is certain, whatever the batch size, becomes constants.

A value that is known in full becomes an initializer; the target of a Reshape or Expand becomes one when -1, 0 or 1 can
stand where a dynamic size is. The nodes that computed it are then dead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import helper

from onnxprune.graph import Array, Model, Node, Tensor, constant, fresh_name, is_constant
from onnxprune.normalize.edit import drop, has_body, is_standard, protected, to_constant
from onnxprune.sizes import Dims, Element, Size, divide, known, volume
from onnxprune.symbolic import Facts


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
        if node.op in ("Reshape", "Expand") and is_standard(node) and not is_constant(node.inputs[1]):
            target = _target(node, facts)
            if target is not None:
                name = fresh_name(f"{node.outputs[0].name}_shape", taken)
                node.inputs[1] = constant(name, np.asarray(target, np.int64))
                done += 1
    return done


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


def _target(node: Node, facts: Facts) -> list[int] | None:
    """A constant that does what the computed target does; None where that is not certain."""
    value, dims = facts.values.get(node.inputs[1].name), facts.shapes.get(node.inputs[0].name)
    if value is None or dims is None:
        return None
    if node.op == "Expand":
        return expand_target(dims, value.tolist())
    return reshape_target(dims, value.tolist(), bool(node.attrs.get("allowzero", 0)))


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
