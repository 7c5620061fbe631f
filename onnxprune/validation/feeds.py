"""Inputs to measure with."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto

from onnxprune.errors import UsageError
from onnxprune.graph import Array
from onnxprune.runtime import InputSpec, input_specs, random_inputs

Shapes = Mapping[str, tuple[int, ...]]


def made_up(
    proto: ModelProto, batch: int | None = None, shapes: Shapes | None = None, seed: int = 0
) -> dict[str, Array]:
    """Random inputs of a model: the same for the same seed and shapes.

    batch: size of the first dimension where it is symbolic, 1 unless given. shapes: full shape of inputs with other
    sizes that the model leaves open. Raises UsageError for sizes that are missing (all at once) or do not fit.
    """
    given, specs = dict(shapes or {}), input_specs(proto)
    if unknown := [name for name in given if name not in {s.name for s in specs}]:
        raise UsageError(f"--input-shape: the model has no input {unknown}; it has {[s.name for s in specs]}")
    problems = [p for s in specs if s.name not in given and (p := _problem(s, batch))]
    if problems:
        raise UsageError("; ".join(problems))
    filled = {s.name: _filled(s, batch or 1) for s in specs if s.name not in given}
    return random_inputs(proto, filled | given, seed)


def _problem(spec: InputSpec, batch: int | None) -> str | None:
    dims = spec.dims
    text = "unknown" if dims is None else ",".join(str(d or "?") for d in dims)
    if dims is None or not all(isinstance(d, int) for d in dims[1:]):
        return f"the shape of input '{spec.name}' is {text}: give its sizes with --input-shape {spec.name}:..."
    if batch is not None and dims and isinstance(dims[0], int) and dims[0] != batch:
        return f"--batch {batch}: input '{spec.name}' has the fixed shape {text}"
    return None


def _filled(spec: InputSpec, batch: int) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else batch for d in spec.dims or ())
