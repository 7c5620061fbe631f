"""From what a source holds to what a model takes: names, shapes, element types and values, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

import numpy as np

from onnxprune.data.columns import Rows, describe, is_float
from onnxprune.data.preprocess import Preprocess, Recipe, resolve
from onnxprune.errors import DataError, UnsupportedError, UsageError
from onnxprune.graph import Array
from onnxprune.runtime import InputSpec

T = TypeVar("T")
LABELS = "labels"
PIXELS = (
    "for pixels 0..255 give --preprocess (imagenet, cifar10, mobilenet, unit, or scale=1/255,mean=...,std=...), "
    "else store float32"
)


def text(spec: InputSpec) -> str:
    """One input as messages show it: `float32 [N,3,32,32]`."""
    return f"{spec.dtype} [...]" if spec.dims is None else describe([d or "?" for d in spec.dims], spec.dtype)


def fitting(size: int, inputs: Sequence[InputSpec]) -> int:
    """The batch size that a model takes: its own where axis 0 of the inputs is fixed, else `size`.

    Raises UnsupportedError where the inputs cannot all have the samples along axis 0.
    """
    without = [s.name for s in inputs if s.dims == ()]
    fixed = {s.dims[0] for s in inputs if s.dims and isinstance(s.dims[0], int)}
    if without or len(fixed) > 1 or not inputs:
        table = ", ".join(f"'{s.name}' {text(s)}" for s in inputs) or "none"
        raise UnsupportedError(f"data need inputs that all have the samples along axis 0; this model's are {table}")
    return fixed.pop() if fixed else size


def match(found: Mapping[str, T], inputs: Sequence[InputSpec]) -> tuple[dict[str, T], T | None]:
    """What a source holds by name, as (by input, labels); the one input of a model may have any name.

    Raises DataError for names that are missing or unknown, with the nearest.
    """
    rest = dict(found)
    names = [s.name for s in inputs]
    labels = None if LABELS in names else rest.pop(LABELS, None)
    if len(names) == 1 and len(rest) == 1:
        return {names[0]: next(iter(rest.values()))}, labels
    missing = [n for n in names if n not in rest]
    unknown = [n for n in rest if n not in names]
    if missing or unknown:
        problems = [f"input '{n}' is missing{_near(n, unknown)}" for n in missing]
        problems += [f"'{n}' is no input{_near(n, [*missing, LABELS])}" for n in unknown]
        expected = ", ".join(map(repr, names))
        raise DataError(
            f"{'; '.join(problems)}. Expected are the inputs {expected}, and '{LABELS}' where there are labels"
        )
    return {n: rest[n] for n in names}, labels


def _near(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, list(names), 1)
    return f" (is it '{near[0]}'?)" if near else ""


@dataclass(frozen=True, slots=True)
class Filler:
    """How one model input is filled."""

    spec: InputSpec
    recipe: Recipe | None

    def fill(self, array: Array, rows: Rows) -> Array:
        """Samples [n, ...] as the model takes them.

        rows: their numbers in the source, for messages. Raises DataError; the caller says where.
        """
        made = array if self.recipe is None else self.recipe.apply(array)
        _check_shape(made.shape, self.spec, self.recipe)
        cast = _cast(made, self.spec.dtype, self.recipe is not None)
        _check_finite(made, cast, rows)
        return np.ascontiguousarray(cast)


def fillers(inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> dict[str, Filler]:
    """One Filler per input; preprocessing is for the one input, or for those of four dims where there are several.

    Raises UsageError where it does not fit, UnsupportedError for strings.
    """
    if strings := [s.name for s in inputs if s.dtype.hasobject]:
        raise UnsupportedError(f"the inputs {strings} take strings, for which data cannot be read")
    images = [s for s in inputs if len(inputs) == 1 or len(s.dims or ()) == 4]
    if preprocess is not None and not images:
        table = ", ".join(f"'{s.name}' {text(s)}" for s in inputs)
        raise UsageError(f"--preprocess: none of the inputs is an image, which has 4 dims: {table}")
    return {s.name: Filler(s, resolve(preprocess, s) if preprocess and s in images else None) for s in inputs}


def _check_shape(shape: tuple[int, ...], spec: InputSpec, recipe: Recipe | None) -> None:
    if spec.dims is None:
        return
    if len(shape) != len(spec.dims):
        hint = ""
        if len(shape) == len(spec.dims) - 1:
            hint = "; axis 0 counts the samples: store a single one as array[None]"
        raise DataError(f"it has {len(shape)} dims instead of {len(spec.dims)}{hint}")
    if axes := _differing(shape, spec):
        hint = "" if recipe is not None else _transposed(shape, spec)
        each = ", ".join(f"{shape[a]} instead of {spec.dims[a]} along axis {a}" for a in axes)
        raise DataError(f"it has {each}{hint}")


def _differing(shape: tuple[int, ...], spec: InputSpec) -> list[int]:
    """Axes of a sample whose sizes are not the model's."""
    assert spec.dims is not None
    return [a for a in range(1, len(shape)) if isinstance(spec.dims[a], int) and shape[a] != spec.dims[a]]


def _transposed(shape: tuple[int, ...], spec: InputSpec) -> str:
    if len(shape) == 4:
        for layout, order in (("nchw", (0, 3, 1, 2)), ("nhwc", (0, 2, 3, 1))):
            if not _differing(tuple(shape[a] for a in order), spec):
                return f"; the model takes {layout.upper()}: --preprocess layout={layout} transposes"
    return ""


def _cast(array: Array, dtype: np.dtype[Any], prepared: bool) -> Array:
    """To the model's element type where nothing is lost but precision."""
    if array.dtype == dtype:
        return array
    whole = array.dtype.kind in "iu"
    if is_float(dtype) and (is_float(array.dtype) or (whole and prepared)):
        with np.errstate(over="ignore"):
            return array.astype(dtype)
    if whole and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise DataError(f"its values {array.min()}..{array.max()} do not fit {dtype}")
        return array.astype(dtype)
    raise DataError(f"its {array.dtype} are not {dtype}{_hint(array, dtype, prepared)}")


def _hint(array: Array, dtype: np.dtype[Any], prepared: bool) -> str:
    if prepared and dtype.kind in "iu":
        return ": give --preprocess without preset, scale, mean and std, so that pixels stay whole numbers"
    if array.dtype.kind in "iu" and is_float(dtype):
        return f": {PIXELS}"
    return f": store it as {dtype}"


def _check_finite(made: Array, cast: Array, rows: Rows) -> None:
    if not is_float(cast.dtype):
        return
    bad = ~np.isfinite(cast).reshape(len(cast), -1).all(axis=1)
    if bad.any():
        first = int(bad.argmax())
        lost = not is_float(made.dtype) or bool(np.isfinite(made[first]).all())
        what = f"values that {cast.dtype} cannot hold" if lost else "NaN or infinity"
        raise DataError(f"sample {rows[first]} has {what}")


def check_finite(array: Array, rows: Rows) -> None:
    """Raise DataError, with the sample's number, for NaN and infinity in floats [n, ...]."""
    _check_finite(array, array, rows)
