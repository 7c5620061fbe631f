"""Folding: exact for copies; centroids, sums and the variance correction by their formulas."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from copies import EXACT, HALVES, INT8, RELU, arrays, copied, errors, imitate, outputs
from graphs import analyse, each

from onnxprune import runtime
from onnxprune.cut import cut
from onnxprune.graph import values
from onnxprune.recover.fold import fold
from onnxprune.recover.merge import QUANTISED, Repair

NORM = """g (float[4096,3] x) => (float[4096,2] y) <float[5,3] w, float[5] b, float[5] s, float[5] o,
  float[5] m, float[5] var, float[5,2] v> {
    h = Gemm <transB = 1> (x, w, b)
    n = BatchNormalization <epsilon = 0.0> (h, s, o, m, var)
    d = Relu(n)
    y = MatMul(d, v)
}"""
# Copies instead of multiples; only how a convolution and its BatchNormalization divide the work may differ.
SAME = {name: (text, {}) for name, (text, _) in EXACT.items()}
SAME["BN scaled by its statistics"] = (
    EXACT["BN scaled by its statistics"][0],
    {"w": -4.0, "m": -4.0, "var": 16.0, "s": -1.0},
)
SHARED = """g (float[2,3,6,6] x) => (float[] y) <float[5,3,1,1] w, float[5] s, float[5] o, float[5] m, float[5] var,
  float[5,3,1,1] u, float[5] s1, float[5] m1, float[5] var1, float[2,5,1,1] v> {
    h = Conv(x, w)
    n = BatchNormalization <epsilon = 0.0> (h, s, o, m, var)
    k = Conv(x, u)
    n1 = BatchNormalization <epsilon = 0.0> (k, s1, o, m1, var1)
    a = Add(n, n1)
    d = Relu(a)
    y = Conv(d, v)
}"""
CLUSTERS = np.array([0, 0, 1, 0, 1, 3], np.int32)  # {1, 2, 4} and {3, 5}
KEPT = CLUSTERS == 0
MEMBERS = ([0, 1, 3], [2, 4])


def gain(filters, deviation):
    """Root of the mean variance over the variance of the mean, the sum over all pairs written out."""
    k, variance = len(filters), 0.0
    for i in range(k):
        for j in range(k):
            rho = filters[i] @ filters[j] / np.linalg.norm(filters[i]) / np.linalg.norm(filters[j])
            variance += rho * deviation[i] * deviation[j] / k**2
    return min(np.sqrt(np.mean(deviation**2) / variance), np.sqrt(k))


@each(SAME, ["text", "factors"])
@pytest.mark.parametrize("variance", [True, False])
def test_copies_fold_exactly(text, factors, variance):
    """A filter that computes what another one computes can go without a trace."""
    analysis, kept, _ = copied(text, factors, ((2, 4), (5, 4), (1, 3)))
    reference, small = outputs(analysis.model), cut(analysis, kept)
    assert min(errors(small, reference)) > 1e-2
    done = fold(analysis, kept, small, variance=variance)
    assert max(errors(small, reference)) < 2e-6
    assert not done.skipped


def test_shared_betas_are_written_apart():
    """Two BatchNormalization nodes that read one beta get one each: their centroids differ."""
    analysis, kept, _ = copied(SHARED, {"w": 2.0, "m": 2.0, "var": 4.0, "u": -3.0, "m1": -3.0, "s1": -1.0, "var1": 9.0})
    reference, small = outputs(analysis.model), cut(analysis, kept)
    done = fold(analysis, kept, small)
    assert max(errors(small, reference)) < 2e-6
    assert {"o", "o_1"} <= set(done.changed)
    assert "o_1" in small.constants()


def test_formula():
    """Producers: the mean of the rows times the gain, and the mean of the biases. Consumers: the sum of the columns."""
    analysis = analyse(RELU)
    before, small = arrays(analysis.model), cut(analysis, KEPT)
    done = fold(analysis, KEPT, small, CLUSTERS)
    after = arrays(small)
    assert done == Repair(("w", "b", "v"), ())
    for place, members in enumerate(MEMBERS):
        filters = before["w"].reshape(5, -1)[members]
        row = gain(filters, np.linalg.norm(filters, axis=1)) * filters.mean(axis=0)
        np.testing.assert_allclose(after["w"][place].reshape(-1), row, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(after["b"][place], before["b"][members].mean(), rtol=1e-6)
        np.testing.assert_allclose(after["v"][:, place], before["v"][:, members].sum(axis=1), rtol=1e-5)


def test_formula_without_correction():
    """Plain means if asked for."""
    analysis = analyse(RELU)
    small = cut(analysis, KEPT)
    fold(analysis, KEPT, small, CLUSTERS, variance=False)
    before, after = arrays(analysis.model)["w"], arrays(small)["w"]
    np.testing.assert_allclose(after, [before[m].mean(axis=0) for m in MEMBERS], rtol=1e-5, atol=1e-7)


def test_white_inputs_keep_the_mean_variance():
    """The norm of a corrected centroid is the root mean square of its members' norms: that of white inputs' deviation."""
    analysis = analyse(RELU)
    constants = analysis.model.constants()
    constants["w"].values = 1 + values(constants["w"])  # so that nothing reaches the limit
    small = cut(analysis, KEPT)
    fold(analysis, KEPT, small, CLUSTERS)
    norms = [np.linalg.norm(arrays(m)["w"].reshape(-1, 27), axis=1) for m in (analysis.model, small)]
    np.testing.assert_allclose(norms[1], [np.sqrt(np.mean(norms[0][m] ** 2)) for m in MEMBERS], rtol=1e-5)


def test_the_gain_is_limited():
    """Filters that cancel are scaled by the root of their number at most, as independent ones are."""
    analysis = analyse(RELU)
    imitate(analysis, np.array([0, 0, 1, 0, 0, 0]), {"w": -0.5})
    clusters = np.array([0, 0, 1, 0, 0, 0], np.int32)
    small = cut(analysis, clusters == 0)
    fold(analysis, clusters == 0, small, clusters)
    before, after = arrays(analysis.model)["w"], arrays(small)["w"]
    np.testing.assert_allclose(after[0], np.sqrt(2) * 0.25 * before[0], rtol=1e-5)


# ---- BatchNormalization --------------------------------------------------------------------------------------------


def normalised():
    """A model whose BatchNormalization holds the true statistics of white inputs: (analysis, inputs)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4096, 3))
    x = np.linalg.qr(x - x.mean(axis=0))[0] * np.sqrt(4096) + np.array([1, -2, 0.5])  # covariance 1, and a mean
    analysis = analyse(NORM)
    constants = analysis.model.constants()
    h = x @ arrays(analysis.model)["w"].T + arrays(analysis.model)["b"]
    constants["m"].values = h.mean(axis=0).astype(np.float32)
    constants["var"].values = h.var(axis=0).astype(np.float32)
    constants["s"].values = np.array([1, -2, 0.5, 3, -1], np.float32)
    return analysis, x.astype(np.float32)


def test_formula_behind_batchnorm():
    """Folded rows: mean times gain, with the deviations abs(gamma). Folded biases turn about the mean of the betas."""
    analysis, _ = normalised()
    small = cut(analysis, KEPT)
    fold(analysis, KEPT, small, CLUSTERS)
    before, after = arrays(analysis.model), arrays(small)
    scale, new = (p["s"] / np.sqrt(p["var"]) for p in (before, after))
    shift, folded = (a * (p["b"] - p["m"]) + p["o"] for a, p in ((scale, before), (new, after)))
    for place, members in enumerate(MEMBERS):
        filters = (scale[:, None] * before["w"])[members]
        r = gain(filters, np.abs(before["s"][members]))
        np.testing.assert_allclose(new[place] * after["w"][place], r * filters.mean(axis=0), rtol=1e-5, atol=1e-6)
        bias = r * shift[members].mean() + (1 - r) * before["o"][members].mean()
        np.testing.assert_allclose(folded[place], bias, rtol=1e-5, atol=1e-5)
        assert np.array_equal(after["m"][place], before["m"][members[0]])


def test_moments_behind_batchnorm():
    """With white inputs of any mean, a centroid gives the mean of the betas and the root mean square of the gammas."""
    analysis, x = normalised()
    small = cut(analysis, KEPT)
    fold(analysis, KEPT, small, CLUSTERS)
    n = runtime.session(small.to_proto(), extra=["n"]).run({"x": x}, ["n"])["n"]
    before = arrays(analysis.model)
    np.testing.assert_allclose(n.mean(axis=0), [before["o"][m].mean() for m in MEMBERS], atol=1e-5)
    rows = before["w"] * (before["s"] / np.sqrt(before["var"]))[:, None]
    limited = [gain(rows[m], np.abs(before["s"][m])) >= np.sqrt(len(m)) for m in MEMBERS]
    wanted = [np.sqrt(np.mean(before["s"][m] ** 2)) for m in MEMBERS]
    assert not all(limited)
    for deviation, want, at_limit in zip(n.std(axis=0), wanted, limited, strict=True):
        assert deviation == pytest.approx(want, rel=1e-5) or (at_limit and deviation < want)


def test_a_centre_that_batchnorm_silences():
    """Where gamma of the centre is 0, the cluster is computed all the same."""
    analysis, x = normalised()
    constants = analysis.model.constants()
    constants["s"].values = np.array([0, -2, 0.5, 3, -1], np.float32)
    small = cut(analysis, KEPT)
    fold(analysis, KEPT, small, CLUSTERS)
    n = runtime.session(small.to_proto(), extra=["n"]).run({"x": x}, ["n"])["n"]
    assert np.isfinite(n).all()
    assert n[:, 0].std() > 0.1


# ---- what is left alone --------------------------------------------------------------------------------------------


def test_classes_with_another_number_of_positions():
    """A cluster of a class with one channel around one with two is left out, on every axis, with a reason."""
    analysis = analyse(HALVES)
    clusters = np.array([0, 0, 0, 1], np.int32)
    small = cut(analysis, clusters == 0)
    before = arrays(small)
    done = fold(analysis, clusters == 0, small, clusters)
    assert done == Repair((), (("w", "1 removed classes have no partner that resembles them"),))
    assert all(np.array_equal(before[n], a) for n, a in arrays(small).items())


def test_quantised_parameters_are_left_alone():
    """A class with integers among its parameters is not folded anywhere: half a centroid is worse than none."""
    analysis, kept, _ = copied(INT8, {})
    small = cut(analysis, kept)
    before = arrays(small)
    done = fold(analysis, kept, small)
    assert not done.changed
    assert ("v", QUANTISED) in done.skipped
    assert all(np.array_equal(before[n], a) for n, a in arrays(small).items())


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "double"])
def test_element_types(kind):
    """Parameters keep their type; a centroid is rounded once."""
    analysis = analyse(RELU.replace("float[", f"{kind}["))
    small = cut(analysis, KEPT)
    fold(analysis, KEPT, small, CLUSTERS)
    before, after = analysis.model.constants(), small.constants()
    assert {n: values(c).dtype for n, c in after.items()} == {n: values(c).dtype for n, c in before.items()}
    filters = np.asarray(values(before["w"]), np.float64).reshape(5, -1)[MEMBERS[0]]
    row = gain(filters, np.linalg.norm(filters, axis=1)) * filters.mean(axis=0)
    precision = max(float(ml_dtypes.finfo(values(before["w"]).dtype).eps), 1e-7)
    np.testing.assert_allclose(values(after["w"])[0].reshape(-1).astype(float), row, rtol=precision, atol=precision)


def test_the_original_is_not_touched():
    """Folding edits the cut model only, and nothing where nothing was removed."""
    analysis, kept, _ = copied(EXACT["BN scaled by its own parameters"][0], {})
    before = analysis.model.to_proto().SerializeToString()
    fold(analysis, kept, cut(analysis, kept))
    whole = cut(analysis, np.ones_like(kept))
    assert fold(analysis, np.ones_like(kept), whole) == Repair((), ())
    assert analysis.model.to_proto().SerializeToString() == whole.to_proto().SerializeToString() == before
