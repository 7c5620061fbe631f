"""Sums over weights: BatchNormalization folded, any axis, any element type."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnxprune.criteria.weights import _BLOCK, axis_sums, batchnorm_folds

IDENTITY = "g (float[1] x) => (float[1] y) { y = Identity(x)\n z = Sum(x, w) }"


def sums(analyse, array, axis, p=2):
    ids = np.arange(1, array.shape[axis] + 1)
    analysis = analyse(IDENTITY, {"w": array}, [("w", axis, "out", ids)])
    return axis_sums(analysis, analysis.axes, p)[0]


def expected(array, axis, p):
    others = tuple(i for i in range(array.ndim) if i != axis)
    return (np.abs(array.astype(np.float64)) ** p).sum(axis=others)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (4, 3, 2), (4, 3, 3, 3), (1, 6, 2), (1, 1, 5), (3, 1, 2)], ids=str)
def test_sums_over_any_axis(analyse, rng, shape, p):
    """The sum of powers over all other axes, for every axis."""
    array = rng.normal(size=shape)
    for axis in range(len(shape)):
        np.testing.assert_allclose(sums(analyse, array, axis, p), expected(array, axis, p), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
def test_short_types_are_summed_in_float32(analyse, rng, dtype):
    """Sums far beyond the range of float16 are as exact as adding 4000 numbers in float32 is: sqrt(4000) roundings."""
    array = (200 * rng.normal(size=(3, 4000))).astype(dtype)
    np.testing.assert_allclose(sums(analyse, array, 0), expected(array, 0, 2), rtol=64 * 2**-23)
    np.testing.assert_allclose(sums(analyse, array, 1), expected(array, 1, 2), rtol=4 * 2**-23)


def test_weights_larger_than_a_block(analyse, rng):
    """Nothing is lost or counted twice at the borders of blocks."""
    array = rng.normal(size=(5, _BLOCK // 2 - 7))
    np.testing.assert_allclose(sums(analyse, array, 0), expected(array, 0, 2), rtol=1e-10)
    np.testing.assert_allclose(sums(analyse, array, 1), expected(array, 1, 2), rtol=1e-12)


def test_batchnorm_scales_rows(two_convs):
    """Row c of a convolution before a BatchNormalization counts gamma_c / sqrt(var_c + eps) times."""
    analysis, _ = two_convs
    scale = np.array([1, -1, 1, 1])
    fold, gamma = batchnorm_folds(analysis)["w"]
    assert (fold[0], gamma) == (0, "gamma")
    np.testing.assert_allclose(fold[1], scale)
    assert "v" not in batchnorm_folds(analysis)


def test_batchnorm_scales_columns_of_the_same_weight(analyse):
    """Seen from its input axis, a folded weight has its rows scaled; a Gemm with filters on axis 1, its columns."""
    w = np.array([[1, 2], [3, 4]], np.float32)
    weights = {"w": w, "g": np.array([10, 1], np.float32), "b": np.zeros(2, np.float32), "v": np.ones(2, np.float32)}
    text = """
    g (float[1,2] x) => (float[1,2] y) {
        c = Gemm <transB = %d> (x, w)
        y = BatchNormalization <epsilon = 0.0> (c, g, b, b, v)
    }"""
    axes = [("w", 0, "out", [1, 2]), ("w", 1, "in", [3, 4]), ("g", 0, "with", [1, 2])]
    first = analyse(text % 1, weights, axes)
    assert [s.tolist() for s in axis_sums(first, first.axes[:2], 2)] == [[500, 25], [109, 416]]
    axes = [("w", 0, "in", [3, 4]), ("w", 1, "out", [1, 2]), ("g", 0, "with", [1, 2])]
    second = analyse(text % 0, weights, axes)
    assert [s.tolist() for s in axis_sums(second, second.axes[:2], 2)] == [[104, 916], [1000, 20]]


@pytest.mark.parametrize(
    "change",
    [
        "y = BatchNormalization(c, g, b, b, v)\n z = Relu(c)",
        "r = Relu(c)\n y = BatchNormalization(r, g, b, b, v)",
        "y = BatchNormalization(c, g, b, b, v)\n z = Conv(x, w)",
    ],
    ids=["another reader", "not next to it", "tied weight"],
)
def test_batchnorm_is_not_folded(analyse, change):
    """A BatchNormalization folds only into a layer that feeds it alone with weights of its own."""
    weights = {"w": np.ones((2, 2, 1, 1), np.float32), "g": np.full(2, 5, np.float32)}
    weights |= {"b": np.zeros(2, np.float32), "v": np.ones(2, np.float32)}
    text = f"g (float[1,2,4,4] x) => (float[1,2,4,4] y) {{ c = Conv(x, w)\n {change} }}"
    axes = [("w", 0, "out", [1, 2]), ("g", 0, "with", [1, 2])]
    assert not batchnorm_folds(analyse(text, weights, axes))


def test_batchnorm_on_a_graph_output_is_not_folded(analyse):
    """A convolution whose result is an output of the graph stands for itself."""
    weights = {"w": np.ones((2, 2, 1, 1), np.float32), "g": np.full(2, 5, np.float32)}
    weights |= {"b": np.zeros(2, np.float32), "v": np.ones(2, np.float32)}
    text = """g (float[1,2,4,4] x) => (float[1,2,4,4] y, float[1,2,4,4] c) {
        c = Conv(x, w)\n y = BatchNormalization(c, g, b, b, v) }"""
    axes = [("w", 0, "out", [1, 2]), ("g", 0, "with", [1, 2])]
    assert not batchnorm_folds(analyse(text, weights, axes))


def test_quantised_weights_are_read_as_what_they_stand_for(analyse):
    """int8 rows count with their own scale and zero point."""
    weights = {
        "q": np.array([[1, 3], [2, 2]], np.int8),
        "s": np.array([1, 10], np.float32),
        "z": np.array([1, 0], np.int8),
    }
    text = """g (float[1,2] x) => (float[1,2] y) {
        w = DequantizeLinear <axis = 0> (q, s, z)\n y = Gemm <transB = 1> (x, w) }"""
    analysis = analyse(text, weights, [("q", 0, "out", [1, 2])])
    assert axis_sums(analysis, analysis.axes, 2)[0].tolist() == [4, 800]
    weights["s"] = np.array(10, np.float32)
    del weights["z"]
    text = "g (float[1,2] x) => (float[1,2] y) { w = DequantizeLinear(q, s)\n y = Gemm <transB = 1> (x, w) }"
    analysis = analyse(text, weights, [("q", 0, "out", [1, 2])])
    assert axis_sums(analysis, analysis.axes, 1)[0].tolist() == [40, 40]
