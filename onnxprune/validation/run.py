"""Two models run on the same inputs, in one pass; nothing is kept but what metrics need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.clock import Progress
from onnxprune.data import Data
from onnxprune.data.columns import describe
from onnxprune.errors import DataError, ModelError, OnnxpruneError, UnsupportedError, UsageError
from onnxprune.graph import Array
from onnxprune.runtime import InputSpec, Session, input_specs, session
from onnxprune.validation.accuracy import Comparison, Scores
from onnxprune.validation.agreement import Agreements, Intervals
from onnxprune.validation.metrics import DEFAULT, Metric, metric
from onnxprune.validation.reading import classifies, one_hot, whole

BATCH = 32
Outputs = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Model:
    """A model to be compared; name: for messages, such as `the candidate 'small.onnx'`."""

    proto: ModelProto
    name: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What one pass over the data gave.

    outputs: agreement of each; feeds: the fewest samples that the models take, for latency.
    """

    samples: int
    outputs: dict[str, Intervals]
    comparison: Comparison | None
    feeds: Mapping[str, Array]
    notes: tuple[str, ...]


@contextmanager
def about(model: Model) -> Iterator[None]:
    """Say of an error which of the models it is about."""
    try:
        yield
    except OnnxpruneError as error:
        raise type(error)(f"{model.name}: {error}") from error


def shared_inputs(original: Model, candidate: Model) -> list[InputSpec]:
    """The inputs of both, with the sizes that either of them fixes. Raises ModelError where signatures differ."""
    with about(original):
        first = {s.name: s for s in input_specs(original.proto)}
    with about(candidate):
        second = {s.name: s for s in input_specs(candidate.proto)}
    outputs = [[o.name for o in m.proto.graph.output] for m in (original, candidate)]
    problems = [*_missing("input", list(first), list(second)), *_missing("output", *outputs)]
    specs = []
    for name, spec in first.items():
        merged = _merged(spec, second.get(name, spec))
        if merged is None:
            a, b = (describe([d or "?" for d in s.dims or ("...",)], s.dtype) for s in (spec, second[name]))
            problems.append(f"input '{name}' is {a} in the original and {b} in the candidate")
        else:
            specs.append(merged)
    if problems:
        raise ModelError(f"{candidate.name} has another signature than {original.name}: {'; '.join(problems)}")
    return specs


def _missing(kind: str, original: list[str], candidate: list[str]) -> Iterator[str]:
    yield from (f"the {kind} '{n}' is missing" for n in original if n not in candidate)
    yield from (f"the {kind} '{n}' is new" for n in candidate if n not in original)


def _merged(a: InputSpec, b: InputSpec) -> InputSpec | None:
    """What both inputs take; None where nothing does."""
    if a.dtype != b.dtype:
        return None
    if a.dims is None or b.dims is None:
        return a if b.dims is None else b
    if len(a.dims) != len(b.dims):
        return None
    dims = []
    for x, y in zip(a.dims, b.dims, strict=True):
        if isinstance(x, int) and isinstance(y, int) and x != y:
            return None
        dims.append(x if isinstance(x, int) else y if isinstance(y, int) else x)
    return a._replace(dims=tuple(dims))


class _Runner:
    """A model that runs batches and gives the outputs that have one row per sample."""

    def __init__(self, model: Model) -> None:
        self._model = model
        with about(model):
            self._session: Session = session(model.proto, optimize=True)

    def __call__(self, feeds: Mapping[str, Array], names: list[str] | None, start: int) -> Outputs:
        with about(self._model):
            found = self._session.run(feeds, names)
        for name, array in found.items():
            if array.dtype.kind == "f" and np.isnan(array).any():
                raise ModelError(f"{self._model.name} gives NaN in output '{name}', {_where(array, start)}")
        return found


def _where(array: Array, start: int) -> str:
    bad = np.isnan(array).reshape(len(array) if array.ndim else 1, -1).any(axis=1)
    return f"in the batch from sample {start} on" if array.ndim == 0 else f"for sample {start + int(bad.argmax())}"


def compare(
    original: Model,
    candidate: Model,
    data: Data,
    *,
    wanted: Metric | None,
    output: str | None,
    samples: int | None,
    memory: float,
    seed: int,
    check: Callable[[Mapping[str, Array]], None],
) -> Measured:
    """Run both models on the data, batch by batch, and compare what they give.

    wanted: the metric; None takes top-1 where there are labels of classes. check: is given the fewest samples that the
    models take, after the first batch, and may raise. Raises ModelError for a model that fails or
    gives NaN, DataError for labels that do not fit.
    """
    run = [_Runner(original), _Runner(candidate)]
    agreements, notes = Agreements(), list(data.notes)
    scores: Scores | None = None
    names: list[str] | None = None
    feeds: Mapping[str, Array] = {}
    seen = 0
    for batch in Progress("comparing: batch", data.number(BATCH, samples)).over(data.batches(BATCH, limit=samples)):
        a, b = (r(batch.inputs, names, seen) for r in run)
        if names is None:
            feeds, names = batch.part(0, data.batching(1)[0]).inputs, _rows(a, len(batch), notes)
            a, b = ({n: x[n] for n in names} for x in (a, b))
            if output is not None and output not in names:
                raise UsageError(
                    f"--output-name {output!r} is none of the outputs with rows of numbers: {', '.join(names)}"
                )
            wanted = _metric(wanted, a, batch.labels, output, data.count, notes)
            if wanted is not None:
                scores = Scores(wanted, original.proto, output, memory, seed, data.count)
        _check_shapes(a, b, candidate, len(batch), data.count)
        agreements.add(a, b)
        if scores is not None:
            assert batch.labels is not None
            scores.add(a, b, batch.labels)
        if not seen:
            check(feeds)
        seen += len(batch)
    comparison = None if scores is None else scores.comparison()
    return Measured(seen, agreements.intervals(seed), comparison, feeds, tuple(notes))


def _rows(outputs: Outputs, count: int, notes: list[str]) -> list[str]:
    """Outputs that can be compared sample by sample."""
    found = [n for n, a in outputs.items() if a.ndim and len(a) == count and a.size and a.dtype.kind not in "OSU"]
    others = [f"'{n}' {describe(a.shape, a.dtype)}" for n, a in outputs.items() if n not in found]
    if not found:
        raise UnsupportedError(
            f"no output has one row of numbers for each of the {count} samples of a batch: {', '.join(others)}"
        )
    if others:
        notes.append(f"not compared, since they have no row of numbers per sample: {', '.join(others)}")
    return found


def _metric(
    wanted: Metric | None,
    outputs: Outputs,
    labels: Array | None,
    output: str | None,
    count: int | None,
    notes: list[str],
) -> Metric | None:
    """The metric that is wanted, or top-1 for a classifier with labels."""
    if wanted is not None or labels is None:
        return wanted
    chosen = {n: a for n, a in outputs.items() if output in {None, n}}
    if classifies(chosen, labels):
        return metric(DEFAULT)
    told = f"the labels {whole(labels, count)} are no class numbers for an output with scores"
    notes.append(f"{told}{one_hot(labels, chosen) or ': name a --metric to use them'}")
    return None


def _check_shapes(original: Outputs, candidate: Outputs, model: Model, size: int, count: int | None) -> None:
    differing = [
        f"'{n}' is {_like(candidate[n], size, count)}, not {_like(a, size, count)}"
        for n, a in original.items()
        if candidate[n].shape != a.shape or candidate[n].dtype != a.dtype
    ]
    if differing:
        raise ModelError(f"{model.name} gives other outputs than the original: {'; '.join(differing)}")
    odd = [n for n, a in original.items() if len(a) != size]
    if odd:
        raise ModelError(f"the outputs {odd} have no longer one row for each of the {size} samples of a batch")


def _like(array: Array, size: int, count: int | None) -> str:
    """An output as part of all the data, where it has a row per sample of the batch."""
    return whole(array, count) if array.ndim and len(array) == size else describe(array.shape, array.dtype)


def opened(data: Data, wanted: bool) -> Data:
    """Raise DataError where labels are needed and there are none."""
    if wanted and not data.labelled:
        raise DataError(
            f"{data.name} has no labels: store them as 'labels' in the .npz, or use one sub-folder of images per "
            "class; without labels, --min-agreement compares the outputs of the two models"
        )
    return data


def check_needs(data: object, needs: Mapping[str, bool]) -> None:
    """Raise UsageError for options that need data where none are given."""
    options = [name for name, given in needs.items() if given]
    if data is None and options:
        raise UsageError(f"{', '.join(options)}: give --data, inputs on which the two models are compared")
