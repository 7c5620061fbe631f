"""Norm criteria against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.criteria import score


def rows(weight):
    return weight.reshape(len(weight), -1).astype(np.float64)


def test_l1_and_l2_of_folded_rows(two_convs):
    """Sums over producer rows only, with gamma / sqrt(var) folded in (here +-1)."""
    analysis, weights = two_convs
    np.testing.assert_allclose(score("l1", analysis)[1:], np.abs(rows(weights["w"])).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(score("l2", analysis)[1:], (rows(weights["w"]) ** 2).sum(axis=1), rtol=1e-6)


def test_rows_of_all_producers_add_up(analyse):
    """Two convolutions that meet in an Add, positions permuted, one frozen."""
    weights = {"w": np.diag([1, 2, 3]).astype(np.float32), "v": np.diag([10, 20, 30]).astype(np.float32)}
    text = """g (float[1,3] x) => (float[1,3] y) { a = Gemm <transB = 1> (x, w)
        b = Gemm <transB = 1> (x, v)\n y = Add(a, b) }"""
    analysis = analyse(text, weights, [("w", 0, "out", [1, 2, 0]), ("v", 0, "out", [2, 1, 0])])
    assert score("l1", analysis)[1:].tolist() == [1 + 20, 2 + 10]


def test_classes_of_several_positions_add_up(analyse):
    """A class with two filters has the norm of both."""
    weights = {"w": np.diag([1, 2, 3, 4]).astype(np.float32)}
    text = "g (float[1,4] x) => (float[1,4] y) { y = Gemm <transB = 1> (x, w) }"
    analysis = analyse(text, weights, [("w", 0, "out", [1, 1, 2, 2])])
    assert score("l2", analysis)[1:].tolist() == [5, 25]


def test_a_class_without_producer_uses_what_it_has(analyse):
    """Where no layer produces a class, its other slices count, so that it does not look worthless."""
    weights = {"w": np.ones((2, 3), np.float32), "t": np.array([5, 6, 7], np.float32)}
    text = "g (float[1,3] x) => (float[1,2] y) { a = Mul(x, t)\n y = Gemm <transB = 1> (a, w) }"
    axes = [("w", 0, "out", [4, 5]), ("w", 1, "in", [1, 2, 3]), ("t", 0, "with", [1, 2, 3])]
    assert score("l1", analyse(text, weights, axes))[1:].tolist() == [7, 8, 9, 3, 3]


def test_group_norm_by_hand(two_convs):
    """Mean of producer rows and consumer columns, each over its mean; gamma is in the rows already."""
    analysis, weights = two_convs
    row = (rows(weights["w"]) ** 2).sum(axis=1)
    column = (weights["v"].astype(np.float64) ** 2).sum(axis=(0, 2, 3))
    expected = (row / row.mean() + column / column.mean()) / 2
    np.testing.assert_allclose(score("group_norm", analysis)[1:], expected, rtol=1e-6)


def test_group_norm_counts_a_scale_that_cannot_be_folded(analyse):
    """Before a convolution (DenseNet), gamma is a slice of its own."""
    vectors = {"g": np.array([1, 3], np.float32), "b": np.zeros(2, np.float32), "s": np.ones(2, np.float32)}
    weights = {"w": np.diag([2, 2]).astype(np.float32).reshape(2, 2, 1, 1)} | vectors
    text = """g (float[1,2,4,4] x) => (float[1,2,4,4] y) {
        c = Conv(x, w)\n r = Relu(c)\n y = BatchNormalization(r, g, b, b, s) }"""
    axes = [("w", 0, "out", [1, 2])] + [(name, 0, "with", [1, 2]) for name in "gbs"]
    assert score("group_norm", analyse(text, weights, axes))[1:].tolist() == pytest.approx([0.6, 1.4])


def test_group_norm_does_not_depend_on_the_scale_of_a_layer(two_convs, analyse):
    """Multiplying a consumer by 1000 changes no score: layers have one vote each."""
    analysis, weights = two_convs
    before = score("group_norm", analysis)
    analysis.model.constants()["v"].values = 1000 * weights["v"]
    np.testing.assert_allclose(score("group_norm", analysis), before, rtol=1e-5)


def test_group_norm_of_dead_weights(analyse):
    """All-zero layers score zero, without a warning about a division."""
    text = "g (float[1,2] x) => (float[1,2] y) { y = Gemm <transB = 1> (x, w) }"
    analysis = analyse(text, {"w": np.zeros((2, 2), np.float32)}, [("w", 0, "out", [1, 2]), ("w", 1, "in", [0, 0])])
    assert score("group_norm", analysis).tolist() == [0, 0, 0]
