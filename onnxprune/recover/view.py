"""A layer as it acts at the end of its chain: its weight and bias, to be read and written back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph import Array
from onnxprune.recover.chain import chain
from onnxprune.recover.layers import Site
from onnxprune.recover.program import Program

Reals = NDArray[np.float64]
Indices = NDArray[np.intp]


class View:
    """A layer's weight and bias as they act at the end of its chain, to be read and written back.

    site: the layer; chosen: indices of its outputs in the original; new_biases: whether it may get a bias that it
    lacks; intercept: whether there is a place for a bias.
    """

    def __init__(self, program: Program, site: Site, chosen: Indices, new_biases: bool = True) -> None:
        self._program, self.site, self.chosen, self._new = program, site, chosen, new_biases
        way = chain(program, site.layer, site.index, sums=False)  # with what earlier refits have written into it
        self._steps, layer = way.steps, site.layer
        self._scale, shift = (np.broadcast_to(v, (layer.channels,)) for v in way.affine())
        matrix = layer.matrix(site.read(program)).astype(np.float64)
        self.weight: Reals = matrix * self._scale.reshape(layer.groups, 1, -1)
        node = program.nodes[site.index]
        self._bias = node.input[2] if len(node.input) > 2 else ""
        self._own = self._own_bias()
        self.bias: Reals = self._scale * self._own_value() + shift
        self.intercept = self._own is not None or any(s.sink for s in self._steps)

    def _own_bias(self) -> str | None:
        """Initializer of the layer's own bias, "" where one can be added, None where the layer can have none."""
        layer, program = self.site.layer, self._program
        if layer.op == "MatMul":
            return None
        if not self._bias:
            return "" if self._new and layer.beta != 0 and not any(s.sink for s in self._steps) else None
        array = program.weights[self._bias]
        alone = len(program.readers[self._bias]) == 1 and layer.beta != 0
        return self._bias if array.size == layer.channels and alone else None

    def _own_value(self) -> Reals:
        if not self._bias:
            return np.zeros(1)
        value: Reals = np.asarray(self._program.weights[self._bias], np.float64).reshape(-1) * self.site.layer.beta
        return value

    def anew(self) -> View:
        """The layer as it is stored now."""
        return View(self._program, self.site, self.chosen, self._new)

    def saved(self) -> dict[str, Array]:
        """What `restore` takes back."""
        return dict(self._program.weights)

    def restore(self, saved: Mapping[str, Array]) -> None:
        """Undo what was written since; a bias that was added stays, as zeros."""
        weights = self._program.weights
        weights.update(saved)
        weights.update({n: np.zeros_like(a) for n, a in weights.items() if n not in saved})

    def write(self, weight: Reals, bias: Reals) -> None:
        """Store a weight and a bias that act at the end of the chain."""
        site, layer, program = self.site, self.site.layer, self._program
        live = np.abs(self._scale) > 1e-8 * np.abs(self._scale).max()
        scale = np.where(live, self._scale, 1.0).reshape(layer.groups, 1, -1)
        old = layer.matrix(site.read(program))
        matrix = np.where(live.reshape(layer.groups, 1, -1), weight / scale, old)
        site.write(program, layer.from_matrix(matrix).astype(np.float32))
        change = np.where(live, bias - self.bias, 0.0)
        if not change.any():
            return
        if self._own is None:
            self._into_sink(change)
        else:
            self._into_own(change / scale.reshape(-1) / layer.beta)

    def _into_own(self, change: Reals) -> None:
        program, site = self._program, self.site
        if self._own:
            old = program.weights[self._own]
            program.weights[self._own] = (old + change.reshape(old.shape)).astype(old.dtype)
            return
        dtype = program.weights[site.weight].dtype if not site.scale else program.weights[site.scale].dtype
        program.add_bias(site.index, change.astype(dtype))

    def _into_sink(self, change: Reals) -> None:
        after = np.ones(1)
        for step in reversed(self._steps):
            if step.sink:
                old = self._program.weights[step.sink]
                moved = np.divide(change, after, out=np.zeros_like(change), where=change != 0)
                self._program.weights[step.sink] = (old + moved.reshape(old.shape)).astype(old.dtype)
                return
            after = after * step.scale
