"""A search as text and as a curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group, RenderableType

from onnxprune.drawing import Axis, Mark, Series, plot
from onnxprune.points import Frontier, Point
from onnxprune.report.layout import new_table, percent

WORDS = {
    "metric": "accuracy on labelled inputs",
    "agreement": "share of inputs with the original's answer",
    "error": "relative error of the outputs",
}
_ABOUT = 0.01  # a point


def frontier(found: Frontier, model: Path, folder: Path) -> RenderableType:
    """All candidates by MACs, those that nobody beats marked."""
    rows = new_table(("", "<"), ("method", "<"), ("MACs", ">"), ("size", ">"), (found.measure, ">"), ("seconds", ">"))
    good = sorted((p for p in found.points if not p.failed), key=lambda p: (p.kept["macs"], -p.worth(found.measure)))
    for p in good:
        kept = [percent(p.kept[k]) for k in ("macs", "bytes")]
        rows.add_row("*" if p.best else "", p.method or "default", *kept, shown(found, p), f"{p.seconds:.0f}")
    failed = [f"failed: {p.method or 'default'} at {p.flops:g}: {p.failed}" for p in found.points if p.failed]
    original = "" if found.original is None else f"; the original: {percent(found.original)}"
    best = _smallest(found).name
    data = f" --data {found.data}" if found.data else ""
    recover = "" if found.recover == "none" else f" --recover {found.recover}{data}"
    recover += f" --seed {found.seed}" if found.seed else ""
    return Group(
        f"{model}: {WORDS[found.measure]}{original}. * nobody keeps fewer MACs and is worth as much.",
        rows,
        *failed,
        f"{folder} has curve.svg, search.json and the plans.",
        f"Next: `onnxprune apply {model} {folder / best}.plan.json{recover}` makes that one.",
    )


def _smallest(found: Frontier) -> Point:
    """The smallest candidate that is worth about as much as the best one."""
    most = max(p.worth(found.measure) for p in found.best)
    return next(p for p in found.best if p.worth(found.measure) >= most - _ABOUT)


def shown(found: Frontier, point: Point) -> str:
    """What a candidate is worth, in the units of the search."""
    worth = point.worth(found.measure)
    return f"{-worth:.3g}" if found.measure == "error" else percent(worth)


def curve(found: Frontier) -> str:
    """The candidates as an SVG file: share of the MACs across, worth upwards, a line per method."""
    points = [Spot(p.method, p.kept["macs"], p.worth(found.measure), p.best) for p in found.points if not p.failed]
    return plotted(found.measure, points, alone=True)


class Spot(NamedTuple):
    """What a curve needs to know of a candidate."""

    method: str
    macs: float
    worth: float
    best: bool
    chosen: bool = False


def plotted(measure: str, spots: Sequence[Spot], *, alone: bool = False) -> str:
    """The curve of some candidates, at least one; alone: as a file of its own."""
    series = [_line(m or "default", [s for s in spots if s.method == m]) for m in methods(spots)]
    across = Axis(
        "multiply-accumulates that are kept", 0.0, max(1.0, *(s.macs for s in spots)), lambda v: f"{100 * v:.0f} %"
    )
    negated = measure == "error"
    up = Axis.around(WORDS[measure], [s.worth for s in spots], lambda v: f"{-v:.3g}" if negated else f"{100 * v:.3g} %")
    return plot(series, across, up, alone=alone)


def methods(spots: Sequence[Spot]) -> list[str]:
    """The methods, in the order of their colours."""
    return list(dict.fromkeys(s.method for s in spots))


def _line(name: str, spots: Sequence[Spot]) -> Series:
    mine = sorted(spots, key=lambda s: s.macs)
    marks = [Mark(s.macs, s.worth, f"{name}: {100 * s.macs:.1f} % of the MACs", s.best, s.chosen) for s in mine]
    return Series(name, marks)


def as_dict(found: Frontier) -> dict[str, Any]:
    """What search.json holds: all but the plans, which have files of their own."""
    told = found.as_dict()
    for point in told["points"]:
        point.pop("plan")
    return told
