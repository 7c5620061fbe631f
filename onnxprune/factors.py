"""The algebra of factors: how the atoms of a tensor's positions move through ops that only move data.

A *factor* is an int32 array of a tensor's rank, of size 1 on the axes along which it does not vary; each entry is an
atom. A *view* is a tuple of factors. The position [i, j, ...] of the tensor is removed as soon as the atom of any of
its factors is. Axes that no factor varies along are frozen or dynamic, and cost nothing. A movement op on a tensor is
the same numpy op on each of its factors. Atom 0 is frozen; a factor of zeros only says nothing, and views do not hold
it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Factor = NDArray[np.int32]
View = tuple[Factor, ...]
Shape = tuple[int, ...]

T = TypeVar("T", bound=np.generic)

EMPTY: View = ()


def view(factors: Iterable[Factor | None]) -> View:
    """The factors that say something: those that hold an atom other than 0."""
    return tuple(f for f in factors if f is not None and f.any())


def support(factor: Factor) -> tuple[int, ...]:
    """The axes along which a factor varies."""
    return tuple(i for i, n in enumerate(factor.shape) if n > 1)


def along(atoms: Factor, axis: int, rank: int) -> Factor:
    """A 1-D array of atoms as a factor that varies along `axis` of a tensor of that rank."""
    return atoms.reshape((1,) * axis + (-1,) + (1,) * (rank - axis - 1))


def lines(array: NDArray[T], axis: int) -> NDArray[T]:
    """[size of `axis`, all other positions]: the positions that share an index on `axis`, one row each."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def compress(factor: Factor, axes: Iterable[int]) -> Factor:
    """Shrink to size 1 those of `axes` along which all entries are equal."""
    for axis in axes:
        if factor.shape[axis] > 1:
            first = factor.take([0], axis)
            if (factor == first).all():
                factor = first
    return factor


def blocks(src: Shape, dst: Shape) -> list[tuple[range, range]]:
    """The finest split of two shapes of equal size into runs of axes with equal products."""
    out, i, j = [], 0, 0
    while i < len(src) or j < len(dst):
        a, b, i0, j0 = 1, 1, i, j
        if i < len(src):
            a, i = src[i], i + 1
        if j < len(dst):
            b, j = dst[j], j + 1
        while a != b:
            if (a < b and i < len(src)) or j == len(dst):
                a, i = a * src[i], i + 1
            else:
                b, j = b * dst[j], j + 1
        out.append((range(i0, i), range(j0, j)))
    return out


def reshape(factor: Factor, src: Shape, dst: Shape) -> Factor:
    """y = x.reshape(dst): axes merge and split only inside a block, so the factor stays of size 1 in the others."""
    full, new, check = [1] * len(src), [1] * len(dst), []
    for left, right in blocks(src, dst):
        if any(factor.shape[a] > 1 for a in left):
            full[left.start : left.stop] = src[left.start : left.stop]
            new[right.start : right.stop] = dst[right.start : right.stop]
            check += [a for a in right if len(right) > 1]
    return compress(np.broadcast_to(factor, full).reshape(new), check)


def transpose(factor: Factor, perm: Sequence[int]) -> Factor:
    """y[i_perm] = x[i]"""
    return factor.transpose(perm)


def take(factor: Factor, indices: NDArray[np.int64], axis: int) -> Factor:
    """y = np.take(x, indices, axis); an axis without variation stays so, at the rank of the result."""
    if factor.shape[axis] > 1:
        taken: Factor = factor.take(indices, axis)
        return taken
    return factor.reshape(factor.shape[:axis] + (1,) * indices.ndim + factor.shape[axis + 1 :])


def cut(factor: Factor, axis: int, where: slice) -> Factor:
    """y = x[..., where, ...] on one axis."""
    if factor.shape[axis] == 1:
        return factor
    return factor[(slice(None),) * axis + (where,)]


def raise_rank(factor: Factor, rank: int) -> Factor:
    """Prepend axes, as broadcasting does."""
    return factor.reshape((1,) * (rank - factor.ndim) + factor.shape)


def tile(factor: Factor, repeats: Sequence[int]) -> Factor:
    """y = np.tile(x, repeats); axes without variation stay so."""
    return np.tile(factor, [r if n > 1 else 1 for r, n in zip(repeats, factor.shape, strict=True)])


def concat(parts: Sequence[Factor | None], sizes: Sequence[int], axis: int, others: Shape) -> Factor:
    """y = concat(parts, axis); a part that is None is frozen. `others`: the shape of the result's other axes (1 = no
    variation).
    """
    arrays = []
    for part, size in zip(parts, sizes, strict=True):
        shape = (*others[:axis], size, *others[axis + 1 :])
        arrays.append(np.zeros(shape, np.int32) if part is None else np.broadcast_to(part, shape))
    return np.concatenate(arrays, axis)


def volume(shape: Shape) -> int:
    """Number of positions."""
    return prod(shape)
