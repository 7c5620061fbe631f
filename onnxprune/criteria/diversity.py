"""Filters that point the same way: of the two most similar one leaves, again and again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Analysis
from onnxprune.criteria.features import Folded, groups_of, side_by_side
from onnxprune.criteria.registry import Ranking, criterion
from onnxprune.graph import Array

Reals = NDArray[np.float64]
Places = NDArray[np.int64]
_EQUAL = 1e-6  # sums of similarities that differ by less, relative to the number of filters, are equal


@criterion("diversity", options=("absolute", "outgoing"), comparable=True)
def diversity(analysis: Analysis, _seed: int, options: frozenset[str] = frozenset()) -> Ranking:
    """The quantile of a layer's maximal similarities at which a class leaves: one quantile is a threshold for every
    layer.

    Filters are nodes, cosines edges; of the most similar pair the one that resembles the living ones more leaves, the
    one of smaller absolute sum if they resemble them equally; it has the other one as its partner. Cosines are signed
    unless `absolute` is given, and of the incoming weights; with `outgoing`, of these and the outgoing ones. Memory:
    8 n^2 bytes for a group of n classes. The steps are reconstructed from the published description of a diversifying
    filter pruning (2018).
    """
    weights = Folded(analysis)
    scores, partners = np.full(analysis.classes + 1, 3.0), np.zeros(analysis.classes + 1, np.int32)
    for ids, axes in groups_of(analysis, ("out", "in") if "outgoing" in options else ("out",)):
        parts = [(place, weights.rows(axis)) for axis, place in axes]
        features = side_by_side([(p, m) for p, m in parts if m is not None], len(ids))
        similar = cosines(features)
        if "absolute" in options:
            np.abs(similar, out=similar)
        order, at, to = diversified(similar, np.abs(features).sum(1, dtype=np.float64))
        scores[ids[order]] = _quantiles(closest(similar, features), at)
        partners[ids[order]] = ids[to]
    return Ranking(scores, partners)


def cosines(features: Array) -> NDArray[np.float32]:
    """[n, n] cosines between the rows; a row of zeros is equal to all."""
    norms = np.sqrt(np.einsum("nd,nd->n", features, features))
    unit = (features / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)
    result: NDArray[np.float32] = np.clip(unit @ unit.T, -1, 1)
    result[norms == 0] = 1
    result[:, norms == 0] = 1
    return result


def diversified(similar: NDArray[np.float32], sizes: Reals) -> tuple[Places, Reals, Places]:
    """The order in which n - 1 of n filters leave, the similarity to the partner at that moment, and the partner.

    similar: [n, n]; sizes: [n] absolute sums. Since what leaves takes only edges away, the filters that leave at any
    threshold are those at the beginning of this order whose similarity reaches it.
    """
    n = len(sizes)
    edges = similar.copy()
    np.fill_diagonal(edges, -np.inf)
    total = similar.sum(1, dtype=np.float64) - similar.diagonal()
    best = edges.argmax(1)
    top = edges[np.arange(n), best]
    order, at, to = np.zeros(max(n - 1, 0), np.int64), np.zeros(max(n - 1, 0)), np.zeros(max(n - 1, 0), np.int64)
    for step in range(n - 1):
        i = int(top.argmax())
        j = int(best[i])
        at[step] = top[i]
        goes, stays = sorted((i, j))[::-1]
        if abs(total[i] - total[j]) > _EQUAL * n:
            goes, stays = (i, j) if total[i] > total[j] else (j, i)
        elif sizes[i] != sizes[j]:
            goes, stays = (i, j) if sizes[i] < sizes[j] else (j, i)
        order[step], to[step] = goes, stays
        total -= similar[goes]
        edges[:, goes] = -np.inf
        top[goes] = -np.inf
        stale = np.flatnonzero((best == goes) & (top > -np.inf))
        best[stale] = edges[stale].argmax(1)
        top[stale] = edges[stale, best[stale]]
    return order, at, to


def closest(similar: NDArray[np.float32], features: Array) -> Reals:
    """The largest similarity of each row that is not zero with another such row; none where there is only one.

    similar: [n, n] as `cosines` makes them of features, [n, d]. A row of zeros is equal to all, which would make every
    row as close to another one as can be.
    """
    live = np.flatnonzero(features.any(1))
    if len(live) < 2:
        return np.zeros(0)
    others = similar[np.ix_(live, live)]
    np.fill_diagonal(others, -np.inf)
    found: Reals = others.max(1).astype(np.float64)
    return found


def _quantiles(most: Reals, at: Reals) -> Reals:
    """1 minus the quantile, among the maximal similarities `most` of the filters, that is reached at each similarity
    `at`; from 1 on, how far it is below the least of them; -1 above the largest, as only filters of zeros are.
    """
    if not len(most):
        return np.full(len(at), -1.0)
    most = np.sort(most)
    inside = 1 - np.interp(at, most, np.linspace(0, 1, len(most)), right=2)
    return np.where(at < most[0], 1 + (most[0] - at) / 2, inside)
