"""What a search over many compressions finds, as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from onnxprune import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Candidate:
    """One compression to try; method: "" for the default one."""

    method: str
    flops: float

    @property
    def name(self) -> str:
        """Its name in the journal and in file names."""
        return f"{(self.method or 'default').replace(':', '-').replace(',', '-')}_{self.flops}"


@dataclass(frozen=True, slots=True)
class Point:
    """One compression that was tried.

    kept: fractions of MACs, parameters and bytes; agreement: share of inputs with the original's answer, None where the
    outputs are no scores; error: the outputs' relative error; metric, original: value of the metric on the labelled
    data, and that of the original, None without; best: whether no other candidate keeps fewer MACs and is worth as
    much; failed, kind: why there is none of all that, and the class of the error; plan: JSON, for `apply`.
    """

    method: str
    flops: float
    kept: Mapping[str, float]
    agreement: float | None
    error: float | None
    metric: float | None
    original: float | None
    seconds: float
    plan: Mapping[str, Any] | None
    failed: str = ""
    kind: str = ""
    best: bool = False

    @property
    def name(self) -> str:
        """As in the journal and in file names."""
        return Candidate(self.method, self.flops).name

    def worth(self, measure: str) -> float:
        """The number that candidates are compared by, larger is better: of "metric", "agreement" or "error"."""
        value = {"metric": self.metric, "agreement": self.agreement, "error": self.error}[measure]
        return float("-inf") if value is None else -value if measure == "error" else float(value)


@dataclass(frozen=True, slots=True)
class Frontier:
    """All candidates of a search, by method and target.

    model: its name; measure: what all candidates are compared by, `metric`, `agreement` or `error`; recover, data,
    seed: with which they were made.
    """

    model: str
    measure: str
    points: tuple[Point, ...]
    recover: str = "auto"
    data: str | None = None
    seed: int = 0

    @property
    def original(self) -> float | None:
        """The metric of the original, None without labels."""
        return next((p.original for p in self.points if p.original is not None), None)

    @property
    def best(self) -> tuple[Point, ...]:
        """The candidates that nobody beats, by ascending MACs."""
        return tuple(sorted((p for p in self.points if p.best), key=lambda p: p.kept["macs"]))

    def plot(self) -> Figure:
        """The curve as a figure of matplotlib: worth against MACs. Raises UsageError without matplotlib."""
        good = [p for p in self.points if not p.failed]
        sign = -1 if self.measure == "error" else 1
        spots = [plots.Spot(p.method, p.kept["macs"], sign * p.worth(self.measure), p.best) for p in good]
        return plots.curve(spots, self.measure, self.model)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with stable keys."""
        points = [asdict(p) | {"name": p.name} for p in self.points]
        made = {"recover": self.recover, "data": self.data, "seed": self.seed}
        return {"model": self.model, "measure": self.measure, "original": self.original} | made | {"points": points}


def common_measure(points: Sequence[Point]) -> str:
    """What all the points that did not fail have: the metric, else the agreement, else the error."""
    valid = [p for p in points if not p.failed]
    if all(p.metric is not None for p in valid):
        return "metric"
    return "agreement" if all(p.agreement is not None for p in valid) else "error"


def marked(points: Sequence[Point], measure: str) -> Iterator[Point]:
    """The points, those marked as `best` that no other one dominates; of equal ones the first."""
    valid = [p for p in points if not p.failed]
    for i, p in enumerate(points):
        better = (
            q is not p
            and q.kept["macs"] <= p.kept["macs"]
            and q.worth(measure) >= p.worth(measure)
            and (q.kept["macs"] < p.kept["macs"] or q.worth(measure) > p.worth(measure) or points.index(q) < i)
            for q in valid
        )
        yield replace(p, best=not p.failed and not any(better))
