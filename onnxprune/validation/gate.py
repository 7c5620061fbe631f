"""Goals, and whether what was measured meets them: pass, fail, or inconclusive where the interval holds the goal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from onnxprune.errors import UsageError
from onnxprune.validation.intervals import Interval

Verdict = Literal["pass", "fail", "inconclusive"]
By = Literal["interval", "point"]
Doubt = Literal["fail", "pass"]
_NOISE = 1e-9  # relative; 0.7 points are 7 of 1,000 samples, whatever the last bit says


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """What a candidate must reach; None where it need not.

    max_drop: percentage points for rates, else units of the metric. min_agreement: 0..1. min_speedup: latency of the
    original by the candidate's. max_latency: seconds, of the median. max_size: bytes of the file with its weights.
    """

    max_drop: float | None = None
    min_agreement: float | None = None
    min_speedup: float | None = None
    max_latency: float | None = None
    max_size: float | None = None

    @property
    def given(self) -> dict[str, float]:
        """Those that are set."""
        return {f.name: getattr(self, f.name) for f in fields(Goals) if getattr(self, f.name) is not None}

    @property
    def timed(self) -> bool:
        """Whether latency must be measured."""
        return self.min_speedup is not None or self.max_latency is not None

    def check(self) -> None:
        """Raise UsageError, with all problems, for goals that nothing or everything meets."""
        problems = [f"{option(n)} {v} is not a finite number" for n, v in self.given.items() if not math.isfinite(v)]
        if self.min_agreement is not None and not 0 < self.min_agreement <= 1:
            problems.append(f"--min-agreement {self.min_agreement:g}: give a share above 0, at most 1, such as 0.98")
        if self.max_drop is not None and self.max_drop < 0:
            problems.append(f"--max-drop {self.max_drop:g}: give 0 or more")
        for name in ("min_speedup", "max_latency", "max_size"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                problems.append(f"{option(name)} {value:g}: give a number above 0")
        if problems:
            raise UsageError("; ".join(problems))


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal, what was measured, and the verdict.

    name: of the option; bound: the goal; measured: in the same unit; unit: "points", "x", "s", "B" or "" ; what: what
    was measured, in words. reason: why a goal that the measurement meets is in doubt all the same, else "".
    """

    name: str
    bound: float
    measured: Interval
    unit: str
    what: str
    verdict: Verdict
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {"measured": self.measured.as_dict()}


def option(name: str) -> str:
    """The option of the command line for a name of the library."""
    return f"--{name.replace('_', '-')}"


def goal(name: str, bound: float, measured: Interval, unit: str, what: str, by: By) -> Goal:
    """Judge a measurement; names that begin with max_ must be at most the bound, others at least."""
    at_most = name.startswith("max_")
    return Goal(name, bound, measured, unit, what, judged(bound, measured, at_most=at_most, by=by))


def worst(goals: Sequence[Goal]) -> Goal:
    """Of goals that have one lower bound, that with the worst verdict; of these, that with the smallest measurement."""
    order = ("fail", "inconclusive", "pass")
    return min(goals, key=lambda g: (order.index(g.verdict), g.measured.point))


def doubted(found: Goal, reason: str) -> Goal:
    """The goal, which a measurement that means nothing cannot meet; what fails still fails."""
    return found if found.verdict == "fail" else replace(found, verdict="inconclusive", reason=reason)


def judged(bound: float, measured: Interval, *, at_most: bool, by: By = "interval") -> Verdict:
    """Pass where the interval lies wholly inside the goal, fail where wholly outside; the goal itself is inside.

    by: "point" compares the point estimate instead.
    """
    low, high = (measured.point, measured.point) if by == "point" else (measured.low, measured.high)
    slack = _NOISE * abs(bound)
    best, worst = (low - bound, high - bound) if at_most else (bound - high, bound - low)
    if worst <= slack:
        return "pass"
    return "fail" if best > slack else "inconclusive"


def overall(goals: Iterable[Goal], doubt: Doubt = "fail") -> Verdict | None:
    """The worst of the verdicts, None without goals; doubt: "pass" lets inconclusive ones pass."""
    found = {g.verdict for g in goals}
    if not found:
        return None
    if "fail" in found:
        return "fail"
    return "inconclusive" if "inconclusive" in found and doubt == "fail" else "pass"


def check_choice(by: str, doubt: str) -> None:
    """Raise UsageError for unknown words, and for a rule about verdicts that cannot happen."""
    for name, value, known in (("--verdict", by, get_args(By)), ("--inconclusive", doubt, get_args(Doubt))):
        if value not in known:
            raise UsageError(f"{name} {value!r} is not known; choose one of: {', '.join(known)}")
    if by == "point" and doubt == "pass":
        raise UsageError(
            "--verdict point leaves no interval in doubt, so --inconclusive pass contradicts it: give one of them"
        )
