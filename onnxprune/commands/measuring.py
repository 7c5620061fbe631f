"""`bench`: several models beside each other."""

from __future__ import annotations

from onnxprune import options as o
from onnxprune.commands import record
from onnxprune.signature import taking
from onnxprune.terminal import progress, show, show_json


@taking(o.Measuring)
def bench(models: o.Sources, given: o.Measuring) -> None:
    """Measure models beside each other: latency with intervals, speed-up over the first, memory, kernels, layers."""
    with progress(given.quiet):
        from onnxprune import api
        from onnxprune.report import latency

        record.check_page(given.report, models, given.data)
        found = api.benchmark(models, **given.arguments())
    if given.as_json or given.report is not None:
        told = found.as_dict() | record.made(*models, given.data)
        record.write_page(told, given.report)
    if given.as_json:
        show_json(told)
    elif not given.quiet:
        show(latency.benchmark(found))
