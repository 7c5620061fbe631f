"""The smallest network within a drop, as text."""

from __future__ import annotations

from rich.console import Group, RenderableType

from onnxprune.report.layout import new_table, percent
from onnxprune.validation.accuracy import Comparison
from onnxprune.validation.intervals import Interval


def within(
    limit: float, tried: list[tuple[float | None, Interval | None, bool]], final: Comparison, count: int
) -> RenderableType:
    """What was tried, (kept share of the MACs, drop, within), and the final figure on `count` inputs."""
    table = new_table(("MACs kept", ">"), ("drop", ">"), ("95 % interval", ">"), ("within", "<"))
    for kept, drop, good in sorted(tried, key=lambda t: t[0] or 0.0):
        numbers = ("-", "-") if drop is None else (f"{drop.point:+.2f}", f"{drop.low:+.2f} to {drop.high:+.2f}")
        table.add_row("out of reach" if kept is None else percent(kept), *numbers, "yes" if good else "no")
    unit = " points" if final.rate else ""
    d = final.drop
    told = f"{final.metric} drops by {d.point:.2f}{unit} ({d.low:+.2f} to {d.high:+.2f})"
    return Group(
        f"Smallest network found whose drop, one standard error included, is within {limit:g}{unit}:",
        table,
        f"On {count} inputs that nothing was chosen on: {told}.",
    )
