"""Filters that others can replace."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Analysis, Axis
from onnxprune.criteria.registry import Scores, criterion
from onnxprune.criteria.weights import Fold, batchnorm_folds, floats, rows_by_class
from onnxprune.graph import Array

Places = NDArray[np.int64]
_ROWS = 2048  # rows of the distance matrix that are in memory at a time


@criterion("geometric_median")
def geometric_median(analysis: Analysis, _seed: int) -> Scores:
    """Sum of the distances to all filters of the group: what others replace is small (FPGM, He et al., 2019).

    A class is the concatenation of its producer rows, BatchNormalization folded in. Distances come from Gram matrices
    in the precision of the weights (float32 for 16 bits), one parameter and 2048 rows at a time.
    """
    scores = np.zeros(analysis.classes + 1)
    order = np.argsort(analysis.group, kind="stable")
    starts = np.searchsorted(analysis.group[order], np.arange(len(analysis.groups) + 2))
    folds = {name: fold for name, (fold, _) in batchnorm_folds(analysis).items()}
    constants = analysis.model.constants()
    for group, axes in _producers(analysis).items():
        ids = order[starts[group] : starts[group + 1]]
        place = np.full(analysis.classes + 1, -1)
        place[ids] = np.arange(len(ids))
        arrays = ((axis, floats(constants[axis.param])) for axis in axes)
        matrices = [(a, _matrix(w, a.axis, folds.get(a.param))) for a, w in arrays if w is not None]
        scores[ids] = _distance_sums([(place[a.classes], m) for a, m in matrices], len(ids))
    return scores


def _producers(analysis: Analysis) -> dict[int, list[Axis]]:
    """Producer axes per group; an axis that several groups share is listed under each."""
    found: dict[int, list[Axis]] = {}
    for axis in analysis.axes:
        if axis.role == "out":
            for group in np.unique(analysis.group[axis.classes]):
                found.setdefault(int(group), []).append(axis)
    found.pop(0, None)
    return found


def _distance_sums(matrices: list[tuple[Places, Array]], n: int) -> Scores:
    """Sum of the Euclidean distances from each of n classes to all others, [n]; `matrices` hold their rows."""
    sums = np.zeros(n)
    kind = np.result_type(np.float32, *(matrix for _, matrix in matrices))
    for start in range(0, n, _ROWS):
        block = slice(start, min(n, start + _ROWS))
        gram, norms = np.zeros((block.stop - start, n), kind), np.zeros(n, kind)
        for place, matrix in matrices:
            rows = rows_by_class(matrix, place, n)
            rows -= rows.mean(axis=0)  # leaves distances alone and saves digits
            norms += np.einsum("cd,cd->c", rows, rows)
            gram += rows[block] @ rows.T
        gram *= -2
        gram += norms
        gram += norms[block, None]
        gram[np.arange(len(gram)), np.arange(start, block.stop)] = 0
        np.maximum(gram, 0, out=gram)
        sums[block] = np.sqrt(gram, out=gram).sum(axis=1, dtype=np.float64)
    return sums


def _matrix(array: Array, axis: int, fold: Fold | None) -> Array:
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    rows = rows if rows.dtype in (np.float32, np.float64) else rows.astype(np.float32)
    return rows if fold is None or fold[0] != axis else rows * fold[1].astype(rows.dtype)[:, None]
