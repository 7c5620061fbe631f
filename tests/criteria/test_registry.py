"""The table of criteria."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import criteria
from onnxprune.criteria import registry
from onnxprune.errors import UsageError


def test_names_of_the_built_in_criteria():
    """Every criterion that needs no data is there."""
    assert set(criteria.NAMES) >= {"l1", "l2", "group_norm", "bn_scale", "geometric_median", "random"}


def test_unknown_name_lists_the_known_ones(two_convs):
    """The error for a wrong name says what there is."""
    with pytest.raises(UsageError, match=r"'l3'.*bn_scale, cluster, diversity, geometric_median"):
        criteria.score("l3", two_convs[0])


@pytest.fixture
def own(monkeypatch):
    """Register criteria without leaving them behind."""
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    return criteria.criterion


def test_a_third_party_criterion(two_convs, own):
    """A decorated function is scored by its name."""
    own("index")(lambda analysis, seed: np.arange(analysis.classes + 1) + seed)
    assert criteria.score("index", two_convs[0], seed=2).tolist() == [2, 3, 4, 5, 6]


def test_names_are_taken_once(own):
    """Registering a name again is an error, not a silent replacement."""
    with pytest.raises(ValueError, match="'l1' is registered already"):
        own("l1")(lambda analysis, seed: np.zeros(analysis.classes + 1))


@pytest.mark.parametrize("scores", [np.zeros(3), np.array([0, 1, np.nan, 1, 1])], ids=["too few", "nan"])
def test_useless_scores_are_refused(two_convs, own, scores):
    """One finite number per class, or the criterion is named in an error."""
    own("bad")(lambda analysis, seed: scores)
    with pytest.raises(UsageError, match="'bad'"):
        criteria.score("bad", two_convs[0])


@pytest.mark.parametrize("name", sorted(n for n in criteria.NAMES if not criteria.needs_data(n)))
def test_every_criterion_gives_finite_numbers(two_convs, name):
    """One float64 per class, the same at every call."""
    first, second = (criteria.score(name, two_convs[0], seed=3) for _ in range(2))
    assert first.dtype == np.float64
    assert first.shape == (5,)
    assert np.isfinite(first[1:]).all()
    assert np.array_equal(first, second)


def test_random_depends_on_the_seed(two_convs):
    """Different seeds rank differently."""
    analysis, _ = two_convs
    assert not np.array_equal(criteria.score("random", analysis, seed=1), criteria.score("random", analysis, seed=2))
