"""Small filters chosen by an optimiser."""

from __future__ import annotations

import json

import numpy as np
import pytest
from graphs import analyse
from recovering import Case

from onnxprune import criteria
from onnxprune.allocate import allocate
from onnxprune.cost import CostModel
from onnxprune.criteria.activations import RefitErrors
from onnxprune.cut import cut
from onnxprune.recover.layers import sites
from onnxprune.recover.statistics import readers
from onnxprune.recovery import Known
from onnxprune.searching.filters import evolve
from onnxprune.target import Target

TEXT = """g (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[24,3,3,3] w, float[24] b, float[16,24,3,3] v, float[4,16,1,1] u> {
    a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu(a)
    b2 = Conv <pads = [1, 1, 1, 1]> (r, v)
    s = Relu(b2)
    y = Conv(s, u)
}"""


@pytest.fixture(scope="module")
def problem():
    """The analysis, the choice by norms, its scores, what the layers read."""
    analysis = analyse(TEXT)
    scores = criteria.score("l2", analysis)
    plain = allocate(analysis, scores, CostModel(analysis), target=Target("flops", 0.4), align=1)
    case = Case(analysis, plain.kept, batches=3, samples=16)
    everything = np.ones(analysis.classes + 1, bool)
    found = readers(analysis, everything, case.whole, sites(case.whole)[0], case.reference)
    return analysis, plain.kept, scores, [r.inputs for r in found]


def errors(analysis, kept, statistics, group):
    """The error that is left of a group's readers."""
    members = np.flatnonzero(analysis.group == group)
    return RefitErrors(members, statistics)(members[~kept[members]])


@pytest.mark.parametrize("optimiser", ["evolution", "annealing", "economics"])
def test_taken_up_again(problem, optimiser, monkeypatch):
    """A run that was interrupted after some candidates and taken up again is the uninterrupted one; only the batch at
    work is tried twice.
    """
    analysis, start, scores, statistics = problem
    given = {"optimiser": optimiser, "budget": 30, "seed": 3}
    calls, real = [], RefitErrors.__call__
    stop = [10_000]

    def counted(self, lost):
        if len(calls) == stop[0]:
            raise KeyboardInterrupt
        calls.append(lost)
        return real(self, lost)

    monkeypatch.setattr(RefitErrors, "__call__", counted)
    free = np.arange(analysis.classes + 1) > 0
    whole = evolve(analysis, start, free, scores, statistics, **given)
    count = len(calls)
    calls.clear()
    stop[0], journal = count - 11, []
    first = Known(noted=lambda: journal.append(json.dumps(first.values)))
    with pytest.raises(KeyboardInterrupt):
        evolve(analysis, start, free, scores, statistics, **given, known=first)
    stop[0] = 10_000
    again = evolve(analysis, start, free, scores, statistics, **given, known=Known(values=json.loads(journal[-1])))
    assert np.array_equal(again[0], whole[0])
    assert again[1] == whole[1]
    assert count <= len(calls) < count + 8


def test_errors_are_those_of_a_direct_refit(problem):
    """The error after the best linear refit, by the normal equations of what stays."""
    analysis, kept, _, statistics = problem
    [reader] = [s for s in statistics if np.isin(s.classes, np.flatnonzero(analysis.group == 1)).any()]
    moments, weight, stays = reader.centred()[0], reader.weight[0], kept[reader.classes[0]]
    fitted = np.zeros_like(weight)
    fitted[stays] = np.linalg.solve(moments[np.ix_(stays, stays)], moments[stays] @ weight)
    left = weight - fitted
    wanted = np.trace(left.T @ moments @ left) / np.trace(weight.T @ moments @ weight) / 2
    assert errors(analysis, kept, statistics, 1) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("optimiser", ["evolution", "annealing", "economics"])
def test_better_than_the_start_at_the_same_cost(problem, optimiser):
    """Each group keeps as many filters, with a smaller error; what is told of it is true; seeds repeat."""
    analysis, start, scores, statistics = problem
    free = np.ones(analysis.classes + 1, bool)
    kept, told = evolve(analysis, start, free, scores, statistics, optimiser=optimiser, budget=40, seed=3)
    assert CostModel(analysis).evaluate(kept) == CostModel(analysis).evaluate(start)
    assert [e.group for e in told] == [1, 2]
    for e in told:
        assert np.count_nonzero(kept[analysis.group == e.group]) == np.count_nonzero(start[analysis.group == e.group])
        assert e.before == pytest.approx(errors(analysis, start, statistics, e.group))
        assert e.after == pytest.approx(errors(analysis, kept, statistics, e.group))
        assert e.after < e.before
    again, _ = evolve(analysis, start, free, scores, statistics, optimiser=optimiser, budget=40, seed=3)
    assert np.array_equal(again, kept)


def test_the_large_ones_stay(problem):
    """The best half of what the criterion keeps stays; what is protected is left alone."""
    analysis, start, scores, statistics = problem
    free = np.ones(analysis.classes + 1, bool)
    first = np.flatnonzero((analysis.group == 1) & start)
    best = first[np.argsort(-scores[first])][: len(first) // 2]
    free[analysis.group == 2] = False
    kept, told = evolve(analysis, start, free, scores, statistics, optimiser="evolution", budget=40, seed=0)
    assert kept[best].all()
    assert np.array_equal(kept[analysis.group == 2], start[analysis.group == 2])
    assert [e.group for e in told] == [1]


def test_a_budget_of_one_changes_nothing(problem):
    """The start is the first candidate."""
    analysis, start, scores, statistics = problem
    free = np.ones(analysis.classes + 1, bool)
    kept, _ = evolve(analysis, start, free, scores, statistics, optimiser="evolution", budget=1, seed=0)
    assert np.array_equal(kept, start)
    assert cut(analysis, kept) is not None
