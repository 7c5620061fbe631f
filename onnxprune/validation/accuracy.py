"""One metric of two models on the same samples, and the drop between them with its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.errors import DataError, ResourceError
from onnxprune.graph import Array
from onnxprune.validation.intervals import Interval
from onnxprune.validation.metrics import CHANCE, Metric
from onnxprune.validation.reading import Reading, reading
from onnxprune.validation.statistics import of_means, of_several, paired_rates, score_bound

Reals = NDArray[np.float64]
Outputs = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A metric of the original and of the candidate on the same samples.

    original, candidate: its values. drop: how much worse the candidate is, in percentage points where `rate`, else in
    units of the metric. lost, gained: samples that only the original, only the candidate has right; None where the
    metric does not say that of a sample. output: the one that was read ("" for all); higher: whether more is better.
    chance: share of right answers without a look at the inputs, as of `Scores`, or what the metric is worth then, None
    where that is not known; at_chance: whether the original is no better, by two standard errors.
    """

    metric: str
    output: str
    higher: bool
    rate: bool
    original: float
    candidate: float
    drop: Interval
    lost: int | None = None
    gained: int | None = None
    chance: float | None = None
    at_chance: bool = False

    def as_dict(self) -> dict[str, Any]:
        names = ("metric", "output", "higher", "rate", "original", "candidate", "lost", "gained", "chance", "at_chance")
        return {n: getattr(self, n) for n in names} | {"drop": self.drop.as_dict()}


class Scores:
    """Collects what one metric needs of both models, batch by batch: a number per sample and model where the metric is
    a mean over samples, else predictions, up to `memory` bytes. count: samples of the data, None if not known.

    Chance, for accuracy and topK, is the share of the most frequent labels; for other metrics of classes the share of
    right answers if answers and labels had nothing to do with each other.
    """

    def __init__(
        self, metric: Metric, model: ModelProto, output: str | None, memory: float, seed: int, count: int | None
    ) -> None:
        self.metric, self._model, self._output = metric, model, output
        self._memory, self._seed, self._count_of_data = memory, seed, count
        self._reading: Reading | None = None
        self._kept: tuple[list[Any], list[Any], list[Array]] = ([], [], [])  # original, candidate, targets
        self._samples = self._bytes = 0
        self._labels: Counter[int] = Counter()

    def add(self, original: Outputs, candidate: Outputs, labels: Array) -> None:
        """Outputs of a batch by name, and its labels [n, ...]. Raises DataError for labels that do not fit."""
        if self._reading is None:
            self._reading = reading(self.metric, self._model, original, labels, self._output, self._count_of_data)
        targets = self._reading.targets(labels, original, self._samples)
        for kept, outputs in zip(self._kept, (original, candidate), strict=False):
            found = self._reading.predictions(outputs)
            kept.append(found if self.metric.each is None else self.metric.each(found, targets))
        if self.metric.top:
            self._labels.update(_counted(targets))
        if self.metric.each is None:
            self._kept[2].append(targets)
            self._count()
        self._samples += len(labels)

    def _count(self) -> None:
        for kept in self._kept:
            for array in kept[-1].values() if kept and isinstance(kept[-1], dict) else kept[-1:]:
                self._bytes += array.nbytes
        if self._bytes > self._memory:
            raise ResourceError(
                f"--metric {self.metric.name} needs the outputs of all samples at once: after {self._samples:,} they "
                f"have {self._bytes:,} bytes, the limit is {self._memory:,.0f}; take fewer samples with --samples"
            )

    def comparison(self) -> Comparison:
        """The metric of both, and its drop. Raises DataError where the metric is not a number."""
        assert self._reading is not None
        whole = self.metric.each is None
        return (self._of_whole if whole else self._of_samples)(self._reading.output)

    def _of_samples(self, output: str) -> Comparison:
        each = np.column_stack([np.concatenate(kept) for kept in self._kept[:2]])
        values = self._value(each.mean(axis=0)[None])[0]
        lost = gained = None
        if self.metric.needs == "scores" and np.isin(each, (0.0, 1.0)).all():
            lost, gained = (int((each[:, i] > each[:, 1 - i]).sum()) for i in (0, 1))
            drop = paired_rates(lost, gained, len(each))
        else:
            drop = of_means(each, lambda m: self._drop(self._value(m)), self._seed)
        found = self._told(output, values[0], values[1], drop, lost, gained)
        if not self.metric.top:
            return found
        chance = sum(n for _, n in self._labels.most_common(self.metric.top)) / self._labels.total()
        return _beside_chance(found, each[:, 0], chance)

    def _of_whole(self, output: str) -> Comparison:
        predictions = [_joined(kept) for kept in self._kept[:2]]
        targets = np.concatenate(self._kept[2])

        def values(weights: Reals | None = None) -> Reals:
            return np.stack([self.metric.of(p, targets, weights) for p in predictions], axis=-1)

        def with_drop(weights: Reals) -> Reals:
            both = values(weights)
            return np.stack([both[..., 0], self._drop(both)], axis=-1)

        a, b = values()[0]
        self._check(a, b)
        alone, drop = of_several(with_drop, len(targets), self._seed)
        found = self._told(output, a, b, drop)
        chance = CHANCE.get(self.metric.name) if self.metric.needs != "outputs" else None  # not of a user's function
        if chance is not None:
            return replace(found, chance=chance, at_chance=not alone.low > chance)
        if self.metric.needs != "classes":
            return found
        return _beside_chance(found, (predictions[0] == targets).astype(np.float64), _expected(predictions[0], targets))

    def _value(self, means: Reals) -> Reals:
        return np.sqrt(means) if self.metric.root else means

    def _drop(self, values: Reals) -> Reals:
        worse = values[..., 0] - values[..., 1]
        return np.asarray(worse if self.metric.higher else -worse)

    def _check(self, *values: float) -> None:
        names = [
            f"{v} for the {m}" for m, v in zip(("original", "candidate"), values, strict=True) if not np.isfinite(v)
        ]
        if names:
            raise DataError(f"--metric {self.metric.name} gives {' and '.join(names)} on {self._samples} samples")

    def _told(
        self, output: str, a: float, b: float, drop: Interval, lost: int | None = None, gained: int | None = None
    ) -> Comparison:
        m = self.metric
        self._check(a, b)
        if not np.isfinite(drop.low):
            raise DataError(
                f"--metric {m.name} is not defined on most random choices of the {self._samples} samples, so that its "
                "drop has no interval: more samples, of all classes, are needed"
            )
        drop = _widened(drop, self._samples, 1.0 if m.rate else max(abs(a), abs(b)), always=m.needs == "classes")
        scale = 100 if m.rate else 1
        shown = Interval(*(float(scale * x) + 0.0 for x in (drop.point, drop.low, drop.high)))
        return Comparison(m.name, output, m.higher, m.rate, float(a), float(b), shown, lost, gained)


def _counted(classes: Array) -> dict[int, int]:
    """How often each class is there."""
    values, counts = np.unique(classes, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _expected(answers: Array, labels: Array) -> float:
    """Share of right answers if answers and labels were drawn on their own: chance as in Cohen's kappa."""
    a, b = _counted(answers), _counted(labels)
    return sum(n * b.get(c, 0) for c, n in a.items()) / (len(answers) * len(labels))


def _beside_chance(found: Comparison, right: Reals, chance: float) -> Comparison:
    """right: [n], of the original, 0..1."""
    error = float(right.std() / len(right) ** 0.5)
    return replace(found, chance=chance, at_chance=bool(right.mean() - 2 * error <= chance))


def _widened(drop: Interval, n: int, scale: float, always: bool) -> Interval:
    """What samples that were not drawn may do: resampling cannot show it where no sample, or hardly any, differs."""
    half = score_bound(n) * scale
    if always or drop.low == drop.high:
        drop = Interval(drop.point, min(drop.low, drop.point - half), max(drop.high, drop.point + half))
    return drop


def _joined(kept: list[Any]) -> Any:
    if isinstance(kept[0], dict):
        return {name: np.concatenate([k[name] for k in kept]) for name in kept[0]}
    return np.concatenate(kept)
