"""Criteria: one number per class of coupled positions; the smallest leave first."""

from onnxprune.criteria import activations, batchnorm, norms, randomness, similarity
from onnxprune.criteria.activations import InputStatistics
from onnxprune.criteria.registry import NAMES, Criterion, Scores, criterion, needs_data, score
from onnxprune.criteria.shares import uniform

__all__ = [
    "NAMES",
    "Criterion",
    "InputStatistics",
    "Scores",
    "activations",
    "batchnorm",
    "criterion",
    "needs_data",
    "norms",
    "randomness",
    "score",
    "similarity",
    "uniform",
]
