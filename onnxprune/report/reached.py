"""A latency that was asked for, and the networks that were measured on the way to it, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from onnxprune.report.latency import duration
from onnxprune.report.layout import new_table, percent


def reached(found: Mapping[str, Any] | None) -> RenderableType:
    """What was measured, as `Reached.as_dict` gives it; "" where no latency was asked for."""
    if found is None:
        return ""
    measured = found["measured"]
    ratio, seconds, threads = measured["ratio"], measured["seconds"], found["environment"]["session"]
    table = new_table(("predicted", ">"), ("measured", ">"))
    for t in found["iterations"]:
        table.add_row(percent(t["predicted"]), percent(t["measured"]))
    count = threads["intra_op_threads"]
    return Group(
        f"Latency {percent(ratio['point'])} of the cleaned original's ({percent(ratio['low'])} to "
        f"{percent(ratio['high'])}), {percent(found['wanted'])} wanted: {duration(seconds['original'])} -> "
        f"{duration(seconds['compressed'])} on {count} thread{'s' * (count > 1)}, before the repair of weights. "
        "Measured on the way:",
        table,
    )
