"""Which classes leave: scores and exact costs become a choice that meets a budget under constraints.

Scores are divided by their group's mean and ranked over all groups. The classes of one group leave in ascending score,
in *chunks* that keep the group's width a multiple of the alignment. The longest prefix of the ranking that stays above
the budget is removed; what is left of the gap is filled by chunks from near the threshold that are small enough.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations, product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from onnxprune.analysis import Analysis, Labels, Mask
from onnxprune.cost import Cost, CostModel, Counts, Distinct, Sparse, multiplicities, removal_matrix
from onnxprune.errors import TargetError, UsageError
from onnxprune.target import Target, loose, unreachable

Reals = NDArray[np.float64]
Chunk = NDArray[np.int64]  # indices of chunks
Moves = NDArray[np.int64]  # [moves, 1..3] chunks that leave, or ~chunk for one that comes back
WINDOW = 0.02  # the kept fraction lies in ((1 - WINDOW) target, target] wherever granularity allows
_LEVELS = 32  # how often a chunk that is too large is left out
_FEW = 20  # log2 of combinations times chunks up to which all are tried, if need be
# How the choice at the threshold is varied: chunks that leave, chunks that come back, out of so many on either side.
_EXCHANGES = ((1, 0, 10**9), (1, 1, 24), (2, 0, 24), (2, 1, 8), (1, 2, 8))


@dataclass(frozen=True, slots=True)
class Allocation:
    """What to keep: [classes + 1] bool, its cost and the original's, the kept fraction of the target's kind.

    smallest: the fraction with every chunk gone that may go; note: why the target is missed or met loosely, else "";
    tried: what a search tried on the way, latency: what was measured of it, both JSON-ready.
    """

    kept: Mask
    original: Cost
    reached: Cost
    fraction: float
    smallest: float
    note: str
    tried: Mapping[str, Any] | None = None
    latency: Mapping[str, Any] | None = None


def allocate(
    analysis: Analysis,
    scores: Reals,
    cost_model: CostModel,
    *,
    target: Target,
    min_keep: float | Reals = 0.1,
    align: int | Literal["auto"] = "auto",
    protect: Mask | None = None,
    inexact: bool = False,
    best_effort: bool = False,
    per_group: bool = True,
    wide: int = 8,
    steps: Counts | None = None,
) -> Allocation:
    """Choose the classes that leave so that the kept fraction is at most the target, and within 2 % of it if possible.

    scores: [classes + 1] float64, larger means keep; divided by the mean absolute score of their group if per_group.
    min_keep: least share of the positions of a group that stays (its own and the frozen ones; never none), one number
    or one per group, [groups + 1].
    align: widths stay multiples of it; "auto" is `wide` from 32 positions on, 4 from 8 on, else 1 (where classes are so
    large or so few that this removes nothing, the common divisor of the width and 4), steps [groups + 1] instead where
    given. Positions of other groups on the axis count as kept. protect: [classes + 1] bool, classes that stay; inexact:
    whether inexact classes may leave.
    A smaller target never keeps more. Raises TargetError if out of reach, unless best_effort; UsageError for options.
    """
    _check(analysis, scores, min_keep, align)
    free = _removable(analysis, protect, inexact)
    ranked = _normalised(scores, analysis.group, free) if per_group else scores
    free = _reserve(analysis, ranked, free)
    chunks = _chunks(analysis, ranked, free, min_keep, align, wide, steps)
    total = cost_model.whole(target.kind)
    least = cost_model.value(chunks.kept(np.ones(len(chunks.group), np.bool_)), target.kind)
    smallest = least / total if total else 1.0
    if smallest > target.keep:
        note = unreachable(analysis, target, smallest, min_keep, align, protect, inexact)
        if not best_effort:
            raise TargetError(note)
        gone = np.ones(len(chunks.group), np.bool_)
    else:
        gone, note = _Search(chunks, cost_model, target).run(), ""
    kept = chunks.kept(gone)
    fraction = cost_model.value(kept, target.kind) / total if total else 1.0
    if fraction <= (1 - WINDOW) * target.keep:
        note = loose(target, fraction, align)
    return Allocation(kept, cost_model.original, cost_model.evaluate(kept), fraction, smallest, note)


def _check(analysis: Analysis, scores: Reals, min_keep: float | Reals, align: int | str) -> None:
    if scores.shape != (analysis.classes + 1,) or not np.isfinite(scores[1:]).all():
        raise UsageError(f"scores must be one finite number per class, [{analysis.classes + 1}]")
    if np.any(np.clip(min_keep, 0, 1) != min_keep):
        raise UsageError(f"--min-keep {min_keep}: the least share of a group must be within 0..1")
    if align != "auto" and (isinstance(align, str) or align < 1):
        raise UsageError(f"--align {align}: must be 'auto' or a positive integer")


def _removable(analysis: Analysis, protect: Mask | None, inexact: bool) -> Mask:
    free: Mask = analysis.group > 0
    if protect is not None:
        free &= ~protect
    if not inexact:
        free &= ~analysis.inexact
    free[0] = False
    return free


def _normalised(scores: Reals, group: Labels, free: Mask) -> Reals:
    """Divide by the mean absolute score of the removable classes of the group."""
    size = int(group.max(initial=0)) + 1
    members = np.bincount(group[free], minlength=size)
    means = np.bincount(group[free], np.abs(scores[free]), size) / np.maximum(members, 1)
    result: Reals = scores / np.where(means > 0, means, 1.0)[group]
    return result


def _reserve(analysis: Analysis, scores: Reals, free: Mask) -> Mask:
    """Take the best class of every axis that could lose all its positions out of the removable ones, for all axes at
    once, so that the result does not depend on an order.
    """
    axes = Distinct()
    for axis in analysis.axes:
        axes.add(axis.classes)
    for layer in analysis.layers:
        for labels in (layer.outputs, layer.inputs, *layer.macs.dims):
            axes.add(labels)
    for labels in (*analysis.parts, *(d for e in analysis.elements for d in e.elements.dims)):
        axes.add(labels)
    matrix = multiplicities([x for x in axes.labels if len(x)], analysis.classes)
    matrix = matrix[(matrix @ ~free) == 0]
    free = free.copy()
    if matrix.shape[0]:
        order = np.argsort(scores, kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        free[order[np.maximum.reduceat(rank[matrix.indices], matrix.indptr[:-1])]] = False
    return free


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Sets of classes that leave together, those of one group side by side and in their order of leaving.

    of_class: [classes + 1], the chunk of each class, `len(group)` for those that stay; group, score: [chunks];
    first: [groups + 2], first chunk of each group; members: sparse int64 [classes + 1, chunks].
    """

    of_class: NDArray[np.int64]
    group: Labels
    score: Reals
    first: NDArray[np.int64]
    members: Sparse

    def kept(self, gone: Mask) -> Mask:
        """[classes + 1] bool for the chunks that left, [chunks] bool."""
        kept: Mask = ~np.append(gone, False)[self.of_class]
        return kept

    def next(self, gone: Mask) -> Chunk:
        """The chunk that each group loses next, in the order of the ranking."""
        chunk = self._frontier(gone)
        return self._sorted(chunk[chunk < self.first[1:]])

    def last(self, gone: Mask) -> Chunk:
        """The chunk that each group lost last, those removed last in the ranking first."""
        chunk = self._frontier(gone)
        return self._sorted(chunk[chunk > self.first[:-1]] - 1)[::-1]

    def _frontier(self, gone: Mask) -> Chunk:
        return self.first[:-1] + np.bincount(self.group[gone], minlength=len(self.first) - 1)

    def _sorted(self, chunk: Chunk) -> Chunk:
        result: Chunk = chunk[np.argsort(self.score[chunk], kind="stable")]
        return result


def _chunks(
    analysis: Analysis,
    scores: Reals,
    free: Mask,
    min_keep: float | Reals,
    align: int | Literal["auto"],
    wide: int,
    steps: Counts | None,
) -> _Chunks:
    group, groups = analysis.group, len(analysis.groups)
    classes = np.flatnonzero(free)
    classes = classes[np.lexsort((scores[classes], group[classes]))]  # by group, ascending score
    owner = group[classes]
    positions, widths, floor = _widths(analysis, min_keep)
    cuts = partial(_cuts, owner, positions[classes], widths, floor)
    given = steps if steps is not None else widths_apart(widths, align, wide)
    ends = cuts(given)
    if align == "auto" and steps is None:
        idle = np.bincount(owner[ends], minlength=groups + 1) == 0
        ends = cuts(np.where(idle, np.gcd(widths, 4), given))
    at = np.flatnonzero(ends)  # the last class of each chunk
    chunk = np.searchsorted(at, np.arange(len(classes)))
    leaves = np.append(owner[at], 0)[chunk] == owner
    classes, chunk = classes[leaves], chunk[leaves]
    of_class = np.full(analysis.classes + 1, len(at))
    of_class[classes] = chunk
    means = np.bincount(chunk, scores[classes], len(at)) / np.maximum(np.bincount(chunk, minlength=len(at)), 1)
    means = means[np.lexsort((means, owner[at]))]  # rounding must not make a group leave out of order
    members = removal_matrix(classes, np.searchsorted(chunk, np.arange(len(at) + 1)), analysis.classes + 1)
    first = np.searchsorted(owner[at], np.arange(groups + 2))
    return _Chunks(of_class, owner[at], means, first, members)


def widths_apart(widths: Counts, align: int | Literal["auto"], wide: int) -> Counts:
    """How far apart the widths are that a group of each of these may have."""
    return np.select([widths >= 32, widths >= 8], [wide, 4], 1) if align == "auto" else np.full(len(widths), align)


def _widths(analysis: Analysis, min_keep: float | Reals) -> tuple[Counts, Counts, Counts]:
    """Positions per class on its group's axis [classes + 1]; per group [groups + 1] its width and how many must stay.

    Positions of other groups count as staying in the width, but not towards the floor.
    """
    sizes = np.array([0, *(len(axis.classes) for axis in analysis.groups)])
    labels = np.concatenate([np.zeros(0, np.int32), *(axis.classes for axis in analysis.groups)])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    own = analysis.group[labels] == owner
    positions = np.bincount(labels[own], minlength=analysis.classes + 1)
    foreign = np.bincount(owner[~own & (labels > 0)], minlength=len(sizes))
    least = np.maximum(1, np.ceil(min_keep * (sizes - foreign) - 1e-9).astype(np.int64))
    return positions, sizes, foreign + least


def _cuts(owner: Labels, positions: Counts, widths: Counts, floor: Counts, steps: Counts) -> Mask:
    """After which classes (sorted by group) the group's width is a multiple of its step and not under its floor."""
    left = np.cumsum(positions)
    before = (left - positions)[np.searchsorted(owner, owner)]
    width = widths[owner] - (left - before)
    result: Mask = (width % steps[owner] == 0) & (width >= floor[owner])
    return result


@dataclass(slots=True)
class _Best:
    """The choice of chunks with the largest cost within the budget."""

    gone: Mask
    value: int
    limit: int

    def offer(self, values: Counts, choice: Callable[[int], Mask]) -> None:
        """Take the best of the choices with these costs if it is better; of equal ones the first."""
        fits = np.append(np.where(values <= self.limit, values, -1), -1)
        index = int(fits.argmax())
        if fits[index] > self.value:
            self.gone, self.value = choice(index), int(fits[index])


class _Search:
    """Fill a budget from below: every step compares choices that do not depend on the target and takes the largest
    within it; it stops as soon as that one is close enough. So a smaller target never keeps more.
    """

    def __init__(self, chunks: _Chunks, cost_model: CostModel, target: Target) -> None:
        self._chunks, self._model, self._kind = chunks, cost_model, target.kind
        total = max(1, cost_model.whole(target.kind))
        self._limit = bisect_left(range(total + 1), True, key=lambda value: value / total > target.keep) - 1
        self._close = (1 - WINDOW) * target.keep * total

    def run(self) -> Mask:
        """Chunks that leave, [chunks] bool. All of them together must be within the budget."""
        gone = np.zeros(len(self._chunks.group), np.bool_)
        if self._value(gone) <= self._limit:
            return gone
        best = _Best(gone | True, self._value(gone | True), self._limit)
        order = np.argsort(self._chunks.score, kind="stable")
        for _ in range(_LEVELS):
            n = self._prefix(gone, order)
            gone[order[:n]] = True  # the last choice on the ranking that is above the budget
            for moves in chain([order[n : n + 1, None]], (self._exchanges(gone, *kind) for kind in _EXCHANGES)):
                best.offer(self._after(gone, moves), partial(_moved, gone, moves))
                if best.value > self._close:
                    return best.gone
            order = self._fitting(gone, order[n:], best.value)
            if not len(order):
                break
        self._all(best)
        return best.gone

    def _all(self, best: _Best) -> None:
        """Try every combination where there are few: in small networks some are far from the ranking."""
        chunks = self._chunks
        counts = np.diff(chunks.first)
        if np.log2(counts + 1).sum() + np.log2(len(chunks.group)) > _FEW:
            return
        levels = np.indices((counts[counts > 0] + 1).tolist()).reshape((counts > 0).sum(), -1).T  # [choices, groups]
        order = np.arange(len(chunks.group)) - chunks.first[chunks.group]
        gone = order < np.repeat(levels, counts[counts > 0], axis=1)  # [choices, chunks]
        gone = gone[np.argsort(gone @ chunks.score, kind="stable")]  # of equal costs the least important
        everything = np.ones(chunks.members.shape[0], np.bool_)
        values = self._model.after(everything, chunks.members @ sparse.csc_array(gone.T.astype(np.int64)), self._kind)
        best.offer(values, gone.__getitem__)

    def _value(self, gone: Mask) -> int:
        return self._model.value(self._chunks.kept(gone), self._kind)

    def _prefix(self, gone: Mask, order: Chunk) -> int:
        """Length of the longest prefix of `order` that leaves the cost above the budget."""

        def within(n: int) -> bool:
            trial = gone.copy()
            trial[order[:n]] = True
            return self._value(trial) <= self._limit

        return bisect_left(range(1, len(order) + 1), True, key=within)

    def _exchanges(self, gone: Mask, leave: int, back: int, near: int) -> Moves:
        """All ways in which so many chunks leave and come back, each of another group, near the threshold."""
        ahead, behind = self._chunks.next(gone)[:near], ~self._chunks.last(gone)[:near]
        rows = [(*x, *y) for x, y in product(combinations(ahead, leave), combinations(behind, back))]
        moves = np.array(rows, np.int64).reshape(-1, leave + back)
        group = np.sort(self._chunks.group[np.maximum(moves, ~moves)], axis=1)
        result: Moves = moves[(np.diff(group, axis=1) > 0).all(axis=1)]
        return result

    def _after(self, gone: Mask, moves: Moves) -> Counts:
        """Cost after each of the moves, [moves]."""
        if not len(moves):
            return np.zeros(0, np.int64)
        count, width = moves.shape
        signs = np.where(moves < 0, -1, 1).ravel()
        chosen = (np.maximum(moves, ~moves).ravel(), np.repeat(np.arange(count), width))
        select = sparse.coo_array((signs, chosen), shape=(len(gone), count))  # [chunks, moves]
        return self._model.after(self._chunks.kept(gone), self._chunks.members @ select.tocsc(), self._kind)

    def _fitting(self, gone: Mask, order: Chunk, least: int) -> Chunk:
        """Leave groups out whose next chunk lands at or below the best choice so far: so will all that follow."""
        moves = self._chunks.next(gone)[:, None]
        fits = self._after(gone, moves) > least
        result: Chunk = order[np.isin(self._chunks.group[order], self._chunks.group[moves[fits, 0]])]
        return result


def _moved(gone: Mask, moves: Moves, index: int) -> Mask:
    gone, move = gone.copy(), moves[index]
    gone[np.maximum(move, ~move)] = move >= 0
    return gone
