"""The speed-up of a candidate, and how much of it cleaning alone would have brought."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from onnx import ModelProto

from onnxprune.graph import Array
from onnxprune.normalize import normalize
from onnxprune.normalize.describe import export
from onnxprune.validation.intervals import Interval

if TYPE_CHECKING:
    from onnxprune.validation.latency import Paired


class Measure(Protocol):
    """Measures two models beside each other, as `latency.pair` does."""

    def __call__(
        self,
        baseline: ModelProto,
        candidate: ModelProto,
        *,
        feeds: Mapping[str, Array] | None,
        seconds: float,
        seed: int,
    ) -> Paired: ...


@dataclass(frozen=True, slots=True)
class Speed:
    """Latency of the candidate beside the original, and beside the cleaned original where cleaning changes the graph.

    paired: original and candidate; pruning: speed-up beside the cleaned original, None where cleaning changes nothing.
    """

    paired: Paired
    pruning: Interval | None = None

    @property
    def speedup(self) -> Interval:
        """Latency of the original by the candidate's."""
        return self.paired.speedup

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
        }


def speed(
    original: ModelProto,
    candidate: ModelProto,
    *,
    feeds: Mapping[str, Array] | None,
    seconds: float,
    seed: int,
    measure: Measure | None = None,
) -> Speed:
    """Measure a candidate beside the original, then beside the cleaned original where that is another graph.

    feeds: the inputs to run, random where None; seconds: limit for each of the two; measure: `latency.pair`.
    """
    if measure is None:
        from onnxprune.validation.latency import pair

        return speed(original, candidate, feeds=feeds, seconds=seconds, seed=seed, measure=pair)
    paired = measure(original, candidate, feeds=feeds, seconds=seconds, seed=seed)
    cleaned = _cleaned(original)
    if cleaned is None:
        return Speed(paired)
    return Speed(paired, measure(cleaned, candidate, feeds=feeds, seconds=seconds, seed=seed).speedup)


def _cleaned(model: ModelProto) -> ModelProto | None:
    """The cleaned model, where weights are no longer inputs, or nodes are others."""
    cleaned = export(normalize(model))
    weights = {t.name for t in model.graph.initializer}
    if any(i.name in weights for i in model.graph.input) or _operators(model) != _operators(cleaned):
        return cleaned
    return None


def _operators(model: ModelProto) -> Counter[tuple[str, str]]:
    return Counter((n.domain, n.op_type) for n in model.graph.node if n.op_type != "Constant")
