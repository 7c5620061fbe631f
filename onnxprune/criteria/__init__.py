"""Criteria: one number per class of coupled positions; the smallest leave first."""

from onnxprune.criteria import batchnorm, norms, randomness, similarity
from onnxprune.criteria.registry import NAMES, Criterion, Scores, criterion, score

__all__ = ["NAMES", "Criterion", "Scores", "batchnorm", "criterion", "norms", "randomness", "score", "similarity"]
