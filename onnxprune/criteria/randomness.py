"""The baseline that every other criterion has to beat."""

from __future__ import annotations

import numpy as np

from onnxprune.analysis import Analysis
from onnxprune.criteria.registry import Scores, criterion


@criterion("random")
def random(analysis: Analysis, seed: int) -> Scores:
    """Uniform numbers in [0, 1), the same for the same seed."""
    return np.random.default_rng(seed).random(analysis.classes + 1)
