"""A layer as it acts at the end of its chain: its weight and bias, to be read and written back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph import Array
from onnxprune.recover.chain import Chain
from onnxprune.recover.layers import Site
from onnxprune.recover.program import Program

Reals = NDArray[np.float64]
Indices = NDArray[np.intp]


class View:
    """A layer's weight and bias as they act at the end of its chain, to be read and written back.

    site: the layer; chosen: indices of its outputs in the original; intercept: whether there is a place for a bias.
    """

    def __init__(self, program: Program, site: Site, chain: Chain, chosen: Indices, new_biases: bool = True) -> None:
        self._program, self.site, self.chosen, self._chain, self._new = program, site, chosen, chain, new_biases
        self._steps = [(_of(s.scale, chosen), s.sink) for s in chain.steps]
        self._scale, self._shift = (np.broadcast_to(_of(v, chosen), chosen.shape) for v in chain.affine())
        layer = site.layer
        groups = layer.groups
        matrix = layer.matrix(site.read(program)).astype(np.float64)
        self.weight: Reals = matrix * self._scale.reshape(groups, 1, -1)
        self._own = self._own_bias()
        self.bias: Reals = self._scale * self._own_value() + self._shift
        self.intercept = self._own is not None or any(sink for _, sink in self._steps)

    def _own_bias(self) -> str | None:
        """Initializer of the layer's own bias, "" where one can be added, None where the layer can have none."""
        layer, program = self.site.layer, self._program
        if layer.op == "MatMul":
            return None
        if not layer.bias:
            return "" if self._new and layer.beta != 0 and not any(sink for _, sink in self._steps) else None
        array = program.weights[layer.bias]
        alone = len(program.readers[layer.bias]) == 1 and layer.beta != 0
        return layer.bias if array.size == layer.channels and alone else None

    def _own_value(self) -> Reals:
        layer = self.site.layer
        if not layer.bias:
            return np.zeros(1)
        value: Reals = np.asarray(self._program.weights[layer.bias], np.float64).reshape(-1) * layer.beta
        return value

    @property
    def rounds(self) -> bool:
        """Whether the stored weight is coarser than what is written."""
        return bool(self.site.scale) or self._program.weights[self.site.weight].dtype != np.float32

    def anew(self) -> View:
        """The layer as it is stored now."""
        return View(self._program, self.site, self._chain, self.chosen, self._new)

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
        for scale, sink in reversed(self._steps):
            if sink:
                old = self._program.weights[sink]
                self._program.weights[sink] = (old + (change / after).reshape(old.shape)).astype(old.dtype)
                return
            after = after * scale


def _of(vector: Reals, chosen: Indices) -> Reals:
    """The kept part of one value per channel of the original."""
    return vector[chosen] if vector.size > 1 else vector
