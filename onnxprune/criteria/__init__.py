"""Criteria: one number per class of coupled positions; the smallest leave first."""

from onnxprune.criteria import activations, batchnorm, clusters, diversity, norms, randomness, similarity
from onnxprune.criteria.activations import InputStatistics
from onnxprune.criteria.registry import (
    NAMES,
    Criterion,
    Partners,
    Ranking,
    Scores,
    check,
    comparable,
    criterion,
    is_comparable,
    needs_data,
    rank,
    score,
)
from onnxprune.criteria.shares import uniform

__all__ = [
    "NAMES",
    "Criterion",
    "InputStatistics",
    "Partners",
    "Ranking",
    "Scores",
    "activations",
    "batchnorm",
    "check",
    "clusters",
    "comparable",
    "criterion",
    "diversity",
    "is_comparable",
    "needs_data",
    "norms",
    "randomness",
    "rank",
    "score",
    "similarity",
    "uniform",
]
