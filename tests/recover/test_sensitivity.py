"""What narrowing a group costs, measured without cutting, and the greedy order that follows."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import analyse, each
from recovering import Case, outputs

from onnxprune.cost import CostModel
from onnxprune.cut import cut
from onnxprune.recover.agreement import divergence
from onnxprune.recover.layers import sites
from onnxprune.recover.program import program
from onnxprune.recover.sensitivity import POWER, Curve, curves, greedy
from onnxprune.recover.statistics import readers, refitted

TEXT = """g (float[N,3,6,6] x) => (float[] aux, float[] y) <float[6,3,3,3] w, float[6] b, float[2,6,1,1] p, float[8,6,1,1] v,
  float[8] c, float[8,1,3,3] k, float[3,8,1,1] u, float[3] d> {
    h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu(h)
    aux = Conv(r, p)
    i = Conv(r, v, c)
    s = Relu(i)
    e = Conv <group = 8> (s, k)
    t = Relu(e)
    l = Conv(t, u, d)
    g = GlobalAveragePool(l)
    y = Flatten(g)
}"""
UNREAD = """g (float[N,5,3] x) => (float[] y) <float[3,4] w, float[3,4] u, float[2,3] v> {
    h = MatMul(x, w)
    i = MatMul(x, u)
    t = Transpose <perm = [0, 2, 1]> (i)
    y = MatMul(h, t)
}"""


PARTLY = """g (float[N,5,3] x) => (float[] y, float[] z) <float[3,4] w, float[3,4] u, float[4,2] v> {
    h = MatMul(x, w)
    i = MatMul(x, u)
    t = Transpose <perm = [0, 2, 1]> (i)
    y = MatMul(h, t)
    z = MatMul(h, v)
}"""


def table(text=TEXT, **options):
    """A case without a cut, its readers, and the curves of all groups in the order of their classes."""
    analysis = analyse(text)
    full = np.ones(analysis.classes + 1, bool)
    case = Case(analysis, full, batches=3)
    found = readers(analysis, full, case.whole, sites(case.whole)[0], case.reference)
    free = full.copy()
    free[0] = False
    scores = np.random.default_rng(0).random(analysis.classes + 1)
    made = curves(analysis, full, case.whole, found, scores, case.batches, case.reference.outputs, free=free, **options)
    return case, found, scores, made


def test_masked_is_cut():
    """The divergence in the table is that of the network really cut, with the refitted weights in it."""
    case, found, scores, made = table()
    assert [c.group for c in made] == [1, 2]
    for curve in made:
        assert curve.order.tolist() == sorted(curve.order, key=lambda c: scores[c])
        assert curve.damage[0] == 0
        assert len(curve.gone) > 3
        for count, damage in zip(curve.gone, curve.damage, strict=True):
            kept = np.ones(case.analysis.classes + 1, bool)
            kept[curve.order[:count]] = False
            narrow = program(cut(case.analysis, kept))
            if count:
                fill(narrow, case, found, ~kept)
            real = divergence(case.reference.outputs, outputs(narrow, case.batches))
            assert real == pytest.approx(damage, rel=1e-3, abs=1e-6)
        assert curve.damage[-1] > 0.01


def fill(narrow, case, found, lost):
    """Put the refitted weights of all readers, without the rows lost, into a cut model."""
    kept = ~lost
    layers = {x.weight: x for x in case.analysis.layers}
    for reader in (r for r in found if lost[r.inputs.classes].any() and not r.inputs.follows):
        layer, weight = layers[reader.site.weight], reader.site.weight
        stored = refitted(reader, lost, case.whole)
        outs, ins = kept[layer.outputs], kept[layer.inputs]
        narrow.weights[weight] = stored.pop(weight)[outs][:, ins]
        for name, array in stored.items():
            narrow.weights[name] = array[outs]


def test_levels():
    """The table holds these shares of every group, and one class always stays."""
    made = table(levels=(0.5, 0.0))[3]
    assert [c.gone.tolist() for c in made] == [[0, 3, 5], [0, 4, 7]]


def test_free_classes_only():
    """Classes that may not leave are on no curve."""
    case, found, scores, _ = table()
    free = np.ones(case.analysis.classes + 1, bool)
    free[[0, 1, 3]] = False
    full = free | True
    made = curves(case.analysis, full, case.whole, found, scores, case.batches, case.reference.outputs, free=free)
    assert {1, 3}.isdisjoint(made[0].order.tolist())
    assert len(made[0].order) == 4


@pytest.mark.parametrize("text", [UNREAD, PARTLY], ids=["unread", "partly"])
def test_classes_that_no_layer_reads(text):
    """Where a product of two computed tensors reads a class, the table comes from the cut itself."""
    case, _, _, made = table(text)
    (curve,) = made
    for count, damage in zip(curve.gone, curve.damage, strict=True):
        kept = np.ones(case.analysis.classes + 1, bool)
        kept[curve.order[:count]] = False
        real = divergence(case.reference.outputs, outputs(program(cut(case.analysis, kept)), case.batches))
        assert real == pytest.approx(damage, rel=1e-4, abs=1e-6)
    assert curve.damage[-1] > 0.01


def test_deterministic():
    """The same table and order twice."""
    first, second = table(), table()
    for a, b in zip(first[3], second[3], strict=True):
        assert np.array_equal(a.damage, b.damage)
        assert np.array_equal(a.order, b.order)
    orders = [greedy(c.kept, made, CostModel(c.analysis)) for c, _, _, made in (first, second)]
    assert np.array_equal(*orders)


def curve(group, order, gone, damage):
    return Curve(group, np.array(order), np.array(gone), np.array(damage, float))


def test_between_and_beyond_the_table():
    """Damage to the power, monotone, linear between the levels; beyond the last level twice its slope."""
    c = curve(1, range(1, 9), [0, 2, 4, 6], [0, 0.1, 0.05, 0.4])
    a, b = 0.1**POWER, 0.4**POWER
    np.testing.assert_allclose(
        c.at(np.arange(9), POWER), [0, a / 2, a, a, a, (a + b) / 2, b, b + (b - a), b + 2 * (b - a)]
    )


ORDERS = {
    "the cheap group first": ([0, 0.001, 0.002], [0, 5.0, 9.0], 1),
    "the other one": ([0, 5.0, 9.0], [0, 0.001, 0.002], 2),
}


@each(ORDERS, "one, two, first")
def test_greedy(one, two, first):
    """Ranks leave the group with the least damage per multiply-accumulate first, each in its own order."""
    analysis = analyse(TEXT)
    full = np.ones(analysis.classes + 1, bool)
    members = [np.flatnonzero(analysis.group == g)[::-1] for g in (1, 2)]
    made = [curve(g, m, [0, 2, len(m) - 1], d) for g, m, d in zip((1, 2), members, (one, two), strict=True)]
    rank = greedy(full, made, CostModel(analysis))
    for m in members:
        assert (np.diff(rank[m]) > 0).all()
    assert sorted(rank[1:].tolist()) == list(range(1, len(rank)))
    low, high = members[first - 1], members[2 - first]
    assert rank[low[:-1]].max() < rank[high].min()


def test_classes_without_a_curve_leave_last():
    """What the table does not hold gets the highest rank."""
    analysis = analyse(TEXT)
    full = np.ones(analysis.classes + 1, bool)
    mine = np.flatnonzero(analysis.group == 2)
    rank = greedy(full, [curve(2, mine, [0, 7], [0, 1])], CostModel(analysis))
    assert rank[analysis.group != 2].min() > rank[mine].max()
    assert np.isfinite(rank).all()
