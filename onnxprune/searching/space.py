"""The space of masks that keep a number of members per block, and how one steps about in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Labels, Mask

Values = NDArray[np.float64]
Counts = NDArray[np.int64]
Masks = Mask  # [candidates, n]


@dataclass(frozen=True)
class Space:
    """The candidates: every mask that keeps as many members of each block as `start` does.

    block: [n] block of each member, 0 ...; start: [n] what stays at first; seeds: further masks worth trying early;
    unit: [blocks] the unit of each block, where that is not the block itself.
    """

    block: Labels
    start: Mask
    seeds: tuple[Mask, ...] = ()
    unit: Labels | None = None

    @cached_property
    def units(self) -> Labels:
        """[blocks] unit of each block, where values are given per unit."""
        return np.arange(self.blocks, dtype=np.int32) if self.unit is None else self.unit

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
        rank = ranks(2 * self.block + mask, 2 * self.blocks, rng)
        flipped: Mask = mask ^ (rank < counts[self.block])
        return flipped

    def cross(self, a: Mask, b: Mask, rng: np.random.Generator) -> Mask:
        """A random child: what both keep stays, and of what only one of them keeps a random half, in each block."""
        differ = a != b
        half = np.bincount(self.block[differ & a], minlength=self.blocks)
        rank = ranks(2 * self.block + differ, 2 * self.blocks, rng)
        child: Mask = np.where(differ, rank < half[self.block], a)
        return child


def ranks(group: Labels, groups: int, rng: np.random.Generator) -> Counts:
    """Random place of every member within its group, [n]."""
    order = np.argsort(group + rng.random(len(group)))
    first = np.cumsum(np.bincount(group, minlength=groups)) - np.bincount(group, minlength=groups)
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - first[group[order]]
    return rank


@dataclass(frozen=True)
class Trial:
    """What strategies work with: a space, and the *units* that are selected by themselves.

    units: [blocks] unit of each block, 0 throughout where a candidate has one value; value: [units] of the start.
    """

    space: Space
    units: Labels
    value: Values

    @cached_property
    def unit(self) -> Labels:
        """[n] unit of each member."""
        found: Labels = self.units[self.space.block]
        return found

    def pick(self, masks: Masks, chosen: Counts) -> Mask:
        """One mask of [m, n] masks: that of `chosen` [units] for each unit."""
        picked: Mask = masks[chosen[self.unit], np.arange(len(self.unit))]
        return picked

    def step(self, mask: Mask, rng: np.random.Generator, share: float) -> Mask:
        """Exchange about this share of the pairs of each block, and at least one pair in each unit."""
        room = self.space.room
        pairs = np.floor(share * room + rng.random(len(room))).astype(np.int64)
        idle = np.bincount(self.units, weights=np.minimum(pairs, room), minlength=len(self.value)) == 0
        lot = ranks(2 * self.units + (room > 0), 2 * len(self.value), rng)
        pairs[idle[self.units] & (room > 0) & (lot == 0)] = 1
        return self.space.swap(mask, rng, pairs)
