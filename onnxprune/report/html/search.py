"""The page of `search`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf, isfinite
from typing import Any

from onnxprune.points import Measure, measure_of
from onnxprune.report.html import parts as p
from onnxprune.report.layout import percent
from onnxprune.report.search import Spot, methods, plotted

Told = Mapping[str, Any]


def search(told: Told) -> p.Page:
    """Verdict, the curve, all candidates, and how they were made."""
    measure, points = measure_of(told), told["points"]
    good = [x for x in points if not x["failed"] and isfinite(worth(measure, x))]
    best = sorted((x for x in good if x["best"]), key=lambda x: float(x["kept"]["macs"]))
    chosen = best[-1] if best else None
    sections = p.shown(_curve(measure, good, chosen, told["original"]), _candidates(measure, points), p.run(told))
    date = p.dated(told)
    tiles = list(_tiles(measure, points, best))
    return p.Page(
        "search", told["model"], _verdict(measure, points, best), tiles, sections, "" if best else "bad", date
    )


def worth(measure: Measure, point: Told) -> float:
    """What a candidate is compared by: larger is better."""
    value = point[measure.key]
    return -inf if value is None else measure.signed(value)


def _verdict(measure: Measure, points: Sequence[Told], best: Sequence[Told]) -> str:
    if not best:
        return f"None of the {len(points)} candidates could be made and measured."
    pick = best[-1]
    told = f"{percent(pick['kept']['macs'])} of the MACs, {measure.shown(worth(measure, pick))} ({measure.words})"
    many = "candidate is" if len(best) == 1 else "candidates are"
    return f"{len(best)} of {len(points)} {many} not beaten by any other. The best of them, {pick['name']}: {told}."


def _tiles(measure: Measure, points: Sequence[Told], best: Sequence[Told]) -> Iterator[p.Tile]:
    yield p.Tile(f"{len(best)} of {len(points)}", "candidates that nobody beats")
    if best:
        yield p.Tile(measure.shown(worth(measure, best[-1])), f"best: {measure.words}")
        yield p.Tile(percent(best[0]["kept"]["macs"]), f"fewest MACs: {measure.shown(worth(measure, best[0]))}")


def _curve(measure: Measure, good: Sequence[Told], chosen: Told | None, original: float | None) -> p.Section | None:
    if not good:
        return None
    spots = [Spot(x["method"], x["kept"]["macs"], worth(measure, x), x["best"], x is chosen) for x in good]
    keys = [(f"c{i % 8}", m or "default") for i, m in enumerate(methods(spots))]
    words = f"{measure.words} against MACs. Filled: nobody keeps fewer MACs and is worth as much; in a ring: the best."
    beside = (
        []
        if original is None or measure.key != "metric"
        else [f"The original: {measure.shown(measure.signed(original))}."]
    )
    return p.Section("curve", "The curve", [p.Chart(plotted(measure, spots), words, keys), p.Lines(beside)])


def _candidates(measure: Measure, points: Sequence[Told]) -> p.Section:
    columns = (
        p.Column("candidate", text=True),
        p.Column("MACs"),
        p.Column("parameters", extra=True),
        p.Column("size", extra=True),
        p.Column(measure.name),
        p.Column("time", extra=True),
        p.Column("", text=True),
    )
    rows = [_row(measure, x) for x in points]
    return p.Section("candidates", "What was tried", [p.Table("candidates", columns, rows, sorts=True)])


def _row(measure: Measure, x: Told) -> list[p.Cell]:
    kept, value = x["kept"], worth(measure, x)
    figure = p.number(value, measure.shown(value)) if isfinite(value) else p.Cell("-")
    state = (
        p.Cell(f"failed: {x['failed']}", state="bad") if x["failed"] else p.Cell("not beaten" * x["best"], state="good")
    )
    return [
        p.name(x["name"]),
        *(p.share(kept.get(k)) for k in ("macs", "params", "bytes")),
        figure,
        p.time(x["seconds"]),
        state,
    ]
