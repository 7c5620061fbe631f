"""Results as pieces of HTML for notebooks."""

from __future__ import annotations

from onnxprune.drawing import fragment, heights, strip
from onnxprune.report import Report
from onnxprune.report.layout import percent, si

_COSTS = (("MACs", "macs", ""), ("parameters", "params", ""), ("size", "bytes", "B"))


def result(report: Report) -> str:
    """Widths before and after in the order of the graph, costs, and how far the answers agree."""
    kept = report.compressed.fractions(report.original)
    rows = [
        [title, si(getattr(report.original, n), u), si(getattr(report.compressed, n), u), percent(kept[n])]
        for title, n, u in _COSTS
    ]
    wide = [x.outputs or (0, 0) for x in report.layers]
    most = max((before for before, _ in wide), default=1)
    before, after = (heights([w[i] for w in wide], most) for i in (0, 1))
    held = [i for i, x in enumerate(report.layers) if x.frozen]
    picture = strip(before, after, held, "filters of the layers, before and after", alone=True)
    title = f"{report.model}: {report.removed:,} of {report.classes:,} classes of filters removed"
    return fragment(title, ("", "before", "after", "kept"), rows, _agreement(report), picture)


def _agreement(report: Report) -> str:
    found = report.recovery
    final = None if found is None else found.final
    if found is None or final is None or found.data is None:
        return "How well it answers was not measured."
    inputs = "made-up" if found.data["synthetic"] else "held-out"
    same = f"relative error {final.relative_error:.3g}"
    if final.top1 is not None:
        same = f"same answers as the original: {percent(final.top1)}"
    return f"On {final.samples:,} {inputs} inputs, {same}."
