"""Which members of a band stay: evolution, simulated annealing and search economics behind one interface.

A *band* is a set of members in blocks (the small filters of a group, the small weights of a row), of which a fixed
number per block stays. Optimisers are asked for candidates and told their values, smaller is better. Candidates come in
generations that depend only on the seed and on the values of earlier generations, never on how many are asked for or
evaluated at once; so a run is repeated, or taken up again, by telling it the values that are known.

Where a value is given per block, each block's depending on its own members alone, every block is selected by itself: a
candidate is then as many trials as there are blocks. Else the candidate is one trial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Labels, Mask
from onnxprune.errors import UsageError

Values = NDArray[np.float64]
Counts = NDArray[np.int64]
Masks = Mask  # [candidates, n]
Fitness = Callable[[Sequence[Mask]], Values]
_LARGEST = 0.25  # share of a block's pairs that one step may exchange at the beginning


@dataclass(frozen=True)
class Space:
    """The candidates: every mask that keeps as many members of each block as `start` does.

    block: [n] block of each member, 0 ...; start: [n] what stays at first; seeds: further masks worth trying early.
    """

    block: Labels
    start: Mask
    seeds: tuple[Mask, ...] = ()

    @cached_property
    def blocks(self) -> int:
        """Number of blocks."""
        return int(self.block.max(initial=-1)) + 1

    @cached_property
    def room(self) -> Counts:
        """Pairs of a kept and a dropped member that each block can exchange at once, [blocks]."""
        kept = np.bincount(self.block[self.start], minlength=self.blocks)
        room: Counts = np.minimum(kept, np.bincount(self.block, minlength=self.blocks) - kept)
        return room

    def swap(self, mask: Mask, rng: np.random.Generator, pairs: int | Counts) -> Mask:
        """Exchange random kept members for random dropped ones, `pairs` of them in each block (or as many as fit)."""
        counts = np.minimum(pairs, self.room)
        rank = _ranks(2 * self.block + mask, 2 * self.blocks, rng)
        flipped: Mask = mask ^ (rank < counts[self.block])
        return flipped

    def cross(self, a: Mask, b: Mask, rng: np.random.Generator) -> Mask:
        """A random child: what both keep stays, and of what only one of them keeps a random half, in each block."""
        differ = a != b
        half = np.bincount(self.block[differ & a], minlength=self.blocks)
        rank = _ranks(2 * self.block + differ, 2 * self.blocks, rng)
        child: Mask = np.where(differ, rank < half[self.block], a)
        return child


def _ranks(group: Labels, groups: int, rng: np.random.Generator) -> Counts:
    """Random place of every member within its group, [n]."""
    order = np.argsort(group + rng.random(len(group)))
    first = np.cumsum(np.bincount(group, minlength=groups)) - np.bincount(group, minlength=groups)
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - first[group[order]]
    return rank


@dataclass(frozen=True)
class Trial:
    """What strategies work with: a space, and the *units* that are selected by themselves.

    unit: [n] unit of each member, the blocks or 0 throughout; value: [units] of the start; budget: candidates in all.
    """

    space: Space
    unit: Labels
    value: Values
    budget: int

    def pick(self, masks: Masks, chosen: Counts) -> Mask:
        """One mask of [m, n] masks: that of `chosen` [units] for each unit."""
        picked: Mask = masks[chosen[self.unit], np.arange(len(self.unit))]
        return picked

    def step(self, mask: Mask, rng: np.random.Generator, share: float) -> Mask:
        """Exchange about this share of each unit's pairs, at least one."""
        room = self.space.room
        if len(self.value) == len(room):
            return self.space.swap(mask, rng, np.maximum(1, np.rint(share * room).astype(np.int64)))
        total = max(1, round(share * int(room.sum())))
        spread = rng.multivariate_hypergeometric(room, min(total, int(room.sum())))
        return self.space.swap(mask, rng, spread)


class Strategy(Protocol):
    """Proposes generations and learns from their values."""

    def propose(self, rng: np.random.Generator, progress: float) -> list[Mask]:
        """The next generation; progress: share of the budget that is spent, 0..1."""

    def learn(self, masks: Masks, values: Values, rng: np.random.Generator, progress: float) -> None:
        """The values [candidates, units] of the generation, in its order."""


def _share(rng: np.random.Generator, progress: float) -> float:
    """Size of a step: from a single pair to a large share, on a logarithmic scale that shrinks as the budget goes."""
    return float(_LARGEST * 10 ** (-3 * rng.random() - 1.5 * progress))


@dataclass
class Evolution:
    """(mu + lambda) evolution: children of two parents won in tournaments, mutated; the best of all stay."""

    trial: Trial
    parents: int = 6
    children: int = 8

    def __post_init__(self) -> None:
        self._masks, self._values = self.trial.space.start[None], self.trial.value[None]

    def propose(self, rng: np.random.Generator, progress: float) -> list[Mask]:
        """Two tournaments per child, over each unit's own order of the parents."""
        trial, size = self.trial, len(self._masks)
        made = []
        for _ in range(self.children):
            a, b = (rng.integers(0, size, (2, len(trial.value))).min(0) for _ in range(2))  # parents are sorted
            child = trial.space.cross(trial.pick(self._masks, a), trial.pick(self._masks, b), rng)
            made.append(trial.step(child, rng, _share(rng, progress)))
        return made

    def learn(self, masks: Masks, values: Values, rng: np.random.Generator, progress: float) -> None:  # noqa: ARG002
        """The best of parents and children, per unit."""
        masks, values = np.concatenate([self._masks, masks]), np.concatenate([self._values, values])
        order = np.argsort(values, axis=0, kind="stable")[: self.parents]
        self._masks = np.stack([self.trial.pick(masks, o) for o in order])
        self._values = np.take_along_axis(values, order, 0)


@dataclass
class Annealing:
    """Simulated annealing of several chains (Kirkpatrick et al., 1983): worse steps are taken with probability
    exp(-loss / T), where T falls from a third of the first steps' mean difference to a thousandth of that.
    """

    trial: Trial
    chains: int = 4

    def __post_init__(self) -> None:
        self._masks = np.repeat(self.trial.space.start[None], self.chains, 0)
        self._values = np.repeat(self.trial.value[None], self.chains, 0)
        self._heat = np.zeros_like(self.trial.value)

    def propose(self, rng: np.random.Generator, progress: float) -> list[Mask]:
        """One step of every chain."""
        return [self.trial.step(m, rng, _share(rng, progress)) for m in self._masks]

    def learn(self, masks: Masks, values: Values, rng: np.random.Generator, progress: float) -> None:
        """Accept by Metropolis, per chain and unit; seeds are offered to the chains in turn."""
        loss = np.where(np.isfinite(values), np.abs(values - self.trial.value), 0.0)
        self._heat = np.where(self._heat > 0, self._heat, 0.3 * loss.mean(0))
        for number, (mask, value) in enumerate(zip(masks, values, strict=True)):
            chain = number % self.chains
            old = self._values[chain]
            heat = np.maximum(self._heat * 1e-3**progress, 1e-300)
            accepted = rng.random(len(value)) < np.exp(np.minimum((old - value) / heat, 0.0))
            self._masks[chain] = np.where(accepted[self.trial.unit], mask, self._masks[chain])
            self._values[chain] = np.where(accepted, value, old)


@dataclass
class Economics:
    """Search economics (Tsai, 2015), reduced: each unit's space is parted into regions by the state of two of its
    members; searchers invest where the expected value is largest: the generations without an investment by those with
    one, times how good a region's goods are, times how good its best is.
    """

    trial: Trial
    searchers: int = 4
    regions: int = 4
    goods: int = 3

    def __post_init__(self) -> None:
        space, units = self.trial.space, len(self.trial.value)
        shape = (self.regions, self.goods, len(space.start))
        self._goods = np.broadcast_to(space.start, shape).copy()
        self._worth = np.full((self.regions, self.goods, units), np.inf)
        self._best, self._value = space.start.copy(), self.trial.value.copy()
        self._invested, self._waited = np.ones((self.regions, units)), np.ones((self.regions, units))
        self._flags = self._chosen_flags()
        self._where: list[Counts] = []

    def _chosen_flags(self) -> Counts:
        """Two members per unit whose states name a region, [2, units]: one that the start keeps and one it drops, -1
        where there is none.
        """
        space, units = self.trial.space, len(self.trial.value)
        flags = np.full((2, units), -1)
        usable = space.room[space.block] > 1  # the others could not give way
        for k, state in enumerate((True, False)):
            members = np.flatnonzero(usable & (space.start == state))
            flags[k, self.trial.unit[members]] = members
        return flags

    def propose(self, rng: np.random.Generator, progress: float) -> list[Mask]:
        """Every searcher crosses the best known mask with a good of the region it invests in."""
        trial, units = self.trial, np.arange(len(self.trial.value))
        self._where, made = self._investments(rng), []
        for region in self._where:
            good = rng.integers(0, self.goods, len(units))
            flat = self._goods.reshape(-1, self._goods.shape[2])
            other = trial.pick(flat, region * self.goods + good)
            child = trial.step(trial.space.cross(self._best, other, rng), rng, _share(rng, progress))
            made.append(self._into(child, region, rng))
        return made

    def _investments(self, rng: np.random.Generator) -> list[Counts]:
        """Region per unit for each searcher: a tournament of two by the expected value; first, each region once."""
        units = len(self.trial.value)
        if not np.isfinite(self._worth).any():
            return [np.full(units, s % self.regions) for s in range(self.searchers)]
        expected = self._expected()
        found = []
        for _ in range(self.searchers):
            pair = rng.integers(0, self.regions, (2, units))
            values = np.take_along_axis(expected, pair, 0)
            found.append(np.where(values[0] >= values[1], pair[0], pair[1]))
        return found

    def _expected(self) -> Values:
        """[regions, units]"""
        finite = np.isfinite(self._worth)
        low = np.where(finite, self._worth, np.inf).min((0, 1))
        high = np.where(finite, self._worth, -np.inf).max((0, 1))
        span = np.where(high > low, high - low, 1.0)
        merit = np.where(finite, 1 - (np.where(finite, self._worth, 0.0) - low) / span, 0.0) + 1e-3
        expected: Values = self._waited / self._invested * merit.mean(1) * merit.max(1)
        return expected

    def _into(self, mask: Mask, region: Counts, rng: np.random.Generator) -> Mask:
        """The mask with both flags of each unit as in the region; in exchange another member of the block turns."""
        mask, space = mask.copy(), self.trial.space
        for k, flags in enumerate(self._flags):
            wanted = (region >> k & 1).astype(bool)
            units = np.flatnonzero((flags >= 0) & (mask[flags] != wanted))
            if not units.size:
                continue
            turning = np.full(space.blocks, -1)  # state that another member of the flag's block gives up
            turning[space.block[flags[units]]] = wanted[units]
            free = turning[space.block] == mask
            free[self._flags[self._flags >= 0]] = False
            rank = _ranks(2 * space.block + free, 2 * space.blocks, rng)
            partner = np.full(space.blocks, -1)
            chosen = np.flatnonzero(free & (rank == 0))
            partner[space.block[chosen]] = chosen
            mates = partner[space.block[flags[units]]]
            swapped = mates >= 0
            mask[flags[units[swapped]]] ^= True
            mask[mates[swapped]] ^= True
        return mask

    def learn(self, masks: Masks, values: Values, rng: np.random.Generator, progress: float) -> None:  # noqa: ARG002
        """Better masks become goods of their region; what was invested in has not been waited for."""
        if len(self._where) != len(masks):  # seeds
            self._where = [self._region(m) for m in masks]
        units = np.arange(len(self.trial.value))
        touched = np.zeros(self._invested.shape, bool)
        for mask, value, region in zip(masks, values, self._where, strict=True):
            worst = self._worth[region, :, units].argmax(1)
            better = value < self._worth[region, worst, units]
            self._worth[region[better], worst[better], units[better]] = value[better]
            members = np.flatnonzero(better[self.trial.unit])
            unit = self.trial.unit[members]
            self._goods[region[unit], worst[unit], members] = mask[members]
            ahead = value < self._value
            self._best = np.where(ahead[self.trial.unit], mask, self._best)
            self._value = np.where(ahead, value, self._value)
            touched[region, units] = True
        self._invested += touched
        self._waited = np.where(touched, 1.0, self._waited + 1)

    def _region(self, mask: Mask) -> Counts:
        states = np.where(self._flags >= 0, mask[self._flags], False).astype(np.int64)
        found: Counts = states[0] + 2 * states[1]
        return found


OPTIMISERS: dict[str, Callable[[Trial], Strategy]] = {
    "evolution": Evolution,
    "annealing": Annealing,
    "economics": Economics,
}


@dataclass
class Optimiser:
    """Asked for candidates, told their values; see the module.

    The first candidate is the start, the seeds of the space follow. Raises UsageError for an unknown name.
    """

    name: str
    space: Space
    budget: int
    seed: int
    _queue: list[Mask] = field(default_factory=list, init=False)
    _values: list[Values] = field(default_factory=list, init=False)
    _asked: int = field(default=0, init=False)
    _generation: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        check(self.name, self.budget)
        self._strategy: Strategy | None = None
        self._told, self._queue = 0, [self.space.start.copy()]
        self._mask, self._best = self.space.start.copy(), np.zeros(0)
        self._unit: Labels = np.zeros(0, np.int32)

    def ask(self, count: int) -> list[Mask]:
        """The next candidates, at most `count`: fewer at the end of a generation, none until it has been told or where
        there is only one candidate.
        """
        found = self._queue[self._asked : self._asked + count]
        self._asked += len(found)
        return found

    def tell(self, masks: Sequence[Mask], values: Values) -> None:
        """Values of candidates in the order in which they were asked for, [candidates] or [candidates, blocks]."""
        for mask, value in zip(masks, np.asarray(values, np.float64), strict=True):
            if self._strategy is None:
                self._begin(value)
            row = np.where(np.isnan(value), np.inf, np.atleast_1d(value))
            ahead = row < self._best
            self._mask = np.where(ahead[self._unit], mask, self._mask)
            self._best = np.where(ahead, row, self._best)
            self._values.append(row)
            self._told += 1
        if len(self._values) == len(self._queue):
            self._advance()

    def _begin(self, value: Values) -> None:
        """The shape of the first value says what is selected by itself."""
        units = self.space.blocks if value.ndim else 1
        self._unit = self.space.block if value.ndim else np.zeros_like(self.space.block)
        self._best = np.full(units, np.inf)
        row = np.where(np.isnan(value), np.inf, np.atleast_1d(value))
        self._strategy = OPTIMISERS[self.name](Trial(self.space, self._unit, row, self.budget))

    def _advance(self) -> None:
        """Learn from a whole generation and make the next; its random numbers depend on its number alone."""
        rng, progress = np.random.default_rng((self.seed, self._generation)), min(1.0, self._told / self.budget)
        strategy = self._strategy
        if strategy is None or not self.space.room.any():
            return
        if self._generation:
            strategy.learn(np.stack(self._queue), np.stack(self._values), rng, progress)
        seeds = [s.copy() for s in self.space.seeds] if not self._generation else []
        self._queue = seeds or strategy.propose(rng, progress)
        self._values, self._asked, self._generation = [], 0, self._generation + 1

    @property
    def best(self) -> tuple[Mask, float]:
        """The best mask so far, taken together from the best of each block where these have values of their own."""
        return self._mask, float(self._best.sum())


@dataclass(frozen=True)
class Found:
    """The best mask, its value, the value of the start, and the values of all candidates in order."""

    mask: Mask
    value: float
    start: float
    history: tuple[float, ...]


def minimise(
    name: str,
    space: Space,
    fitness: Fitness,
    *,
    budget: int,
    seed: int,
    told: Sequence[float | Values] = (),
    batch: int = 8,
    on_told: Callable[[Values], None] | None = None,
) -> Found:
    """Try `budget` candidates, the start among them, and take the best; never worse than the start.

    name: of OPTIMISERS; fitness: masks -> values, [candidates] or [candidates, blocks], smaller is better; told: values
    known from an earlier run with the same arguments, which are not computed again; batch: how many masks the fitness
    is given at most (without influence on the result); on_told: is shown the new values of each batch, for a journal.
    A mask that comes up again keeps its value. Raises UsageError for an unknown name or a budget below 1.
    """
    optimiser, known = Optimiser(name, space, budget, seed), dict[bytes, Values]()
    totals = list[float]()
    while len(totals) < budget and (asked := optimiser.ask(min(batch, budget - len(totals)))):
        keys = [np.packbits(m).tobytes() for m in asked]
        replayed = [np.asarray(v, np.float64) for v in told[len(totals) : len(totals) + len(asked)]]
        known.update(zip(keys, replayed, strict=False))
        fresh = {k: m for k, m in zip(keys, asked, strict=True) if k not in known}
        if fresh:
            made = np.asarray(fitness(list(fresh.values())), np.float64)
            if made.shape not in ((len(fresh),), (len(fresh), space.blocks)):
                raise ValueError(f"the fitness of {len(fresh)} masks has the shape {made.shape}")
            known.update(zip(fresh, made, strict=True))
        values = np.stack([known[k] for k in keys])
        optimiser.tell(asked, values)
        totals += [float(v.sum()) for v in values]
        if on_told is not None and len(replayed) < len(asked):
            on_told(values[len(replayed) :])
    mask, value = optimiser.best
    return Found(mask, value, totals[0], tuple(totals))


def check(name: str, budget: int) -> None:
    """Raise UsageError for an unknown optimiser or a budget below 1."""
    if name not in OPTIMISERS:
        raise UsageError(f"--optimiser {name!r} is not known; choose one of: {', '.join(OPTIMISERS)}")
    if budget < 1:
        raise UsageError(f"--budget {budget}: at least one candidate is tried")
