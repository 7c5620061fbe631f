"""Least squares and moment matching of one layer, against numpy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from onnxprune.recover import least_squares, moments
from onnxprune.recover.least_squares import Sample, Sums, _one_sided, _System, error, fit, predict, varies

WIDE = (-np.inf, np.inf)


def problem(groups=1, d=5, out=3, sizes=(40, 30, 50), added=False, noise=0.3, seed=0):
    """Batches of a layer with noise, and a weight and bias to start from."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    true, shift = normal(groups, d, out), normal(groups * out)
    samples = []
    for n in sizes:
        rows = normal(groups, n, d) + 1
        other = normal(n, groups * out) if added else None
        made = (rows @ true).transpose(1, 0, 2).reshape(n, -1) + shift + noise * normal(n, groups * out)
        samples.append(Sample(rows, made if other is None else made + other, other))
    return samples, normal(groups, d, out).astype(np.float64), normal(groups * out).astype(np.float64)


def direct(samples, bias, intercept, groups, out):
    """numpy's solution, group by group."""
    weights, biases = [], []
    for g in range(groups):
        x = np.concatenate([s.rows[g] for s in samples]).astype(np.float64)
        y = np.concatenate([s.wanted - (0 if s.added is None else s.added) for s in samples]).astype(np.float64)
        y = y[:, g * out : (g + 1) * out]
        own = bias[g * out : (g + 1) * out]
        if intercept:
            found = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
            weights.append(found[:-1])
            biases.append(found[-1])
        else:
            weights.append(np.linalg.lstsq(x, y - own, rcond=None)[0])
            biases.append(own)
    return np.stack(weights), np.concatenate(biases)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("added", [True, False])
def test_equals_lstsq(intercept, groups, added):
    """Without a ridge the fit is numpy's least-squares solution, over all batches, minus what else is added."""
    train, weight, bias = problem(groups, added=added)
    found = fit(train, train, weight, bias, ridge=0.0, intercept=intercept)
    wanted = direct(train, bias, intercept, groups, 3)
    np.testing.assert_allclose(found.weight, wanted[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.bias, wanted[1], rtol=1e-4, atol=1e-5)
    assert found.after < found.before


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
def test_constants_have_no_variance(value):
    """Constant values do not vary, rounding notwithstanding; the error is then a share of their squares, or itself."""
    wanted = np.full((3000, 4), value, np.float32)
    assert not varies([Sample(wanted[None], wanted)] * 3)
    off = Sums.of(wanted + np.float32(0.5), wanted)
    assert off.share == pytest.approx(0.25 / (value**2) if value else 0.25 * wanted.size, rel=1e-5)
    wanted[::2] += 0.1
    assert varies([Sample(wanted[None], wanted)])
    assert not varies([Sample(wanted[None], wanted)], low=value + 1)
    assert varies([Sample(wanted[None], wanted)], low=value)


def test_what_does_not_vary_tells_nothing_of_the_weight():
    """A group that reads constants keeps its weight, and its bias takes the mean; the other group is fitted."""
    train, weight, bias = problem(groups=2)
    for sample in train:
        sample.rows[0] = 0.1
    found = fit(train, train, weight, bias)
    assert np.array_equal(found.weight[0], weight[0])
    assert not np.allclose(found.weight[1], weight[1])
    made = np.concatenate([predict(s, found.weight, found.bias) for s in train])
    np.testing.assert_allclose(made.mean(0), np.concatenate([s.wanted for s in train]).mean(0), rtol=1e-4)


@pytest.mark.parametrize("intercept", [True, False])
def test_ridge(intercept):
    """The ridge is that share of the mean diagonal of the Gram matrix, and draws to the weight given."""
    train, weight, bias = problem()
    ridge = 0.3
    x = np.concatenate([s.rows[0] for s in train]).astype(np.float64)
    y = np.concatenate([s.wanted for s in train]).astype(np.float64)
    xm, ym = (x.mean(0), y.mean(0)) if intercept else (0 * x.mean(0), bias)
    xc, yc = x - xm, y - ym
    gram = xc.T @ xc / len(x)
    add = ridge * np.trace(gram) / 5 * np.eye(5)
    wanted = np.linalg.solve(gram + add, xc.T @ yc / len(x) + add @ weight[0])
    found = fit(train, train, weight, bias, ridge=ridge, intercept=intercept)
    np.testing.assert_allclose(found.weight[0], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.bias, ym - xm @ wanted if intercept else bias, rtol=1e-4, atol=1e-5)


def test_a_heavy_ridge_stays():
    """With a ridge without end the weight given comes back."""
    train, weight, bias = problem()
    found = fit(train, train, weight, bias, ridge=1e9)
    np.testing.assert_allclose(found.weight, weight, atol=1e-5)


def test_error_and_predict():
    """The error is the squared one behind the activation, as a share of the variance of what is wanted there."""
    samples, weight, bias = problem(groups=2, added=True)
    made = np.concatenate(
        [np.concatenate([s.rows[g] @ weight[g] for g in range(2)], axis=1) + bias + s.added for s in samples]
    )
    wanted = np.concatenate([s.wanted for s in samples]).astype(np.float64)
    np.testing.assert_allclose(np.concatenate([predict(s, weight, bias) for s in samples]), made, rtol=1e-4, atol=1e-4)
    for low, high in (WIDE, (0.0, np.inf), (-1.0, 2.0)):
        a, b = np.clip(made, low, high), np.clip(wanted, low, high)
        expected = np.square(a - b).sum() / np.square(b - b.mean(0)).sum()
        assert error(samples, weight, bias, low, high) == pytest.approx(expected, rel=1e-4)


def objective(train, start, weight, bias, low, high, ridge):
    """What the iteration lowers: the squared distance to the one-sided targets, and the ridge."""
    count = sum(s.rows.shape[1] for s in train)
    wrong = sum(np.square(m - _one_sided(s, m, low, high)).sum() for s in train for m in [predict(s, weight, bias)])
    x = np.concatenate([s.rows for s in train], axis=1).astype(np.float64)
    centred = x - x.mean(1, keepdims=True)
    diagonal = np.square(centred).mean(1).mean(1)  # [groups]
    pull = (ridge * diagonal[:, None, None] * np.square(weight - start)).sum()
    return wrong / count + pull


@pytest.mark.parametrize("limits", [(0.0, np.inf), (0.0, 2.0), (-np.inf, 1.0)])
@pytest.mark.parametrize("ridge", [1e-3, 0.5])
def test_the_iteration_never_rises(limits, ridge):
    """Every round of one-sided targets lowers the training objective, or leaves it."""
    train, weight, bias = problem(d=6, added=True, noise=1.0)
    system = _System(train, weight, bias, ridge, True)
    found = system.solve(lambda s: s.wanted)
    seen = [objective(train, weight, *found, *limits, ridge)]
    for _ in range(8):
        found = system.solve(lambda s, at=found: _one_sided(s, predict(s, *at), *limits))
        seen.append(objective(train, weight, *found, *limits, ridge))
    assert all(b <= a * (1 + 1e-5) for a, b in pairwise(seen))
    assert seen[-1] < 0.999 * seen[0]


def test_one_sided_targets():
    """In a flat part anything goes; elsewhere the value wanted."""
    wanted = np.array([[-1.0, -1.0, 3.0, 7.0, 7.0, 7.0]], np.float32)
    made = np.array([[-5.0, 2.0, 9.0, 9.0, 6.5, 5.0]], np.float32)
    sample = Sample(np.zeros((1, 1, 1), np.float32), wanted)
    assert _one_sided(sample, made, 0.0, 6.0).tolist() == [[-5, 0, 3, 9, 6.5, 6]]


def test_the_activation_helps():
    """With a ReLU behind and no exact solution, the one-sided fit beats the plain one behind the ReLU."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 4000, 6)).astype(np.float32)
    y = (x[0] @ rng.standard_normal((6, 4)).astype(np.float32) - 1) * 2
    narrow = [Sample(x[:, :, :4].copy(), y)]
    start = np.zeros((1, 4, 4)), np.zeros(4)
    plain = fit(narrow, narrow, *start, ridge=0.0)
    aware = fit(narrow, narrow, *start, low=0.0, ridge=0.0)
    assert aware.after < 0.97 * error(narrow, plain.weight, plain.bias, 0.0, np.inf)


def test_kept_where_no_better():
    """What does not help on held samples is not taken: the weights given come back, with their error."""
    train, weight, bias = problem()
    held = [Sample(s.rows, predict(s, weight, bias)) for s in train]
    found = fit(train, held, weight, bias)
    assert found.weight is weight
    assert found.bias is bias
    assert found.before == found.after


def test_singular():
    """Without a ridge, a singular system raises or gives finite numbers; with one it solves."""
    train, weight, bias = problem()
    double = [Sample(np.concatenate([s.rows, s.rows], axis=2), s.wanted) for s in train]
    found = fit(double, double, np.concatenate([weight, weight], axis=1), bias)
    assert found.after < 0.5
    assert np.isfinite(found.weight).all()


def flat(samples):
    return np.concatenate([s.wanted - (0 if s.added is None else s.added) for s in samples]).astype(np.float64)


@pytest.mark.parametrize("added", [True, False])
def test_moments(added):
    """a = clip(sd0 / sd1, 0.5, 2); W a; mean0 - a (mean1 - b): all three cases of the clip occur."""
    train, weight, bias = problem(groups=2, out=3, added=added)
    weight = weight * np.repeat([[0.1, 1.0, 20.0]], 2, axis=0)[:, None]
    made = np.concatenate([predict(Sample(s.rows, s.wanted), weight, bias) for s in train]).astype(np.float64)
    raw = flat(train).std(0) / made.std(0)
    factor = np.clip(raw, 0.5, 2)
    assert (raw < 0.5).any()
    assert (raw > 2).any()
    found = moments.fit(train, train, weight, bias)
    np.testing.assert_allclose(found.weight, weight * factor.reshape(2, 1, 3), rtol=1e-4)
    np.testing.assert_allclose(found.bias, flat(train).mean(0) - factor * (made.mean(0) - bias), rtol=1e-3, atol=1e-4)
    assert np.array_equal(moments.fit(train, train, weight, bias, intercept=False).bias, bias)


def test_means_only():
    """The repair of the bias moves the means to those of the original, and nothing else; nowhere without a bias."""
    train, weight, bias = problem(added=True)
    found = moments.fit(train, train, weight, bias, scale=False)
    made = np.concatenate([predict(Sample(s.rows, s.wanted), found.weight, found.bias) for s in train])
    np.testing.assert_allclose(made.mean(0), flat(train).mean(0), atol=1e-4)
    assert found.weight is weight
    same = moments.fit(train, train, weight, bias, scale=False, intercept=False)
    assert same.bias is bias
    assert same.before == same.after


def test_default_ridge():
    """The ridge of the default is the documented one."""
    assert least_squares.RIDGE == 1e-3
