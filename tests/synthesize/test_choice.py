"""Choosing candidates: by the sum of their features, and by class."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from onnxprune.synthesize.choice import balanced, herd


def size(gram, chosen):
    """Squared length of the sum of the chosen feature vectors."""
    return gram[np.ix_(chosen, chosen)].sum()


@pytest.mark.parametrize("seed", range(20))
def test_herding_is_nearly_the_best_choice(seed):
    """Of all ways to choose 4 of 12, at most one in fifty is better than the one found."""
    features = np.random.default_rng(seed).standard_normal((12, 3)) + 0.5
    gram = features @ features.T
    every = np.array([size(gram, list(c)) for c in combinations(range(12), 4)])
    found = herd(gram, 4)
    assert len(set(found)) == 4
    assert (every < size(gram, found) - 1e-9).mean() <= 0.02


def test_herding_finds_the_offset_that_cancels_the_bias():
    """Where the candidates' mean is off target, the sum of the chosen is much closer to it than that of the first."""
    features = np.random.default_rng(1).standard_normal((400, 10)) + 0.3
    gram = features @ features.T
    assert size(gram, herd(gram, 100)) < 0.01 * size(gram, np.arange(100))


def test_all_candidates():
    """Choosing all of them takes each once."""
    assert herd(np.eye(5), 5).tolist() == [0, 1, 2, 3, 4]


def test_even_classes():
    """Rare classes are taken whole, the others share the rest evenly; nothing is taken twice."""
    classes = np.repeat([0, 3, 5, 9], [100, 2, 40, 60])
    chosen = balanced(classes, 62, np.random.default_rng(0))
    assert len(set(chosen)) == 62
    assert np.bincount(classes[chosen], minlength=10)[[0, 3, 5, 9]].tolist() == [20, 2, 20, 20]


def test_even_classes_are_drawn_within_a_class():
    """Which members of a class are taken, and their order, depends on the generator alone."""
    classes = np.arange(100) % 2
    first, again, other = (balanced(classes, 20, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()
    assert set(classes[first[:5]]) == {0, 1}
