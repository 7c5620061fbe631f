"""Small filters are not always unimportant: an optimiser chooses which of them stay beside the large ones.

Pruning as an optimisation (a thesis of 2021): the best filters of every group stay whatever happens; of the others, the
optimiser keeps as many as the criterion would. What it makes small is the error that is left after the best linear
refit of all layers that read the group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Analysis, Mask
from onnxprune.clock import Progress
from onnxprune.criteria.activations import InputStatistics, RefitErrors
from onnxprune.recover.merge import patterns
from onnxprune.recovery import Known
from onnxprune.searching.optimisers import Space, minimise
from onnxprune.searching.space import Values

Reals = NDArray[np.float64]
TOP = 0.5  # share of the filters that the criterion keeps, the largest of each group, that stay in any case


@dataclass(frozen=True, slots=True)
class Evolved:
    """What the optimiser found in one group: the error at its start (the criterion's choice) and at its end, as shares
    of what the readers give; band: members that it chose from, of which `stays` stay.
    """

    group: int
    band: int
    stays: int
    before: float
    after: float

    def as_dict(self) -> dict[str, Any]:
        """What the report shows."""
        return {name: getattr(self, name) for name in ("group", "band", "stays", "before", "after")}


def evolve(
    analysis: Analysis,
    start: Mask,
    free: Mask,
    scores: Reals,
    statistics: Sequence[InputStatistics],
    *,
    optimiser: str,
    budget: int,
    seed: int,
    known: Known | None = None,
) -> tuple[Mask, list[Evolved]]:
    """Another choice with the same widths and the same cost as `start`, [classes + 1] bool, and what it brought.

    free: what may leave; scores: of the criterion that led to `start`; budget: candidates per group; known: where the
    values of candidates are noted, and taken from.
    """
    known = known or Known()
    kept, told, pattern = start.copy(), list[Evolved](), patterns(analysis)
    groups = range(1, len(analysis.groups) + 1)
    for group in Progress("optimiser: group", len(groups)).over(groups):
        band = _band(np.flatnonzero((analysis.group == group) & free), start, scores, pattern)
        stays = int(start[band].sum())
        if not 0 < stays < len(band):
            continue
        lost = np.flatnonzero((analysis.group == group) & ~start)
        others = np.setdiff1d(lost, band)

        errors = RefitErrors(np.flatnonzero(analysis.group == group), statistics)
        tried = Progress("candidate", budget, most=True)

        def fitness(
            masks: Sequence[Mask], band: Any = band, others: Any = others, errors: Any = errors, tried: Any = tried
        ) -> Reals:
            return np.array([errors(np.concatenate([others, band[~m]])) for m in tried.over(masks)])

        space, how = Space(np.zeros(len(band), np.int32), start[band]), (optimiser, budget, seed + group)
        values = known.values.setdefault(_digest(how, others, band, space.start), [])

        def note(new: Values, values: list[float] = values) -> None:
            values.extend(map(float, new))
            known.noted()

        found = minimise(optimiser, space, fitness, budget=budget, seed=seed + group, told=values[:], on_told=note)
        kept[band] = found.mask
        told.append(Evolved(group, len(band), stays, float(found.start), float(found.value)))
    return kept, told


def _digest(how: tuple[str, int, int], *arrays: NDArray[Any]) -> str:
    """What tells the choice in one group from others of the same model and inputs."""
    state = hashlib.sha256(repr(how).encode())
    for array in arrays:
        state.update(f"{array.shape}".encode() + array.tobytes())
    return state.hexdigest()


def _band(members: NDArray[np.intp], start: Mask, scores: Reals, pattern: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Members of a group that the optimiser chooses from: all that leave, and those that stay but for the best. Only
    those that own as many positions everywhere as most of them do, so that the cost stays the same.
    """
    if not len(members):
        return members
    kinds, which, count = np.unique(pattern[members], return_inverse=True, return_counts=True)
    members = members[which == count.argmax()] if len(kinds) > 1 else members
    stays = members[start[members]]
    best = stays[np.argsort(-scores[stays], kind="stable")][: int(np.ceil(TOP * len(stays)))]
    return np.setdiff1d(members, best)
