"""Confidence intervals, 95 %, of one sample of inputs: rates, paired differences of rates, functions of means.

All are of the population that the inputs are drawn from, so that none has width 0: where nothing differs on n inputs,
up to z^2 / (n + z^2) of the population may (the score bound; 0.76 % for n = 500).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv, ndtr, ndtri, stdtrit

from onnxprune.validation.intervals import Interval

Reals = NDArray[np.float64]
_TAIL = 0.025
Z = float(ndtri(1 - _TAIL))
_REPLICATES = 2000  # of what is computed for all of them at once
_FEW = 200  # of what takes long for each
_GROUPS = 1000  # samples beyond it are summed in so many random groups: the spread of the sums is the same
_AT_ONCE = 1 << 22  # indices


def score_bound(n: int) -> float:
    """Largest share of a population that n samples without a single case leave plausible."""
    return Z**2 / (n + Z**2)


def rate(hits: int, n: int) -> Interval:
    """A share, by the exact interval of Clopper and Pearson (1934): never covers less than it promises."""
    low = float(betaincinv(hits, n - hits + 1, _TAIL)) if hits else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - _TAIL)) if hits < n else 1.0
    return Interval(hits / n, low, high)


def paired_rates(lost: int, gained: int, n: int) -> Interval:
    """Difference of two rates on the same n samples, by the score interval of Tango (Statistics in Medicine 17, 1998).

    lost: samples that only the first has right; gained: only the second. The difference is (lost - gained) / n. The
    test that it inverts is McNemar's for a difference of 0.
    """

    def excess(delta: float) -> float:
        """Squared distance from `delta`, less what the 95 % admit; the sign says inside (-) or outside (+)."""
        b = -lost - gained + (2 * n - lost + gained) * delta
        c = -gained * delta * (1 - delta)
        q = (max(b * b - 8 * n * c, 0.0) ** 0.5 - b) / (4 * n)
        return float((lost - gained - n * delta) ** 2 - Z**2 * n * (2 * q + delta * (1 - delta)))

    point, inside = (lost - gained) / n, 1e-9
    low = brentq(excess, -1.0, point - inside) if point - inside > -1 else -1.0
    high = brentq(excess, point + inside, 1.0) if point + inside < 1 else 1.0
    return Interval(point, float(low), float(high))


def of_means(samples: Reals, value: Callable[[Reals], Reals], seed: int = 0) -> Interval:
    """A function of means over samples, by the bootstrap: bias-corrected and accelerated (Efron 1987), with the
    quantiles expanded for small samples (Hesterberg 2015, section 5).

    samples: float64 [n, k], n > 1; value: gives the result [...] of means [..., k].
    """
    groups = _grouped(np.column_stack([samples, np.ones(len(samples))]), seed)
    point = float(value(samples.mean(axis=0)))
    total = groups.sum(axis=0)
    replicates = _result(_resampled(groups, seed), value)
    left_out = _result(total - groups, value)
    low, high = np.quantile(replicates, _levels(replicates, left_out, point))
    return Interval(point, min(point, float(low)), max(point, float(high)))


def of_weights(value: Callable[[Reals], Reals], n: int, seed: int = 0) -> Interval:
    """Any function of n weighted samples: Student's interval with the bootstrap's standard error.

    value: gives the result [b] for weights [b, n], how often each sample counts; NaN where it is not defined, which
    does not count unless it is so for half of the resamples (then the bounds are NaN).
    """
    return of_several(lambda weights: value(weights)[:, None], n, seed)[0]


def of_several(value: Callable[[Reals], Reals], n: int, seed: int = 0) -> list[Interval]:
    """Several functions of the same weighted samples, each as in `of_weights`; value: gives [b, functions]."""
    rng = np.random.default_rng(seed)
    points = value(np.ones((1, n)))[0]
    step = max(1, _AT_ONCE // n)
    parts = [value(_drawn(rng, min(step, _FEW - start), n)) for start in range(0, _FEW, step)]
    return [_of_resamples(float(p), found, n) for p, found in zip(points, np.concatenate(parts).T, strict=True)]


def _of_resamples(point: float, found: Reals, n: int) -> Interval:
    found = found[np.isfinite(found)]
    half = float(stdtrit(n - 1, 1 - _TAIL) * found.std(ddof=1)) if len(found) > _FEW // 2 else float("nan")
    return Interval(point, point - half, point + half)


def _drawn(rng: np.random.Generator, count: int, n: int) -> Reals:
    """[count, n]: how often each of n is drawn in n draws with replacement."""
    drawn = rng.integers(n, size=(count, n), dtype=np.int32) + n * np.arange(count, dtype=np.int32)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)


def _grouped(samples: Reals, seed: int) -> Reals:
    """Sums over random groups, where there are more samples than groups."""
    if len(samples) <= _GROUPS:
        return samples
    order = np.random.default_rng(seed).permutation(len(samples))
    starts = np.linspace(0, len(samples), _GROUPS, endpoint=False).astype(np.intp)
    sums: Reals = np.add.reduceat(samples[order], starts, axis=0)
    return sums


def _resampled(groups: Reals, seed: int) -> Reals:
    """[replicates, k]: sums over as many groups as there are, drawn with replacement."""
    rng, m = np.random.default_rng(seed), len(groups)
    step = max(1, _AT_ONCE // m)
    parts = [_drawn(rng, min(step, _REPLICATES - start), m) @ groups for start in range(0, _REPLICATES, step)]
    return np.concatenate(parts)


def _result(sums: Reals, value: Callable[[Reals], Reals]) -> Reals:
    return value(sums[..., :-1] / sums[..., -1:])


def _levels(replicates: Reals, left_out: Reals, point: float) -> Reals:
    """The two quantiles of the replicates that bound the interval."""
    n = len(left_out)
    below = ((replicates < point).mean() + (replicates <= point).mean()) / 2
    bias = ndtri(np.clip(below, 1 / len(replicates), 1 - 1 / len(replicates)))
    deviation = left_out.mean() - left_out
    spread = float((deviation**2).sum())
    skew = float((deviation**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    z = float(np.sqrt(n / (n - 1)) * stdtrit(n - 1, 1 - _TAIL))
    shifted = bias + np.array([-z, z])
    levels: Reals = ndtr(bias + shifted / np.maximum(1 - skew * shifted, 0.1))
    return levels
