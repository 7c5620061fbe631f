"""Optimisers of which members stay: budgets kept, seeds repeated, runs taken up again, never worse than the start."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from onnxprune.errors import UsageError
from onnxprune.searching.optimisers import OPTIMISERS, Optimiser, Space, minimise

each_optimiser = pytest.mark.parametrize("name", OPTIMISERS)
BLOCK = np.repeat(np.arange(4, dtype=np.int32), [12, 6, 3, 1])
START = np.concatenate([np.arange(12) < 5, np.arange(6) < 2, np.arange(3) < 1, [True]])
SPACE = Space(BLOCK, START)
COST = np.random.default_rng(5).random(len(BLOCK))
PAIRS = np.triu(np.random.default_rng(6).standard_normal((len(BLOCK), len(BLOCK))))


def separable(masks):
    """The costs of what stays, per block."""
    return np.stack([np.bincount(BLOCK, weights=COST * m, minlength=4) for m in masks])


def joint(masks):
    """One number that depends on which members stay together."""
    return np.array([m @ PAIRS @ m for m in masks], np.float64)


def counts(mask):
    return np.bincount(BLOCK[mask], minlength=4).tolist()


@each_optimiser
def test_every_candidate_keeps_the_same_number_per_block(name):
    """All masks asked for keep as many members of each block as the start; the first is the start."""
    seen = []
    minimise(name, SPACE, lambda masks: seen.extend(masks) or joint(masks), budget=80, seed=1)
    assert {tuple(counts(m)) for m in seen} == {(5, 2, 1, 1)}
    assert seen[0].tolist() == START.tolist()
    assert len({m.tobytes() for m in seen}) == len(seen) > 40  # what came up before is not evaluated again


@each_optimiser
def test_separable_values_are_minimised_block_by_block(name):
    """With values per block, the cheapest members of every block are found, whatever else a candidate holds."""
    found = minimise(name, SPACE, separable, budget=400, seed=0)
    best = sum(np.sort(COST[b == BLOCK])[:k].sum() for b, k in enumerate((5, 2, 1, 1)))
    assert found.value == pytest.approx(best)
    assert separable([found.mask]).sum() == pytest.approx(found.value)


@each_optimiser
def test_one_value_is_minimised(name):
    """With one value per candidate, the best of the 20 candidates of a small space is found."""
    space = Space(np.zeros(6, np.int32), np.arange(6) < 3)
    weights = PAIRS[:6, :6]
    found = minimise(name, space, lambda ms: np.array([m @ weights @ m for m in ms]), budget=200, seed=0)
    all_masks = [np.isin(np.arange(6), kept) for kept in combinations(range(6), 3)]
    assert found.value == pytest.approx(min(m @ weights @ m for m in all_masks))


@each_optimiser
@pytest.mark.parametrize("fitness", [joint, separable])
def test_never_worse_than_the_start(name, fitness):
    """However small the budget, and where every step is a loss, the result is at least as good as the start."""
    for budget in (1, 2, 9):
        found = minimise(name, SPACE, fitness, budget=budget, seed=budget)
        assert found.value <= found.start == pytest.approx(float(fitness([START]).sum()))
        assert len(found.history) == budget
    distance = lambda masks: np.array([float((m != START).sum()) for m in masks])  # noqa: E731
    assert minimise(name, SPACE, distance, budget=40, seed=0).mask.tolist() == START.tolist()


@each_optimiser
@pytest.mark.parametrize("fitness", [joint, separable])
def test_a_seed_repeats_whatever_the_batch(name, fitness):
    """The candidates do not depend on how many are evaluated at once; another seed tries others."""
    runs = [minimise(name, SPACE, fitness, budget=50, seed=3, batch=b) for b in (1, 3, 8, 100)]
    assert len({(r.mask.tobytes(), r.history) for r in runs}) == 1
    assert minimise(name, SPACE, fitness, budget=50, seed=4).history != runs[0].history


@each_optimiser
@pytest.mark.parametrize("fitness", [joint, separable])
@pytest.mark.parametrize("stop", [1, 7, 30])
def test_a_killed_run_goes_on_where_it_was(name, fitness, stop):
    """Told the values of a run that died, the rest is computed, nothing twice, and the result is the same."""
    whole = minimise(name, SPACE, fitness, budget=60, seed=2)
    journal, calls = [], []

    def dies(masks):
        if len(journal) >= stop:
            raise KeyboardInterrupt
        return fitness(masks)

    with pytest.raises(KeyboardInterrupt):
        minimise(name, SPACE, dies, budget=60, seed=2, batch=4, on_told=journal.extend)
    known = len(journal)
    again = minimise(
        name,
        SPACE,
        lambda masks: calls.extend(masks) or fitness(masks),
        budget=60,
        seed=2,
        told=[v.tolist() for v in journal],  # as JSON holds them
        on_told=journal.extend,
    )
    assert (again.mask.tolist(), again.history) == (whole.mask.tolist(), whole.history)
    assert known + len(calls) <= len(journal) == 60


@each_optimiser
def test_seeds_are_tried_after_the_start(name):
    """Masks that the caller thinks good are the second candidates, and win where they are the best."""
    cheapest = np.zeros(len(BLOCK), bool)
    for b, k in enumerate((5, 2, 1, 1)):
        members = np.flatnonzero(b == BLOCK)
        cheapest[members[np.argsort(COST[members])[:k]]] = True
    space = Space(BLOCK, START, (cheapest,))
    found = minimise(name, space, lambda masks: separable(masks).sum(1), budget=2, seed=0)
    assert found.mask.tolist() == cheapest.tolist()


@each_optimiser
def test_units_of_several_blocks_are_selected_by_themselves(name):
    """With values per unit of blocks, the counts of blocks hold and every unit finds its cheapest members."""
    unit = np.array([0, 0, 1, 1], np.int32)
    space = Space(BLOCK, START, unit=unit)
    found = minimise(
        name, space, lambda ms: np.stack([np.bincount(unit[BLOCK], weights=COST * m) for m in ms]), budget=600, seed=0
    )
    assert counts(found.mask) == [5, 2, 1, 1]
    best = sum(np.sort(COST[b == BLOCK])[:k].sum() for b, k in enumerate((5, 2, 1, 1)))
    assert found.value == pytest.approx(best)


@each_optimiser
def test_values_that_are_no_numbers_lose(name):
    """A candidate that cannot be evaluated is as bad as can be, and does not stop the run."""

    def fitness(masks):
        values = joint(masks)
        values[[m[0] != START[0] for m in masks]] = np.nan
        return values

    found = minimise(name, SPACE, fitness, budget=60, seed=0)
    assert found.mask[0] == START[0]
    assert np.isfinite(found.value)


def test_a_space_without_a_choice_is_tried_once():
    """Where every member stays or none does, the start is the only candidate."""
    found = minimise("evolution", Space(BLOCK, np.ones(len(BLOCK), bool)), joint, budget=60, seed=0)
    assert (found.mask.all(), len(found.history)) == (True, 1)


def test_swaps_and_crossings():
    """A swap exchanges the number of pairs it is told, as far as a block has them; a child keeps what both keep."""
    rng = np.random.default_rng(0)
    swapped = SPACE.swap(START, rng, 2)
    assert [int((swapped != START)[b == BLOCK].sum()) for b in range(4)] == [4, 4, 2, 0]
    child = SPACE.cross(START, swapped, rng)
    assert not (child & ~START & ~swapped).any()
    assert (child | ~(START & swapped)).all()
    assert counts(child) == counts(swapped) == counts(START)


def test_a_generation_is_asked_for_before_the_next():
    """Nothing more is given until the generation has been told; then it goes on."""
    optimiser = Optimiser("evolution", SPACE, budget=50, seed=0)
    first = optimiser.ask(8)
    assert (len(first), optimiser.ask(8)) == (1, [])
    optimiser.tell(first, joint(first))
    parts = [optimiser.ask(5), optimiser.ask(5), optimiser.ask(5)]
    assert [len(p) for p in parts] == [5, 3, 0]
    for part in parts:
        optimiser.tell(part, joint(part))
    assert len(optimiser.ask(5)) == 5
    assert optimiser.best[1] <= float(joint([START])[0])


def test_bad_options_are_told():
    """An unknown optimiser, a budget of nothing, and a fitness of the wrong shape are errors."""
    with pytest.raises(UsageError, match="evolution, annealing, economics"):
        minimise("luck", SPACE, joint, budget=5, seed=0)
    with pytest.raises(UsageError, match="at least one"):
        minimise("evolution", SPACE, joint, budget=0, seed=0)
    with pytest.raises(ValueError, match="shape"):
        minimise("evolution", SPACE, lambda masks: np.zeros((len(masks), 7)), budget=5, seed=0)
