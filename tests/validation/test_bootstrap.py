"""Intervals of medians: known answers, coverage over many simulated measurements."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from onnxprune.validation.bootstrap import median_interval, ratio_interval, width
from onnxprune.validation.intervals import Interval

RUNS = 200


def correlated(rng, n, phi):
    """A stationary series of variance 1 in which neighbours correlate by phi, [n]."""
    noise = rng.standard_normal(n + 200)
    return lfilter([np.sqrt(1 - phi**2)], [1, -phi], noise)[200:]


def covered(draw, truth, runs=RUNS):
    """Share of simulated measurements whose interval holds the truth."""
    found = [draw(np.random.default_rng(seed)) for seed in range(runs)]
    return np.mean([i.low <= truth <= i.high for i in found])


@pytest.mark.parametrize(("n", "phi"), [(30, 0.0), (200, 0.0), (200, 0.5), (1000, 0.9)])
def test_coverage(n, phi):
    """95 % intervals hold the true ratio in about 95 % of measurements, also where neighbours are correlated."""

    def draw(rng):
        return ratio_interval(np.exp(0.05 * correlated(rng, n, phi)), np.full(n, 0.5))

    assert 0.91 <= covered(draw, 2.0) <= 0.995


def test_coverage_of_skewed_times():
    """Pauses that make every tenth run ten times slower do not spoil the interval of paired ratios."""

    def draw(rng):
        before, after = (base * np.exp(0.05 * rng.standard_normal(100)) for base in (3.0, 2.0))
        pauses = np.where(rng.random((2, 100)) < 0.1, 10.0, 1.0)
        return ratio_interval(before * pauses[0], after * pauses[1])

    assert 0.91 <= covered(draw, 1.5) <= 0.995


def test_without_blocks_correlation_would_be_missed():
    """The same series in random order gives an interval that is far too narrow: the blocks see the correlation."""
    series = correlated(np.random.default_rng(0), 1000, 0.9) + 10
    shuffled = np.random.default_rng(1).permutation(series)
    assert width(median_interval(series)) > 2 * width(median_interval(shuffled))


def test_constant_series():
    """Without spread the interval is the point."""
    assert median_interval(np.full(50, 3.0)) == Interval(3.0, 3.0, 3.0)


def test_more_samples_narrow_the_interval():
    """A hundred times the samples narrow the interval about ten times."""
    series = np.random.default_rng(0).standard_normal(5000) + 10
    assert 5 < width(median_interval(series[:50])) / width(median_interval(series)) < 20


def test_ratio_is_paired():
    """Drift that hits both alike does not show in the ratio."""
    drift = np.exp(np.linspace(0, 3, 60))
    found = ratio_interval(3 * drift, 2 * drift)
    assert found.point == pytest.approx(1.5)
    assert width(found) < 1e-9


def test_same_seed_same_interval():
    """The result is a function of the samples."""
    series = np.random.default_rng(0).standard_normal(64)
    assert median_interval(series) == median_interval(series)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 9])
def test_few_samples(n):
    """Any number of samples gives a finite interval around the median."""
    series = np.arange(n) + 1.0
    found = median_interval(series)
    assert found.low <= found.point == np.median(series) <= found.high


def test_no_samples():
    """An empty series is refused."""
    with pytest.raises(ValueError, match="no samples"):
        median_interval(np.empty(0))
