"""Merging: exact where a removed filter is a positive multiple of its partner, and by the formula elsewhere."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from copies import EXACT, HALVES, INT8, RELU, arrays, copied, errors, imitate, outputs
from graphs import analyse, each

from onnxprune.cut import cut
from onnxprune.graph import values
from onnxprune.recover.merge import QUANTISED, Repair, matched, merge, nearest, similarities

DEPTHWISE = """g (float[1,3,6,6] x) => (float[] y) <float[4,3,1,1] w, float[4] b, float[4] s, float[4] o, float[4] m, float[4] var,
  float[4,1,3,3] k, float[4] c, float[2,4,1,1] v> {
    h = Conv(x, w, b)
    n = BatchNormalization(h, s, o, m, var)
    r = Relu(n)
    e = Conv <group = 4> (r, k, c)
    d = Relu(e)
    y = Conv(d, v)
}"""
ATTENTION = """g (float[1,5,3] x) => (float[] y) <float[3,4] q, float[3,4] k, float[3,4] v, float[4,2] o> {
    a = MatMul(x, q)
    b = MatMul(x, k)
    t = Transpose <perm = [0, 2, 1]> (b)
    s = MatMul(a, t)
    p = Softmax(s)
    c = MatMul(x, v)
    h = MatMul(p, c)
    y = MatMul(h, o)
}"""


def chosen(analysis, pairs):
    """Partners and what is kept if each class of `pairs` leaves for its partner."""
    partners = np.zeros(analysis.classes + 1, np.int32)
    partners[list(pairs)] = list(pairs.values())
    kept = np.ones(analysis.classes + 1, bool)
    kept[list(pairs)] = False
    return partners, kept


@each(EXACT, ["text", "factors"])
def test_multiples_merge_exactly(text, factors):
    """A filter that is a positive multiple of another can go without a trace, and the default partner is that other."""
    analysis, kept, copies = copied(text, factors)
    reference, small = outputs(analysis.model), cut(analysis, kept)
    assert min(errors(small, reference)) > 1e-2
    assert nearest(analysis, kept).tolist() == copies.tolist()
    done = merge(analysis, kept, small)
    assert max(errors(small, reference)) < 2e-6
    assert done.changed
    assert not done.skipped


def test_formula():
    """W[:, j] += s W[:, i]: j has the largest cosine of filters with their bias, s is the ratio of their norms."""
    analysis = analyse(RELU)
    before, kept = arrays(analysis.model), np.array([True, True, False, True, False, True])
    filters = np.concatenate([before["w"].reshape(5, -1), before["b"][:, None]], axis=1)
    norms = np.linalg.norm(filters, axis=1)
    cosines = filters @ filters.T / np.outer(norms, norms)
    want = before["v"].copy()
    for i in (1, 3):
        j = max((0, 2, 4), key=lambda j: cosines[i, j])
        assert cosines[i, j] > 0
        want[:, j] += norms[i] / norms[j] * before["v"][:, i]
    small = cut(analysis, kept)
    assert merge(analysis, kept, small).changed == ("v",)
    after = arrays(small)
    np.testing.assert_allclose(after["v"], want[:, [0, 2, 4]], rtol=1e-5, atol=1e-6)
    assert np.array_equal(after["w"], before["w"][[0, 2, 4]])


def test_similarity_of_a_depthwise_chain():
    """The cosine of the filters with BatchNormalization folded in, times that of the depthwise kernels; none below 0."""
    analysis = analyse(DEPTHWISE)
    p = arrays(analysis.model)
    scale = p["s"] / np.sqrt(p["var"] + 1e-5)
    folded = scale * (p["b"] - p["m"]) + p["o"]
    rows = np.concatenate([p["w"].reshape(4, -1) * scale[:, None], folded[:, None]], axis=1)
    kernels = np.concatenate([p["k"].reshape(4, -1), p["c"][:, None]], axis=1)
    want = np.ones((2, 2))
    for matrix in (rows, kernels):
        unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        want *= (unit @ unit.T)[np.ix_([0, 2], [1, 3])].clip(0)
    assert want.any()
    kept = np.array([True, False, True, False, True])
    ((removed, stay, cosines),) = similarities(analysis, kept)
    assert (removed.tolist(), stay.tolist()) == ([1, 3], [2, 4])
    np.testing.assert_allclose(cosines, want, atol=1e-6)


# ---- partners that are given ---------------------------------------------------------------------------------------


def test_given_partners_are_used():
    """The partner that is named takes over, even where another one is more similar."""
    analysis = analyse(RELU)
    imitate(analysis, np.array([0, 0, 1, 0, 0, 0]), {})  # 2 is 1: the default partner
    constants = analysis.model.constants()
    weight = np.abs(values(constants["w"]))
    constants["w"].values, constants["b"].values = weight, np.zeros(5, np.float32)
    partners, kept = chosen(analysis, {2: 4})
    assert nearest(analysis, kept)[2] == 1
    small = cut(analysis, kept)
    merge(analysis, kept, small, partners)
    before, after = arrays(analysis.model)["v"], arrays(small)["v"]
    norms = np.linalg.norm(weight.reshape(5, -1), axis=1)
    np.testing.assert_allclose(after[:, 2], before[:, 3] + norms[1] / norms[3] * before[:, 1], rtol=1e-5)
    assert np.array_equal(after[:, [0, 1, 3]], before[:, [0, 2, 4]])


def test_partners_that_leave_too_hand_on():
    """The partner of a partner takes over; a circle of removed classes has nobody."""
    analysis, _, _ = copied(RELU, {}, ((2, 1), (3, 1), (5, 4)))
    partners, kept = chosen(analysis, {3: 2, 2: 1, 4: 5, 5: 4})
    small = cut(analysis, kept)
    done = merge(analysis, kept, small, partners)
    before, after = arrays(analysis.model)["v"], arrays(small)["v"]
    np.testing.assert_allclose(after[:, 0], before[:, :3].sum(axis=1), rtol=1e-6)
    assert done.skipped == (("w", "2 removed classes have no partner that resembles them"),)


def test_an_opposite_is_no_partner():
    """A filter whose cosine is not positive stays without a partner, whether it is named or not."""
    analysis, kept, partners = copied(RELU, {"w": -1.0, "b": -1.0}, ((2, 4),))
    want = outputs(cut(analysis, kept))
    small = cut(analysis, kept)
    done = merge(analysis, kept, small, partners)
    assert done == Repair((), (("w", "1 removed classes have no partner that resembles them"),))
    assert max(errors(small, want)) == 0
    assert nearest(analysis, kept)[2] != 4


def test_another_number_of_positions():
    """A class that owns one channel does not merge into one that owns two: neither by default nor by name."""
    analysis = analyse(HALVES)
    constants = analysis.model.constants()
    constants["w"].values = np.abs(values(constants["w"]))  # alike enough
    partners, kept = chosen(analysis, {3: 1})
    assert not nearest(analysis, kept).any()
    small = cut(analysis, kept)
    before = arrays(small)["v"]
    done = merge(analysis, kept, small, partners)
    assert done == Repair((), (("v", "classes and their partners own different numbers of positions on axis 1"),))
    assert np.array_equal(arrays(small)["v"], before)


def test_positions_match_in_order():
    """The k-th position of a class goes to the k-th of its partner."""
    classes = np.array([3, 1, 0, 3, 2, 1, 2, 3], np.int32)
    sources, targets = matched(classes, np.array([0, 2, 0, 0], np.int32))
    assert dict(zip(sources.tolist(), targets.tolist(), strict=True)) == {1: 4, 5: 6}
    assert matched(classes, np.array([0, 3, 0, 0], np.int32)) is None


# ---- what is left alone --------------------------------------------------------------------------------------------


def test_quantised_consumers_are_left_alone():
    """Integers with a fixed scale stay as they were cut, with a reason; float consumers of the same channels merge."""
    analysis, kept, _ = copied(INT8, {"w": 2.0})
    reference, small = outputs(analysis.model), cut(analysis, kept)
    quantised = values(small.constants()["v"]).copy()
    done = merge(analysis, kept, small)
    assert done == Repair(("u",), (("v", QUANTISED),))
    assert np.array_equal(values(small.constants()["v"]), quantised)
    y, z = errors(small, reference)
    assert y > 1e-2
    assert z < 2e-6


def test_what_only_a_product_of_activations_sums_over_has_no_partner():
    """Dimensions of queries and keys are read by no weight; those of values are."""
    analysis = analyse(ATTENTION)
    axes = {a.param: a.classes for a in analysis.axes}
    copies = np.zeros(analysis.classes + 1, np.int32)
    for name in ("q", "v"):
        copies[axes[name][1]] = axes[name][0]
    imitate(analysis, copies, {})
    kept = copies == 0
    assert nearest(analysis, kept).nonzero()[0].tolist() == [axes["v"][1]]
    small = cut(analysis, kept)
    assert merge(analysis, kept, small).changed == ("o",)


def test_a_dead_partner_takes_nothing_over():
    """Where BatchNormalization silences the partner, the weights of the removed channel are dropped, not blown up."""
    text, _ = EXACT["BN before the convolution, another factor in each"]
    analysis, kept, _ = copied(text, {}, ((2, 4),))
    constants = analysis.model.constants()
    for name in ("s", "o"):
        constants[name].values = np.where(np.arange(5) == 3, np.float32(1e-12), values(constants[name]))
    small = cut(analysis, kept)
    before = arrays(small)
    merge(analysis, kept, small)
    after = arrays(small)
    assert np.array_equal(after["v"], before["v"])
    assert not np.array_equal(after["u"], before["u"])


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "double"])
def test_element_types(kind):
    """Weights keep their type; sums are rounded once."""
    analysis = analyse(RELU.replace("float[", f"{kind}["))
    copies = np.array([0, 0, 4, 0, 0, 0])
    imitate(analysis, copies, {})
    small = cut(analysis, copies == 0)
    merge(analysis, copies == 0, small)
    before, after = values(analysis.model.constants()["v"]), values(small.constants()["v"])
    assert after.dtype == before.dtype
    want = before[:, 3].astype(np.float64) + before[:, 1].astype(np.float64)
    precision = float(ml_dtypes.finfo(before.dtype).eps)
    np.testing.assert_allclose(after[:, 2].astype(np.float64), want, rtol=max(precision, 1e-7))


def test_the_original_is_not_touched():
    """Merging edits the cut model only, and nothing where nothing was removed."""
    analysis, kept, _ = copied(*EXACT["a residual stream"])
    before = analysis.model.to_proto().SerializeToString()
    merge(analysis, kept, cut(analysis, kept))
    whole = cut(analysis, np.ones_like(kept))
    assert merge(analysis, np.ones_like(kept), whole) == Repair((), ())
    assert analysis.model.to_proto().SerializeToString() == whole.to_proto().SerializeToString() == before
