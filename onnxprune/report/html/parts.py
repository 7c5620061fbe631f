"""What a page is made of: sections of tables, pictures and text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from onnxprune.drawing import brief
from onnxprune.report.latency import duration
from onnxprune.report.layout import percent, si

_LONG, _MANY = 400, 300  # characters of a name that a tooltip holds; rows of a table that has none


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell. value: what a column of numbers is sorted by; title: a tooltip; picture: an SVG beside the text."""

    text: str = ""
    value: float | None = None
    title: str = ""
    picture: str = ""
    state: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of numbers, unless `text`; extra: left out on narrow screens."""

    title: str
    text: bool = False
    extra: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells. name: for links and scripts; sorts: whether a click on a head sorts.

    number: number of the layer that each row is about; layers: numbers of the layers that each row binds.
    """

    kind: ClassVar[str] = "table"
    name: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    sorts: bool = False
    number: Sequence[int] = ()
    layers: Sequence[Sequence[int]] = ()
    after: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """An SVG with what it shows in words; keys: (class or colour, meaning) of what is drawn."""

    kind: ClassVar[str] = "chart"
    picture: str
    words: str
    keys: Sequence[tuple[str, str]] = ()
    count: int = 0


@dataclass(frozen=True, slots=True)
class Lines:
    """Paragraphs; state: good, bad, doubt or nothing."""

    kind: ClassVar[str] = "lines"
    lines: Sequence[str]
    state: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    """Text to be copied."""

    kind: ClassVar[str] = "code"
    text: str


Block = Table | Chart | Lines | Code


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page under a heading."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Tile:
    """One of the numbers that matter."""

    number: str
    words: str
    state: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A whole page; state: of the verdict."""

    command: str
    title: str
    verdict: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    state: str = ""
    date: str = ""


def shown(*sections: Section | None) -> list[Section]:
    """The sections that there are."""
    return [s for s in sections if s is not None]


# ---- cells --------------------------------------------------------------------------------------------------------


def name(text: str, *, of: int = 1) -> Cell:
    """A name, shortened, with a tooltip where that leaves something out; not so in a table of very many rows, `of`."""
    short = brief(text)
    return Cell(short, title="" if short == text or of > _MANY else text[:_LONG])


def number(value: float | None, text: str | None = None) -> Cell:
    """A number that sorts; a dash where there is none."""
    return Cell("-") if value is None else Cell(f"{value:,}" if text is None else text, float(value))


def share(value: float | None) -> Cell:
    """A fraction 0..1 as a percentage."""
    return Cell("-") if value is None else Cell(percent(value), value)


def count(value: float | None, unit: str = "") -> Cell:
    """A large number with a prefix."""
    return Cell("-") if value is None else Cell(si(value, unit), float(value))


def time(value: float | None) -> Cell:
    """Seconds with a unit."""
    return Cell("-") if value is None else Cell(duration(value), value)


def change(pair: Mapping[str, int] | None) -> Cell:
    """A width before and after; sorted by what is left."""
    if pair is None:
        return Cell("-")
    before, after = pair["before"], pair["after"]
    return Cell(f"{before}" if before == after else f"{before} → {after}", float(after))


def interval(found: Mapping[str, float], written: Callable[[float], str]) -> str:
    """A value and its interval, with 95 % confidence."""
    point, low, high = (written(found[k]) for k in ("point", "low", "high"))
    if found["low"] == found["high"]:
        return point
    units = {text.partition(" ")[2] for text in (point, low, high)}
    if len(units) == 1:  # said once
        low, high = (text.partition(" ")[0] for text in (low, high))
    return f"{point} ({low} to {high})"


# ---- what every page ends with ------------------------------------------------------------------------------------


def dated(told: Mapping[str, Any]) -> str:
    """When it was made, to the minute."""
    date = str((told.get("run") or {}).get("date", ""))
    return f"{date[:10]} {date[11:16]} UTC" if date else ""


def run(told: Mapping[str, Any], environment: Mapping[str, Any] | None = None) -> Section:
    """Environment, digests and the command; of an object that was not printed by the command line, what there is."""
    about = told.get("run") or {}
    around = dict(about.get("environment") or {}) | dict(environment or {})
    rows = [[Cell(k), Cell(_plain(v))] for k, v in around.items() if v not in (None, [], {})]
    if "version" in about:
        rows.insert(0, [Cell("onnxprune"), Cell(about["version"])])
    digests = [[name(path), Cell(digest)] for path, digest in about.get("sha256", {}).items()]
    blocks: list[Block] = []
    if command := about.get("command"):
        blocks += [Lines(["The command that made this page, and makes it again:"]), Code(command)]
    else:
        blocks += [Lines(["The object behind this page does not say which command printed it."])]
    text = (Column("", text=True), Column("", text=True))
    blocks += [Table("environment", text, rows)] if rows else []
    blocks += [Table("digests", (Column("file", text=True), Column("SHA-256", text=True)), digests)] if digests else []
    return Section("run", "How it was made", blocks)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_plain(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def settings(told: Mapping[str, Any]) -> Iterator[list[Cell]]:
    """Options that are set, as rows."""
    yield from ([Cell(k), Cell(_plain(v))] for k, v in told.items() if v not in (None, [], {}, ""))


def seconds(told: Mapping[str, float]) -> Table | None:
    """Seconds per stage, with bars."""
    total = sum(told.values())
    if not total:
        return None
    rows = [[Cell(stage), bar(s / total), time(s)] for stage, s in told.items() if s > 0]
    return Table("seconds", (Column("stage", text=True), Column("", text=True), Column("time")), rows)


def bar(part: float) -> Cell:
    """A share of 1 as a bar."""
    width = f"{100 * min(max(part, 0.0), 1.0):.1f}"
    return Cell(
        picture='<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="is" d="M0 0H{width}V10H0z"/></svg>'
    )
