"""Criteria that look at what the layers read: the second moments of their inputs on calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Analysis, Labels, Mask
from onnxprune.criteria.norms import group_norm
from onnxprune.criteria.registry import Scores, criterion
from onnxprune.graph import Array
from onnxprune.parallel import each

Reals = NDArray[np.float64]
RIDGE = 1e-3
_NOISE = 1e-6
_STEPS = 64  # classes of a group leave in at most about so many steps


@dataclass(frozen=True, slots=True)
class InputStatistics:
    """What one layer reads, and its weight.

    classes: [groups, d] class of each row of the weight's matrix; follows: whether the layer's outputs leave together
    with its inputs (depthwise), so that it misses nothing; gram: [groups, d, d] second moments; mean: [groups, d];
    weight: [groups, d, out/group] as it acts on what the network goes on with.
    """

    classes: Labels
    follows: bool
    gram: Array
    mean: Array
    weight: Reals

    def centred(self, ridge: float = RIDGE, *, bias: bool = True) -> Reals:
        """Covariance with a ridge, [groups, d, d]; the second moments themselves for a layer without a `bias`."""
        mean = self.mean.astype(np.float64)
        covariance = self.gram.astype(np.float64)
        d = covariance.shape[1]
        noise = _NOISE * np.einsum("gii->g", covariance) / d  # of the float32 sums: what hardly varies, or never
        if bias:
            covariance -= mean[:, :, None] * mean[:, None, :]
        add = np.maximum(ridge * np.einsum("gii->g", covariance) / d, noise) + 1e-12
        covariance[:, np.arange(d), np.arange(d)] += add[:, None]
        return covariance


Statistics = Sequence[InputStatistics]


@criterion("activation", data=True)
def activation(analysis: Analysis, _seed: int, statistics: Statistics) -> Scores:
    """E[x_c^2] times the squared norm of the weights that read channel c, summed over its readers (Wanda, Sun et al.,
    2024, for channels).
    """
    scores, read = np.zeros(analysis.classes + 1), np.zeros(analysis.classes + 1, bool)
    for s in (s for s in statistics if not s.follows):
        energy = np.einsum("gii->gi", s.gram).astype(np.float64) * np.square(s.weight).sum(2)
        np.add.at(scores, s.classes, energy / max(float(energy.sum()), 1e-30) * s.classes.size)
        read[s.classes] = True
    return _completed(analysis, scores, read)


@criterion("obs", data=True)
def obs(analysis: Analysis, _seed: int, statistics: Statistics) -> Scores:
    """Optimal brain surgeon over channels: the place of a class in the greedy order of elimination, where each step
    removes the class that costs least after the best refit of all that read it.

    Cost: 0.5 tr(W_c' [(H^-1)_cc]^-1 W_c), as a share of what each reader gives, summed over them (Hassibi & Stork,
    1993; Kurtic et al., 2022, for groups). Scores are the error so far, which grows along the order.
    """
    scores, read = np.zeros(analysis.classes + 1), np.zeros(analysis.classes + 1, bool)
    groups = [np.flatnonzero(analysis.group == g) for g in range(1, len(analysis.groups) + 1)]
    for order, errors in each(lambda members: elimination(members, statistics), groups):
        scores[order] = errors
        read[order] = True
    return _completed(analysis, scores, read)


def _completed(analysis: Analysis, scores: Scores, read: Mask) -> Scores:
    """Classes that no layer reads through a weight get their norms, on the scale of the others."""
    lost = ~read
    lost[0] = False
    if not lost.any():
        return scores
    norms = group_norm(analysis, 0)
    known = read.copy()
    known[0] = False
    scale = scores[known].mean() / max(norms[known].mean(), 1e-30) if known.any() else 1.0
    return np.where(lost, norms * (scale or 1.0), scores)


def elimination(members: NDArray[np.intp], statistics: Statistics) -> tuple[NDArray[np.intp], Reals]:
    """Classes of a group in the order in which they leave, and the error after each: the curve of error over width.

    Classes that no layer reads are left out.
    """
    systems = [x for s in statistics if not s.follows for x in _systems(members, s)]
    alive = np.flatnonzero(np.any([x.present for x in systems], axis=0)) if systems else np.zeros(0, np.intp)
    order, errors, total = list[int](), list[float](), 0.0
    step = -(-len(alive) // _STEPS)
    while len(alive):
        costs = np.sum([x.costs(alive) for x in systems], axis=0)
        leave = np.argsort(costs, kind="stable")[:step]
        for i in leave:
            total += float(costs[i])
            order.append(int(members[alive[i]]))
            errors.append(total)
        if len(leave) < len(alive):
            for x in systems:
                x.remove(alive[leave])
        alive = np.delete(alive, leave)
    return np.array(order, np.intp), np.array(errors)


class RefitErrors:
    """The error that is left of a group's readers, together, after the best linear refit of each."""

    def __init__(self, members: NDArray[np.intp], statistics: Statistics) -> None:
        self._members = members
        self._systems = [x for s in statistics if not s.follows for x in _systems(members, s)]

    def __call__(self, lost: NDArray[np.intp]) -> float:
        """lost: ids of the members that leave. As a share of what each reader gives, summed over the readers."""
        places = np.searchsorted(self._members, lost)
        return sum(x.error(places) for x in self._systems)


def _systems(members: NDArray[np.intp], s: InputStatistics) -> Iterator[_System]:
    for classes, covariance, weight in zip(s.classes, s.centred(), s.weight, strict=True):
        place = np.searchsorted(members, classes)
        mine = members[np.minimum(place, len(members) - 1)] == classes
        if mine.any():
            yield _System(np.where(mine, place, -1), len(members), covariance, weight)


class _System:
    """One reader of a group: its inverse Hessian and weights, from which classes are eliminated exactly.

    owner: [d] index of the class that each row belongs to, -1 for rows that stay.
    """

    def __init__(self, owner: NDArray[np.intp], count: int, covariance: Reals, weight: Reals) -> None:
        self._rows = [np.flatnonzero(owner == c) for c in range(count)]
        self.present = np.array([len(r) > 0 for r in self._rows])
        self._weight = np.array(weight)
        self._scale = 0.5 / max(float(np.sum(weight * (covariance @ weight))), 1e-30)
        self._inverse = np.linalg.inv(covariance)

    def costs(self, classes: NDArray[np.intp]) -> Reals:
        """Error that the removal of each of these classes alone would add, after the best refit."""
        costs = np.zeros(len(classes))
        sizes = np.array([len(self._rows[c]) for c in classes])
        for size in set(sizes.tolist()) - {0}:
            which = np.flatnonzero(sizes == size)
            rows = np.stack([self._rows[c] for c in classes[which]])  # [classes, size]
            block = self._inverse[rows[:, :, None], rows[:, None, :]]
            w = self._weight[rows]
            costs[which] = (w * np.linalg.solve(block, w)).sum((1, 2)) * self._scale
        return costs

    def error(self, classes: NDArray[np.intp]) -> float:
        """Error that the removal of all these classes together would leave, after the best refit."""
        rows = np.concatenate([np.zeros(0, np.intp), *(self._rows[c] for c in classes)])
        w = self._weight[rows]
        return float((w * np.linalg.solve(self._inverse[np.ix_(rows, rows)], w)).sum()) * self._scale

    def remove(self, classes: NDArray[np.intp]) -> None:
        """Eliminate the rows of these classes."""
        rows = np.concatenate([self._rows[c] for c in classes])
        if not len(rows):
            return
        across = self._inverse[rows]  # [r, d]
        solved = np.linalg.solve(across[:, rows], np.concatenate([across, self._weight[rows]], axis=1))
        d = len(self._inverse)
        self._weight -= across.T @ solved[:, d:]
        self._inverse -= across.T @ solved[:, :d]
        self._inverse[rows] = 0
        self._inverse[:, rows] = 0
        self._inverse[rows, rows] = 1
        self._weight[rows] = 0
