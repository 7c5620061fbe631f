"""Pictures as SVG text, and names made fit for a page. Pure, and made of the standard library only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

COLOURS = ("#2f7fc1", "#d0603f", "#4f9a4d", "#9a66bd", "#b98a1d", "#2f9c9c", "#c0527f", "#808080")
_FILLS = {"was": "#c3d3e2", "is": "#2f7fc1", "held": "#b98a1d"}  # where no style sheet says otherwise
_HEAD, _TAIL = 52, 36  # characters of a long name that are shown; exporters put what differs at the end
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM, _LEGEND = 440, 290, 52, 26, 24, 42, 130
_TICKS = 4
_FACTORS = (1.0, 2.0, 2.5, 5.0, 10.0)


def plain(text: str) -> str:
    """Text without what a page cannot hold or what would turn its direction: control characters, lone surrogates."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def brief(name: str) -> str:
    """A name of at most 89 characters: its beginning and its end."""
    return plain(name if len(name) <= _HEAD + _TAIL + 1 else f"{name[:_HEAD]}\u2026{name[-_TAIL:]}")


# ---- pictures as wide as the page: no text inside, since they are stretched ---------------------------------------


def strip(
    before: Sequence[float], after: Sequence[float], marked: Sequence[int], label: str, *, alone: bool = False
) -> str:
    """Bars side by side: what was (pale), what is (solid), others marked.

    before, after: heights 0..1, one per bar; marked: numbers of bars in another colour; label: for screen readers;
    alone: for a place that has no style sheet.
    """
    held = set(marked)
    paths = {
        "was": _bars(before, range(len(before))),
        "is": _bars(after, [i for i in range(len(after)) if i not in held]),
        "held": _bars(after, sorted(held)),
    }
    drawn = [f'<path class="{kind}" fill="{_FILLS[kind]}" d="{d}"/>' for kind, d in paths.items() if d]
    return _stretched("strip", len(before), 100, label, drawn, "width:100%;max-width:60em;height:6em" if alone else "")


def heights(widths: Sequence[int], most: int) -> list[float]:
    """Widths as heights 0..1 by their square roots, so that narrow layers can be seen; most: the width at 1."""
    return [math.sqrt(w / max(most, 1)) for w in widths]


def _bars(tops: Sequence[float], which: Sequence[int]) -> str:
    tall = [(i, 100 * min(max(tops[i], 0.0), 1.0)) for i in which]
    return "".join(f"M{i + 0.1:.1f} 100v-{h:.1f}h.8v{h:.1f}z" for i, h in tall if h > 0)


def tracks(count: int, ties: Sequence[tuple[Sequence[int], Sequence[int]]], label: str) -> str:
    """One line per tie, above it the layers that it binds: dots for those that make, rings for those that read.

    count: of layers; ties: (makers, readers), numbers of layers.
    """
    drawn = []
    for row, (makers, readers) in enumerate(ties):
        y, ends = 10 * row + 5, [*makers, *readers]
        line = f"M{min(ends) + 0.5} {y}H{max(ends) + 0.5}" if ends else ""
        colour = f"c{row % len(COLOURS)}"
        parts = (("tie", line), ("reads", _dots(readers, y)), ("makes", _dots(makers, y)))
        drawn += [f'<path class="{kind} {colour}" d="{d}"/>' for kind, d in parts if d]
    return _stretched("tracks", count, 10 * len(ties), label, drawn, f"height:{1.2 * len(ties):.1f}rem")


def _dots(which: Sequence[int], y: int) -> str:
    """Lines of no length: round caps make them dots, however the picture is stretched."""
    return "".join(f"M{i + 0.5} {y}h0" for i in which)


def hump(quantiles: Sequence[float], low: float, high: float, middle: tuple[float, float], label: str) -> str:
    """A distribution between `low` and `high` on a logarithmic axis, with the interval of its median.

    quantiles: of equal shares, ascending; middle: ends of the interval.
    """
    edges = [low * (high / low) ** (i / 48) for i in range(49)]
    shares = [_below(quantiles, e) for e in edges]
    dense = [b - a for a, b in pairwise(shares)]
    top = max(dense, default=0.0) or 1.0
    outline = "".join(f"L{i + 0.5} {20 - 18 * d / top:.1f}" for i, d in enumerate(dense))
    left, right = (48 * _part(x, low, high) for x in middle)
    drawn = [
        f'<path class="hump" d="M0 20{outline}L48 20z"/>',
        f'<path class="middle" d="M{left:.2f} 0V20M{right:.2f} 0V20"/>',
    ]
    return _stretched("humps", 48, 20, label, drawn)


def _below(quantiles: Sequence[float], x: float) -> float:
    """Share of a distribution below a value, between its quantiles interpolated."""
    last = len(quantiles) - 1
    above = next((i for i, q in enumerate(quantiles) if q > x), last + 1)
    if above in {0, last + 1}:
        return 1.0 if above else 0.0
    low, high = quantiles[above - 1], quantiles[above]
    return (above - 1 + (x - low) / (high - low)) / last


def _part(x: float, low: float, high: float) -> float:
    return min(max(math.log(x / low) / math.log(high / low), 0.0), 1.0) if high > low else 0.5


def whisker(point: float, low: float, high: float, span: tuple[float, float], label: str) -> str:
    """A value with its interval on a logarithmic axis, beside 1."""
    at = [100 * _part(x, *span) for x in (low, point, high, 1.0)]
    drawn = [
        f'<path class="one" d="M{at[3]:.2f} 0V20"/>',
        f'<path class="range" d="M{at[0]:.2f} 10H{at[2]:.2f}"/>',
        f'<path class="makes" d="M{at[1]:.2f} 10h0"/>',
    ]
    return _stretched("whisker", 100, 20, label, drawn)


def _stretched(kind: str, width: int, height: int, label: str, drawn: Sequence[str], style: str = "") -> str:
    box = f'viewBox="0 0 {max(width, 1)} {max(height, 1)}" preserveAspectRatio="none"'
    hit = '<path class="hit" fill="none" d=""/>' if kind in {"strip", "tracks"} else ""
    styled = f' style="{style}"' if style else ""
    about = f'class="{kind}" data-n="{width}"{styled} {box} role="img" aria-label="{escape(plain(label))}"'
    return f"<svg {about}>{hit}{''.join(drawn)}</svg>"


# ---- plots with axes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """One point of a series; solid: whether it is filled; ring: whether it is the chosen one; told: what it is."""

    x: float
    y: float
    told: str = ""
    solid: bool = True
    ring: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """Points under one name, in one colour; line: whether they are joined in the order given."""

    name: str
    marks: Sequence[Mark]
    line: bool = True


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows, between which values, and how it writes them."""

    words: str
    low: float
    high: float
    written: Callable[[float], str]

    @classmethod
    def around(cls, words: str, values: Sequence[float], written: Callable[[float], str]) -> Axis:
        """An axis with some room around the values."""
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
        return cls(words, low - room, high + room, written)

    def part(self, value: float) -> float:
        """Where a value lies, 0..1."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values within the axis."""
        rough = (self.high - self.low) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(f * power for f in _FACTORS if f * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def plot(series: Sequence[Series], x: Axis, y: Axis, *, alone: bool = False) -> str:
    """Points, and lines between them.

    alone: a file of its own, with a white ground and the names of the series, rather than a part of a page.
    """
    width = _WIDTH + (_LEGEND if alone else 0)
    parts = [*_grid(x, y)]
    for i, s in enumerate(series):
        parts += _drawn(s, x, y, COLOURS[i % len(COLOURS)])
        parts += _named(s.name, COLOURS[i % len(COLOURS)], i) if alone else []
    ground = '<rect width="100%" height="100%" fill="white"/>\n' if alone else ""
    space = 'xmlns="http://www.w3.org/2000/svg" ' if alone else 'class="plot" role="img" '
    label = f'aria-label="{escape(plain(f"{y.words} against {x.words}"))}"'
    box = f'{space}{label} viewBox="0 0 {width} {_HEIGHT}" font-family="sans-serif" font-size="12"'
    return f"<svg {box}>\n{ground}" + "\n".join(parts) + "\n</svg>\n"


def _at(mark: Mark, x: Axis, y: Axis) -> tuple[float, float]:
    across, up = x.part(mark.x), y.part(mark.y)
    return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)


def _grid(x: Axis, y: Axis) -> list[str]:
    """Lines and numbers, and what the axes are."""
    found = []
    for value in x.ticks():
        across = _at(Mark(value, y.low), x, y)[0]
        found.append(_text(across, _HEIGHT - _BOTTOM + 16, x.written(value), "middle"))
    for value in y.ticks():
        up = _at(Mark(x.low, value), x, y)[1]
        found.append(_text(_LEFT - 6, up + 4, y.written(value), "end"))
        found.append(
            f'<path d="M{_LEFT} {up:.1f}H{_WIDTH - _RIGHT}" stroke="currentColor" stroke-opacity=".18" fill="none"/>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return [*found, _text(middle, _HEIGHT - 8, x.words, "middle"), _text(4, 14, y.words, "start")]


def _drawn(series: Series, x: Axis, y: Axis, colour: str) -> list[str]:
    places = [_at(m, x, y) for m in series.marks]
    path = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    found = [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>'] if series.line and path else []
    for (a, b), mark in zip(places, series.marks, strict=True):
        fill, hollow = (colour, "") if mark.solid else ("white", ' class="hollow"')
        if mark.ring:
            found.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="9" fill="none" stroke="{colour}" stroke-width="2"/>')
        told = f"<title>{escape(plain(mark.told))}</title>" if mark.told else ""
        found.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4"{hollow} fill="{fill}" stroke="{colour}">{told}</circle>')
    return found


def _named(name: str, colour: str, row: int) -> list[str]:
    y = _TOP + 16 + 18 * row
    return [
        f'<path d="M{_WIDTH} {y - 4}h18" stroke="{colour}" stroke-width="2"/>',
        _text(_WIDTH + 24, y, name, "start"),
    ]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{escape(plain(text))}</text>'


# ---- small tables -------------------------------------------------------------------------------------------------


def fragment(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], after: str = "", picture: str = "") -> str:
    """A piece of HTML for notebooks: a line, a picture, and a table whose first column is text."""
    body = "".join(f"<tr>{_row('td', row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{_row('th', head)}</tr></thead><tbody>{body}</tbody></table>"
    ends = f"<p>{escape(plain(after))}</p>" if after else ""
    return f"<div><p>{escape(plain(title))}</p>{picture}{table}{ends}</div>"


def _row(tag: str, cells: Sequence[str]) -> str:
    sides = ("left", *["right"] * len(cells))
    return "".join(
        f'<{tag} style="text-align:{side}">{escape(plain(cell))}</{tag}>'
        for side, cell in zip(sides, cells, strict=False)
    )
