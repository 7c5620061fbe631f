"""Norms of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.analysis import Analysis, Axis, Mask
from onnxprune.criteria.registry import Scores, criterion
from onnxprune.criteria.weights import axis_sums, batchnorm_folds

NORMALIZATIONS = frozenset(
    {
        "BatchNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "RMSNormalization",
    }
)


@criterion("l1")
def l1(analysis: Analysis, _seed: int) -> Scores:
    """Sum of absolute weights over the coupled producer rows, BatchNormalization folded in (Li et al., 2017)."""
    return row_norms(analysis, 1)


@criterion("l2")
def l2(analysis: Analysis, _seed: int) -> Scores:
    """Sum of squared weights over the coupled producer rows, BatchNormalization folded in."""
    return row_norms(analysis, 2)


def row_norms(analysis: Analysis, p: int) -> Scores:
    """Sum of abs(w)^p over producer rows, [classes + 1]; over all coupled slices for a class that no layer produces."""
    rows, present = _sum(analysis, [a for a in analysis.axes if a.role == "out"], p)
    if present[1:].all():
        return rows
    everything, _ = _sum(analysis, analysis.axes, p)
    return np.where(present, rows, everything)


def _sum(analysis: Analysis, axes: Sequence[Axis], p: int) -> tuple[Scores, Mask]:
    """Sum per class over these axes, and which classes occur on them."""
    size = analysis.classes + 1
    labels = np.concatenate([np.zeros(0, np.int32), *(a.classes for a in axes)])
    weights = np.concatenate([np.zeros(0), *axis_sums(analysis, axes, p)])
    return np.bincount(labels, weights, size).astype(np.float64), np.bincount(labels, minlength=size) > 0


@criterion("group_norm")
def group_norm(analysis: Analysis, _seed: int) -> Scores:
    """Mean over the coupled slices of their squared norm, made comparable between layers (Fang et al., 2023).

    A slice is what a class owns on one axis: rows of a producer (BatchNormalization folded in), columns of a consumer,
    or the scale of a normalization that cannot be folded. The squared norms on one axis are divided by their mean, so
    that a layer with large weights does not outvote the others; a class gets the mean over its slices, and each group
    is divided by its mean.
    """
    size = analysis.classes + 1
    axes = [a for a in analysis.axes if a.role != "with"] + _scales(analysis)
    sums = np.concatenate([np.zeros(0), *axis_sums(analysis, axes, 2)])
    owner = np.repeat(np.arange(len(axes)), [len(a.classes) for a in axes])
    labels = np.concatenate([np.zeros(0, np.int32), *(a.classes for a in axes)])
    slices, where = np.unique((owner * size + labels)[labels > 0], return_inverse=True)
    owner, classes = np.divmod(slices, size)
    norms = np.bincount(where, sums[labels > 0], len(slices))
    means = np.bincount(owner, norms, len(axes)) / np.maximum(np.bincount(owner, minlength=len(axes)), 1)
    relative = norms / np.where(means > 0, means, np.inf)[owner]
    total = np.bincount(classes, relative, size) / np.maximum(np.bincount(classes, minlength=size), 1)
    return per_group(analysis, total)


def per_group(analysis: Analysis, scores: Scores) -> Scores:
    """Divide by the mean of the group; groups of zeros stay as they are."""
    members = np.bincount(analysis.group)
    means = np.bincount(analysis.group, scores) / np.maximum(members, 1)
    return scores / np.where(means > 0, means, 1.0)[analysis.group]


def _scales(analysis: Analysis) -> list[Axis]:
    """Scale vectors of the normalizations that are not folded into a producer."""
    folded = {gamma for _, gamma in batchnorm_folds(analysis).values()}
    nodes = [n for n in analysis.model.graph.nodes if n.op in NORMALIZATIONS and len(n.inputs) > 1]
    names = {n.inputs[1].name for n in nodes} - folded
    return [a for a in analysis.axes if a.role == "with" and a.param in names]
