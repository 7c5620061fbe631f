"""The page of `search`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf, isfinite
from typing import Any

from onnxprune.report.html import parts as p
from onnxprune.report.layout import percent
from onnxprune.report.search import WORDS, Spot, methods, plotted

Told = Mapping[str, Any]


def search(told: Told) -> p.Page:
    """Verdict, the curve, all candidates, and how they were made."""
    measure, points = told["measure"], told["points"]
    good = [x for x in points if not x["failed"] and isfinite(worth(x))]
    best = sorted((x for x in good if x["best"]), key=lambda x: float(x["kept"]["macs"]))
    chosen = best[-1] if best else None
    sections = p.shown(_curve(measure, good, chosen, told["original"]), _candidates(measure, points), p.run(told))
    date = p.dated(told)
    tiles = list(_tiles(measure, points, best))
    return p.Page(
        "search", told["model"], _verdict(measure, points, best), tiles, sections, "" if best else "bad", date
    )


def worth(point: Told) -> float:
    """What a candidate is compared by, as `points.Point` has it: larger is better."""
    error = None if point["error"] is None else -point["error"]
    return next((float(v) for v in (point["metric"], point["agreement"], error) if v is not None), -inf)


def _shown(measure: str, value: float) -> str:
    return f"{-value:.3g}" if measure == "error" else percent(value)


def _verdict(measure: str, points: Sequence[Told], best: Sequence[Told]) -> str:
    if not best:
        return f"None of the {len(points)} candidates could be made and measured."
    pick = best[-1]
    told = f"{percent(pick['kept']['macs'])} of the MACs, {_shown(measure, worth(pick))} ({WORDS[measure]})"
    many = "candidate is" if len(best) == 1 else "candidates are"
    return f"{len(best)} of {len(points)} {many} not beaten by any other. The best of them, {pick['name']}: {told}."


def _tiles(measure: str, points: Sequence[Told], best: Sequence[Told]) -> Iterator[p.Tile]:
    yield p.Tile(f"{len(best)} of {len(points)}", "candidates that nobody beats")
    if best:
        yield p.Tile(_shown(measure, worth(best[-1])), f"best: {WORDS[measure]}")
        yield p.Tile(percent(best[0]["kept"]["macs"]), f"fewest MACs: {_shown(measure, worth(best[0]))}")


def _curve(measure: str, good: Sequence[Told], chosen: Told | None, original: float | None) -> p.Section | None:
    if not good:
        return None
    spots = [Spot(x["method"], x["kept"]["macs"], worth(x), x["best"], x is chosen) for x in good]
    keys = [(f"c{i % 8}", m or "default") for i, m in enumerate(methods(spots))]
    words = f"{WORDS[measure]} against MACs. Filled: nobody keeps fewer MACs and is worth as much; in a ring: the best."
    beside = [] if original is None else [f"The original: {percent(original)}."]
    return p.Section("curve", "The curve", [p.Chart(plotted(measure, spots), words, keys), p.Lines(beside)])


def _candidates(measure: str, points: Sequence[Told]) -> p.Section:
    columns = (
        p.Column("candidate", text=True),
        p.Column("MACs"),
        p.Column("parameters", extra=True),
        p.Column("size", extra=True),
        p.Column("error" if measure == "error" else WORDS[measure].partition(" ")[0]),
        p.Column("time", extra=True),
        p.Column("", text=True),
    )
    rows = [_row(measure, x) for x in points]
    return p.Section("candidates", "What was tried", [p.Table("candidates", columns, rows, sorts=True)])


def _row(measure: str, x: Told) -> list[p.Cell]:
    kept, value = x["kept"], worth(x)
    figure = p.number(value, _shown(measure, value)) if isfinite(value) else p.Cell("-")
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
