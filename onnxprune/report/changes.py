"""What a choice of classes means for the layers, and why others are frozen: tables for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from onnxprune.analysis import Analysis, Mask
from onnxprune.report import LayerChange


def layer_changes(analysis: Analysis, kept: Mask) -> Iterator[LayerChange]:
    """Widths and MACs of every layer before and after."""
    whole = np.ones_like(kept)
    for layer in analysis.layers:
        widths = [(x.size, int(kept[x].sum())) if layer.weight else None for x in (layer.inputs, layer.outputs)]
        yield LayerChange(layer.node, layer.op, widths[0], widths[1], (layer.macs.count(whole), layer.macs.count(kept)))


def frozen_summary(analysis: Analysis) -> tuple[tuple[int, str], ...]:
    """(frozen filters, reason), the most frequent first; node names are left out so that equal reasons add up."""
    counts: Counter[str] = Counter()
    for f in analysis.frozen:
        counts[f"{f.op}: {f.reason.rsplit(' (', 1)[0]}" if f.op else f.reason] += f.positions
    return tuple((n, reason) for reason, n in counts.most_common())
