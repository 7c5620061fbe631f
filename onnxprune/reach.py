"""A latency as a target: choose, measure, correct, until the measured share is the one that was asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.allocate import Allocation
from onnxprune.clock import Progress
from onnxprune.validation.intervals import Interval

TOLERANCE = 0.03  # of the wanted share, on either side
_STEPS = 8  # choices, of which equal ones are measured once
_STRIDE = 3.0  # the inner target shrinks at most by this factor in one step
_LOG = logging.getLogger("onnxprune")


@dataclass(frozen=True, slots=True)
class Measured:
    """A share of the original's latency, how far the original differs from itself, and both medians in seconds."""

    ratio: Interval
    noise: Interval
    before: float
    after: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        times = {"original": self.before, "compressed": self.after}
        return {"ratio": self.ratio.as_dict(), "noise": self.noise.as_dict(), "seconds": times}


@dataclass(frozen=True, slots=True)
class Trial:
    """A choice, the inner target that led to it, and what was measured of it.

    asked: the fraction of the cost that it might keep; choice.fraction is what it keeps, as predicted.
    """

    asked: float
    choice: Allocation
    measured: Measured

    @property
    def ratio(self) -> float:
        """Measured share of the original's latency."""
        return self.measured.ratio.point


@dataclass(frozen=True, slots=True)
class Reached:
    """What came nearest to the share `wanted`, and all that was measured on the way.

    floor: whether nothing more may leave and the share is still above what was asked for.
    """

    wanted: float
    best: Trial
    trials: tuple[Trial, ...]
    floor: bool

    @property
    def choice(self) -> Allocation:
        """The choice that is taken."""
        return self.best.choice

    @property
    def ratio(self) -> float:
        """Its measured share of the original's latency."""
        return self.best.ratio

    @property
    def met(self) -> bool:
        """Whether that is what was asked for; where nothing has to leave, it is."""
        return _close(self.ratio, self.wanted) or self.best.asked >= 1

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        tried = [{"asked": t.asked, "predicted": t.choice.fraction, "measured": t.ratio} for t in self.trials]
        told = {"wanted": self.wanted, "met": self.met, "predicted": self.choice.fraction}
        return told | {"measured": self.best.measured.as_dict(), "iterations": tried}


def reach(wanted: float, choose: Callable[[float], Allocation], measure: Callable[[Allocation], Measured]) -> Reached:
    """Correct the inner target until the measured share is within `TOLERANCE` of `wanted`.

    choose: the choice that keeps at most a fraction of what is counted, or the nearest; measure: its share of the
    original's latency. Where no choice is close enough, the largest below is taken, else the smallest above.
    """
    asked, trials, floor = wanted, list[Trial](), False
    known: dict[bytes, Measured] = {}
    for number in Progress("network", _STEPS, most=True).over(range(_STEPS)):
        choice = choose(asked)
        key = choice.kept.tobytes()
        if key not in known:
            known[key] = measure(choice)
            _LOG.info("%.3f of the latency, %.3f wanted", known[key].ratio.point, wanted)
        trials.append(Trial(asked, choice, known[key]))
        floor = asked < choice.smallest and trials[-1].ratio > wanted
        if _close(trials[-1].ratio, wanted) or floor or asked >= 1 or number + 1 == _STEPS:
            break
        asked = _next(wanted, [(max(t.asked, t.choice.fraction), t.ratio) for t in trials])
    distinct = tuple({t.choice.kept.tobytes(): t for t in trials}.values())
    best = min(distinct, key=lambda t: _rank(t.ratio, wanted))
    return Reached(wanted, best, distinct, floor and best.ratio > wanted)


def _close(ratio: float, wanted: float) -> bool:
    return abs(ratio / wanted - 1) <= TOLERANCE


def _rank(ratio: float, wanted: float) -> tuple[bool, bool, float]:
    """What is close first, then what is below, then what is above; the nearest first."""
    return not _close(ratio, wanted), ratio > wanted, abs(ratio - wanted)


def _next(wanted: float, points: Sequence[tuple[float, float]]) -> float:
    """The next inner target, from (inner target, measured share): on the line between the nearest points on both sides
    of what is wanted, or beyond those above it.
    """
    points = [(1.0, 1.0), *points]
    below = max((p for p in points if p[1] <= wanted), default=None)
    above = min(p for p in points if p[1] > wanted and (below is None or p[0] > below[0]))
    if below is not None:
        share = (wanted - below[1]) / (above[1] - below[1])
        return below[0] + min(max(share, 0.1), 0.9) * (above[0] - below[0])
    slope = max((1 - above[1]) / (1 - above[0]), 0.2) if above[0] < 1 else 1.0
    return max(above[0] - (above[1] - wanted) / slope, above[0] / _STRIDE)
