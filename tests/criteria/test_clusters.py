"""Clusters of filters: features, dendrogram, representatives."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from onnxprune import criteria
from onnxprune.criteria.clusters import kernel_features, representatives, ward

TEXT = "g (float[1,2,4,4] x) => (float[1,3,4,4] y) { h = Conv(x, w)\n y = Conv(h, v) }"


def coupled(analyse, w, v):
    """Two convolutions, coupled over the first one's filters."""
    ids = np.arange(1, len(w) + 1)
    axes = [("w", 0, "out", ids), ("v", 1, "in", ids)]
    return analyse(TEXT, {"w": w.astype(np.float32), "v": v.astype(np.float32)}, axes)


def test_features_are_norms_of_kernels(analyse, rng):
    """A filter is described by the norms of its incoming and of its outgoing kernels, each layer in units of its mean."""
    w, v = rng.normal(size=(5, 2, 3, 3)), rng.normal(size=(3, 5, 1, 1))
    [(ids, features)] = kernel_features(coupled(analyse, w, v))
    parts = [np.linalg.norm(w, axis=(2, 3)), np.abs(v[:, :, 0, 0].T)]
    wanted = [p / np.linalg.norm(p, axis=1).mean() / np.sqrt(2) for p in parts]
    assert ids.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(features, np.concatenate(wanted, axis=1), rtol=1e-5)


def test_ward_is_that_of_scipy(rng):
    """Distances from a Gram matrix give the dendrogram that scipy computes from the points."""
    points = rng.normal(size=(40, 7))
    np.testing.assert_allclose(ward(points), linkage(points, "ward"), rtol=1e-6, atol=1e-6)


def test_a_known_dendrogram():
    """Points at 0, 1, 10 and 12 merge at 1, 2 and sqrt(2 * 2 * 2 / 4) * 10.5; the larger one represents a pair."""
    heights, to = representatives(ward(np.array([[0.0], [1], [10], [12]])), np.array([1.0, 2, 4, 3]))
    assert heights == pytest.approx([1, 10.5 * 2**0.5, 10.5 * 2**0.5, 2])
    assert to.tolist() == [1, 2, -1, 2]


@pytest.mark.parametrize("threshold", [0.5, 1.0, 2.0])
def test_what_stays_at_a_threshold(rng, threshold):
    """The points above a threshold are the largest of the clusters that scipy cuts the tree into there."""
    points, sizes = rng.normal(size=(30, 2)), rng.random(30)
    merges = ward(points)
    heights, _ = representatives(merges, sizes)
    clusters = fcluster(merges, threshold, "distance")
    largest = {int(np.flatnonzero(clusters == c)[sizes[clusters == c].argmax()]) for c in set(clusters)}
    assert set(np.flatnonzero(heights > threshold).tolist()) == largest


def test_copies_leave_first(analyse, rng):
    """The copy of a filter leaves at distance 0 and has the filter as its partner; the scale of a layer is no matter."""
    w, v = rng.normal(size=(4, 2, 3, 3)), rng.normal(size=(3, 4, 1, 1))
    w[2], v[:, 2] = w[0], v[:, 0]
    for scale in (1, 1000):
        found = criteria.rank("cluster", coupled(analyse, scale * w, v))
        assert found.scores[1:].argmin() == 2
        assert found.scores[3] == pytest.approx(0, abs=1e-3)
        assert found.partners[3] == 1


def test_one_of_every_group_is_last(analyse, rng):
    """The last representative of a group ranks above everything that leaves at some distance, in all groups."""
    text = "g (float[1,2] x) => (float[1,3] y) { a = Gemm <transB = 1> (x, w)\n b = Gemm <transB = 1> (x, v) }"
    axes = [("w", 0, "out", [1, 2, 3]), ("v", 0, "out", [4, 5, 6])]
    found = criteria.score("cluster", analyse(text, {"w": rng.normal(size=(3, 2)), "v": rng.normal(size=(3, 2))}, axes))
    tops = [max(found[1:4]), max(found[4:7])]
    assert tops[0] == tops[1]
    assert np.count_nonzero(found[1:] < tops[0]) == 4


def test_kmeans_keeps_one_of_each_heap(analyse, rng):
    """Where filters lie in three heaps, k-means keeps one member of each longest: the largest."""
    heaps = np.repeat(np.eye(3) * 5, 4, axis=0) + 0.01 * rng.random((12, 3))
    text = "g (float[1,3] x) => (float[1,12] y) { y = Gemm <transB = 1> (x, w) }"
    analysis = analyse(text, {"w": heaps}, [("w", 0, "out", np.arange(1, 13))])
    found = criteria.score("cluster:kmeans", analysis, seed=1)[1:]
    best = np.argsort(-found, kind="stable")[:3]
    assert sorted((best // 4).tolist()) == [0, 1, 2]
    assert {int(b) for b in best} == {
        int(4 * h + np.linalg.norm(heaps[4 * h : 4 * h + 4], axis=1).argmax()) for h in range(3)
    }
