"""The criteria that look at data, against their formulas and against refits one by one."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import criteria
from onnxprune.criteria.activations import InputStatistics, elimination
from onnxprune.criteria.norms import group_norm
from onnxprune.errors import UsageError


def statistics(classes, rng, outs=3, follows=False):
    """A reader with these classes of rows, [groups, d], and inputs that depend on each other."""
    classes = np.atleast_2d(np.array(classes, np.int32))
    groups, d = classes.shape
    x = rng.standard_normal((groups, 200, d)) @ rng.standard_normal((groups, d, d)) + rng.standard_normal(
        (groups, 1, d)
    )
    gram = x.transpose(0, 2, 1) @ x / 200
    return InputStatistics(classes, follows, gram, x.mean(1), rng.standard_normal((groups, d, outs)))


def share(s, removed):
    """Half of the least squared error of the reader's output without these classes, as a share of what it gives.

    By exact least squares on the centred, ridged covariance.
    """
    error = 0.0
    for classes, c, w in zip(s.classes, s.centred(), s.weight, strict=True):
        stay = ~np.isin(classes, removed)
        new = np.zeros_like(w)
        new[stay] = np.linalg.solve(c[np.ix_(stay, stay)], c[stay] @ w)
        error += 0.5 * np.sum((w - new) * (c @ (w - new))) / np.sum(w * (c @ w))
    return error


READERS = {
    "one reader": [[1, 2, 3, 4]],
    "several rows of a class": [[1, 2, 3, 1, 2, 3, 1, 2, 3]],
    "frozen rows": [[1, 0, 2, 0, 3]],
    "two readers": [[1, 2, 3, 4], [4, 3, 0, 2, 1, 4]],
    "groups": [[[1, 2], [3, 4]]],
    "classes of another group": [[1, 7, 2, 8, 3]],
}


@pytest.mark.parametrize("name", READERS)
def test_elimination(name, rng):
    """Every step removes the class whose best refit costs least, and the error so far is that of a refit of all."""
    found = [statistics(r, rng) for r in READERS[name]]
    members = np.array([1, 2, 3, 4])
    present = sorted({int(c) for s in found for c in s.classes.reshape(-1)} & {1, 2, 3, 4})
    order, errors = elimination(members, found)
    assert sorted(order) == present
    gone = []
    for best, total in zip(order.tolist(), errors, strict=True):
        left = [c for c in present if c not in gone]
        costs = {c: sum(share(s, [*gone, c]) for s in found) for c in left}
        assert best == min(costs, key=costs.get)
        assert total == pytest.approx(costs[best], rel=1e-6)
        gone.append(best)
    assert (np.diff(errors) >= 0).all()


def test_depthwise_readers_do_not_count(rng):
    """A reader whose outputs leave with its inputs misses nothing."""
    s, t = statistics([1, 2, 3], rng), statistics([[1], [2], [3]], rng, outs=1, follows=True)
    for a, b in zip(elimination(np.array([1, 2, 3]), [s, t]), elimination(np.array([1, 2, 3]), [s]), strict=True):
        assert np.array_equal(a, b)


def test_many_classes(rng):
    """Of many classes several leave at a time: all of them once, with errors that grow."""
    n = 150
    order, errors = elimination(np.arange(1, n + 1), [statistics(np.arange(1, n + 1), rng)])
    assert sorted(order.tolist()) == list(range(1, n + 1))
    assert (np.diff(errors) >= 0).all()


def test_obs(two_convs, rng):
    """Scores of `obs` are the errors along the elimination."""
    analysis, _ = two_convs
    found = [statistics([1, 2, 3, 4], rng)]
    order, errors = elimination(np.arange(1, 5), found)
    scores = criteria.score("obs", analysis, statistics=found)
    assert np.array_equal(scores[order], errors)


def test_activation(two_convs, rng):
    """E[x^2] of every row times the squared weights that read it, as a share of the reader's sum times its rows."""
    analysis, _ = two_convs
    found = [statistics([1, 2, 3, 4, 1, 2, 3, 4], rng), statistics([[0, 4], [2, 1]], rng)]
    found.append(statistics([[1], [2], [3], [4]], rng, outs=1, follows=True))
    want = np.zeros(5)
    for s in found[:2]:
        energy = {}
        for g, i in np.ndindex(s.classes.shape):
            energy[g, i] = s.gram[g, i, i] * np.square(s.weight[g, i]).sum()
        for (g, i), e in energy.items():
            want[s.classes[g, i]] += e / sum(energy.values()) * s.classes.size
    np.testing.assert_allclose(criteria.score("activation", analysis, statistics=found)[1:], want[1:], rtol=1e-9)


@pytest.mark.parametrize("method", ["activation", "obs"])
def test_classes_that_nobody_reads(two_convs, rng, method):
    """They get their norms, on the scale of the others; with no statistics at all, all do."""
    analysis, _ = two_convs
    norms = group_norm(analysis, 0)
    found = [statistics([1, 2, 0], rng)]
    scores = criteria.score(method, analysis, statistics=found)
    plain = criteria.score(method, analysis, statistics=[])
    scale = scores[1:3].mean() / norms[1:3].mean()
    np.testing.assert_allclose(scores[3:], scale * norms[3:])
    np.testing.assert_allclose(plain[1:], norms[1:])


@pytest.mark.parametrize("method", ["activation", "obs"])
def test_data_are_needed(two_convs, method):
    """Without statistics these criteria refuse, and say what to give."""
    assert criteria.needs_data(method)
    assert not criteria.needs_data("l2")
    with pytest.raises(UsageError, match="--data"):
        criteria.score(method, two_convs[0])
