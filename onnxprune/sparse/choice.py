"""Which weights of a layer stay so that its outputs change least on its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Mask
from onnxprune.graph import Array
from onnxprune.recover.least_squares import masked_solve
from onnxprune.searching.optimisers import Space, minimise
from onnxprune.searching.space import Values
from onnxprune.sparse.masks import Band

Reals = NDArray[np.float64]
_ELEMENTS = 1 << 24  # of the matrices that are multiplied at once
_SOLVING = 4.0  # multiply-adds of products that one of solving small systems takes as long as
_GATHERING = 60.0  # and that the making of one of their elements does


@dataclass(frozen=True)
class LayerError:
    """Mean squared change of a layer's outputs where weights are zero, per output.

    gram: [groups, d, d] second moments of what the layer reads; weight: [groups, d, out/group]; refitted: whether the
    weights that stay are fitted anew: w'Gw - c[s]' G[s,s]^-1 c[s] with c = Gw and s what stays; else d'Gd with d what
    goes.
    """

    gram: Array
    weight: Array
    refitted: bool

    @cached_property
    def _cross(self) -> Reals:
        """c [groups, d, out/group]"""
        return self.gram.astype(np.float64) @ self.weight.astype(np.float64)

    @cached_property
    def energy(self) -> Values:
        """The error where nothing stays, [outputs]."""
        found: Values = np.einsum("gdo,gdo->go", self._cross, self.weight, dtype=np.float64).reshape(-1)
        return found

    def __call__(self, masks: Sequence[Mask]) -> Values:
        """[masks, outputs] for masks [groups, d, out/group] of what stays."""
        step = max(1, _ELEMENTS // self.weight.size)
        parts = [np.stack(masks[i : i + step], axis=2) for i in range(0, len(masks), step)]  # [g, d, masks, out/g]
        return np.concatenate([self._after_refit(p) if self.refitted else self._as_it_is(p) for p in parts])

    def _as_it_is(self, kept: Mask) -> Values:
        g, d, count, out = kept.shape
        lost = np.where(kept, np.float32(0), self.weight[:, :, None].astype(np.float32)).reshape(g, d, -1)
        error = np.einsum("gdo,gdo->go", lost, self.gram.astype(np.float32) @ lost, dtype=np.float64)
        found: Values = error.reshape(g, count, out).transpose(1, 0, 2).reshape(count, -1)
        return found

    def _after_refit(self, kept: Mask) -> Values:
        g, d, count, out = kept.shape
        gained = np.empty((g, count, out))
        for group in range(g):
            right = np.broadcast_to(self._cross[group][:, None], (d, count, out)).reshape(d, -1)
            solved = masked_solve(self.gram[group], kept[group].reshape(d, -1), right)
            gained[group] = (solved * right).sum(0).reshape(count, out)
        return np.maximum(self.energy - gained.transpose(1, 0, 2).reshape(count, -1), 0.0)

    def work(self, kept: Mask) -> float:
        """Multiply-adds per mask like this one, in the time they take."""
        if not self.refitted:
            return float(self.gram.shape[1]) * self.weight.size
        sizes = kept.sum(1).astype(np.float64)
        return float((_SOLVING * sizes**3 + _GATHERING * sizes**2).sum())

    def merits(self) -> list[Reals]:
        """How much each weight matters by itself: |w| sqrt(E[x^2]) (Wanda, Sun et al., 2024) and, if the others are
        refitted, w^2 / [G^-1]_ii (optimal brain surgeon, Hassibi & Stork, 1993).
        """
        size = np.abs(self.weight.astype(np.float64))
        found = [size * np.sqrt(np.maximum(np.einsum("gdd->gd", self.gram), 0))[:, :, None]]
        if self.refitted:
            found.append(size**2 / np.einsum("gdd->gd", np.linalg.inv(self.gram.astype(np.float64)))[:, :, None])
        return found


def chosen(error: LayerError, kept: Mask, band: Band, optimiser: str, budget: int, seed: int) -> Mask:
    """What stays after the band was searched, as many weights of every block as in `kept`; never a larger error."""
    place, shape = band.place, kept.shape
    touched = np.unique(band.unit)  # outputs with a block
    flat = kept.reshape(-1)

    def whole(chosen: Mask) -> Mask:
        full = flat.copy()
        full[place] = chosen
        return full.reshape(shape)

    seeds = tuple(_best(merit.reshape(-1)[place], flat[place], band) for merit in error.merits())
    space = Space(band.block, flat[place], seeds, np.searchsorted(touched, band.unit).astype(np.int32))
    found = minimise(
        optimiser, space, lambda masks: error([whole(m) for m in masks])[:, touched], budget=budget, seed=seed
    )
    return whole(found.mask)


def _best(merit: Reals, kept: Mask, band: Band) -> Mask:
    """The members of each block with the largest merit, as many as stay."""
    order, sizes = np.lexsort((-merit, band.block)), np.bincount(band.block)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[band.block[order]]
    mask: Mask = rank < np.bincount(band.block[kept], minlength=len(sizes))[band.block]
    return mask
