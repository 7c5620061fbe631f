"""`bench`: several models beside each other."""

from __future__ import annotations

from onnxprune import options as o
from onnxprune.signature import taking
from onnxprune.terminal import show, show_json


@taking(o.Measuring)
def bench(models: o.Sources, given: o.Measuring) -> None:
    """Measure models beside each other: latency with intervals, speed-up over the first, memory, kernels, layers."""
    from onnxprune import api
    from onnxprune.report import latency

    found = api.benchmark(models, **given.arguments())
    if given.as_json:
        show_json(found.as_dict())
    else:
        show(latency.benchmark(found))
