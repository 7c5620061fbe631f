"""How shape arithmetic is evaluated: one small function per op, on integer tensors of Elements (see sizes.py).

A function takes the node's attributes (with `num_outputs`) and its inputs and returns one tensor, or a list where the
op has several outputs. It may raise one of `FAILURES`: then nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.shapes import sizes
from onnxprune.shapes.sizes import Element, Vector, each

LIMIT = 1024  # elements; a shape is never longer, and a chain of Concat could ask for any amount of memory
Attrs = Mapping[str, Any]
ShapeOp = Callable[..., NDArray[Any] | list[NDArray[Any]]]
FAILURES = (ValueError, IndexError, KeyError, TypeError)
SHAPE_OPS: dict[str, ShapeOp] = {}
_INTEGERS = {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}


def evaluate(op: str, attrs: Attrs, inputs: Sequence[Vector | None]) -> list[Vector]:
    """Outputs of a node of shape arithmetic; empty where the op is not one or an input is not known.

    inputs: None for an optional input that is left out.
    """
    rule = SHAPE_OPS.get(op)
    if rule is None:
        return []
    try:
        out = rule(attrs, *inputs)
    except FAILURES:
        return []
    outputs = out if isinstance(out, list) else [out]
    return outputs if all(o.size <= LIMIT for o in outputs) else []


def shape_op(*names: str) -> Callable[[ShapeOp], ShapeOp]:
    """Register a function for some ops."""

    def register(function: ShapeOp) -> ShapeOp:
        SHAPE_OPS.update(dict.fromkeys(names, function))
        return function

    return register


def numbers(v: Vector) -> list[int]:
    """All elements as numbers; ValueError where one is not certain."""
    if not sizes.known(v):
        raise ValueError("not a constant")
    return [int(e) for e in v.flat]


def _limited(shape: Sequence[int]) -> tuple[int, ...]:
    if np.prod([float(d) for d in shape]) > LIMIT:
        raise ValueError("too large")
    return tuple(shape)


def _axes(attrs: Attrs, axes: Vector | None) -> list[int] | None:
    """Axes from the input (opset 13 on) or the attribute (before)."""
    return numbers(axes) if axes is not None else attrs.get("axes")


@shape_op("Identity")
def _identity(_: Attrs, x: Vector) -> Vector:
    return x


@shape_op("Cast")
def _cast(attrs: Attrs, x: Vector) -> Vector:
    if attrs["to"] not in _INTEGERS:
        raise ValueError("not an integer")
    if attrs["to"] == onnx.TensorProto.BOOL:
        return each(lambda e: int(e != 0) if isinstance(e, int) else None, x)
    return x


@shape_op("Gather")
def _gather(attrs: Attrs, x: Vector, indices: Vector) -> Vector:
    at = np.asarray(numbers(indices), dtype=np.int64).reshape(indices.shape)
    return np.asarray(np.take(x, at, axis=attrs.get("axis", 0)), dtype=x.dtype)


@shape_op("Slice")
def _slice(attrs: Attrs, x: Vector, *bounds: Vector | None) -> Vector:
    starts, ends, axes, steps = (*bounds, None, None, None, None)[:4]
    first = numbers(starts) if starts is not None else attrs["starts"]
    last = numbers(ends) if ends is not None else attrs["ends"]
    over = _axes(attrs, axes) or range(len(first))
    stride = numbers(steps) if steps is not None else [1] * len(first)
    where = [slice(None)] * x.ndim
    for a, *span in zip(over, first, last, stride, strict=True):
        where[a] = slice(*span)
    return x[tuple(where)]


@shape_op("Concat")
def _concat(attrs: Attrs, *xs: Vector) -> Vector:
    _limited([sum(x.size for x in xs)])
    return np.concatenate(xs, axis=attrs["axis"])


@shape_op("Split")
def _split(attrs: Attrs, x: Vector, split: Vector | None = None) -> list[Vector]:
    axis = attrs.get("axis", 0)
    lengths = numbers(split) if split is not None else attrs.get("split")
    if lengths is None:  # equal parts, the last one smaller where they do not fit
        size = -(-x.shape[axis] // attrs["num_outputs"])
        lengths = [size] * attrs["num_outputs"]
    return np.split(x, np.cumsum(lengths)[:-1], axis=axis)


@shape_op("Squeeze")
def _squeeze(attrs: Attrs, x: Vector, axes: Vector | None = None) -> Vector:
    over = _axes(attrs, axes)
    return np.squeeze(x, axis=None if over is None else tuple(over))


@shape_op("Unsqueeze")
def _unsqueeze(attrs: Attrs, x: Vector, axes: Vector | None = None) -> Vector:
    return np.expand_dims(x, tuple(_axes(attrs, axes) or ()))


@shape_op("Reshape")
def _reshape(attrs: Attrs, x: Vector, target: Vector) -> Vector:
    shape = sizes.reshaped(x.shape, numbers(target), bool(attrs.get("allowzero", 0)))
    return x.reshape(numbers(sizes.vector(shape)))


@shape_op("Flatten")
def _flatten(attrs: Attrs, x: Vector) -> Vector:
    rows = prod(x.shape[: slice(attrs.get("axis", 1)).indices(x.ndim)[1]])
    return x.reshape(rows, -1)


@shape_op("Transpose")
def _transpose(attrs: Attrs, x: Vector) -> Vector:
    return np.transpose(x, attrs.get("perm"))


@shape_op("Expand")
def _expand(_: Attrs, x: Vector, target: Vector) -> Vector:
    shape = np.broadcast_shapes(x.shape, tuple(numbers(target)))
    return np.broadcast_to(x, _limited(shape))


@shape_op("Tile")
def _tile(_: Attrs, x: Vector, repeats: Vector) -> Vector:
    times = numbers(repeats)
    _limited([x.size, *times])
    return np.tile(x, times)


@shape_op("ConstantOfShape")
def _constant_of_shape(attrs: Attrs, shape: Vector) -> Vector:
    value = onnx.numpy_helper.to_array(attrs["value"])  # without it the result is a float
    if value.dtype.kind not in "ib":
        raise ValueError("not an integer")
    return np.full(_limited(numbers(shape)), int(value.flat[0]), dtype=object)


@shape_op("Range")
def _range(_: Attrs, start: Vector, limit: Vector, delta: Vector) -> Vector:
    span = range(*(numbers(v)[0] for v in (start, limit, delta)))
    _limited([len(span)])
    return sizes.vector(span)


_BINARY = {
    "Add": sizes.add,
    "Sub": sizes.subtract,
    "Mul": sizes.multiply,
    "Div": sizes.divide,
    "Equal": sizes.equal,
    "Less": sizes.less,
    "Greater": lambda a, b: sizes.less(b, a),
    "And": lambda a, b: sizes.select(a, b, 0),
    "Or": lambda a, b: sizes.select(a, 1, b),
}


def _binary(function: Callable[[Element, Element], Element], _: Attrs, a: Vector, b: Vector) -> Vector:
    return each(function, a, b)


SHAPE_OPS.update({name: partial(_binary, function) for name, function in _BINARY.items()})


@shape_op("Mod")
def _mod(attrs: Attrs, a: Vector, b: Vector) -> Vector:
    if attrs.get("fmod", 0):
        raise ValueError("another remainder")
    return each(sizes.modulo, a, b)


@shape_op("Min")
def _min(_: Attrs, *xs: Vector) -> Vector:
    return reduce(partial(each, sizes.minimum), xs)


@shape_op("Max")
def _max(_: Attrs, *xs: Vector) -> Vector:
    return reduce(partial(each, sizes.maximum), xs)


@shape_op("Neg")
def _neg(_: Attrs, x: Vector) -> Vector:
    return each(lambda e: sizes.multiply(e, -1), x)


@shape_op("Not")
def _not(_: Attrs, x: Vector) -> Vector:
    return each(lambda e: sizes.subtract(1, e), x)


@shape_op("ReduceProd")
def _reduce_prod(attrs: Attrs, x: Vector, axes: Vector | None = None) -> Vector:
    return _reduced(sizes.multiply, attrs, x, axes)


@shape_op("ReduceSum")
def _reduce_sum(attrs: Attrs, x: Vector, axes: Vector | None = None) -> Vector:
    return _reduced(sizes.add, attrs, x, axes)


@shape_op("ReduceMin")
def _reduce_min(attrs: Attrs, x: Vector, axes: Vector | None = None) -> Vector:
    return _reduced(sizes.minimum, attrs, x, axes)


@shape_op("ReduceMax")
def _reduce_max(attrs: Attrs, x: Vector, axes: Vector | None = None) -> Vector:
    return _reduced(sizes.maximum, attrs, x, axes)


def _reduced(function: Callable[[Element, Element], Element], attrs: Attrs, x: Vector, axes: Vector | None) -> Vector:
    """Reduce a vector or a scalar; tensors of a higher rank do not occur in shape arithmetic."""
    over = _axes(attrs, axes)
    if x.ndim != 1 or x.size == 0 or (over is None and attrs.get("noop_with_empty_axes", 0)) or over == []:
        raise ValueError("not a reduction of a vector")
    total = reduce(function, x.tolist())
    return sizes.vector([total]).reshape([1] if attrs.get("keepdims", 1) else [])


@shape_op("Where")
def _where(_: Attrs, condition: Vector, a: Vector, b: Vector) -> Vector:
    return each(sizes.select, condition, a, b)
