"""Sequential repair: layer by layer in the order of the graph, each on what its inputs have become by then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError

from onnxprune.analysis import Analysis, Mask
from onnxprune.graph import Array
from onnxprune.recover import least_squares, moments
from onnxprune.recover.chain import Chain
from onnxprune.recover.layers import Site, sites
from onnxprune.recover.least_squares import Fit, Reals, Sample
from onnxprune.recover.program import Program, Store, Walk
from onnxprune.recover.reference import Layer, Reference

_LOG = logging.getLogger("onnxprune")
_EXACT = 1e-9  # error below which there is nothing to repair
_FEW = 2  # positions per unknown below which only the bias is fitted
Indices = Array
Repair = Callable[..., Fit]


@dataclass(frozen=True, slots=True)
class LayerRecovery:
    """What became of one layer: its error on held-out inputs (a share of the variance wanted), and how."""

    node: str
    op: str
    before: float | None
    after: float | None
    method: str
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Repaired:
    """A program whose layers were refitted, what became of each layer, and the network's outputs per batch."""

    program: Program
    layers: tuple[LayerRecovery, ...]
    outputs: list[dict[str, Array]]


def repair(
    analysis: Analysis,
    kept: Mask,
    program: Program,
    reference: Reference,
    *,
    method: str = "least-squares",
    ridge: float = least_squares.RIDGE,
    store: Store | None = None,
    new_biases: bool = True,
) -> Repaired:
    """Repair the layers of a cut model, a program that is changed in place; the reference is of the whole model.

    kept: [classes + 1] bool, what the cut kept. method: "least-squares" or "moments". new_biases: whether layers
    without a place for a bias may get one. Each node runs once on all batches. A least-squares repair that
    does not lower a layer's error on the held-out batches is not made.
    """
    outs = {x.weight: kept[x.outputs] for x in analysis.layers if x.weight is not None}
    found, skipped = sites(program)
    walk, done = Walk(program, reference.batches, store), list[LayerRecovery]()
    damaged, progress = _damaged(program, analysis, kept), _Progress(len(found))
    for site in found:
        progress.step()
        if not damaged.intersection(program.reads[site.index]):
            continue
        walk.advance(site.index)
        layer = reference.layers.get(site.layer.y)
        if layer is None or site.weight not in outs:
            skipped[site.layer.node] = "its place in the original is not known"
            continue
        view = _View(program, site, layer.chain, np.flatnonzero(outs[site.weight]), new_biases)
        done.append(_repair_layer(view, walk, reference, layer, method, ridge))
    walk.advance(len(program.nodes))
    outputs = [{n: walk.tensor(b, n) for n in program.outputs} for b in range(len(reference.batches))]
    walk.close()
    ops = {n.name or n.output[0]: n.op_type for n in program.nodes}
    touched = {n.name or n.output[0] for i, n in enumerate(program.nodes) if damaged.intersection(program.reads[i])}
    done += [
        LayerRecovery(node, ops[node], None, None, "none", why) for node, why in skipped.items() if node in touched
    ]
    return Repaired(program, tuple(done), outputs)


def _damaged(program: Program, analysis: Analysis, kept: Mask) -> set[str]:
    """Tensors that the cut changes beyond leaving channels out, and the layers' inputs that lost channels."""
    sliced = {a.param for a in analysis.axes if not kept[a.classes].all()}
    damaged = set[str]()
    for node, names in zip(program.nodes, program.reads, strict=True):
        if not names.isdisjoint(sliced | damaged):
            damaged.update(node.output)
    return damaged - {""}


class _Progress:
    """Tells the log how far it is, and how long the rest will take at the present pace."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._start = total, 0, time.perf_counter()

    def step(self) -> None:
        spent, self._done = time.perf_counter() - self._start, self._done + 1
        left = spent / max(self._done - 1, 1) * (self._total - self._done + 1)
        about = f", about {left:.0f} s left" if spent > 2 else ""
        _LOG.info("recover: layer %d of %d%s", self._done, self._total, about)


def _repair_layer(
    view: _View, walk: Walk, reference: Reference, layer: Layer, method: str, ridge: float
) -> LayerRecovery:
    site = view.site
    samples = [_sample(walk, b, site, layer, view.chosen) for b in range(len(reference.batches))]
    train = samples[: reference.train]
    held = samples[reference.train :] or train
    low, high = layer.chain.low, layer.chain.high
    name, told = method, (site.layer.node, site.layer.op)
    count = sum(s.rows.shape[1] for s in train)
    single = layer.positions[0].sample.size == np.unique(layer.positions[0].sample).size
    if method == "least-squares" and count < _FEW * site.layer.unknowns:
        name = "bias"
    fits: Mapping[str, Repair] = {
        "least-squares": partial(
            least_squares.fit, low=low, high=high, ridge=max(ridge, 1e-2) if single and ridge else ridge
        ),
        "moments": moments.fit,
        "bias": moments.fit_bias,
    }
    try:
        fit = fits[name](train, held, view.weight, view.bias, intercept=view.intercept)
    except LinAlgError:
        return LayerRecovery(*told, None, None, "none", "its Gram matrix is singular")
    if fit.before < _EXACT or (name != "moments" and not fit.after < fit.before):
        why = "nothing to repair" if fit.before < _EXACT else "no better on held-out inputs"
        return LayerRecovery(*told, fit.before, fit.before, "none", why)
    view.write(fit.weight, fit.bias)
    why = f"{count:,} positions for {site.layer.unknowns:,} unknowns" if name == "bias" else ""
    return LayerRecovery(*told, fit.before, fit.after, name, why)


def _sample(walk: Walk, batch: int, site: Site, layer: Layer, chosen: Indices) -> Sample:
    at, chain = layer.positions[batch], layer.chain
    rows = site.layer.rows(walk.tensor(batch, site.layer.x), at)
    added = None
    if chain.other:
        added = site.layer.outputs(chain.restore(walk.tensor(batch, chain.other)), at).astype(np.float32)
    return Sample(rows, layer.wanted[batch][:, chosen], added)


class _View:
    """A layer's weight and bias as they act at the end of its chain, to be read and written back.

    site: the layer; chosen: indices of its outputs in the original; intercept: whether there is a place for a bias.
    """

    def __init__(self, program: Program, site: Site, chain: Chain, chosen: Indices, new_biases: bool = True) -> None:
        self._program, self.site, self.chosen, self._new = program, site, chosen, new_biases
        self._steps = [(_chosen(s.scale, chosen), s.sink) for s in chain.steps]
        self._scale, self._shift = (np.broadcast_to(_chosen(v, chosen), chosen.shape) for v in chain.affine())
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


def _chosen(vector: Reals, chosen: Indices) -> Reals:
    """The kept part of one value per channel of the original."""
    return vector[chosen] if vector.size > 1 else vector
