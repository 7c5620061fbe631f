"""Filters that others can replace."""

from __future__ import annotations

import numpy as np

from onnxprune.analysis import Analysis
from onnxprune.criteria.features import Folded, Places, groups_of
from onnxprune.criteria.registry import Scores, criterion
from onnxprune.criteria.weights import rows_by_class
from onnxprune.graph import Array

_ROWS = 2048  # rows of the distance matrix that are in memory at a time


@criterion("geometric_median")
def geometric_median(analysis: Analysis, _seed: int) -> Scores:
    """Sum of the distances to all filters of the group: what others replace is small (FPGM, He et al., 2019).

    A class is the concatenation of its producer rows, BatchNormalization folded in. Distances come from Gram matrices
    in the precision of the weights (float32 for 16 bits), one parameter and 2048 rows at a time.
    """
    scores, weights = np.zeros(analysis.classes + 1), Folded(analysis)
    for ids, axes in groups_of(analysis, ("out",)):
        rows = ((place, weights.rows(axis)) for axis, place in axes)
        scores[ids] = _distance_sums([(place, matrix) for place, matrix in rows if matrix is not None], len(ids))
    return scores


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
