"""Intervals: known answers, and coverage on samples whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from onnxprune.validation.statistics import Z, of_means, of_several, of_weights, paired_rates, rate, score_bound


def covers(intervals, truth):
    """How many of the intervals hold the truth."""
    return sum(i.low <= truth <= i.high for i in intervals)


def exact_coverage(n, lost, gained):
    """Probability that the interval of a paired difference holds the truth, summed over all outcomes."""
    b, c = (x.ravel() for x in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    b, c = b[b + c <= n], c[b + c <= n]
    weights = stats.multinomial.pmf(np.stack([b, c, n - b - c], axis=1), n, [lost, gained, 1 - lost - gained])
    likely = weights > 1e-7
    held = [covers([paired_rates(int(x), int(y), n)], lost - gained) for x, y in zip(b[likely], c[likely], strict=True)]
    return float((weights[likely] * held).sum())


@pytest.mark.parametrize(
    ("n", "lost", "gained", "least"),
    [(20, 0.05, 0.05, 0.95), (50, 0.1, 0.02, 0.94), (50, 0.02, 0.02, 0.95), (100, 0.03, 0.01, 0.94)],
)
def test_paired_rates_cover(n, lost, gained, least):
    """The interval of a paired difference holds the truth as often as promised, give or take a point, also where few
    samples differ.
    """
    assert exact_coverage(n, lost, gained) >= least


@pytest.mark.parametrize(("lost", "gained"), [(5, 1), (10, 2), (6, 0), (5, 0), (4, 0), (20, 8), (18, 8)])
def test_paired_rates_invert_mcnemar(lost, gained):
    """The interval holds 0 exactly where McNemar's test does not reject."""
    found = paired_rates(lost, gained, 500)
    rejected = abs(lost - gained) / (lost + gained) ** 0.5 > Z
    assert (found.low > 0) == rejected
    assert found.point == (lost - gained) / 500


def test_paired_rates_mirror():
    """Swapping the two models mirrors the interval, and neither end leaves -1..1."""
    for lost, gained, n in [(3, 1, 40), (0, 0, 10), (10, 0, 10), (0, 7, 8), (1, 0, 1)]:
        one, other = paired_rates(lost, gained, n), paired_rates(gained, lost, n)
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-8)
        assert -1 <= one.low <= one.point <= one.high <= 1
        assert one.low < one.high


@pytest.mark.parametrize("n", [1, 10, 500, 100_000])
def test_no_sample_differs(n):
    """Two models that differ nowhere may still differ on what was not drawn: z^2 / (n + z^2) either way."""
    found = paired_rates(0, 0, n)
    assert (found.low, found.high) == pytest.approx((-score_bound(n), score_bound(n)), rel=1e-6)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (490, 500), (1, 3)])
def test_rate(hits, n):
    """The interval of a rate is scipy's exact one."""
    want = stats.binomtest(hits, n).proportion_ci(0.95, method="exact")
    found = rate(hits, n)
    assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=1e-12)
    assert found.point == hits / n


def drop(means):
    """The difference of two means."""
    return means[..., 0] - means[..., 1]


@pytest.mark.parametrize("n", [15, 60])
def test_means_cover(n):
    """Of 200 paired differences of means, 95 % hold the truth, within what 200 draws show."""
    rng = np.random.default_rng(0)
    found = [of_means(rng.normal([1.0, 0.7], 1.0, (n, 2)), drop, seed) for seed in range(200)]
    assert 184 <= covers(found, 0.3) <= 198


def test_skewed_means_cover():
    """So do most intervals of a mean of skewed errors, the hard case, where the usual interval holds fewer."""
    rng = np.random.default_rng(1)
    samples = rng.lognormal(0, 1, (200, 50, 1))
    found = [of_means(s, lambda m: m[..., 0], seed) for seed, s in enumerate(samples)]
    usual = [stats.t.interval(0.95, 49, s.mean(), s.std(ddof=1) / 50**0.5) for s in samples[..., 0]]
    held = covers(found, np.exp(0.5))
    assert held >= 180
    assert held > sum(low <= np.exp(0.5) <= high for low, high in usual)


def test_acceleration():
    """The interval of a skewed mean leans to the long side, as scipy's accelerated bootstrap does."""
    x = np.random.default_rng(6).lognormal(0, 1, 150)
    found = of_means(x[:, None], lambda m: m[..., 0])
    want = stats.bootstrap((x,), np.mean, n_resamples=20_000, rng=np.random.default_rng(0)).confidence_interval
    assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=0.03 * (want.high - want.low))


def test_many_samples_are_summed_in_groups():
    """The interval of many samples has the width that theory gives, and its point is the mean of all."""
    samples = np.random.default_rng(2).normal(size=(30_001, 2))
    found = of_means(samples, drop)
    half = Z * (samples[:, 0] - samples[:, 1]).std() / 30_001**0.5
    assert found.point == pytest.approx(samples[:, 0].mean() - samples[:, 1].mean(), abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.08)


def test_same_seed_same_interval():
    """The bootstrap is repeatable, and another seed draws otherwise."""
    samples = np.random.default_rng(3).normal(size=(40, 2))
    assert of_means(samples, drop, 1) == of_means(samples, drop, 1)
    assert of_means(samples, drop, 1) != of_means(samples, drop, 2)


def test_weights():
    """A mean by weights has Student's interval, up to the noise of the bootstrap."""
    x = np.random.default_rng(4).normal(size=100)
    found = of_weights(lambda w: w @ x / w.sum(axis=1), 100)
    low, high = stats.t.interval(0.95, 99, x.mean(), x.std(ddof=1) / 10)
    assert (found.point, found.low, found.high) == pytest.approx((x.mean(), low, high), abs=0.05)


def test_undefined_resamples_do_not_count():
    """What is not defined on a few resamples has an interval; what is not on most has none."""
    x = np.arange(20.0)
    few = of_weights(lambda w: np.where(w[:, 0] > 3, np.nan, w @ x), 20)
    assert few.low < few.point < few.high
    most = of_weights(
        lambda w: np.where((w[:, 0] != 1) & (w[:, 1] != 1), np.nan, w @ x) + np.where(w[:, 2] != 1, np.nan, 0), 20
    )
    assert np.isnan(most.low)
    assert most.point == x.sum()


def test_several_functions_of_the_same_resamples():
    """Each of several functions has the interval that it has alone; one that is not defined spoils only its own."""
    x = np.random.default_rng(0).standard_normal((2, 50))

    def mean(row):
        return lambda weights: weights @ row / weights.sum(1)

    alone = [of_weights(mean(row), 50, seed=3) for row in x]
    both = of_several(lambda w: np.stack([mean(x[0])(w), mean(x[1])(w), np.full(len(w), np.nan)], 1), 50, seed=3)
    assert both[:2] == alone
    assert np.isnan([both[2].low, both[2].high]).all()
