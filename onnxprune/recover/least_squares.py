"""Ridge regression of a layer on what its inputs are now, towards what the original gives.

Source: asymmetric reconstruction of pruned layers (He et al., 2017; Luo et al., 2017), centred on the given weight, and
the iteration of Zhang et al. (2015) for the activation that follows, with a one-sided target where it is flat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.linalg import LinAlgError
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from onnxprune.analysis import Mask
from onnxprune.graph import Array
from onnxprune.parallel import each
from onnxprune.recover.linear import product

Reals = NDArray[np.float64]
RIDGE = 1e-3  # share of the mean diagonal of the Gram matrix; flat from 1e-5 to 1e-2
CONSTANT = 1e-6  # a variance below this share of the squares is rounding, which is float32's 6e-8 for each of them
_WORK = 2e11  # multiply-adds that the iteration may cost per layer
ROUNDS = 6  # of the iteration, at most
_TOGETHER = 1 << 23  # elements of the systems of columns with masks that are solved at once


@dataclass(frozen=True, slots=True)
class Sample:
    """Positions of one batch: what they read, [groups, n, d] float32; what is wanted and what is added, [n, out]."""

    rows: Array
    wanted: Array
    added: Array | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """weight [groups, d, out/group], bias [out]; errors on held-out samples as `Sums.share`."""

    weight: Reals
    bias: Reals
    before: float
    after: float


def predict(sample: Sample, weight: Reals, bias: Reals) -> Array:
    """[n, out] float32, with what else is added."""
    made = sample.rows @ weight.astype(np.float32)  # [g, n, out/g]
    flat = made.transpose(1, 0, 2).reshape(made.shape[1], -1) + bias.astype(np.float32)
    return flat if sample.added is None else flat + sample.added


def error(samples: Sequence[Sample], weight: Reals, bias: Reals, low: float, high: float) -> float:
    """Squared error behind the activation, as `Sums.share`."""

    def sums(s: Sample) -> Sums:
        return Sums.of(np.clip(predict(s, weight, bias), low, high), np.clip(s.wanted, low, high))

    return sum(each(sums, samples), Sums()).share


def varies(samples: Sequence[Sample], low: float = -np.inf, high: float = np.inf) -> bool:
    """Whether what is wanted behind the activation varies at all."""

    def sums(s: Sample) -> Sums:
        wanted = np.clip(s.wanted, low, high)
        return Sums.of(wanted, wanted)

    return sum(each(sums, samples), Sums()).varies


@dataclass(frozen=True, slots=True)
class Sums:
    """Of squared errors, of what is wanted per channel, of its squares, and the number of positions."""

    wrong: float = 0.0
    first: Reals | float = 0.0
    second: float = 0.0
    count: int = 0

    @staticmethod
    def of(made: Array, wanted: Array, channels: int = -1) -> Sums:
        """Of one array; channels: their axis."""
        others = tuple(a for a in range(wanted.ndim) if a != channels % wanted.ndim)
        wrong, second = (float(np.square(a).sum(dtype=np.float64)) for a in (made - wanted, wanted))
        first: Reals = wanted.sum(others, dtype=np.float64)
        return Sums(wrong, first, second, wanted.size // max(first.size, 1))

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.wrong + other.wrong, self.first + other.first, self.second + other.second, self.count + other.count
        )

    @property
    def _variance(self) -> float:
        return self.second - float(np.square(self.first).sum()) / max(self.count, 1)

    @property
    def varies(self) -> bool:
        """Whether what is wanted varies by more than the rounding of its squares."""
        return self._variance > CONSTANT * self.second

    @property
    def share(self) -> float:
        """The squared error as a share of the variance wanted; where that is none, of the squares wanted, or itself."""
        return self.wrong / ((self._variance if self.varies else self.second) or 1.0)


def fit(
    train: Sequence[Sample],
    held: Sequence[Sample],
    weight: Reals,
    bias: Reals,
    *,
    low: float = -np.inf,
    high: float = np.inf,
    ridge: float = RIDGE,
    intercept: bool = True,
    mask: Mask | None = None,
    rounds: int = ROUNDS,
) -> Fit:
    """The weight and bias with the least error on `held` of: those given, least squares, and least squares that knows
    that the activation behind is flat outside of [low, high].

    weight: [groups, d, out/group]; bias: [out]. intercept: whether the bias may change. mask: like the weight, the
    elements that are fitted; the others stay. rounds: of the iteration that the last one takes, at most. Raises numpy's
    LinAlgError where the Gram matrix is not positive definite in spite of the ridge, or something is not finite.
    """
    before = error(held, weight, bias, low, high)
    system = _System(train, weight, bias, ridge, intercept, mask)
    best, after = (weight, bias), before
    for candidate in _candidates(system, train, low, high, rounds):
        found = error(held, *candidate, low, high)
        if found < after:
            best, after = candidate, found
    return Fit(*best, before, after)


def _candidates(
    system: _System, train: Sequence[Sample], low: float, high: float, rounds: int
) -> Iterable[tuple[Reals, Reals]]:
    found = system.solve(lambda s: s.wanted)
    yield found
    if low == -np.inf and high == np.inf:
        return
    size = sum(s.rows.size for s in train) * found[0].shape[2] * 2
    for _ in range(int(np.clip(_WORK // max(size, 1), 1, rounds))):
        found = system.solve(partial(_relaxed, found=found, low=low, high=high))
    yield found


def _relaxed(sample: Sample, *, found: tuple[Reals, Reals], low: float, high: float) -> Array:
    """What the fit `found` should have given: see `_one_sided`."""
    return _one_sided(sample, predict(sample, *found), low, high)


def _one_sided(sample: Sample, made: Array, low: float, high: float) -> Array:
    """Where the wanted value lies in a flat part, any value in that part will do: take the nearest to what is made."""
    wanted = sample.wanted
    relaxed = np.where(wanted <= low, np.minimum(made, low), wanted)
    return np.where(wanted >= high, np.maximum(made, high), relaxed)


class _System:
    """Normal equations, factored once: (H + ridge) (W - W0) = C - H W0, centred if there is an intercept."""

    def __init__(
        self,
        train: Sequence[Sample],
        weight: Reals,
        bias: Reals,
        ridge: float,
        intercept: bool,
        mask: Mask | None = None,
    ) -> None:
        self._train, self._weight, self._bias, self._intercept = train, weight, bias, intercept
        self._count = sum(s.rows.shape[1] for s in train)
        gram = sum(each(lambda s: product(s.rows, s.rows).astype(np.float64), train)) / self._count
        self._mean = sum(each(lambda s: s.rows.sum(1, dtype=np.float64), train)) / self._count  # [g, d]
        squares = np.einsum("gii->g", gram)
        if intercept:
            gram -= self._mean[:, :, None] * self._mean[:, None, :]
        if not np.isfinite(gram).all():
            raise LinAlgError("a Gram matrix is not finite")
        self._gram = gram
        diagonal = np.einsum("gii->gi", gram)
        add = ridge * diagonal.mean(1) + 1e-10
        constant = diagonal.sum(1) <= CONSTANT * squares
        masks = [None] * len(gram) if mask is None else mask
        self._steps = [
            # what a group reads tells nothing of the weight if it does not vary
            np.zeros_like if still else _solver(h + a * np.eye(len(h)), m)
            for h, a, m, still in zip(gram, add, masks, constant, strict=True)
        ]

    def solve(self, target: Callable[[Sample], Array]) -> tuple[Reals, Reals]:
        """Weight and bias for these values, [n, out] of every sample."""
        g, _, m = self._weight.shape

        def parts(s: Sample) -> tuple[Reals, Reals]:
            y = target(s)
            y = y if s.added is None else y - s.added
            y = y if self._intercept else y - self._bias.astype(np.float32)
            own = np.ascontiguousarray(y.reshape(-1, g, m).transpose(1, 0, 2))
            return product(s.rows, own).astype(np.float64), y.sum(0, dtype=np.float64)

        cross, total = map(sum, zip(*each(parts, self._train), strict=True))
        cross /= self._count
        mean = total / self._count
        if self._intercept:
            cross -= self._mean[:, :, None] * mean.reshape(g, 1, m)
        off = cross - self._gram @ self._weight
        if not np.isfinite(off).all():
            raise LinAlgError("what is wanted is not finite")
        step = np.stack([solve(c) for solve, c in zip(self._steps, off, strict=True)])
        weight: Reals = self._weight + step
        if not self._intercept:
            return weight, self._bias
        return weight, mean - (self._mean[:, None, :] @ weight).reshape(-1)


def _solver(gram: Reals, mask: Mask | None) -> Callable[[Reals], Reals]:
    """What solves gram x = right."""
    if mask is not None:
        return partial(masked_solve, gram, mask)
    return partial(cho_solve, cho_factor(gram, overwrite_a=True))


def masked_solve(gram: Reals, mask: Mask, right: Reals) -> Reals:
    """Solutions of gram[s, s] x[s] = right[s], a system for each column and the rows s that its mask has; 0 elsewhere.

    gram: [d, d]; mask, right: [d, columns]. Systems of about one size are solved together, the shorter ones filled up
    with rows of the identity.
    """
    sizes, result = mask.sum(0), np.zeros_like(right)
    for columns in _alike(sizes):
        k = int(sizes[columns].max())
        rows = np.argsort(~mask[:, columns], axis=0, kind="stable")[:k].T  # [columns, k], those of the mask first
        real = np.arange(k) < sizes[columns][:, None]
        both = real[:, :, None] & real[:, None, :]
        system = np.where(both, gram[rows[:, :, None], rows[:, None, :]], np.eye(k))
        wanted = np.where(real, right[rows, columns[:, None]], 0.0)
        result[rows, columns[:, None]] = np.linalg.solve(system, wanted[:, :, None])[:, :, 0]
    return result


def _alike(sizes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Columns whose sizes differ by a quarter at most, as many at once as fit into the memory; none of size 0."""
    bins, found = np.floor(np.log(np.maximum(sizes, 1)) / np.log(1.25)), list[NDArray[np.int64]]()
    for level in np.unique(bins[sizes > 0]):
        columns = np.flatnonzero((bins == level) & (sizes > 0))
        parts = int(np.ceil(len(columns) * float(sizes[columns].max()) ** 2 / _TOGETHER))
        found += np.array_split(columns, min(parts, len(columns)))
    return found
