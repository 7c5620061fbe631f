"""The layers of a program that can be refitted: where they are, and their weights read and written as floats."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from onnxprune.graph import FLOATS, Array
from onnxprune.recover.linear import Linear, linear
from onnxprune.recover.program import Program

COMPUTED = "both operands are computed"
OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Site:
    """A layer in a program.

    index: of its node; layer: its form; weight: the stored tensor; scale, zero, axis: of the DequantizeLinear between
    the two, "" without one.
    """

    index: int
    layer: Linear
    weight: str
    scale: str = ""
    zero: str = ""
    axis: int = 1

    def read(self, program: Program) -> Array:
        """The weight as numbers."""
        array = program.weights[self.weight]
        if not self.scale:
            return np.asarray(array, np.float32)
        scale = _along(program.weights[self.scale], array.ndim, self.axis)
        zero = _along(program.weights[self.zero], array.ndim, self.axis) if self.zero else np.float32(0)
        result: Array = (array.astype(np.float32) - zero) * scale
        return result

    def write(self, program: Program, weight: Array) -> None:
        """Store numbers as the weight; see `stored`."""
        program.weights.update(self.stored(program, weight))

    def stored(self, program: Program, weight: Array) -> dict[str, Array]:
        """The tensors that hold numbers in the type of the weight; integers get a new scale, as fine as they allow."""
        old = program.weights[self.weight]
        if not self.scale:
            return {self.weight: weight.astype(old.dtype)}
        info = np.iinfo(old.dtype)
        zero = program.weights[self.zero] if self.zero else np.zeros((), old.dtype)
        shift = _along(zero, old.ndim, self.axis)
        others = tuple(a for a in range(old.ndim) if a != self.axis)
        whole = program.weights[self.scale].size == 1
        high, low = (f(weight, axis=None if whole else others, keepdims=True) for f in (np.max, np.min))
        room = np.maximum(high / np.maximum(info.max - shift, 1), -low / np.maximum(shift - info.min, 1))
        scale = np.maximum(room, np.finfo(np.float32).tiny).astype(np.float32)
        held = program.weights[self.scale]
        whole_numbers = np.clip(np.rint(weight / scale) + shift, info.min, info.max).astype(old.dtype)
        return {self.weight: whole_numbers, self.scale: scale.reshape(held.shape).astype(held.dtype)}


def _along(vector: Array, rank: int, axis: int) -> Array:
    shape = [1] * rank
    if vector.size > 1:
        shape[axis] = -1
    return np.asarray(vector, np.float32).reshape(shape)


def sites(program: Program) -> tuple[list[Site], dict[str, str]]:
    """Layers with a weight of their own, in order, and why others have none (node -> reason)."""
    found, skipped = list[Site](), dict[str, str]()
    uses = Counter(i for names in program.reads for i in names)
    for index, node in enumerate(program.nodes):
        if node.op_type not in OPS or node.domain not in ("", "ai.onnx"):
            continue
        site = _site(program, index, uses)
        if isinstance(site, Site):
            found.append(site)
        else:
            skipped[node.name or node.output[0]] = site
    return found, skipped


def _site(program: Program, index: int, uses: Counter[str]) -> Site | str:  # noqa: PLR0911 - one reason per return
    node = program.nodes[index]
    slot = 0 if node.op_type == "MatMul" and node.input[0] in program.weights else 1
    name, scale, zero, axis = node.input[slot], "", "", 1
    source = program.producer.get(name)
    if source is not None and program.nodes[source].op_type == "DequantizeLinear":
        reader = program.nodes[source]
        name, scale, zero = (*reader.input, "")[:3]
        axis = next((a.i for a in reader.attribute if a.name == "axis"), 1)
        why = _bad_scale(program, reader, uses)
        if why:
            return why
    if name not in program.weights:
        return (
            COMPUTED
            if name in program.producer or program.is_dynamic(name)
            else "its weight has a type that is not read"
        )
    array = program.weights[name]
    if uses[name] > 1 or uses[node.input[slot]] > 1:
        return "its weight is shared with another layer"
    if not scale and array.dtype not in FLOATS:
        return f"its weight is {array.dtype}"
    layer = linear(node, array.shape, node.input[slot])
    if isinstance(layer, str):
        return layer
    if layer.bias and program.weights.get(layer.bias, np.zeros(0)).size not in (1, layer.channels):
        return "its bias is no vector, or it is computed"
    return Site(index, layer, name, scale, zero, axis % max(array.ndim, 1))


def _bad_scale(program: Program, reader: NodeProto, uses: Counter[str]) -> str:
    """Why the weight behind a DequantizeLinear cannot be rewritten, "" where it can."""
    scale, zero = (*reader.input, "")[1:3]
    if any(a.name == "block_size" and a.i for a in reader.attribute):
        return "its weight is quantised in blocks"
    if scale not in program.weights or (zero and zero not in program.weights):
        return "the scale of its weight is no constant"
    return "several weights share one scale" if uses[scale] > 1 else ""
