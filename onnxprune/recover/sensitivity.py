"""How much the network's output suffers when one group gets narrower, and the order in which to narrow the groups.

One table per model serves all targets: the greedy order does not depend on where it stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Analysis, Layer, Mask
from onnxprune.clock import Progress
from onnxprune.cost import CostModel
from onnxprune.cut import cut
from onnxprune.graph import Array
from onnxprune.recover.agreement import divergence
from onnxprune.recover.program import Feeds, Program, Store, Walk, outputs
from onnxprune.recover.program import program as take_apart
from onnxprune.recover.statistics import Reader, refitted

Reals = NDArray[np.float64]
LEVELS = (0.85, 0.7, 0.55, 0.4, 0.25, 0.1)
POWERS = (0.75, 1.0, 1.5, 2.0, 3.0)  # what a search tries
POWER = 1.5  # damages of several groups add up to more than their sum: deep cuts of one group are made dearer
_PIECES = 16  # a group leaves in about so many steps


@dataclass(frozen=True)
class Curve:
    """One group: its classes in the order in which they leave, and the divergence of the network's outputs after
    `gone` of them have left and all that read them were refitted.
    """

    group: int
    order: NDArray[np.intp]
    gone: NDArray[np.intp]
    damage: Reals

    def at(self, count: NDArray[np.intp], power: float) -> Reals:
        """Damage to a power after any number of classes, made monotone; beyond the table, the last slope doubled."""
        damage = np.maximum.accumulate(np.maximum(self.damage, 0.0)) ** power
        inner = np.interp(count, self.gone, damage)
        last, before = self.gone[-1], self.gone[-2]
        slope = 2 * (damage[-1] - damage[-2]) / max(last - before, 1)
        result: Reals = inner + np.maximum(count - last, 0) * max(slope, 1e-3)
        return result


def curves(
    analysis: Analysis,
    kept: Mask,
    program: Program,
    readers: Sequence[Reader],
    scores: Reals,
    batches: Sequence[Feeds],
    original: Sequence[Feeds],
    *,
    free: Mask,
    levels: Sequence[float] = LEVELS,
    store: Store | None = None,
    told: str = "sensitivity",
) -> list[Curve]:
    """The table: every group cut alone to every level, its readers refitted, the outputs compared with the original's.

    program: the cleaned model, or one cut to `kept` and refitted; scores: [classes + 1], the smallest leave first;
    batches, original: inputs and the original's outputs on them; free: [classes + 1], classes that may leave; told:
    what the log calls this.
    """
    groups = [_members(analysis, kept & free, scores, g) for g in range(1, len(analysis.groups) + 1)]
    jobs = sorted((_first(analysis, readers, order), g, order) for g, order in enumerate(groups, 1) if len(order) > 1)
    walk, found, progress = Walk(program, batches, store), list[Curve](), Progress(f"{told}: group", len(jobs))
    for start, g, order in jobs:
        progress.step()
        gone = np.unique([0, *(min(round(len(order) * (1 - x)), len(order) - 1) for x in levels)])
        damage = np.zeros(len(gone))
        for i, count in enumerate(gone):
            lost = np.zeros(len(kept), bool)
            lost[order[:count]] = True
            if start >= 0:
                walk.advance(start)
                results = walk.rest(_masked(program, readers, lost), program.outputs)
            else:
                results = outputs(take_apart(cut(analysis, kept & ~lost)), batches)
            damage[i] = divergence(original, results)
        found.append(Curve(g, order, gone, damage - damage[0]))
    walk.close()
    return found


def _members(analysis: Analysis, kept: Mask, scores: Reals, group: int) -> NDArray[np.intp]:
    """Classes of a group that are left and may leave, the first to leave first."""
    mine = np.flatnonzero((analysis.group == group) & kept)
    result: NDArray[np.intp] = mine[np.argsort(scores[mine], kind="stable")]
    return result


def _first(analysis: Analysis, readers: Sequence[Reader], order: NDArray[np.intp]) -> int:
    """Index of the first node that reads one of these classes through a weight; -1 where some are not, or not only,
    read so.
    """
    known = {r.site.weight for r in readers}
    if any(np.isin(order, _summed(x)).any() for x in analysis.layers if x.weight not in known):
        return -1
    mine = [r for r in readers if not r.inputs.follows and np.isin(r.inputs.classes, order).any()]
    read = np.concatenate([np.zeros(0, np.int32), *(r.inputs.classes.reshape(-1) for r in mine)])
    return min(r.site.index for r in mine) if mine and np.isin(order, read).all() else -1


def _summed(layer: Layer) -> NDArray[np.int32]:
    """Classes over which a layer sums."""
    over = [np.zeros(0, np.int32), *(d for d in layer.macs.dims if not np.isin(d, layer.outputs).any())]
    return np.concatenate([layer.inputs, *over])


def _masked(program: Program, readers: Sequence[Reader], lost: Mask) -> Program:
    """The same network in which nobody reads the lost classes."""
    changed: dict[str, Array] = {}
    for r in (r for r in readers if lost[r.inputs.classes].any() and not r.inputs.follows):
        changed.update(refitted(r, lost, program))
    return program.replaced(changed)


def greedy(kept: Mask, curves: Sequence[Curve], cost: CostModel, power: float = POWER) -> Reals:
    """Scores [classes + 1] that make a global ranking leave in greedy order: least damage per multiply-accumulate
    saved, which is counted anew after every step.

    power: of the damage; the larger, the more evenly the groups share the cut. Classes that no curve holds come last.
    """
    rank = np.full(len(kept), np.inf)
    place = [0] * len(curves)
    tables = [c.at(np.arange(len(c.order) + 1), power) for c in curves]
    kept, count = kept.copy(), 0
    while True:
        moves = [(i, w) for i, c in enumerate(curves) for w in _widths(len(c.order), place[i])]
        if not moves:
            break
        leaving = [curves[i].order[place[i] : place[i] + w] for i, w in moves]
        saved = cost.saved(kept, leaving)
        harm = np.array([tables[i][place[i] + w] - tables[i][place[i]] + 1e-9 * w for i, w in moves])
        best = int(np.argmin(harm / np.maximum(saved, 1e-3)))
        i, w = moves[best]
        rank[leaving[best]] = count + np.arange(w)
        kept[leaving[best]] = False
        place[i], count = place[i] + w, count + w
    return np.where(np.isfinite(rank), rank + 1.0, count + 2.0)


def _widths(size: int, place: int) -> list[int]:
    """How many classes may leave in one step: a few sizes, so that a steep start does not hide a gentle rest."""
    steps = {max(1, size // d) for d in (_PIECES, _PIECES // 2, _PIECES // 4)}
    return [w for w in sorted(steps) if place + w <= size] or ([size - place] if place < size else [])
