"""How strong every class is in every tensor, from the weights alone: what merging and folding need to know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Analysis, Axis, Labels
from onnxprune.criteria.weights import floats
from onnxprune.factors import lines
from onnxprune.graph import Array, Node, Tensor, values

Places = NDArray[np.int64]
Reals = NDArray[np.float64]
_SATURATING = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Softsign", "Erf", "Softmax", "LSTM", "GRU", "RNN"})
_SATURATING |= {"InstanceNormalization", "GroupNormalization"}
_LINEAR = frozenset({"Add", "Sub", "Sum", "Concat", "Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Pad"})
_LINEAR |= {"Unsqueeze", "Slice", "Split", "Gather", "AveragePool", "GlobalAveragePool", "ReduceMean", "Resize"}
_LINEAR |= {"BatchNormalization", "Mul", "Div"}


class Stage(NamedTuple):
    """A layer that makes filters: the axis they lie on, its weight, and the scale and shift [filters] that follow it.

    through: whether a filter reads the channel that it makes (depthwise and group convolutions).
    """

    axis: Axis
    weight: Tensor
    scale: Reals
    shift: Reals
    through: bool

    def rows(self) -> Array:
        """[filters, d + 1] float32 or float64: the scaled rows, and the shift."""
        array = floats(self.weight)
        assert array is not None, "only types that can be read get atoms"
        kind = np.float64 if array.dtype == np.float64 else np.float32
        rows: Array = lines(array, self.axis.axis).astype(kind, copy=False)
        scale, shift = self.scale.astype(kind)[:, None], self.shift.astype(kind)[:, None]
        return np.concatenate([rows * scale, shift], axis=1)


class Weights:
    """The parameters of a coupled model by how its nodes read them."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.params = analysis, analysis.trace.trace.params
        self.constants = analysis.model.constants()
        self.axes: dict[str, list[Axis]] = {}
        for axis in analysis.axes:
            self.axes.setdefault(axis.param, []).append(axis)
        self._vectors = {n: a[0] for n, a in self.axes.items() if len(a) == 1 and a[0].role == "with"}
        self._readers: dict[str, list[Node]] = {}
        for node in analysis.model.graph.nodes:
            for tensor in node.inputs:
                self._readers.setdefault(self.params.get(tensor.name, ""), []).append(node)
        self._visible = {t.name for t in analysis.model.graph.outputs} | analysis.model.captured

    def array(self, name: str) -> Array:
        """Values of a parameter."""
        array = values(self.constants[name])
        assert array is not None, "only types that can be read get atoms"
        return array

    def data(self, node: Node) -> list[str]:
        """The activations that a node reads."""
        return [t.name for t in node.inputs if t.name and t.name not in self.params]

    def reads(self, param: str) -> bool:
        """Whether a layer makes or reads positions with this parameter."""
        return any(a.role != "with" for a in self.axes[param])

    def read_with(self, param: str) -> list[str]:
        """The activations that a weight is applied to."""
        return [d for n in self._readers.get(param, ()) for d in self.data(n)]

    def ids(self, tensor: str) -> Places:
        """The classes that a tensor has positions of, ascending."""
        trace = self.analysis.trace
        found = [trace.classes[f].reshape(-1) for f in trace.trace.views.get(tensor, ())]
        ids = np.unique(np.concatenate([np.zeros(1, np.int64), *found]))
        return ids[1:]

    def outs(self, node: Node) -> list[tuple[Tensor, Axis]]:
        """The weights with which a node makes filters, and the axis of the filters."""
        if not self.data(node):
            return []  # it moves a weight
        found = [(self.params[t.name], a) for t in node.inputs for a in self.axes.get(self.params.get(t.name, ""), ())]
        return [(self.constants[name], axis) for name, axis in found if axis.role == "out"]

    def is_through(self, node: Node, axis: Axis) -> bool:
        """Whether the filters on this axis read the channels that they make."""
        dense = any(a.role == "in" for a in self.axes[axis.param])
        return not dense and any(np.isin(self.ids(d), axis.classes).any() for d in self.data(node))

    def bias(self, node: Node, axis: Axis) -> Reals:
        """[filters] what a layer adds to its filters; zeros for none."""
        found = [self._vector(t) for t in node.inputs[2:3]]
        return next((v for a, v in filter(None, found) if self._same(a, axis)), np.zeros(len(axis.classes)))

    def stages(self) -> Iterator[Stage]:
        """Every layer that makes filters."""
        for node in self.analysis.model.graph.nodes:
            for weight, axis in self.outs(node):
                scale, shift = self._behind(node, axis)
                yield Stage(axis, weight, scale, shift, self.is_through(node, axis))

    def _behind(self, node: Node, axis: Axis) -> tuple[Reals, Reals]:
        """Scale and shift per filter of the bias, BatchNormalization and constants that follow a layer one by one."""
        scale, shift = np.ones(len(axis.classes)), self.bias(node, axis)
        while len(node.outputs[0].outputs) == 1 and node.outputs[0].name not in self._visible:
            node = node.outputs[0].outputs[0]
            step = self.affine(node)
            if step is None or not self._same(step[0], axis):
                break
            scale, shift = scale * step[1], shift * step[1] + step[2]
        return scale, shift

    def affine(self, node: Node) -> tuple[Axis, Reals, Reals] | None:
        """(axis, scale, shift) of a node that scales and shifts each position by parameters of its own."""
        vectors = [self._vector(t) for t in node.inputs]
        if node.op == "BatchNormalization" and all(vectors[1:5]):
            (axis, gamma), (_, beta), (_, mean), (_, var) = filter(None, vectors[1:5])
            scale = gamma / np.sqrt(var + node.attrs.get("epsilon", 1e-5))
            return axis, scale, beta - mean * scale
        if node.op in ("InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization"):
            gamma_beta = [*vectors[1:3], None][:2]
            if gamma_beta[0] is None:
                return None
            axis, gamma = gamma_beta[0]
            return axis, gamma, np.zeros(len(gamma)) if gamma_beta[1] is None else gamma_beta[1][1]
        found = vectors[1] if len(vectors) == 2 and vectors[1] else vectors[0] if node.op in ("Add", "Mul") else None
        if found is None or node.op not in ("Add", "Sub", "Mul", "Div"):
            return None
        axis, v = found
        if node.op in ("Mul", "Div"):
            return axis, v if node.op == "Mul" else 1 / np.where(v == 0, 1, v), np.zeros(len(v))
        return axis, np.ones(len(v)), v if node.op == "Add" else -v

    def _vector(self, tensor: Tensor) -> tuple[Axis, Reals] | None:
        """A parameter with one number per position of its only coupled axis."""
        axis = self._vectors.get(tensor.name)
        array = None if axis is None else values(self.constants[axis.param])
        if axis is None or array is None or array.size != len(axis.classes):
            return None
        return axis, array.reshape(-1).astype(np.float64)

    @staticmethod
    def _same(a: Axis, b: Axis) -> bool:
        return np.array_equal(a.classes, b.classes)


# ---- strengths -----------------------------------------------------------------------------------------------------


class Strength(NamedTuple):
    """How strong each class is in a tensor, from the weights alone: classes `ids` [n], ascending; `power`, the sum of
    the squared weights that make them; `shift`, the constant that has been added since the last non-linearity.
    """

    ids: Places
    power: Reals
    shift: Reals

    def at(self, ids: Places | Labels) -> tuple[Reals, Reals]:
        """Power and shift of these classes; zeros for those that the tensor does not have."""
        at = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
        here = self.ids[at] == ids
        return np.where(here, self.power[at], 0.0), np.where(here, self.shift[at], 0.0)

    def size(self, ids: Places | Labels) -> Reals:
        """Root of power and squared shift: s times as large where filters are s times larger."""
        power, shift = self.at(ids)
        size: Reals = np.sqrt(power + shift**2)
        return size


def strengths(weights: Weights) -> dict[str, Strength]:
    """How strong each class is in every tensor that has any, in one walk over the nodes."""
    found: dict[str, Strength] = {}
    for node in weights.analysis.model.graph.nodes:
        for out in node.outputs:
            ids = weights.ids(out.name) if weights.data(node) else np.zeros(0, np.int64)
            if ids.size:
                read = [found[d].at(ids) for d in weights.data(node) if d in found]
                found[out.name] = Strength(ids, *_strength(weights, node, ids, read))
    return found


def _strength(weights: Weights, node: Node, ids: Places, read: list[tuple[Reals, Reals]]) -> tuple[Reals, Reals]:
    """Power and shift of the classes `ids` behind a node that reads them as in `read`."""
    none = np.zeros(len(ids))
    powers, shifts = [p for p, _ in read], [s for _, s in read]
    if node.op == "Mul" and len(read) == 2:
        sizes = [p + s**2 for p, s in read]  # a gate of other positions has none of these classes
        return np.prod([np.where(size > 0, size, 1.0) for size in sizes], axis=0), none
    power, shift = sum(powers, none), sum(shifts, none)
    if node.op in _SATURATING:
        power, shift = none + 1, none
    else:
        for _, axis in weights.outs(node):
            power, shift = _made(weights, node, axis, ids, power, shift)
    step = weights.affine(node)
    if step is not None:
        axis, scale, added = step
        has = np.isin(ids, axis.classes)
        power = np.where(has, power * _mean(axis, scale**2, ids), power)
        shift = np.where(has, shift * _mean(axis, scale, ids) + _mean(axis, added, ids), shift)
    linear = node.op in _LINEAR or weights.outs(node)
    return (power, shift) if linear else (power + shift**2, none)


def _made(weights: Weights, node: Node, axis: Axis, ids: Places, power: Reals, shift: Reals) -> tuple[Reals, Reals]:
    """Power and shift of the classes whose filters a layer makes; the others pass."""
    rows = lines(np.asarray(floats(weights.constants[axis.param])), axis.axis)
    squares = np.einsum("pd,pd->p", rows, rows, dtype=np.float64)
    has = np.isin(ids, axis.classes)
    made, bias = _mean(axis, squares, ids), _mean(axis, weights.bias(node, axis), ids)
    if weights.is_through(node, axis):
        sums = _mean(axis, rows.sum(axis=1, dtype=np.float64), ids)
        return np.where(has, power * made, power), np.where(has, shift * sums + bias, shift)
    return np.where(has, made, power), np.where(has, bias, shift)


def _mean(axis: Axis, numbers: Reals, ids: Places) -> Reals:
    """[len(ids)] mean over the positions of each class; 0 for a class that is not on the axis."""
    size = int(max(axis.classes.max(), ids.max())) + 1
    count = np.bincount(axis.classes, minlength=size)
    return np.bincount(axis.classes, numbers, size)[ids] / np.maximum(count[ids], 1)
