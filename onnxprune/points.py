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
class Measure:
    """What candidates are compared by.

    key: "metric", "agreement" or "error", a field of Point; name: of the metric, else the key; words: for a reader;
    higher: whether more is better; rate: whether it is told in percent.
    """

    key: str
    name: str
    words: str
    higher: bool
    rate: bool

    def worth(self, point: Point) -> float:
        """What candidates are sorted by: larger is better, -inf where it was not measured."""
        value = {"metric": point.metric, "agreement": point.agreement, "error": point.error}[self.key]
        return float("-inf") if value is None else self.signed(value)

    def signed(self, value: float) -> float:
        """The worth of a value, and the value of a worth."""
        return float(value) if self.higher else -float(value)

    def shown(self, worth: float) -> str:
        """The value of a worth as text."""
        value = self.signed(worth)
        return f"{100 * value:.1f} %" if self.rate else f"{value:.3g}"

    def tick(self, worth: float) -> str:
        """The same, as short as an axis wants it."""
        value = self.signed(worth)
        return f"{100 * value:.3g} %" if self.rate else f"{value:.3g}"


AGREEMENT = Measure("agreement", "agreement", "share of inputs with the original's answer", higher=True, rate=True)
ERROR = Measure("error", "error", "relative error of the outputs", higher=False, rate=False)


def of_metric(name: str, *, higher: bool, rate: bool) -> Measure:
    """Comparison by a metric on labelled inputs."""
    return Measure("metric", name, f"{name.replace('_', ' ')} on labelled inputs", higher, rate)


def measure_of(told: Mapping[str, Any]) -> Measure:
    """The measure of a search from its JSON."""
    plain = {m.key: m for m in (AGREEMENT, ERROR)}.get(told["measure"])
    return plain or of_metric(**(told.get("metric") or {"name": "accuracy", "higher": True, "rate": True}))


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


@dataclass(frozen=True, slots=True)
class Frontier:
    """All candidates of a search, by method and target.

    model: its name; measure: what all candidates are compared by; recover, data, seed: with which they were made.
    """

    model: str
    measure: Measure
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
        of, good = self.measure, [p for p in self.points if not p.failed]
        spots = [plots.Spot(p.method, p.kept["macs"], of.signed(of.worth(p)), p.best) for p in good]
        return plots.curve(spots, of.name, self.model)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with stable keys."""
        points = [asdict(p) | {"name": p.name} for p in self.points]
        made = {"recover": self.recover, "data": self.data, "seed": self.seed}
        of = self.measure
        metric = {"name": of.name, "higher": of.higher, "rate": of.rate} if of.key == "metric" else None
        told = {"model": self.model, "measure": of.key, "metric": metric, "original": self.original}
        return told | made | {"points": points}


def common_measure(points: Sequence[Point], metric: Measure) -> Measure:
    """What all the points that did not fail have: the metric, else the agreement, else the error."""
    valid = [p for p in points if not p.failed]
    if all(p.metric is not None for p in valid):
        return metric
    return AGREEMENT if all(p.agreement is not None for p in valid) else ERROR


def marked(points: Sequence[Point], measure: Measure) -> Iterator[Point]:
    """The points, those marked as `best` that no other one dominates; of equal ones the first."""
    valid = [p for p in points if not p.failed]
    for i, p in enumerate(points):
        better = (
            q is not p
            and q.kept["macs"] <= p.kept["macs"]
            and measure.worth(q) >= measure.worth(p)
            and (q.kept["macs"] < p.kept["macs"] or measure.worth(q) > measure.worth(p) or points.index(q) < i)
            for q in valid
        )
        yield replace(p, best=not p.failed and not any(better))
