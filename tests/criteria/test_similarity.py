"""The geometric median against pairwise distances."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from onnxprune.criteria import score, similarity

TEXT = "g (float[1,3] x) => (float[1,3] y) { a = Gemm <transB = 1> (x, w)\n b = Gemm(x, v)\n y = Add(a, b) }"


def test_sum_of_distances(analyse, rng, monkeypatch):
    """Filters of two tied producers (rows of one, columns of the other, permuted) are compared as one long vector."""
    w, v = rng.normal(size=(7, 3)), rng.normal(size=(3, 7))
    order = rng.permutation(7)
    analysis = analyse(TEXT, {"w": w, "v": v}, [("w", 0, "out", np.arange(1, 8)), ("v", 1, "out", order + 1)])
    filters = np.concatenate([w, v.T[np.argsort(order)]], axis=1)
    sums = cdist(filters, filters).sum(axis=1)
    for rows in (2048, 3):  # in one block and in several
        monkeypatch.setattr(similarity, "_ROWS", rows)
        np.testing.assert_allclose(score("geometric_median", analysis)[1:], sums, rtol=1e-9)


def test_batchnorm_is_folded(two_convs):
    """Distances are between rows times gamma / sqrt(var), so the sign of gamma matters."""
    analysis, weights = two_convs
    filters = weights["w"].reshape(4, -1) * np.array([[1], [-1], [1], [1]])
    np.testing.assert_allclose(score("geometric_median", analysis)[1:], cdist(filters, filters).sum(axis=1), rtol=1e-5)


def test_classes_of_several_positions(analyse, rng):
    """Filters of one class stand side by side; a class with fewer is filled up with zeros."""
    w = rng.normal(size=(5, 3))
    analysis = analyse(TEXT, {"w": w, "v": w}, [("w", 0, "out", [1, 2, 1, 2, 3])])
    filters = np.stack([np.concatenate([w[0], w[2]]), np.concatenate([w[1], w[3]]), np.append(w[4], np.zeros(3))])
    np.testing.assert_allclose(score("geometric_median", analysis)[1:], cdist(filters, filters).sum(axis=1), rtol=1e-9)


def test_groups_are_compared_among_themselves(analyse):
    """An axis that holds two groups compares each with its own members only."""
    w = np.array([[0, 0], [3, 4], [0, 0], [6, 8]], np.float64)
    text = "g (float[1,2] x) => (float[1,4] y) { y = Gemm <transB = 1> (x, w)\n z = Gemm <transB = 1> (x, v) }"
    axes = [("v", 0, "out", [1, 2]), ("w", 0, "out", [3, 4, 1, 2])]
    analysis = analyse(text, {"w": w, "v": w[:2]}, axes)
    assert score("geometric_median", analysis)[1:] == pytest.approx([np.hypot(5, 10), np.hypot(5, 10), 5, 5])


def test_the_middle_filter_is_the_most_replaceable(analyse):
    """On a line the middle has the smallest sum of distances; float16 is enough."""
    w = np.array([[0.0, 0], [5, 0], [6, 0], [20, 0]], np.float16)
    analysis = analyse(TEXT, {"w": w, "v": w}, [("w", 0, "out", [1, 2, 3, 4])])
    assert score("geometric_median", analysis)[1:].tolist() == pytest.approx([31, 21, 21, 49])
