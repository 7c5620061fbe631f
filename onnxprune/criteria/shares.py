"""Scores that make every group give the same share."""

from __future__ import annotations

import numpy as np

from onnxprune.analysis import Analysis
from onnxprune.criteria.registry import Scores


def uniform(analysis: Analysis, scores: Scores) -> Scores:
    """Scores that make the ranking over all groups take the same share of every group; for `allocate` without
    `per_group`.
    """
    order = np.lexsort((scores, analysis.group))
    sizes = np.bincount(analysis.group)
    first = np.concatenate([[0], np.cumsum(sizes)])[analysis.group[order]]
    result = np.empty(len(scores))
    result[order] = (np.arange(len(scores)) - first + 1) / (sizes[analysis.group[order]] + 1)
    return result
