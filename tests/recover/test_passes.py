"""Passes over convolutions in a row: equal to direct sums, differences and each other."""

from __future__ import annotations

import numpy as np
import pytest
from convolutions import CASES, random_layers

from onnxprune.recover.linear import Positions
from onnxprune.recover.passes import FREE


def direct(passes, weights, biases, x):
    """The last output from rows and matrices alone."""
    for layer, span, w, b in zip(passes.layers, [*passes.ranges[:-1], FREE], weights, biases, strict=True):
        grid = layer.grid(x.shape[2:])
        places = int(np.prod(grid))
        at = Positions(np.repeat(np.arange(len(x)), places), np.tile(np.arange(places), len(x)))
        made = (layer.rows(x, at).astype(np.float64) @ layer.matrix(w)).transpose(1, 0, 2).reshape(
            -1, layer.channels
        ) + b
        x = np.clip(made.reshape(len(x), places, -1).transpose(0, 2, 1).reshape(len(x), -1, *grid), *span).astype(
            np.float32
        )
    return x


@pytest.mark.parametrize("name", CASES)
def test_forward_equals_products_of_matrices(name):
    """Each layer reads what the one before gives, limited to the range."""
    passes, weights, biases, x, _ = random_layers(name)
    inputs, y = passes.forward(x, weights, biases)
    assert len(inputs) == len(weights)
    assert np.abs(y - direct(passes, weights, biases, x)).max() < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_the_tangent_is_the_difference_of_outputs(name):
    """A small change of all weights and biases changes the output as the tangent says."""
    passes, weights, biases, x, rng = random_layers(name)
    changes = [
        (rng.standard_normal(w.shape).astype(np.float32), rng.standard_normal(b.shape).astype(np.float32))
        for w, b in zip(weights, biases, strict=True)
    ]
    inputs, _ = passes.forward(x, weights, biases)
    tangent = passes.tangent(inputs, weights, changes)
    step = np.float32(1e-4)

    def at(s):
        moved = [(w + s * dw, b + s * db) for w, b, (dw, db) in zip(weights, biases, changes, strict=True)]
        return passes.forward(x, [w for w, _ in moved], [b for _, b in moved])[1].astype(np.float64)

    difference = (at(step) - at(-step)) / (2 * step)
    off = np.abs(difference - tangent)
    assert np.median(off) < 2e-3 * np.abs(tangent).max()
    assert np.mean(off > 2e-2 * np.abs(tangent).max()) < 0.02  # where a limit is crossed between the two points


@pytest.mark.parametrize("name", CASES)
def test_reverse_is_the_transpose_of_the_tangent(name):
    """<seed, tangent(changes of biases)> = <reverse(seed), changes>: a bias moves its layer's output directly."""
    passes, weights, biases, x, rng = random_layers(name)
    inputs, y = passes.forward(x, weights, biases)
    seed = rng.standard_normal(y.shape).astype(np.float32)
    back = passes.reverse(inputs, weights, seed)
    for i, g in enumerate(back):
        changes = [(np.zeros_like(w), np.zeros_like(b)) for w, b in zip(weights, biases, strict=True)]
        changes[i] = (changes[i][0], rng.standard_normal(biases[i].shape).astype(np.float32))
        forward = float((seed * passes.tangent(inputs, weights, changes)).sum())
        shape = (1, -1, *[1] * (g.ndim - 2))
        assert forward == pytest.approx(float((g * changes[i][1].reshape(shape)).sum()), rel=1e-3, abs=1e-3)
