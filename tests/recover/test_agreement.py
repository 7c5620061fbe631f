"""Agreement of outputs, against its formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from onnxprune.recover.agreement import agreement, divergence


def batches(array, size=7, name="y"):
    return [{name: array[i : i + size]} for i in range(0, len(array), size)]


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((20, 5))
    return logits, logits + rng.standard_normal((20, 5))


def test_logits(pair):
    """Rows of scores: the mean KL divergence of their softmax, the same largest class, the most frequent answer."""
    a, b = pair
    found = agreement(batches(a), batches(b))
    p, q = softmax(a, 1), softmax(b, 1)
    assert found.divergence == pytest.approx(entropy(p, q, axis=1).mean(), rel=1e-6)
    assert found.top1 == (a.argmax(1) == b.argmax(1)).mean()
    assert 0 < found.top1 < 1
    assert found.chance == max(np.bincount(a.argmax(1))) / 20
    assert found.relative_error == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a))
    assert found.samples == 20


def test_probabilities(pair):
    """Rows that are probabilities already are taken as they are."""
    p, q = (softmax(x, 1) for x in pair)
    assert divergence(batches(p), batches(q)) == pytest.approx(entropy(p, q, axis=1).mean(), rel=1e-6)
    assert divergence(batches(p), batches(2 * q)) == pytest.approx(entropy(p, q, axis=1).mean(), rel=1e-6)


@pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 4, 3), (20, 2, 3, 3)])
def test_other_outputs(shape):
    """Other outputs: the squared relative error, and no top-1."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(shape), rng.standard_normal(shape)
    found = agreement(batches(a), batches(b))
    assert found.divergence == pytest.approx((np.linalg.norm(b - a) / np.linalg.norm(a)) ** 2)
    assert found.relative_error == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a))
    assert (found.top1, found.chance) == (None, None)
    assert found.samples == 20


def test_several_outputs(pair):
    """Divergences add up; the error is over all outputs."""
    rng = np.random.default_rng(1)
    boxes = rng.standard_normal((20, 3, 4))
    both = [
        [x | y for x, y in zip(batches(s), batches(t, name="z"), strict=True)]
        for s, t in zip(pair, (boxes, boxes + 1), strict=True)
    ]
    parts = divergence(batches(pair[0]), batches(pair[1])), divergence(batches(boxes), batches(boxes + 1))
    found = agreement(*both)
    assert found.divergence == pytest.approx(sum(parts))
    wrong = np.square(pair[1] - pair[0]).sum() + boxes.size
    assert found.relative_error == pytest.approx(np.sqrt(wrong / (np.square(pair[0]).sum() + np.square(boxes).sum())))


def test_equal(pair):
    """Equal outputs agree fully."""
    found = agreement(batches(pair[0]), batches(pair[0]))
    assert (found.top1, found.relative_error) == (1, 0)
    assert found.divergence == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite(pair, bad):
    """They are worse than any finite output, and never NaN."""
    a, b = pair[0].copy(), pair[1].copy()
    b[3, 2] = bad
    found = agreement(batches(a), batches(b))
    assert np.isfinite([found.divergence, found.relative_error]).all()
    assert found.relative_error > 0
