"""How far the filters of each layer resemble each other: where the redundancy is, before anything is chosen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnxprune.analysis import Analysis
from onnxprune.criteria.clusters import kernel_features, ward
from onnxprune.criteria.diversity import closest, cosines
from onnxprune.criteria.features import Folded
from onnxprune.graph import Array

QUANTILES = (0.5, 0.9, 1.0)
DISTANCES = (0.25, 0.5, 1.0)
_MANY = 8192  # filters whose matrix of similarities would take more than half a gigabyte


@dataclass(frozen=True, slots=True)
class LayerRedundancy:
    """The filters of one layer, BatchNormalization folded in.

    similarity: quantiles QUANTILES of each filter's largest cosine with another one (1 for a filter of zeros, which
    counts for no other), None for a single filter; effective_rank: exponential of the entropy of the singular
    values of [filters, weights] (Roy & Vetterli, 2007), at most the smaller of the two, `rank`. classes, clusters:
    of the group that the filters are removed with: what can leave, and how many clusters (as the criterion
    `cluster` makes them) are left at each of DISTANCES, in units of the layers' mean norm; None where all are
    frozen.
    """

    node: str
    op: str
    weight: str
    filters: int
    similarity: tuple[float, ...] | None
    effective_rank: float
    rank: int
    classes: int | None
    clusters: tuple[int, ...] | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Redundancy:
    """The layers in the order of the graph; notes: layers that were left out, and why."""

    layers: tuple[LayerRedundancy, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with stable keys."""
        return {
            "quantiles": list(QUANTILES),
            "distances": list(DISTANCES),
            "layers": [x.as_dict() for x in self.layers],
            "notes": list(self.notes),
        }


def redundancy(analysis: Analysis) -> Redundancy:
    """Similarities, clusters and rank of the filters of every layer that has any."""
    folded, clusters = Folded(analysis), _clusters(analysis)
    outs = {a.param: a for a in reversed(analysis.axes) if a.role == "out"}
    rows, notes = list[LayerRedundancy](), list[str]()
    for layer in analysis.layers:
        axis = outs.get(layer.weight or "")
        if axis is None or layer.weight is None:
            if layer.weight is not None:
                notes.append(f"{layer.node}: none of its filters can leave")
            continue
        filters = folded.rows(axis)
        if filters is None or len(filters) > _MANY:
            why = "its weight has a type that is not read" if filters is None else f"it has more than {_MANY:,} filters"
            notes.append(f"{layer.node}: {why}")
            continue
        group = int(analysis.group[axis.classes].max(initial=0))
        classes, left = clusters.get(group, (None, None))
        known = (similarity(filters), effective_rank(filters), min(filters.shape), classes, left)
        rows.append(LayerRedundancy(layer.node, layer.op, layer.weight, len(filters), *known))
    return Redundancy(tuple(rows), tuple(notes))


def similarity(filters: Array) -> tuple[float, ...] | None:
    """QUANTILES of each filter's largest cosine with another that is not zero, 1 for one of zeros; filters: [n, d]."""
    if len(filters) < 2:
        return None
    dead = np.count_nonzero(~filters.any(1))
    most = np.append(closest(cosines(filters), filters), np.ones(dead))
    return tuple(float(q) for q in np.quantile(most, QUANTILES))


def effective_rank(filters: Array) -> float:
    """Exponential of the entropy of the singular values of [n, d], as shares of their sum; 0 where all are zero."""
    tall = filters.astype(np.float64)
    tall = tall if len(tall) > tall.shape[1] else tall.T
    squares = np.maximum(np.linalg.eigvalsh(tall.T @ tall), 0.0)  # of the smaller Gram matrix
    values = np.sqrt(squares[squares > squares.max(initial=0.0) * 1e-14])
    if not values.size:
        return 0.0
    share = values / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _clusters(analysis: Analysis) -> dict[int, tuple[int, tuple[int, ...]]]:
    """By group: its classes, and the clusters at each of DISTANCES."""
    found = {}
    for number, (ids, features) in enumerate(kernel_features(analysis), 1):
        if len(ids) <= _MANY:
            heights = ward(features)[:, 2]
            found[number] = len(ids), tuple(int(len(ids) - (heights <= d).sum()) for d in DISTANCES)
    return found
