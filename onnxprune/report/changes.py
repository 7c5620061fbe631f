"""What a choice of classes means for the layers, and why others are frozen: tables for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from onnxprune.analysis import Analysis, Labels, Layer, Mask
from onnxprune.report import GroupChange, LayerChange


def layer_changes(analysis: Analysis, kept: Mask) -> Iterator[LayerChange]:
    """Widths and MACs of every layer before and after."""
    whole, reasons = np.ones_like(kept), _reasons(analysis)
    for layer in analysis.layers:
        widths = [(x.size, int(kept[x].sum())) if layer.weight else None for x in (layer.inputs, layer.outputs)]
        macs = (layer.macs.count(whole), layer.macs.count(kept))
        frozen = int(np.count_nonzero(layer.outputs == 0)) if layer.weight else 0
        reason = "; ".join(reasons.get(layer.weight or "", ())) if frozen else ""
        yield LayerChange(layer.node, layer.op, widths[0], widths[1], macs, frozen, reason)


def _reasons(analysis: Analysis) -> dict[str, list[str]]:
    """Why filters are frozen, by the parameter that holds them."""
    found: dict[str, list[str]] = {}
    for f in analysis.frozen:
        if f.reason not in found.setdefault(f.name, []):
            found[f.name].append(f.reason)
    return found


def group_changes(analysis: Analysis, kept: Mask) -> Iterator[GroupChange]:
    """Every group of classes, its width before and after, and which layers it binds."""
    makers = _bound(analysis, [(x, x.outputs) for x in analysis.layers])
    readers = _bound(analysis, [(x, x.inputs) for x in analysis.layers])
    classes = np.bincount(analysis.group[1:], minlength=len(analysis.groups) + 1)
    for g, axis in enumerate(analysis.groups, 1):
        widths = (axis.classes.size, int(kept[axis.classes].sum()))
        made, read = tuple(makers.get(g, ())), tuple(readers.get(g, ()))
        yield GroupChange(axis.param, axis.axis, widths, int(classes[g]), made, read)


def _bound(analysis: Analysis, ends: list[tuple[Layer, Labels]]) -> dict[int, list[int]]:
    """Numbers of the layers that have positions in the classes of each group."""
    found: dict[int, list[int]] = {}
    for number, (_, labels) in enumerate(ends):
        for g in np.unique(analysis.group[labels]).tolist():
            if g:
                found.setdefault(g, []).append(number)
    return found


def frozen_summary(analysis: Analysis) -> tuple[tuple[int, str], ...]:
    """(frozen filters, reason), the most frequent first; node names are left out so that equal reasons add up."""
    counts: Counter[str] = Counter()
    for f in analysis.frozen:
        counts[f"{f.op}: {f.reason.rsplit(' (', 1)[0]}" if f.op else f.reason] += f.positions
    return tuple((n, reason) for reason, n in counts.most_common())
