"""Moment matching: give every output channel the mean and deviation that it has in the original.

This is what re-estimating a BatchNormalization does, in the form that needs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from onnxprune.graph import Array
from onnxprune.recover.least_squares import Fit, Reals, Sample, error, predict

_RANGE = (0.5, 2.0)  # factors beyond these say that the channel is lost, not that it is scaled


def fit(train: Sequence[Sample], held: Sequence[Sample], weight: Reals, bias: Reals, *, intercept: bool = True) -> Fit:
    """a = clip(sd0 / sd1, 0.5, 2), W *= a, b = mean0 - a (mean1 - b) per output channel; made whatever the error."""
    wanted = _moments(s.wanted if s.added is None else s.wanted - s.added for s in train)
    made = _moments(predict(Sample(s.rows, s.wanted), weight, bias) for s in train)
    factor = np.clip(wanted[1] / np.maximum(made[1], 1e-12), *_RANGE)
    changed: Reals = weight * factor.reshape(len(weight), 1, -1)
    moved: Reals = wanted[0] - factor * (made[0] - bias) if intercept else bias
    limits = (-np.inf, np.inf)
    return Fit(changed, moved, error(held, weight, bias, *limits), error(held, changed, moved, *limits))


def fit_bias(
    train: Sequence[Sample], held: Sequence[Sample], weight: Reals, bias: Reals, *, intercept: bool = True
) -> Fit:
    """Only the means."""
    if not intercept:
        before = error(held, weight, bias, -np.inf, np.inf)
        return Fit(weight, bias, before, before)
    wanted = _moments(s.wanted if s.added is None else s.wanted - s.added for s in train)[0]
    made = _moments(predict(Sample(s.rows, s.wanted), weight, bias) for s in train)[0]
    moved: Reals = bias + wanted - made
    limits = (-np.inf, np.inf)
    return Fit(weight, moved, error(held, weight, bias, *limits), error(held, weight, moved, *limits))


def _moments(values: Iterable[Array]) -> tuple[Reals, Reals]:
    """Mean and deviation per channel of [n, channels] arrays."""
    total = square = np.zeros(1)
    count = 0
    for v in values:
        total = total + v.sum(0, dtype=np.float64)
        square = square + np.square(v, dtype=np.float64).sum(0)
        count += len(v)
    mean = total / count
    return mean, np.sqrt(np.maximum(square / count - mean**2, 0.0))
