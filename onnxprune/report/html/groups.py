"""The groups of coupled filters on a page: which layers share a fate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.drawing import tracks
from onnxprune.report.html import parts as p

Told = Mapping[str, Any]
_DRAWN, _LISTED, _NAMED = 24, 400, 4  # groups in the picture and in the table; layers by name
_DOTS, _TIED = 1000, 300  # layers of a group in the picture and in the table


def groups(found: Sequence[Told], layers: Sequence[Told]) -> p.Section | None:
    """A line per group over the layers in the order of the graph, and a table."""
    if not found:
        return None
    order = sorted(found, key=lambda g: (-len(g["makers"]), -len(g["readers"]), g["makers"]))
    shared = [g for g in order if len(g["makers"]) > 1]
    drawn = (shared or order)[:_DRAWN]
    ties = [(g["makers"][:_DOTS], g["readers"][:_DOTS]) for g in drawn]
    words = _words(len(found), len(shared), len(drawn))
    chart = p.Chart(
        tracks(len(layers), ties, words), words, (("dot", "makes them"), ("small", "reads them")), len(layers)
    )
    return p.Section("groups", "Layers that share a fate", [chart, _table(order, layers)])


def _words(count: int, shared: int, drawn: int) -> str:
    if not shared:
        return f"None of the {count} groups binds several layers. Large dots make filters, small ones read them."
    some = f"; {drawn} of {shared} such groups are drawn" if drawn < shared else ""
    return (
        "Filters of one group leave together, in every layer with a large dot on its line; those with a small dot read "
        f"them. {shared} of {count} groups bind several layers{some}. A click on a row of the table shows its layers."
    )


def _table(order: Sequence[Told], layers: Sequence[Told]) -> p.Table:
    columns = (
        p.Column("group, named after", text=True),
        p.Column("width"),
        p.Column("classes", extra=True),
        p.Column("made by"),
        p.Column("read by"),
        p.Column("layers", text=True, extra=True),
    )
    listed = order[:_LISTED]
    rows = [_row(g, layers, len(listed)) for g in listed]
    left = len(order) - len(listed)
    after = f"{left:,} smaller groups are left out; the JSON has all." if left else ""
    return p.Table("groups", columns, rows, sorts=True, layers=[g["makers"][:_TIED] for g in listed], after=after)


def _row(g: Told, layers: Sequence[Told], of: int) -> list[p.Cell]:
    names = [layers[i]["node"] for i in g["makers"][:_NAMED]]
    more = len(g["makers"]) - len(names)
    told = ", ".join(p.name(n).text for n in names) + (f" and {more} more" if more else "")
    title = p.name(g["parameter"], of=of)
    return [
        p.Cell(f"{title.text} axis {g['axis']}", title=title.title),
        p.change(g["width"]),
        p.number(g["classes"]),
        p.number(len(g["makers"])),
        p.number(len(g["readers"])),
        p.Cell(told),
    ]
