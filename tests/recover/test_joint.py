"""Refit of several layers at once: its errors, its gradient, and what it reaches."""

from __future__ import annotations

import numpy as np
import pytest
from convolutions import CASES, random_layers

from onnxprune.recover import joint, least_squares
from onnxprune.recover.joint import Effort, Part, State, gradient, refit
from onnxprune.recover.linear import Positions


def teacher(name, *, offset=True, seed=0):
    """Passes, weights, biases and a function from inputs to parts with what these layers give."""
    passes, weights, biases, x, rng = random_layers(name, seed)

    def part(count):
        seen = rng.standard_normal((count, *x.shape[1:])).astype(np.float32)
        y = passes.forward(seen, weights, biases)[1]
        added = rng.standard_normal(y.shape).astype(np.float32) if offset else None
        return Part(seen, y if added is None else y + added, added)

    return passes, weights, biases, part, rng


def disturbed(arrays, rng, share=0.3):
    """Arrays with noise of a share of their own size."""
    return [a + np.float32(share * a.std()) * rng.standard_normal(a.shape).astype(np.float32) for a in arrays]


@pytest.mark.parametrize("name", CASES)
def test_the_error_is_that_of_least_squares(name):
    """The error of a state is the one that refits of single layers report, at all positions."""
    passes, weights, biases, part, rng = teacher(name)
    seen, weights = [part(4), part(3)], disturbed(weights, rng)
    last = passes.layers[-1]
    found = []
    for p in seen:
        inputs, y = passes.forward(p.x, weights, biases)
        places = last.places(y.shape)
        at = Positions(np.repeat(np.arange(len(p.x)), places), np.tile(np.arange(places), len(p.x)))
        found.append(
            least_squares.Sample(last.rows(inputs[-1], at), last.outputs(p.wanted, at), last.outputs(p.added, at))
        )
    matrix, bias = last.matrix(weights[-1]).astype(np.float64), biases[-1].astype(np.float64)
    expected = least_squares.error(found, matrix, bias, *passes.ranges[-1])
    assert State(passes, weights, biases).error(seen) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_the_slope_of_the_squared_error(name):
    """Half of the squared error falls along a direction as the gradient says."""
    passes, weights, biases, part, rng = teacher(name)
    at, seen = State(passes, disturbed(weights, rng), disturbed(biases, rng)), part(6)
    inputs, off = at.look(seen)
    back = passes.reverse(inputs, at.weights, off)
    step = [gradient(layer, x, g) for layer, x, g in zip(passes.layers, inputs, back, strict=True)]
    size = np.sqrt(sum(np.square(s).sum() for s in step))
    step = [s / size for s in step]

    def squared(length):
        moved = at.moved([length * s for s in step])
        return 0.5 * np.square(moved.look(seen)[1].astype(np.float64)).sum()

    assert (squared(1e-3) - squared(-1e-3)) / 2e-3 == pytest.approx(size, rel=2e-2)


@pytest.mark.parametrize("name", CASES)
def test_disturbed_layers_find_back(name):
    """Layers with noise on their weights reach what they gave before on inputs that the fit has not seen."""
    passes, weights, biases, part, rng = teacher(name)
    train, held = [part(64) for _ in range(4)], [part(40)]
    weights, biases = disturbed(weights, rng), disturbed(biases, rng)
    done = refit(passes, weights, biases, train, held, effort=Effort(20))
    assert done.before == State(passes, weights, biases).error(held)
    assert done.after == State(passes, done.weights, done.biases).error(held)
    assert done.after < 0.1 * done.before


def test_many_steps_are_short_ones():
    """More than eight steps go a share of the best length each."""
    assert [Effort(count).share for count in (0, 1, 8, 12, 16)] == [1, 1, 1, pytest.approx(2 / 3), 0.5]
    passes, weights, biases, part, rng = teacher("two of 3x3")
    train, held = [part(64)], [part(40)]
    at = State(passes, disturbed(weights, rng), biases)
    inverse = joint._curvature(at, train, np.random.default_rng(0))
    whole, half = (joint._step(at, train, inverse, None, share) for share in (1.0, 0.5))
    assert all(np.array_equal(0.5 * a, b) for a, b in zip(whole, half, strict=True))
    once = refit(passes, at.weights, at.biases, train, held, effort=Effort(1))
    assert once.after < at.moved(half).error(held) < once.before


def test_the_memory_of_a_curvature_is_bounded(monkeypatch):
    """So many Gram matrices are held at once as fit into a share of memory, two at least, however many parts there are;
    the result is the same to the bit.
    """
    passes, weights, biases, part, rng = teacher(next(iter(CASES)))
    at, train, waves = State(passes, weights, disturbed(biases, rng)), [part(2) for _ in range(9)], []
    whole = joint._curvature(at, train, np.random.default_rng(0))
    real = joint.each
    monkeypatch.setattr(joint, "each", lambda function, items: waves.append(len(items)) or real(function, items))
    monkeypatch.setattr(joint, "_GRAMS", 1)
    divided = joint._curvature(at, train, np.random.default_rng(0))
    assert waves == [2, 2, 2, 2, 1]
    for one, other in zip(whole, divided, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_is_right_stays():
    """Without an error there is no step, and no NaN where a layer gives nothing at all."""
    passes, weights, biases, part, _ = teacher("two of 3x3")
    done = refit(passes, weights, biases, [part(32)], [part(16)])
    assert done.after <= done.before < 1e-9
    weights[0][...], biases[0][...] = 0, -1
    done = refit(passes, weights, biases, [part(32)], [part(16)])
    assert np.isfinite(done.after)
    assert all(np.isfinite(a).all() for a in (*done.weights, *done.biases))


def test_never_worse_on_held_out_inputs():
    """Where what is wanted is noise, the fit to a few inputs is not taken."""
    passes, weights, biases, part, rng = teacher("a bottleneck", offset=False)
    noise = lambda p: Part(p.x, rng.standard_normal(p.wanted.shape).astype(np.float32))  # noqa: E731
    train, held = [noise(part(1))], [part(32)]
    done = refit(passes, weights, biases, train, held, effort=Effort(3, patience=1))
    assert done.after <= done.before
    assert all(np.array_equal(a, b) for a, b in zip(done.weights, weights, strict=True))


def test_the_same_seed_gives_the_same_weights():
    """Random inputs and signs come from the seed."""
    passes, weights, biases, part, rng = teacher("two of 3x3")
    train, held, weights = [part(64)], [part(16)], disturbed(weights, rng)
    effort = Effort(2, inputs=20)
    first, again, other = (refit(passes, weights, biases, train, held, effort=effort, seed=[s]) for s in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first.weights, again.weights, strict=True))
    assert not np.array_equal(first.weights[0], other.weights[0])
