"""The error of a masked layer against its definition, and the search of masks on layers small enough to try all."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from onnxprune.recover.least_squares import masked_solve
from onnxprune.searching.optimisers import OPTIMISERS
from onnxprune.sparse.choice import LayerError, chosen
from onnxprune.sparse.masks import Pattern, band, by_magnitude, by_pattern, pattern_band

RNG = np.random.default_rng(1)
INPUTS = RNG.standard_normal((2, 50, 8)) @ RNG.standard_normal((2, 8, 8))  # two groups, correlated
GRAM = INPUTS.transpose(0, 2, 1) @ INPUTS / 50
WEIGHT = RNG.standard_normal((2, 8, 3)).astype(np.float32)
MASKS = [RNG.random(WEIGHT.shape) < share for share in (0.2, 0.5, 0.9)]
each_way = pytest.mark.parametrize("refitted", [False, True])


def direct(mask, refitted):
    """Mean squared change of each output, by running the layer."""
    errors = []
    for x, w, m in zip(INPUTS, WEIGHT.astype(np.float64), mask, strict=True):
        for column, kept in zip(w.T, m.T, strict=True):
            made = x[:, kept] @ column[kept]
            if refitted:
                made = x[:, kept] @ np.linalg.lstsq(x[:, kept], x @ column)[0]
            errors.append(np.square(x @ column - made).mean())
    return errors


@each_way
def test_error_is_what_the_layer_does(refitted):
    """From the Gram matrix the same error comes as from running the layer, without and with a refit of what stays."""
    found = LayerError(GRAM, WEIGHT, refitted)(MASKS)
    assert found == pytest.approx(np.array([direct(m, refitted) for m in MASKS]), rel=1e-4, abs=1e-6)


@each_way
def test_error_of_all_and_nothing(refitted):
    """With every weight the error is 0, without any it is the outputs' own square."""
    error = LayerError(GRAM, WEIGHT, refitted)
    everything, nothing = error([np.ones(WEIGHT.shape, bool), np.zeros(WEIGHT.shape, bool)])
    assert everything == pytest.approx(np.zeros(6), abs=1e-9)
    assert nothing == pytest.approx(error.energy, rel=1e-5)


def test_variances_below_zero_count_as_zero():
    """Rounding may leave a variance below 0: such an input has no merit, and no warning is raised."""
    gram = GRAM.copy()
    gram[0, 3, 3] = -1e-9
    merit = LayerError(gram, WEIGHT, refitted=False).merits()[0]
    assert not merit[0, 3].any()
    assert (merit[0, 4] > 0).all()


def test_masked_systems_are_those_of_their_rows():
    """Each column is solved on the rows of its mask alone, whatever the sizes of the others; an empty one is 0."""
    gram = GRAM[0] + np.eye(8)
    mask = RNG.random((8, 30)) < np.linspace(0, 1, 30)
    right = RNG.standard_normal((8, 30))
    found = masked_solve(gram, mask, right)
    for column, m, b in zip(found.T, mask.T, right.T, strict=True):
        assert column[~m].tolist() == [0] * int((~m).sum())
        assert column[m] == pytest.approx(np.linalg.solve(gram[np.ix_(m, m)], b[m]))


@each_way
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_the_best_masks_are_found(optimiser, refitted):
    """Where all masks of an output can be tried, the search finds the best one of each output."""
    gram, weight = GRAM[:1], WEIGHT[:1]
    error = LayerError(gram, weight, refitted)
    kept = np.zeros(weight.shape, bool)
    kept[0, :3] = True
    found = chosen(error, kept, band(weight, kept, 1.0), optimiser, 400, seed=0)
    tried = []
    for rows in combinations(range(8), 3):
        mask = np.zeros(weight.shape, bool)
        mask[0, list(rows)] = True
        tried.append(mask)
    assert found.sum(1).tolist() == [[3, 3, 3]]
    assert error([found])[0] == pytest.approx(error(tried).min(0))


@each_way
def test_never_worse_than_magnitude(refitted):
    """With the smallest budgets the error is that of magnitude or less, and the counts are the same."""
    error, (kept,) = LayerError(GRAM, WEIGHT, refitted), by_magnitude([WEIGHT], 0.7, together=False)
    for budget in (1, 2, 5, 40):
        found = chosen(error, kept, band(WEIGHT, kept), "evolution", budget, seed=budget)
        assert (error([found]) <= error([kept]) + 1e-12).all()
        assert found.sum(1).tolist() == kept.sum(1).tolist()
        assert np.array_equal(found, chosen(error, kept, band(WEIGHT, kept), "evolution", budget, seed=budget))


@each_way
def test_patterns_hold(refitted):
    """What the search finds within a pattern has it, and is no worse than magnitude in the same pattern."""
    error, pattern = LayerError(GRAM, WEIGHT, refitted), Pattern(2, 4)
    kept = by_pattern(WEIGHT, pattern, 8)
    found = chosen(error, kept, pattern_band(WEIGHT, pattern), "evolution", 100, seed=0)
    assert (found.reshape(2, 2, 4, 3).sum(2) == 2).all()
    assert error([found]).sum() < error([kept]).sum()


def test_a_copied_input_is_worth_nothing_twice():
    """Of two inputs that are always equal, the weights of both large, one goes at no cost where the other is refitted."""
    x = INPUTS[0][:, [0, 0, 1, 2]]
    gram = (x.T @ x / 50 + 1e-9 * np.eye(4))[None]
    weight = np.array([5.0, 5.0, 1.0, 1.0], np.float32).reshape(1, 4, 1)
    error = LayerError(gram, weight, refitted=True)
    (kept,) = by_magnitude([weight], 0.25, together=False)
    found = chosen(error, kept, band(weight, kept, 1.0), "evolution", 50, seed=0)
    assert found[0, 2:].all()
    assert error([found]).sum() < 1e-6 * error([kept]).sum()
