"""Windows refitted on the way through a cut model, beside the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.linalg import LinAlgError

from onnxprune.graph import Array
from onnxprune.parallel import each
from onnxprune.recover import joint
from onnxprune.recover.joint import Joint, Part, State
from onnxprune.recover.least_squares import Sums
from onnxprune.recover.linear import Linear, Positions
from onnxprune.recover.passes import Floats, Passes
from onnxprune.recover.program import Store, Walk
from onnxprune.recover.reference import Reference, samples
from onnxprune.recover.view import Indices, View
from onnxprune.recover.windows import Window


@dataclass(frozen=True, slots=True)
class _Target:
    """What a layer should give behind its activation, [n, channels], at positions [n] of all inputs together."""

    layer: Linear
    sample: Indices
    place: Indices
    wanted: Array

    def sums(self, made: Floats, start: int) -> Sums:
        """Of what it gives behind its activation on the inputs from `start` on."""
        own = (self.sample >= start) & (self.sample < start + len(made))
        at = Positions(self.sample[own] - start, self.place[own])
        return Sums.of(self.layer.outputs(made, at), self.wanted[own])


class Together:
    """Refits windows on the walk of a cut model, beside one of the original on the same batches."""

    def __init__(self, reference: Reference, walk: Walk, groups: Mapping[int, Window], store: Store | None) -> None:
        self._reference, self._walk = reference, walk
        pool = max((w.pool for w in groups.values()), default=0)
        self._train = range(pool)
        self._held = reference.checks
        self._place = {b: i for i, b in enumerate(dict.fromkeys([*self._train, *self._held]))}
        batches = [reference.batches[b] for b in self._place] if groups else []
        self._original = Walk(reference.program, batches, store, [w.end for w in groups.values()])

    def refit(self, window: Window, views: Sequence[View]) -> Joint | None:
        """Refit a window whose last layer is next in the walk, and write it; None where that is not possible.

        views: of its layers, with places for their biases; none where it is to be left alone.
        """
        walk, program = self._walk, self._reference.program
        self._original.advance(max(self._original.position, program.producer[window.end] + 1))
        batches = {*self._train[: window.pool], *self._held}
        alike = len({walk.tensor(b, window.start).shape[1:] for b in batches}) == 1  # inputs of one size
        found = self._fit(window, views) if views and alike else None
        self._original.unpin(window.end)
        walk.unpin(window.start)
        return found

    def _fit(self, window: Window, views: Sequence[View]) -> Joint | None:
        layers = [v.site.layer for v in views]
        train, held = (self._parts(window, views[-1].chosen, own) for own in (self._train[: window.pool], self._held))
        ranges = [(x.chain.low, x.chain.high) for x in window.layers]
        passes = Passes(layers, ranges, train[0].x.shape[2:])
        weights, biases = _arrays(views)
        try:
            found = joint.refit(passes, weights, biases, train, held, effort=window.effort, seed=[window.last.index])
        except LinAlgError:
            return None
        if not found.after < found.before:
            return found
        old = views[0].saved()
        for v, weight, bias in zip(views, found.weights, found.biases, strict=True):
            v.write(v.site.layer.matrix(weight).astype(np.float64), bias.astype(np.float64))
        # what is stored may be coarser, and outputs without scale stay as they are
        *inner, after = self._errors(State(passes, *_arrays([v.anew() for v in views])), held, window, views)
        found = replace(found, after=after.share, inner=tuple(s.share if s.varies else None for s in inner))
        if not found.after < found.before:
            views[0].restore(old)
            return found
        self._walk.again(window.sites[0].index, window.last.layer.x)
        return found

    def _errors(self, state: State, held: Sequence[Part], window: Window, views: Sequence[View]) -> list[Sums]:
        """Errors of all layers of a window in one pass; of those before the last at the positions of their targets."""
        targets = [self._target(window, i, view.chosen) for i, view in enumerate(views[:-1])]
        starts = np.cumsum([0, *(len(p.x) for p in held)])

        def sums(number: int) -> list[Sums]:
            inputs, last = state.sums(held[number])
            return [*(t.sums(made, starts[number]) for t, made in zip(targets, inputs[1:], strict=True)), last]

        return [sum(own, Sums()) for own in zip(*each(sums, range(len(held))), strict=True)]

    def _target(self, window: Window, number: int, chosen: Indices) -> _Target:
        """What one layer should give on the held inputs, counted through."""
        layer, held = window.layers[number], self._held
        starts = np.cumsum([0, *(len(self._walk.tensor(b, window.start)) for b in held)])
        sample = np.concatenate([layer.positions[b].sample + start for b, start in zip(held, starts, strict=False)])
        place = np.concatenate([layer.positions[b].place for b in held])
        wanted = np.concatenate([layer.wanted[b][:, chosen] for b in held])
        return _Target(window.sites[number].layer, sample, place, np.clip(wanted, layer.chain.low, layer.chain.high))

    def _parts(self, window: Window, chosen: Indices, batches: Sequence[int]) -> list[Part]:
        """What the window sees and should give, some batches at a time."""
        walk, other = self._walk, window.layers[-1].chain.other
        inputs = max(samples(self._reference.batches[batches[0]]), 1)
        size, parts = max(window.part // inputs, 1), []
        for own in (batches[i : i + size] for i in range(0, len(batches), size)):
            x = _joined([walk.tensor(b, window.start) for b in own])
            wanted = _joined([self._original.tensor(self._place[b], window.end)[:, chosen] for b in own])
            added = _joined([walk.tensor(b, other) for b in own]) if other else None
            step = max(window.part * len(x) // (inputs * len(own)), 1)
            slices = (slice(i, i + step) for i in range(0, len(x), step))
            parts += [Part(x[at], wanted[at], None if added is None else added[at]) for at in slices]
        return parts

    def close(self) -> None:
        """Let go of everything."""
        self._original.close()


def _arrays(views: Sequence[View]) -> tuple[list[Floats], list[Floats]]:
    """Weights and biases as convolutions hold them, float32."""
    weights = [v.site.layer.from_matrix(v.weight.astype(np.float32)) for v in views]
    return weights, [v.bias.astype(np.float32) for v in views]


def _joined(arrays: Sequence[Array]) -> Array:
    whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return whole.astype(np.float32, copy=False)
