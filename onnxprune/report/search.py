"""A search as text and as a curve."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group, RenderableType

from onnxprune.drawing import Axis, Mark, Series, plot
from onnxprune.points import Frontier, Measure, Point
from onnxprune.report.layout import new_table, percent

_ABOUT = 0.01  # a percentage point, or a hundredth


def frontier(found: Frontier, model: Path, folder: Path, inputs: str) -> RenderableType:
    """All candidates by MACs, those that nobody beats marked; inputs: the options of inputs, as `apply` takes them."""
    of = found.measure
    rows = new_table(("", "<"), ("method", "<"), ("MACs", ">"), ("size", ">"), (of.name, ">"), ("seconds", ">"))
    good = sorted((p for p in found.points if not p.failed), key=lambda p: (p.kept["macs"], -of.worth(p)))
    for p in good:
        kept = [percent(p.kept[k]) for k in ("macs", "bytes")]
        rows.add_row("*" if p.best else "", p.method or "default", *kept, of.shown(of.worth(p)), f"{p.seconds:.0f}")
    failed = [f"failed: {p.method or 'default'} at {p.flops:g}: {p.failed}" for p in found.points if p.failed]
    beside = found.original if of.key == "metric" else None
    original = "" if beside is None else f"; the original: {of.shown(of.signed(beside))}"
    plan = shlex.quote(str(folder / f"{_smallest(found).name}.plan.json"))
    recover = "" if found.recover == "none" else f" --recover {found.recover}"
    return Group(
        f"{model}: {of.words}{original}. * nobody keeps fewer MACs and is worth as much.",
        rows,
        *failed,
        f"{folder} has curve.svg, search.json and the plans.",
        f"Next: `onnxprune apply {shlex.quote(str(model))} {plan}{recover}{inputs}` makes that one.",
    )


def _smallest(found: Frontier) -> Point:
    """The smallest candidate that is worth about as much as the best one."""
    worth = [found.measure.worth(p) for p in found.best]
    about = _ABOUT if found.measure.rate else _ABOUT * abs(max(worth))
    return next(p for p, w in zip(found.best, worth, strict=True) if w >= max(worth) - about)


def curve(found: Frontier) -> str:
    """The candidates as an SVG file: share of the MACs across, worth upwards, a line per method."""
    of, good = found.measure, [p for p in found.points if not p.failed]
    return plotted(of, [Spot(p.method, p.kept["macs"], of.worth(p), p.best) for p in good], alone=True)


class Spot(NamedTuple):
    """What a curve needs to know of a candidate."""

    method: str
    macs: float
    worth: float
    best: bool
    chosen: bool = False


def plotted(measure: Measure, spots: Sequence[Spot], *, alone: bool = False) -> str:
    """The curve of some candidates, at least one; alone: as a file of its own."""
    series = [_line(m or "default", [s for s in spots if s.method == m]) for m in methods(spots)]
    across = Axis(
        "multiply-accumulates that are kept", 0.0, max(1.0, *(s.macs for s in spots)), lambda v: f"{100 * v:.0f} %"
    )
    up = Axis.around(measure.words, [s.worth for s in spots], measure.tick)
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
