"""Which members of a band stay: evolution, simulated annealing and search economics behind one interface.

A *band* is a set of members in blocks (the small filters of a group, the small weights of a row), of which a fixed
number per block stays. Optimisers are asked for candidates and told their values, smaller is better. Candidates come in
generations that depend only on the seed and on the values of earlier generations, never on how many are asked for or
evaluated at once; so a run is repeated, or taken up again, by telling it the values that are known.

Where a value is given per *unit* of blocks (by default each block is one), each unit's depending on its own members
alone, every unit is selected by itself: a candidate is then as many trials as there are units. Else it is one trial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.analysis import Labels, Mask
from onnxprune.errors import UsageError
from onnxprune.searching.space import Space, Trial, Values
from onnxprune.searching.strategies import Annealing, Economics, Evolution, Strategy

__all__ = ["OPTIMISERS", "Fitness", "Found", "Optimiser", "Space", "check", "minimise"]
Fitness = Callable[[Sequence[Mask]], Values]

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
        self._unit: Labels = np.zeros(0, np.int32)  # of every member

    def ask(self, count: int) -> list[Mask]:
        """The next candidates, at most `count`: fewer at the end of a generation, none until it has been told or where
        there is only one candidate.
        """
        found = self._queue[self._asked : self._asked + count]
        self._asked += len(found)
        return found

    def tell(self, masks: Sequence[Mask], values: Values) -> None:
        """Values of candidates in the order in which they were asked for, [candidates] or [candidates, units]."""
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
        units = self.space.units if value.ndim else np.zeros(self.space.blocks, np.int32)
        row = np.where(np.isnan(value), np.inf, np.atleast_1d(value))
        trial = Trial(self.space, units, row)
        self._unit, self._best = trial.unit, np.full(len(row), np.inf)
        self._strategy = OPTIMISERS[self.name](trial)

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
        """The best mask so far, taken together from the best of each unit where these have values of their own."""
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

    name: of OPTIMISERS; fitness: masks -> values, [candidates] or [candidates, units], smaller is better; told: values
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
            if made.shape not in ((len(fresh),), (len(fresh), int(space.units.max()) + 1)):
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
