"""Clusters of filters: of each one member stays (CUP, Duggal et al., 2019)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Analysis
from onnxprune.criteria.features import Folded, groups_of, side_by_side
from onnxprune.criteria.registry import Ranking, criterion
from onnxprune.graph import Array

Reals = NDArray[np.float64]
_WIDTHS = 16
Merges = NDArray[np.float64]  # as scipy.cluster.hierarchy.linkage gives them


@criterion("cluster", options=("kmeans",), comparable=True)
def cluster(analysis: Analysis, seed: int, options: frozenset[str] = frozenset()) -> Ranking:
    """The distance at which a class stops to represent a cluster: of two clusters that merge (Ward), the member with
    the largest norm stays.

    A class is described by the norms of its incoming and outgoing kernels over all coupled layers, in units of each
    layer's mean, so that one threshold means the same everywhere. With `kmeans`, clusters are those of k-means at 16
    widths of each group, and the distance is the root of the mean squared one to the centroids. Memory: 24 n^2 bytes
    for a group of n classes.
    """
    scores, partners = np.zeros(analysis.classes + 1), np.zeros(analysis.classes + 1, np.int32)
    last = np.zeros(analysis.classes + 1, bool)
    for ids, features in kernel_features(analysis):
        sizes = norms(features)
        kmeans = "kmeans" in options
        heights, to = by_kmeans(features, sizes, seed) if kmeans else representatives(ward(features), sizes)
        scores[ids], partners[ids] = heights, np.append(ids, 0)[to]
        last[ids[to < 0]] = True
    scores[last] = 2 * scores.max(initial=0.0) + 1.0
    return Ranking(scores, partners)


def kernel_features(analysis: Analysis) -> list[tuple[NDArray[np.int64], Array]]:
    """Per group: class ids [n], and their features [n, d]."""
    weights, found = Folded(analysis), []
    for ids, axes in groups_of(analysis, ("out", "in")):
        parts = [(place, weights.kernel_norms(axis)) for axis, place in axes]
        found.append((ids, side_by_side([(p, m) for p, m in parts if m is not None], len(ids))))
    return found


def norms(features: Array) -> Reals:
    """[n] norms of the rows."""
    result: Reals = np.sqrt(np.einsum("nd,nd->n", features, features)).astype(np.float64)
    return result


def ward(features: Array) -> Merges:
    """Merges of n points [n, d] by Ward's criterion, [n - 1, 4] as scipy gives them, by ascending height."""
    from scipy.cluster.hierarchy import linkage

    if len(features) < 2:
        return np.zeros((0, 4))
    centred = features - features.mean(0)
    squares = np.einsum("nd,nd->n", centred, centred)
    gram = centred @ centred.T
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * gram, 0))
    result: Merges = linkage(distances[np.triu_indices(len(features), 1)].astype(np.float64), "ward")
    return result


def representatives(merges: Merges, sizes: Reals) -> tuple[Reals, NDArray[np.int64]]:
    """Per point the height at which its cluster gets another representative, and which: -1 (and the largest height)
    for the one that is left. sizes: [n], the larger represents; of equal ones the first.
    """
    count = len(sizes)
    heights, to = np.full(count, float(merges[-1, 2]) if len(merges) else 0.0), np.full(count, -1)
    head = [*range(count), *[0] * len(merges)]
    for k, (a, b) in enumerate(merges[:, :2].astype(int).tolist()):
        stays, goes = sorted((head[a], head[b]), key=lambda i: (-sizes[i], i))
        heights[goes], to[goes], head[count + k] = merges[k, 2], stays, stays
    return heights, to


def by_kmeans(features: Array, sizes: Reals, seed: int) -> tuple[Reals, NDArray[np.int64]]:
    """As `representatives`: the distance at the narrowest of some widths at which a point still represents a cluster,
    and the representative of its cluster at the next one.
    """
    from sklearn.cluster import KMeans

    count = len(sizes)
    heights, to = np.zeros(count), np.full(count, -1)
    rank = np.argsort(np.argsort(-sizes, kind="stable"))
    different = len(np.unique(features, axis=0))
    for k in np.unique(np.linspace(min(count, different), 1, _WIDTHS + 1).round().astype(int))[:-1][::-1].tolist():
        found = KMeans(k, n_init=1, random_state=seed).fit(features)
        first = np.full(k, count)
        np.minimum.at(first, found.labels_, rank)
        mine = np.argsort(rank)[first[found.labels_]]
        alive = mine == np.arange(count)
        heights[alive] = np.sqrt(found.inertia_ / count)
        fell = ~alive & (to < 0)
        to[fell] = mine[fell]
    to[sizes.argmax()] = -1
    return heights, to
