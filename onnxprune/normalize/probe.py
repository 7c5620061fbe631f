"""Trying a symbolic model out with numbers: every symbol gets a prime of its own, and values follow from that."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import numpy as np

from onnxprune.graph import Tensor, is_constant, values
from onnxprune.shapes.shape_ops import SHAPE_OPS
from onnxprune.shapes.sizes import Dims, Element, Size, Vector, each, known, vector
from onnxprune.shapes.symbolic import Facts

_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)
_DEEP = 32  # steps of shape arithmetic
_AFFINE = {  # what holds for two sizes of a dimension, through these ops, holds for all
    *("Shape", "Squeeze", "Unsqueeze", "Gather", "Slice", "Concat", "Range", "Add", "Sub", "Mul", "Reshape", "Cast"),
}


class Probe:
    """One assignment of numbers to symbols; two probes differ in all of them. Its methods may raise ValueError."""

    def __init__(self, facts: Facts, which: int) -> None:
        self.facts = facts
        self.primes = iter(_PRIMES[which:])
        self.numbers: dict[str, int] = {}

    def size(self, element: Element) -> int:
        """A dimension as a number."""
        if not isinstance(element, Size):
            if element is None:
                raise ValueError("unknown size")
            return element
        return element.factor * prod(self._number(s) for s in element.symbols)

    def _number(self, symbol: str) -> int:
        if symbol not in self.numbers:
            prime = next(self.primes, None)
            if prime is None:
                raise ValueError("too many symbols")
            self.numbers[symbol] = prime
        return self.numbers[symbol]

    def shape(self, dims: Iterable[Element]) -> tuple[int, ...]:
        """A shape in numbers."""
        return tuple(self.size(d) for d in dims)

    def value(self, tensor: Tensor, depth: int = 0) -> Vector:
        """An integer tensor in numbers: a constant, or computed from sizes."""
        array = values(tensor) if is_constant(tensor) else None
        if array is not None and array.dtype.kind in "ib":
            return array.astype(np.int64).astype(object)
        item = self.facts.values.get(tensor.name)
        if item is not None and not any(e is None for e in item.flat):
            return each(self.size, item)
        return self._computed(tensor, depth)

    def _computed(self, tensor: Tensor, depth: int) -> Vector:
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None or node.op not in _AFFINE or node.domain not in (None, "", "ai.onnx") or depth > _DEEP:
            raise ValueError("not shape arithmetic")
        if node.op == "Shape":
            dims: Dims = self.facts.shapes.get(node.inputs[0].name, (None,))
            return vector(self.shape(dims[node.attrs.get("start", 0) : node.attrs.get("end")]))
        inputs = [self.value(t, depth + 1) if t.name else None for t in node.inputs]
        result = SHAPE_OPS[node.op](node.attrs, *inputs)
        if isinstance(result, list) or not known(result):
            raise ValueError("not a number")
        return result
