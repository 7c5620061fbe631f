"""A search as text and as a curve."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from onnxprune.points import Frontier, Point
from onnxprune.report.layout import new_table, percent

_WORDS = {
    "metric": "accuracy on labelled inputs",
    "agreement": "share of inputs with the original's answer",
    "error": "relative error of the outputs",
}
_COLOURS = ("#1b6ca8", "#c8553d", "#4c8c4a", "#8a5aa8", "#b8860b", "#3a8f8f", "#a0446e", "#5b5b5b")
_ABOUT = 0.01  # a point
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 400, 64, 24, 150, 48


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
        f"{model}: {_WORDS[found.measure]}{original}. * nobody keeps fewer MACs and is worth as much.",
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
    """The candidates as an SVG: share of the MACs across, worth upwards, a line per method."""
    points = [p for p in found.points if not p.failed]
    worths = [p.worth(found.measure) for p in points]
    low, high = min(worths), max(worths)
    pad = 0.05 * (high - low) or 0.05
    scale = _Scale(0.0, max(1.0, *(p.kept["macs"] for p in points)), low - pad, high + pad)
    methods = list(dict.fromkeys(p.method for p in points))
    parts = [*scale.axes(_WORDS[found.measure], found.measure == "error")]
    for i, method in enumerate(methods):
        mine = sorted((p for p in points if p.method == method), key=lambda p: p.kept["macs"])
        places = [scale.at(p.kept["macs"], p.worth(found.measure)) for p in mine]
        parts += _line(mine, places, _COLOURS[i % len(_COLOURS)], method or "default", i)
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12"'
    return f'<svg {box}>\n<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"


class _Scale:
    """Numbers to places in the picture."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self._x, self._y = (left, right), (low, high)

    def at(self, x: float, y: float) -> tuple[float, float]:
        inner_x, inner_y = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        across = (x - self._x[0]) / (self._x[1] - self._x[0])
        up = (y - self._y[0]) / (self._y[1] - self._y[0])
        return _LEFT + across * inner_x, _HEIGHT - _BOTTOM - up * inner_y

    def axes(self, words: str, negated: bool) -> list[str]:
        """Lines and numbers at five places of each axis, and what they are."""
        found = []
        for i in range(6):
            x = self._x[0] + i / 5 * (self._x[1] - self._x[0])
            y = self._y[0] + i / 5 * (self._y[1] - self._y[0])
            (px, bottom), (left, py) = self.at(x, self._y[0]), self.at(self._x[0], y)
            told = f"{-y:.3g}" if negated else f"{100 * y:.1f} %"
            found.append(_text(px, bottom + 16, f"{100 * x:.0f} %", "middle"))
            found.append(_text(left - 6, py + 4, told, "end"))
            found.append(f'<path d="M{left:.1f} {py:.1f}H{_WIDTH - _RIGHT}" stroke="#dddddd"/>')
        found.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, "multiply-accumulates that are kept", "middle"))
        found.append(_text(_LEFT, 14, words, "start"))
        return found


def _line(
    points: Sequence[Point], places: Sequence[tuple[float, float]], colour: str, name: str, row: int
) -> list[str]:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    found = [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for (x, y), p in zip(places, points, strict=True):
        fill = colour if p.best else "white"
        told = escape(f"{name}: {100 * p.kept['macs']:.1f} % of the MACs")
        found.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}"><title>{told}</title></circle>'
        )
    y = _TOP + 16 + 18 * row
    found.append(f'<path d="M{_WIDTH - _RIGHT + 10} {y - 4}h18" stroke="{colour}" stroke-width="2"/>')
    return [*found, _text(_WIDTH - _RIGHT + 34, y, name, "start")]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def as_dict(found: Frontier) -> dict[str, Any]:
    """What search.json holds: all but the plans, which have files of their own."""
    told = found.as_dict()
    for point in told["points"]:
        point.pop("plan")
    return told
