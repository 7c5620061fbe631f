"""Which weights of a layer stay so that its outputs change least on its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.analysis import Mask
from onnxprune.graph import Array
from onnxprune.search.optimisers import Space, minimise
from onnxprune.search.space import Values
from onnxprune.sparse.masks import Band

_ELEMENTS = 1 << 24  # of the matrices that are multiplied at once


@dataclass(frozen=True)
class LayerError:
    """Mean squared change of a layer's outputs where weights are zero: tr(D' G D), D what goes, per output.

    gram: [groups, d, d] second moments of what the layer reads; weight: [groups, d, out/group].
    """

    gram: Array
    weight: Array

    def __call__(self, masks: Sequence[Mask]) -> Values:
        """[masks, outputs] for masks [groups, d, out/group] of what stays."""
        g, d, out = self.weight.shape
        step = max(1, _ELEMENTS // self.weight.size)
        found = []
        for start in range(0, len(masks), step):
            part = masks[start : start + step]
            lost = np.where(np.stack(part, axis=2), np.float32(0), self.weight[:, :, None])  # [g, d, masks, out]
            flat = lost.reshape(g, d, -1)
            error = np.einsum("gdo,gdo->go", flat, self.gram @ flat, dtype=np.float64)
            found.append(error.reshape(g, len(part), out).transpose(1, 0, 2).reshape(len(part), -1))
        return np.concatenate(found)

    @property
    def work(self) -> float:
        """Multiply-adds per mask."""
        return float(self.gram.shape[1]) * self.weight.size

    @property
    def energy(self) -> float:
        """The error where nothing stays."""
        return float(self([np.zeros(self.weight.shape, bool)]).sum())


def chosen(error: LayerError, kept: Mask, band: Band, optimiser: str, budget: int, seed: int) -> Mask:
    """What stays after the band was searched, as many weights of every block as in `kept`; never a larger error."""
    place, shape = band.place, kept.shape
    touched = np.unique(band.unit)  # outputs with a block
    if not touched.size:
        return kept
    unit = np.searchsorted(touched, band.unit).astype(np.int32)
    flat = kept.reshape(-1)

    def whole(chosen: Mask) -> Mask:
        full = flat.copy()
        full[place] = chosen
        return full.reshape(shape)

    space = Space(band.block, flat[place], (_by_energy(error, flat, band),), unit)
    found = minimise(
        optimiser, space, lambda masks: error([whole(m) for m in masks])[:, touched], budget=budget, seed=seed
    )
    return whole(found.mask)


def _by_energy(error: LayerError, kept: Mask, band: Band) -> Mask:
    """The members of each block with the largest |w| sqrt(E[x^2]), as many as stay (Wanda, Sun et al., 2024)."""
    power = np.sqrt(np.einsum("gdd->gd", error.gram))[:, :, None]
    merit = (np.abs(error.weight) * power).reshape(-1)[band.place]
    order = np.lexsort((-merit, band.block))
    sizes = np.bincount(band.block)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[band.block[order]]
    mask: Mask = rank < np.bincount(band.block[kept[band.place]], minlength=len(sizes))[band.block]
    return mask
