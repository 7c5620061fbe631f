"""Confidence intervals of medians of measurements that depend on those before them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.validation.intervals import Interval

_BLOCKS = 8  # in time: few and long, so that what lasts as long as an eighth of the measurement is seen as one event
_RESAMPLES = 400
_LEVEL = 0.95


def median_interval(samples: NDArray[np.float64], seed: int = 0) -> Interval:
    """Median of a series with its 95 % interval, valid also where neighbours in time are correlated.

    samples: float64 [n] in the order of time, or [n, k] where k belong to the same moment. Source: circular block
    bootstrap (Politis and Romano 1992), its percentiles widened as Student's t is for the number of blocks. Raises
    ValueError for an empty series.
    """
    from scipy.stats import norm, t

    n = len(samples)
    if not n:
        raise ValueError("no samples")
    length = -(-n // _BLOCKS)
    count = -(-n // length)
    starts = np.random.default_rng(seed).integers(0, n, (_RESAMPLES, count, 1))
    rows = ((starts + np.arange(length)) % n).reshape(_RESAMPLES, -1)[:, :n]
    drawn = samples[rows].reshape(_RESAMPLES, -1)
    middle = float(np.median(samples))
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(np.median(drawn, axis=1), [tail, 1 - tail])
    free = max(count - 1, 1)
    wider = float(t.ppf(1 - tail, free) / norm.ppf(1 - tail) * np.sqrt(count / free))
    return Interval(middle, middle - (middle - float(low)) * wider, middle + (float(high) - middle) * wider)


def ratio_interval(before: NDArray[np.float64], after: NDArray[np.float64], seed: int = 0) -> Interval:
    """Median of the paired ratios before / after with its 95 % interval, worked out on their logarithms.

    before, after: float64 [n] above 0, in the order of time; or [n, k], [n, 1] for several ratios of the same moment.
    """
    found = median_interval(np.log(before) - np.log(after), seed)
    return Interval(float(np.exp(found.point)), float(np.exp(found.low)), float(np.exp(found.high)))


def width(interval: Interval) -> float:
    """Width of an interval relative to its point."""
    return (interval.high - interval.low) / interval.point
