"""Masks by magnitude, unstructured and N:M, and the band of weights around their threshold.

Weights are matrices [groups, d, out/group] as `recover.linear.Linear.matrix` makes them: a column is one output of the
layer, its rows what that output reads, the taps of a kernel varying slowest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from onnxprune.analysis import Labels, Mask
from onnxprune.errors import UsageError
from onnxprune.graph import Array

BAND = 0.8  # share of the weights that stay by magnitude that may be exchanged for others
_WIDE = 2.0  # smaller weights that are looked at for each of them


@dataclass(frozen=True, slots=True)
class Pattern:
    """At most n of every m consecutive inputs of an output are kept, as in 2:4."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def parse_pattern(text: str) -> Pattern:
    """`2:4` and the like. Raises UsageError."""
    n, colon, m = text.partition(":")
    if not (colon and n.isascii() and m.isascii() and n.isdigit() and m.isdigit() and 0 < int(n) < int(m)):
        raise UsageError(f"--pattern {text!r}: give N:M with N below M, such as 2:4")
    return Pattern(int(n), int(m))


def removed(size: int, sparsity: float) -> int:
    """How many of so many weights go at least, to reach a sparsity; one always stays."""
    return min(ceil(sparsity * size - 1e-9), size - 1)


def by_magnitude(weights: Sequence[Array], sparsity: float, *, together: bool) -> list[Mask]:
    """What stays where the smallest weights go: of each tensor its share, or of all tensors `together`."""
    if not together:
        return [_largest(np.abs(w).reshape(-1), w.size - removed(w.size, sparsity)).reshape(w.shape) for w in weights]
    flat = np.concatenate([np.abs(w).reshape(-1) for w in weights])
    kept = _largest(flat, flat.size - removed(flat.size, sparsity))
    parts = np.split(kept, np.cumsum([w.size for w in weights])[:-1])
    masks = [part.reshape(w.shape) for part, w in zip(parts, weights, strict=True)]
    for mask, weight in zip(masks, weights, strict=True):
        mask.flat[np.abs(weight).argmax()] = True  # no tensor is emptied
    return masks


def _largest(values: Array, count: int) -> Mask:
    mask = np.zeros(values.size, bool)
    mask[np.argsort(-values, kind="stable")[:count]] = True
    return mask


def by_pattern(weight: Array, pattern: Pattern, inputs: int) -> Mask:
    """What stays where the largest n of every m consecutive inputs do; inputs: per tap, a multiple of m."""
    g, d, out = weight.shape
    chunks = np.abs(weight).reshape(g, d // inputs, inputs // pattern.m, pattern.m, out)
    rank = np.argsort(np.argsort(-chunks, axis=3, kind="stable"), axis=3)
    mask: Mask = (rank < pattern.n).reshape(weight.shape)
    return mask


@dataclass(frozen=True, slots=True)
class Band:
    """Weights that may be exchanged: their flat places [n] in the matrix, block [n], and unit of each block.

    Blocks keep their number of weights; units are the outputs of the layer.
    """

    place: Array
    block: Labels
    unit: Labels


def band(weight: Array, kept: Mask, share: float = BAND) -> Band:
    """The smallest `share` of the weights that stay, and twice as many of the largest that go; blocks are outputs."""
    size = np.abs(weight).reshape(-1)
    slots = ceil(share * np.count_nonzero(kept))
    inside = np.where(kept.reshape(-1), size, np.inf)
    outside = np.where(kept.reshape(-1), -np.inf, size)
    low = np.argsort(inside, kind="stable")[:slots]
    high = np.argsort(-outside, kind="stable")[: min(int(_WIDE * slots), int(np.count_nonzero(~kept)))]
    place = np.sort(np.concatenate([low, high]))
    return _banded(place, outputs(weight)[place])


def pattern_band(weight: Array, pattern: Pattern) -> Band:
    """All weights: blocks are the runs of m inputs of an output."""
    g, d, out = weight.shape
    chunk = np.arange(d)[:, None] // pattern.m * out + np.arange(out)
    block = np.arange(g)[:, None, None] * (d // pattern.m * out) + chunk
    unit = np.zeros(block.max() + 1, np.int32)
    unit[block.reshape(-1)] = outputs(weight)
    return Band(np.arange(weight.size), block.reshape(-1).astype(np.int32), unit)


def outputs(weight: Array) -> Labels:
    """Output of the layer that each weight of the flat matrix belongs to, [size]."""
    g, d, out = weight.shape
    number = np.arange(g, dtype=np.int32)[:, None, None] * out + np.arange(out, dtype=np.int32)
    found: Labels = np.broadcast_to(number, (g, d, out)).reshape(-1)
    return found


def _banded(place: Array, output: Labels) -> Band:
    """Blocks are the outputs that occur; those are the units, too."""
    unit, block = np.unique(output, return_inverse=True)
    return Band(place, block.astype(np.int32), unit.astype(np.int32))
