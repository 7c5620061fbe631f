"""What happens to a layer's output before somebody reads it for good: an affine map, an Add, an activation.

The fit aims behind that chain, at what the network goes on with: a BatchNormalization or a layer scale only changes
units, the sum with a shortcut lets the layer correct the shortcut's error as well, and where the activation is flat
(below 0 of a ReLU) the fit need not follow the original.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from onnxprune.graph import Array
from onnxprune.recover.linear import Linear
from onnxprune.recover.program import Program

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """z = scale * y + shift per channel; `sink`: an initializer behind `shift` that can hold more."""

    scale: Vector
    shift: Vector
    sink: str = ""


@dataclass(frozen=True)
class Chain:
    """The way of a layer's output.

    end: the tensor that the fit aims at; steps: affine maps on the way; order: axes of `end` as axes of the layer's
    output, () where they are the same; other: what an Add on the way adds, "" without one; low, high: the range outside
    of which the activation that follows is flat.
    """

    end: str
    steps: tuple[Step, ...] = ()
    order: tuple[int, ...] = ()
    other: str = ""
    low: float = -np.inf
    high: float = np.inf

    def restore(self, tensor: Array) -> Array:
        """`end`, or `other`, with the axes of the layer's output."""
        return tensor.transpose(np.argsort(self.order)) if self.order else tensor

    def affine(self) -> tuple[Vector, Vector]:
        """(scale, shift) of all steps together."""
        scale, shift = np.ones(1), np.zeros(1)
        for step in self.steps:
            scale, shift = scale * step.scale, shift * step.scale + step.shift
        return scale, shift


def chain(program: Program, layer: Linear, index: int, *, sums: bool = True) -> Chain:
    """Follow the output of the layer at `index`; not beyond an Add of two computed tensors unless `sums`.

    An Add's other operand counts only where it is made before the layer runs: else its error is not known yet.
    """
    name, steps, order = layer.y, list[Step](), tuple[int, ...]()
    while (node := only_reader(program, name)) is not None:
        step = _step(program, node, name, layer, order)
        if step is not None:
            steps.append(step)
        elif node.op_type == "Transpose" and not order and (turned := _permutation(node)):
            order = turned
        elif node.op_type not in ("Identity", "Dropout"):
            break
        name = node.output[0]
    end, other = name, ""
    node = only_reader(program, name)
    if node is not None and node.op_type == "Add":
        if not sums:
            return Chain(end, tuple(steps), order)
        found = _operand(program, node, name, index)
        if found is None:  # the activation behind it acts on a sum that is not known yet
            return Chain(end, tuple(steps), order)
        end, other = node.output[0], found
    low, high = _flat(program, only_reader(program, end))
    return Chain(end, tuple(steps), order, other, low, high)


def only_reader(program: Program, name: str) -> NodeProto | None:
    """The node that reads a tensor; None where there is not exactly one, or the tensor is a result of the model."""
    readers = program.readers.get(name, [])
    return program.nodes[readers[0]] if len(readers) == 1 and name not in program.outputs else None


def _permutation(node: NodeProto) -> tuple[int, ...]:
    return tuple(next((helper.get_attribute_value(a) for a in node.attribute if a.name == "perm"), ()))


def _operand(program: Program, node: NodeProto, name: str, index: int) -> str | None:
    """The other operand of an Add; None where it is not there when the layer at `index` runs."""
    others = [i for i in node.input if i != name]
    if len(others) != 1 or not program.is_dynamic(others[0]):
        return None
    shape = program.shapes.get(name)
    if shape is None or any(program.shapes.get(n) != shape for n in (others[0], node.output[0])):  # one is spread out
        return None
    return others[0] if program.producer.get(others[0], -1) < index else None


def _step(program: Program, node: NodeProto, name: str, layer: Linear, order: tuple[int, ...]) -> Step | None:
    """The affine map of a node; None where it is something else."""
    if node.op_type == "BatchNormalization":
        return _normalization(program, node) if layer.convolves and not order else None
    if node.op_type not in ("Add", "Mul", "Sub", "Div") or (node.op_type in ("Sub", "Div") and node.input[0] != name):
        return None
    others = [i for i in node.input if i != name]
    if len(others) != 1 or others[0] not in program.weights:
        return None
    vector = _along_channels(program.weights[others[0]], layer, order)
    if vector is None:
        return None
    if node.op_type in ("Mul", "Div"):
        return None if not vector.all() else Step(vector if node.op_type == "Mul" else 1 / vector, np.zeros(1))
    own = len(program.readers[others[0]]) == 1 and vector.size == layer.channels and node.op_type == "Add"
    return Step(np.ones(1), vector if node.op_type == "Add" else -vector, others[0] if own else "")


def _normalization(program: Program, node: NodeProto) -> Step | None:
    vectors = [program.weights.get(i) for i in node.input[1:5]]
    if any(v is None for v in vectors) or len(node.output) > 1:
        return None
    gamma, beta, mean, var = (np.asarray(v, np.float64) for v in vectors)
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    scale = gamma / np.sqrt(var + epsilon)
    own = len(program.readers[node.input[2]]) == 1 and list(node.input).count(node.input[2]) == 1
    return Step(scale, beta - mean * scale, node.input[2] if own else "")


def _along_channels(array: Array, layer: Linear, order: tuple[int, ...]) -> Vector | None:
    """The constant of an element-wise node as one value per channel (or one for all); None for another shape."""
    if array.size == 1:
        return np.asarray(array, np.float64).reshape(1)
    if layer.convolves:
        rank = 2 + len(layer.kernel)
        behind = rank - 1 - (order.index(1) if order else 1)  # axes behind the channels
    elif order:
        behind = len(order) - 1 - order.index(len(order) + layer.axis)
    else:
        behind = -1 - layer.axis
    place = array.ndim - 1 - behind
    if place < 0 or array.shape[place] != array.size:
        return None
    return np.asarray(array, np.float64).reshape(-1)


def _flat(program: Program, node: NodeProto | None) -> tuple[float, float]:
    """Range outside of which the activation does not change."""
    if node is None:
        return -np.inf, np.inf
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip":
        return -np.inf, np.inf
    attrs = {a.name: a.f for a in node.attribute}
    bounds = [attrs.get("min", -np.inf), attrs.get("max", np.inf)]
    for i, name in enumerate(list(node.input)[1:3]):
        if name:
            if name not in program.weights:
                return -np.inf, np.inf
            bounds[i] = float(program.weights[name])
    return bounds[0], bounds[1]
