"""The speed-up of a candidate, and how much of it cleaning alone would have brought."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from onnx import ModelProto

from onnxprune.graph import Array
from onnxprune.normalize import normalize
from onnxprune.normalize.describe import export
from onnxprune.validation.intervals import Interval

if TYPE_CHECKING:
    from onnxprune.validation.latency import Paired

OPTION = "--latency-seconds"


class Measure(Protocol):
    """Measures two models beside each other, as `latency.pair` does."""

    def __call__(
        self,
        baseline: ModelProto,
        candidate: ModelProto,
        *,
        feeds: Mapping[str, Array] | None,
        seconds: float | None,
        seed: int,
    ) -> Paired: ...


@dataclass(frozen=True, slots=True)
class Speed:
    """Latency of the candidate beside the original, and beside the cleaned original where cleaning changes the graph.

    paired: original and candidate; cleaned: cleaned original and candidate, None where cleaning changes nothing.
    """

    paired: Paired
    cleaned: Paired | None = None

    @property
    def speedup(self) -> Interval:
        """Latency of the original by the candidate's."""
        return self.paired.speedup

    @property
    def pruning(self) -> Interval | None:
        """Speed-up beside the cleaned original."""
        return None if self.cleaned is None else self.cleaned.speedup

    @property
    def cleaning(self) -> float | None:
        """Speed-up of the cleaned original beside the original."""
        return None if self.pruning is None else self.speedup.point / self.pruning.point

    def as_dict(self) -> dict[str, Any]:
        return {
            "speedup": self.speedup.as_dict(),
            "pruning": self.pruning and self.pruning.as_dict(),
            "cleaning": self.cleaning,
            "paired": self.paired.as_dict(),
            "cleaned": self.cleaned and self.cleaned.as_dict(),
        }


def speed(
    original: ModelProto,
    candidate: ModelProto,
    *,
    feeds: Mapping[str, Array] | None,
    seconds: float | None,
    seed: int,
    measure: Measure | None = None,
) -> Speed:
    """Measure a candidate beside the original, then beside the cleaned original where that is another graph.

    feeds: the inputs to run, random where None; seconds: limit of each of the two; measure: `latency.pair`, which see.
    """
    if measure is None:
        from onnxprune.validation.latency import pair

        named = partial(pair, option=OPTION)
        return speed(original, candidate, feeds=feeds, seconds=seconds, seed=seed, measure=named)
    paired = measure(original, candidate, feeds=feeds, seconds=seconds, seed=seed)
    cleaned = _cleaned(original)
    if cleaned is None:
        return Speed(paired)
    return Speed(paired, measure(cleaned, candidate, feeds=feeds, seconds=seconds, seed=seed))


def check_cap(
    original: ModelProto, candidate: ModelProto, *, feeds: Mapping[str, Array], seconds: float, seed: int
) -> None:
    """Raise UsageError where the limit is too short to measure the two; that takes a few runs."""
    from onnxprune.validation import latency

    how = latency.How(seconds=seconds, seed=seed, option=OPTION)
    latency.check_cap((original, candidate), (feeds, feeds), how)


def _cleaned(model: ModelProto) -> ModelProto | None:
    """The cleaned model, where weights are no longer inputs, or nodes are others."""
    cleaned = export(normalize(model))
    weights = {t.name for t in model.graph.initializer}
    if any(i.name in weights for i in model.graph.input) or _operators(model) != _operators(cleaned):
        return cleaned
    return None


def _operators(model: ModelProto) -> Counter[tuple[str, str]]:
    return Counter((n.domain, n.op_type) for n in model.graph.node if n.op_type != "Constant")
