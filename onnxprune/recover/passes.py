"""A few convolutions in a row, with a range of each activation between them: forward, gradient and tangent.

Sessions of onnxruntime whose weights are inputs, so that they are made once however often the weights change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune import runtime
from onnxprune.recover.linear import Linear

Floats = NDArray[np.float32]
Range = tuple[float, float]
FREE: Range = (-np.inf, np.inf)
_OPSET, _IR = 17, 8  # of these graphs, not of the user's


class Passes:
    """Passes over two or more `layers`, each a Conv that reads what the one before gives, limited to a range.

    ranges: outside of which the activation behind a layer is flat, FREE for none; the last one does not act here.
    weights, biases: one per layer, float32, in the form of a Conv; size: spatial, of the input.
    """

    def __init__(self, layers: Sequence[Linear], ranges: Sequence[Range], size: Sequence[int]) -> None:
        self.layers, self.ranges = layers, ranges
        self._sizes = [tuple(size)]
        for layer in layers:
            self._sizes.append(layer.grid(self._sizes[-1]))
        self._forward, self._reverse, self._tangent = self._make_forward(), self._make_reverse(), self._make_tangent()

    def forward(self, x: Floats, weights: Sequence[Floats], biases: Sequence[Floats]) -> tuple[list[Floats], Floats]:
        """What each layer reads, and the last output before its activation."""
        found = self._forward.run({"x": x, **_named("w", weights), **_named("b", biases)})
        *inner, y = found.values()
        return [x, *inner], y

    def reverse(self, inputs: Sequence[Floats], weights: Sequence[Floats], seed: Floats) -> list[Floats]:
        """Gradient at the output of every layer, of something whose gradient at the last output is `seed`."""
        feeds = {"seed": seed, **_named("h", inputs, 1), **_named("w", weights, 1)}
        return [*self._reverse.run(feeds).values(), seed]

    def tangent(
        self, inputs: Sequence[Floats], weights: Sequence[Floats], changes: Sequence[tuple[Floats, Floats]]
    ) -> Floats:
        """First-order change of the last output for a change of each layer's weight and bias."""
        feeds = {**_named("h", inputs), **_named("w", weights, 1)}
        feeds |= _named("dw", [w for w, _ in changes]) | _named("db", [b for _, b in changes])
        (change,) = self._tangent.run(feeds).values()
        return change

    def _make_forward(self) -> runtime.Session:
        last, nodes = len(self.layers) - 1, []
        for i in range(last + 1):
            nodes.append(self._conv("Conv", i, [f"h{i}" if i else "x", f"w{i}", f"b{i}"], f"y{i}"))
            if i < last:
                limits = [(f"low{i}", self.ranges[i][0]), (f"high{i}", self.ranges[i][1])]
                nodes += [_number(name, value) for name, value in limits]
                nodes.append(helper.make_node("Clip", [f"y{i}", *(name for name, _ in limits)], [f"h{i + 1}"]))
        inputs = ["x", *(f"{kind}{i}" for i in range(last + 1) for kind in "wb")]
        return _session(nodes, inputs, [*(f"h{i}" for i in range(1, last + 1)), f"y{last}"])

    def _make_reverse(self) -> runtime.Session:
        last, nodes, at = len(self.layers) - 1, list[NodeProto](), "seed"
        for i in range(last, 0, -1):
            nodes.append(self._conv("ConvTranspose", i, [at, f"w{i}"], f"e{i}"))
            nodes += self._masked(i, f"e{i}", f"g{i - 1}")
            at = f"g{i - 1}"
        inputs = ["seed", *(f"{kind}{i}" for i in range(1, last + 1) for kind in "hw")]
        return _session(nodes, inputs, [f"g{i}" for i in range(last)])

    def _make_tangent(self) -> runtime.Session:
        count = len(self.layers)
        nodes = [self._conv("Conv", 0, ["h0", "dw0", "db0"], "t0")]
        for i in range(1, count):
            nodes += self._masked(i, f"t{i - 1}", f"m{i}")
            nodes.append(self._conv("Conv", i, [f"h{i}", f"dw{i}", f"db{i}"], f"p{i}"))
            nodes.append(self._conv("Conv", i, [f"m{i}", f"w{i}"], f"q{i}"))
            nodes.append(helper.make_node("Add", [f"p{i}", f"q{i}"], [f"t{i}"]))
        inputs = ["h0", "dw0", "db0", *(f"{kind}{i}" for i in range(1, count) for kind in ("h", "w", "dw", "db"))]
        return _session(nodes, inputs, [f"t{count - 1}"])

    def _conv(self, op: str, i: int, inputs: list[str], output: str) -> NodeProto:
        """Layer i, or ("ConvTranspose") the gradient of its input."""
        layer, size, after = self.layers[i], self._sizes[i], self._sizes[i + 1]
        pads, rank = layer.padding(size), len(size)
        attributes: dict[str, Any] = {"strides": layer.strides, "dilations": layer.dilations, "pads": pads}
        if op == "ConvTranspose":  # what the stride left unread at the end
            attributes["output_padding"] = [
                size[j] + pads[j] + pads[j + rank] - layer.reach[j] - (after[j] - 1) * layer.strides[j]
                for j in range(rank)
            ]
        return helper.make_node(op, inputs, [output], group=layer.groups, **attributes)

    def _masked(self, i: int, source: str, output: str) -> list[NodeProto]:
        """`source` where the input of layer i lies inside of the range before it, 0 elsewhere."""
        nodes, at = list[NodeProto](), source
        for name, op, limit in zip(("low", "high"), ("Greater", "Less"), self.ranges[i - 1], strict=True):
            if np.isfinite(limit):
                made = f"{output}_{name}"
                nodes += [
                    _number(f"{made}_limit", limit),
                    helper.make_node(op, [f"h{i}", f"{made}_limit"], [f"{made}_is"]),
                    helper.make_node("Cast", [f"{made}_is"], [f"{made}_one"], to=TensorProto.FLOAT),
                    helper.make_node("Mul", [at, f"{made}_one"], [made]),
                ]
                at = made
        return [*nodes, helper.make_node("Identity", [at], [output])]


def _number(name: str, value: float) -> NodeProto:
    return helper.make_node("Constant", [], [name], value_float=float(value))


def _named(prefix: str, arrays: Sequence[Floats], first: int = 0) -> dict[str, Floats]:
    return {f"{prefix}{i}": a for i, a in enumerate(arrays) if i >= first}


def _session(nodes: list[NodeProto], inputs: list[str], outputs: list[str]) -> runtime.Session:
    info = [helper.make_tensor_value_info(i, TensorProto.FLOAT, None) for i in inputs]
    graph = helper.make_graph(nodes, "passes", info, [helper.make_empty_tensor_value_info(o) for o in outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    return runtime.session(model, optimize=True, threads=1)  # several run side by side
