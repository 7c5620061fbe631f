"""How the next candidates are made of the values of earlier ones: evolution, simulated annealing, search economics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxprune.analysis import Mask
from onnxprune.searching.space import Counts, Masks, Trial, Values, ranks

_LARGEST = 0.25  # share of a block's pairs that one step may exchange at the beginning


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
            rank = ranks(2 * space.block + free, 2 * space.blocks, rng)
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
