"""Figures of matplotlib, for those who have it: pip install 'onnxprune[plot]'."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from onnxprune.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PER_LAYER, _WIDEST, _NAMED = 0.22, 16.0, 40  # inches, and how many layers have room for their names
_NAME = 30  # characters of a name on an axis


class Width(NamedTuple):
    """A layer: its name, its filters before and after, and whether some of them are frozen."""

    layer: str
    before: int
    after: int
    frozen: bool


class Spot(NamedTuple):
    """A candidate: its method, its share of the MACs, what it is worth, and whether nobody beats it."""

    method: str
    macs: float
    worth: float
    best: bool


def _figure(width: float, height: float) -> Figure:
    """An empty figure that no window shows. Raises UsageError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install 'onnxprune[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def widths(layers: Sequence[Width], title: str) -> Figure:
    """Filters of every layer before and after, in the order of the graph. Raises UsageError without matplotlib."""
    figure = _figure(min(2 + _PER_LAYER * len(layers), _WIDEST), 4)
    axes = figure.add_subplot()
    places = range(len(layers))
    colours = ["tab:olive" if x.frozen else "tab:blue" for x in layers]
    axes.bar(places, [x.before for x in layers], color="lightsteelblue", label="before")
    axes.bar(places, [x.after for x in layers], color=colours, label="after")
    axes.set(title=_plain(title), ylabel="filters", xlabel="layer, in the order of the graph")
    if len(layers) <= _NAMED:
        axes.set_xticks(places, [_plain(x.layer[-_NAME:]) for x in layers], rotation=90, fontsize=7)
    axes.legend()
    return figure


def curve(spots: Iterable[Spot], what: str, title: str) -> Figure:
    """What candidates are worth against their MACs, a line per method, those that nobody beats filled.

    what: the worth in words. Raises UsageError without matplotlib.
    """
    figure = _figure(6, 4)
    axes = figure.add_subplot()
    for method, found in groupby(sorted(spots), key=lambda s: s.method):
        mine = list(found)
        x, y = [100 * s.macs for s in mine], [s.worth for s in mine]
        (line,) = axes.plot(x, y, marker="o", markerfacecolor="white", label=_plain(method or "default"))
        best = [i for i, s in enumerate(mine) if s.best]
        axes.plot([x[i] for i in best], [y[i] for i in best], "o", color=line.get_color())
    axes.set(title=_plain(title), xlabel="multiply-accumulates that are kept, %", ylabel=what)
    axes.legend()
    return figure


def _plain(text: str) -> str:
    """Text that matplotlib does not take for formulas."""
    return text.replace("$", r"\$")
