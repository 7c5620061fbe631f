"""The layers of a network on a page: widths, what is frozen and why, the errors of the repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.drawing import heights, strip
from onnxprune.report.html import parts as p

Told = Mapping[str, Any]
_WIDE = "Widths are drawn by their square roots, so that narrow layers can be seen."


def layers(found: Sequence[Told], coupling: Told, recovery: Told | None) -> p.Section:
    """Bars of the widths in the order of the graph, bars of the errors, a table of all, and the reasons."""
    fits = {x["node"]: x for x in (recovery or {}).get("layers", [])}
    blocks: list[p.Block] = [_widths(found)]
    errors = _errors(found, fits)
    blocks += [errors] if errors else []
    blocks.append(_table(found, fits))
    reasons = coupling["reasons"]
    if reasons:
        columns = (p.Column("filters"), p.Column("frozen, that is never removed, because", text=True))
        rows = [[p.number(r["positions"]), p.Cell(r["reason"])] for r in reasons]
        blocks.append(p.Table("frozen", columns, rows, sorts=True))
    return p.Section("layers", "Layers", blocks)


def _widths(found: Sequence[Told]) -> p.Chart:
    wide = [x["outputs"] or {"before": 0, "after": 0} for x in found]
    most = max((w["before"] for w in wide), default=1)
    before, after = (heights([w[k] for w in wide], most) for k in ("before", "after"))
    held = [i for i, x in enumerate(found) if x.get("frozen")]
    keys = [("was", "before"), ("is", "after"), *([("held", "frozen filters among them")] if held else [])]
    words = f"Filters of the {len(found)} layers, in the order of the graph. {_WIDE}"
    return p.Chart(strip(before, after, held, words), words, keys, len(found))


def _errors(found: Sequence[Told], fits: Mapping[str, Told]) -> p.Chart | None:
    """Errors of the layers as cut, and as repaired; None where nothing was measured."""
    pairs = [fits.get(x["node"], {}) for x in found]
    if not any(x.get("before") is not None for x in pairs):
        return None
    before, after = ([x.get(k) or 0.0 for x in pairs] for k in ("before", "after"))
    words = (
        "Error of each layer on held-out inputs beside the original, as a share of its variance: 0 is exact, and the "
        "full height, 1 or more, says no more than a constant."
    )
    keys = (("was", "before its repair"), ("is", "after"))
    return p.Chart(strip(before, after, [], words), words, keys, len(found))


def _table(found: Sequence[Told], fits: Mapping[str, Told]) -> p.Table:
    columns = (
        p.Column("layer", text=True),
        p.Column("#", extra=True),
        p.Column("op", text=True, extra=True),
        p.Column("inputs", extra=True),
        p.Column("outputs"),
        p.Column("MACs", extra=True),
        p.Column("kept"),
        *((p.Column("cut error", extra=True), p.Column("error")) if fits else ()),
        p.Column("frozen"),
        p.Column("why", text=True),
    )
    rows = [_row(i, x, fits.get(x["node"]), bool(fits), len(found)) for i, x in enumerate(found)]
    return p.Table("layers", columns, rows, sorts=True, number=range(len(found)))


def _row(i: int, x: Told, fit: Told | None, fitted: bool, of: int) -> list[p.Cell]:
    before, after = x["macs"]["before"], x["macs"]["after"]
    errors = [_error(fit, k) for k in ("before", "after")] if fitted else []
    held = x.get("frozen", 0)
    return [
        p.name(x["node"], of=of),
        p.number(i),
        p.Cell(x["op"]),
        p.change(x["inputs"]),
        p.change(x["outputs"]),
        p.count(after),
        p.share(after / before if before else 1.0),
        *errors,
        p.number(held or None),
        _why(x, fit, of),
    ]


def _error(fit: Told | None, which: str) -> p.Cell:
    value = None if fit is None else fit[which]
    return p.number(value, None if value is None else f"{value:.3g}")


def _why(x: Told, fit: Told | None, of: int) -> p.Cell:
    """Why filters are frozen, and why a layer was not repaired."""
    told = [x.get("reason", "")] if x["outputs"] else ["a product of two activations: it has no filters"]
    if fit is not None and fit["method"] == "none" and fit["reason"]:
        told.append(f"not refitted: {fit['reason']}")
    return p.name("; ".join(filter(None, told)), of=of)
