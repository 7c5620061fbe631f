"""Filters that point the same way, against hand-made cases and a direct implementation."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import criteria
from onnxprune.criteria.diversity import cosines, diversified
from onnxprune.errors import UsageError

TEXT = "g (float[1,2] x) => (float[1,3] y) { h = Gemm <transB = 1> (x, w)\n y = Gemm <transB = 1> (h, v) }"


def coupled(analyse, w, v=None):
    """Two matrix products, coupled over the first one's filters; the second one is not asked for by most."""
    ids = np.arange(1, len(w) + 1)
    v = np.ones((3, len(w))) if v is None else v
    return analyse(TEXT, {"w": np.asarray(w, np.float64), "v": v}, [("w", 0, "out", ids), ("v", 1, "in", ids)])


def direct(filters, threshold):
    """The algorithm as it is told: all edges from a threshold on, the most similar first, of the living only."""
    similar = cosines(np.asarray(filters))
    sums, living = np.abs(filters).sum(1), np.ones(len(filters), bool)
    n, gone = len(filters), []
    edges = sorted((-similar[i, j], i, j) for i in range(n) for j in range(i + 1, n) if similar[i, j] >= threshold)
    for _, i, j in edges:
        if not (living[i] and living[j]):
            continue
        alike = [similar[k, living].sum() - similar[k, k] for k in (i, j)]
        by_sum = abs(alike[0] - alike[1]) <= 1e-6 * n
        goes = (i if sums[i] < sums[j] else j) if by_sum else (i if alike[0] > alike[1] else j)
        living[goes] = False
        gone.append(goes)
    return gone


@pytest.mark.parametrize("threshold", [0.9, 0.5, 0.0])
def test_thresholds_are_beginnings_of_one_order(rng, threshold):
    """What leaves at a threshold is the part of the order whose similarity reaches it, as the algorithm gives it."""
    filters = rng.normal(size=(40, 5)).astype(np.float32)
    order, at, _ = diversified(cosines(filters), np.abs(filters).sum(1).astype(np.float64))
    assert (np.diff(at) <= 0).all()
    gone = direct(filters, threshold)
    assert 0 < len(gone) < 40
    assert order[at >= threshold].tolist() == gone


def test_the_one_that_resembles_more_leaves(analyse):
    """Of two equal filters beside a third, the one that is nearer to it leaves; its partner is the other one."""
    filters = [[1.0, 0], [0.99, 0.1], [0, 1]]
    found = criteria.rank("diversity", coupled(analyse, filters))
    assert found.scores[1:].argmin() == 1
    assert found.partners[2] == 1


def test_of_equals_the_smaller_leaves(analyse):
    """A scaled copy resembles all the same: the one of smaller absolute sum leaves."""
    found = criteria.rank("diversity", coupled(analyse, [[2.0, 2], [1, 1], [1, -1]]))
    assert found.scores[1:].argmin() == 1
    assert found.partners[2] == 1


def test_opposites_are_equal_in_absolute_terms_only(analyse):
    """Opposite filters are the least similar ones by sign, the most similar ones without."""
    analysis = coupled(analyse, [[1.0, 0], [-2, 0], [0.6, 1]])
    assert criteria.rank("diversity", analysis).partners[2] != 1
    assert criteria.rank("diversity:absolute", analysis).partners[1] == 2


def test_a_filter_of_zeros_leaves_first(analyse):
    """Nothing is lost with a filter of zeros."""
    assert criteria.score("diversity", coupled(analyse, [[1.0, 0], [0, 1], [0, 0]]))[1:].argmin() == 2


def test_filters_of_zeros_leave_the_scale_alone(analyse, rng):
    """Whether a layer has dead filters says nothing of the others: these have the scores that they have without."""
    filters = rng.normal(size=(12, 4))
    alone = criteria.score("diversity", coupled(analyse, filters))[1:]
    beside = criteria.score("diversity", coupled(analyse, np.concatenate([filters, np.zeros((2, 4))])))[1:]
    assert (beside[12:] == -1).all()
    assert beside[:12] == pytest.approx(alone, abs=1e-6)
    dead = criteria.score("diversity", coupled(analyse, [[1.0, 2], [0, 0], [0, 0]]))[1:]
    assert dead.tolist() == [3, -1, -1]


def test_outgoing_weights_tell_apart(analyse):
    """Filters that are equal but read differently are alike only while the readers are not looked at."""
    analysis = coupled(analyse, [[1.0, 0], [1, 0], [0, 1]], np.array([[1.0, -1, 1], [0, 0, 0], [0, 0, 0]]))
    assert criteria.rank("diversity", analysis).partners[1:3].any()
    found = criteria.rank("diversity:outgoing", analysis)
    assert 3 in found.partners  # the first and the third are read alike: now one of them leaves for the other
    assert {int(found.scores[1:].argmin()) + 1, int(found.partners[found.scores[1:].argmin() + 1])} == {1, 3}


def test_scores_are_quantiles(analyse, rng):
    """The scores of different groups are on one scale: 0 at a group's largest similarity, above 1 below its least."""
    filters = rng.normal(size=(30, 4))
    found = criteria.score("diversity", coupled(analyse, filters))[1:]
    most = np.sort((cosines(filters.astype(np.float32)) - 2 * np.eye(30)).max(1))
    _, at, _ = diversified(cosines(filters.astype(np.float32)), np.abs(filters).sum(1))
    assert found.min() == pytest.approx(0, abs=1e-6)
    assert np.count_nonzero(found <= 1) == np.count_nonzero(at >= most[0])
    assert found.max() == 3


def test_unknown_options_are_named(analyse):
    """An option that a criterion does not have is an error that says which it has."""
    with pytest.raises(UsageError, match=r"diversity has the options absolute, outgoing, not wild"):
        criteria.score("diversity:wild", coupled(analyse, [[1.0, 0], [0, 1]]))
    with pytest.raises(UsageError, match=r"l2 has no options, not absolute"):
        criteria.score("l2:absolute", coupled(analyse, [[1.0, 0], [0, 1]]))
