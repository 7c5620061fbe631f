"""Pairs of a distance and a norm threshold."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import analyse

from onnxprune import criteria
from onnxprune.allocate import allocate
from onnxprune.cost import CostModel
from onnxprune.searching.pairs import RATES, pairs, relative_norms, scored, shared
from onnxprune.target import Target

TEXT = """g (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[24,3,3,3] w, float[16,24,3,3] v, float[4,16,1,1] u> {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    r = Relu(a)
    b = Conv <pads = [1, 1, 1, 1]> (r, v)
    s = Relu(b)
    y = Conv(s, u)
}"""


@pytest.fixture(scope="module")
def found():
    """The analysis, the distances and the pairs for half of the MACs."""
    analysis = analyse(TEXT)
    cost, distances = CostModel(analysis), criteria.score("cluster", analysis)

    def decide(scores):
        return allocate(analysis, scores, cost, target=Target("flops", 0.5), align=1, min_keep=0, per_group=False)

    return analysis, distances, pairs(analysis, distances, decide), decide


def test_every_pair_meets_the_budget(found):
    """All choices keep just below half of the MACs, and no two are the same."""
    _, _, pairs_, _ = found
    assert len(pairs_) > 5
    assert all(0.49 < p.choice.fraction <= 0.5 for p in pairs_)
    assert len({p.choice.kept.tobytes() for p in pairs_}) == len(pairs_)


def test_thresholds_between_replace_those_that_lead_to_the_same(found):
    """As many choices as asked for, where there are so many, in the order of their distances."""
    analysis, distances, _, decide = found
    eight = pairs(analysis, distances, decide, 8)
    assert len(eight) == 8
    assert [p.distance for p in eight] == sorted(p.distance for p in eight)


def test_the_ends_are_norms_alone_and_distances_alone(found):
    """The first pair is the choice by norms, the last one that by distances."""
    analysis, distances, pairs_, decide = found
    assert np.array_equal(pairs_[0].choice.kept, decide(relative_norms(analysis)).kept)
    assert np.array_equal(pairs_[-1].choice.kept, decide(distances).kept)
    assert pairs_[0].by_distance == 0


def test_what_leaves_is_close_or_small(found):
    """Whatever leaves is closer than the pair's distance or not above its norm; where that alone would keep too
    much, all that is closer leaves, but for two at most that come back in exchange to meet the budget.
    """
    analysis, distances, pairs_, _ = found
    norms = relative_norms(analysis)
    cost, frozen = CostModel(analysis), np.arange(len(distances)) == 0
    both = [p for p in pairs_ if cost.value(frozen | (distances > p.distance), "flops") > 0.52 * cost.original.macs]
    assert len(both) > 3
    for p in both:
        gone = ~p.choice.kept
        assert (gone[1:] <= ((distances <= p.distance) | (norms <= p.norm))[1:]).all()
        assert np.count_nonzero(~gone[1:] & (distances[1:] <= p.distance)) <= 2


def test_scores_of_pairs(found):
    """`scored` fills in what its functions give."""
    _, _, pairs_, _ = found
    told = scored(pairs_[:2], kl=lambda kept: float(kept.sum()))
    assert [p.kl for p in told] == [float(p.choice.kept.sum()) for p in told]
    assert told[0].as_dict()["naswot"] is None


RESIDUAL = """g (float[N,3,8,8] x) => (float[N,4,8,8] y)
    <float[64,3,3,3] s, float[128,64,3,3] a, float[64,128,3,3] b, float[64,1,3,3] d, float[4,64,1,1] u> {
    t = Conv <pads = [1, 1, 1, 1]> (x, s)
    c = Conv <pads = [1, 1, 1, 1]> (t, a)
    r = Relu(c)
    e = Conv <pads = [1, 1, 1, 1]> (r, b)
    f = Add(t, e)
    h = Conv <group = 64, pads = [1, 1, 1, 1]> (f, d)
    y = Conv(h, u)
}"""


@pytest.mark.parametrize(("text", "streams"), [(RESIDUAL, [64]), (TEXT, [])])
def test_shared_groups_are_written_by_several_layers(text, streams):
    """A residual stream is shared; what one layer writes is not, though a depthwise convolution passes it on."""
    analysis = analyse(text)
    assert [len(analysis.groups[g - 1].classes) for g in np.flatnonzero(shared(analysis))] == streams


def test_a_rate_holds_streams_back():
    """Under a rate, no more than that share of the stream leaves while the rest can meet the budget; where it cannot,
    the budget is met all the same.
    """
    analysis = analyse(RESIDUAL)
    cost, distances = CostModel(analysis), criteria.score("cluster", analysis)
    stream = shared(analysis)[analysis.group]

    def lost(target, rate):
        def decide(scores):
            return allocate(
                analysis, scores, cost, target=Target("flops", target), align=1, min_keep=0, per_group=False
            )

        found = pairs(analysis, distances, decide, rates=[rate])
        assert all(p.rate == rate and p.choice.fraction <= target for p in found)
        return [int((~p.choice.kept & stream).sum()) for p in found]

    assert max(lost(0.5, 1.0)) > 16
    assert max(lost(0.5, 0.25)) <= 16
    assert max(lost(0.5, 0.0)) == 0
    assert min(lost(0.02, 0.0)) > 0


def test_pairs_of_several_rates(found):
    """Choices that an earlier rate has made, too, are not made again: here no group is shared."""
    analysis, distances, pairs_, decide = found
    again = pairs(analysis, distances, decide, rates=RATES)
    assert [(p.distance, p.rate) for p in again] == [(p.distance, 1.0) for p in pairs_]
