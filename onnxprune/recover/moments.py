"""Moment matching: give every output channel the mean and deviation that it has in the original.

This is what re-estimating a BatchNormalization does, in the form that needs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from onnxprune.graph import Array
from onnxprune.recover.least_squares import Fit, Reals, Sample, error, predict

_RANGE = (0.5, 2.0)  # factors beyond these say that the channel is lost, not that it is scaled


def fit(
    train: Sequence[Sample],
    held: Sequence[Sample],
    weight: Reals,
    bias: Reals,
    *,
    intercept: bool = True,
    scale: bool = True,
    low: float = -np.inf,
    high: float = np.inf,
) -> Fit:
    """a = clip(sd0 / sd1, 0.5, 2), W *= a, b = mean0 - a (mean1 - b) per output channel; made whatever the error.

    scale: whether deviations are matched, not only means (a = 1). low, high: range of the activation behind the layer,
    where the errors on held inputs are measured.
    """
    wanted, made = _both(train, weight, bias)
    factor = np.clip(wanted[1] / np.maximum(made[1], 1e-12), *_RANGE) if scale else 1.0
    changed: Reals = weight * np.reshape(factor, (len(weight), 1, -1)) if scale else weight
    moved = wanted[0] - factor * (made[0] - bias) if intercept else bias
    return Fit(changed, moved, error(held, weight, bias, low, high), error(held, changed, moved, low, high))


def _both(train: Sequence[Sample], weight: Reals, bias: Reals) -> tuple[tuple[Reals, Reals], tuple[Reals, Reals]]:
    """Moments of what a layer should give, and of what it gives, without what else is added."""
    wanted = _moments(s.wanted if s.added is None else s.wanted - s.added for s in train)
    return wanted, _moments(predict(Sample(s.rows, s.wanted), weight, bias) for s in train)


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
