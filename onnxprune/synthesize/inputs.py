"""What every input of a model is, as far as the graph tells, and samples for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.graph import FLOATS, Array, Model, Tensor, is_constant, shape_of
from onnxprune.runtime import InputSpec, input_specs
from onnxprune.synthesize import patterns

Shapes = Mapping[str, tuple[int, ...]]
Range = tuple[float, float]
Kind = Literal["images", "signals", "vectors", "ids", "ones"]
_PASSING = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose"})
_COLOURS = (1, 3)
_NUMBERS: dict[Kind, str] = {
    "images": "dead leaves under 1/f noise",
    "signals": "1/f noise",
    "vectors": "normal noise",
    "ids": "random ids",
    "ones": "ones",
}


@dataclass(frozen=True, slots=True)
class Source:
    """How one input is made. shape: of one sample; rows: ids are below it; last: whether channels are the last axis."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    kind: Kind
    rows: int = 2
    last: bool = False

    @property
    def scaled(self) -> bool:
        """Whether the samples have a mean and a deviation to be chosen."""
        return self.kind in ("images", "signals", "vectors")

    @property
    def what(self) -> str:
        """The samples in words."""
        return _NUMBERS[self.kind]

    def sample(self, rng: np.random.Generator, count: int) -> Array:
        """[count, *shape]: integers and booleans as they are fed, floats of about mean 0 and deviation 1."""
        shape = (count, *self.shape)
        if self.kind == "ids":
            return rng.integers(0, self.rows, shape).astype(self.dtype)
        if self.kind == "ones":
            return np.ones(shape, self.dtype)
        if self.kind == "vectors":
            return rng.standard_normal(shape, dtype=np.float32)
        size = self.shape[:-1] if self.last else self.shape[1:]
        channels = self.shape[-1 if self.last else 0]
        if self.kind == "images":
            made = patterns.images(rng, count, channels, *size)
        else:
            made = patterns.signals(rng, count, channels, size)
        return np.moveaxis(made, 1, -1) if self.last else made

    def fed(self, samples: Array, span: Range | None) -> Array:
        """The samples in the element type and the range of the input; None leaves mean 0 and deviation 1."""
        if not self.scaled:
            return samples
        if self.dtype not in FLOATS:
            span = (float(np.iinfo(self.dtype).min), float(np.iinfo(self.dtype).max))
        if span is not None:
            low, high = span
            samples = np.clip((low + high) / 2 + (high - low) / 4 * samples, low, high)
            samples = samples if self.dtype in FLOATS else np.rint(samples)
        return np.ascontiguousarray(samples, self.dtype)


def sources(model: Model, shapes: Shapes) -> list[Source]:
    """How to make every input. Raises UsageError for a missing shape, UnsupportedError for what no values are known."""
    readers = _readers(model)
    return [_source(spec, _sample_shape(spec, shapes), readers) for spec in input_specs(model.header)]


def _sample_shape(spec: InputSpec, shapes: Shapes) -> tuple[int, ...]:
    shape = shapes.get(spec.name)
    if shape is None:
        raise UsageError(f"the shape of input '{spec.name}' is not known: give its sizes with --input-shape")
    if not shape:
        raise UnsupportedError(
            f"input '{spec.name}' is a single number, for which no values can be made up: give data with --data"
        )
    return shape[1:]


def _source(spec: InputSpec, shape: tuple[int, ...], readers: Mapping[str, list[tuple[Any, int]]]) -> Source:
    last = len(shape) == 3 and shape[-1] in _COLOURS and shape[0] not in _COLOURS
    integer = np.issubdtype(spec.dtype, np.integer)
    if spec.dtype == np.bool_ or "mask" in spec.name.lower():
        return Source(spec.name, spec.dtype, shape, "ones")
    if integer and not (spec.dtype.itemsize == 1 and len(shape) == 3):
        rows = _rows(spec.name, readers)
        return Source(spec.name, spec.dtype, shape, "ids" if rows else "ones", rows)
    if not integer and spec.dtype not in FLOATS:
        raise UnsupportedError(f"input '{spec.name}' has the element type {spec.dtype}: give data with --data")
    if len(shape) == 3:
        return Source(spec.name, spec.dtype, shape, "images", last=last)
    operators = {node.op for node, _ in readers.get(spec.name, ())}
    if len(shape) == 2:
        return Source(spec.name, spec.dtype, shape, "signals", last="Conv" not in operators)  # [C, T] or [T, features]
    if len(shape) > 3:
        return Source(spec.name, spec.dtype, shape, "signals")
    return Source(spec.name, spec.dtype, shape, "vectors")


def _readers(model: Model) -> dict[str, list[tuple[Any, int]]]:
    """(node, which input of it) for everything that reads a tensor, by the tensor's name."""
    found: dict[str, list[tuple[Any, int]]] = {}
    for node in model.graph.nodes:
        for place, tensor in enumerate(node.inputs):
            found.setdefault(tensor.name, []).append((node, place))
    return found


def _rows(name: str, readers: Mapping[str, list[tuple[Any, int]]]) -> int:
    """Rows of the smallest table that is read at these indices; 0 where there is none."""
    rows, pending = [], [name]
    while pending:
        for node, place in readers.get(pending.pop(), ()):
            table: Tensor = node.inputs[0]
            if node.op == "Gather" and place == 1 and is_constant(table):
                rows.append(shape_of(table)[node.attrs.get("axis", 0)])
            elif node.op in _PASSING and place == 0:
                pending += [o.name for o in node.outputs]
    return min(rows, default=0)
