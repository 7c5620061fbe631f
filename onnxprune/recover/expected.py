"""The mean of every channel, without inputs: what biases and BatchNormalization say of it.

A BatchNormalization knows the mean and the deviation of what it gives: beta and abs(gamma). Elsewhere mean and variance
are carried on from layer to layer, as if values were independent and normally distributed, the model's input with mean
0 and deviation 1 (the bias alone, sum of w E[x] left out, is no better than zero on trained networks). Non-linearities
that are piecewise linear have closed forms. Values that are truly constant, of filters of zeros, stay exact
throughout. What no rule covers is NaN: not known.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np
import onnx
from scipy.special import ndtr

from onnxprune.analysis import Analysis, Mask
from onnxprune.criteria.weights import floats
from onnxprune.factors import Factor, raise_rank, support
from onnxprune.graph import Array, Node, Tensor, is_constant, values
from onnxprune.recover.strength import Places, Reals, Weights
from onnxprune.shapes import skeleton

_POINTS = np.linspace(-8.5, 8.5, 129)  # of the normal distribution; the trapezoid rule converges fastest on it
_SHARES = np.exp(-0.5 * _POINTS**2) * (_POINTS[1] - _POINTS[0]) / np.sqrt(2 * np.pi)


class Moments(NamedTuple):
    """Mean and variance of some positions (any shape), and which of them are constant for sure; NaN: not known."""

    mean: Reals
    var: Reals
    fixed: Mask


def relu_moments(mean: Reals, var: Reals) -> tuple[Reals, Reals]:
    """E[max(x, 0)] and E[max(x, 0)^2] for x from N(mean, var)."""
    sd = np.sqrt(var)
    z = (mean / np.where(sd > 0, sd, 1)).clip(-40, 40)  # beyond, the tails are 0 in float64
    above = np.where(sd > 0, ndtr(z), mean > 0)
    density = sd * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return mean * above + density, (mean**2 + var) * above + mean * density


def clip_moments(mean: Reals, var: Reals, low: float, high: float) -> tuple[Reals, Reals]:
    """Mean and variance of min(max(x, low), high) for x from N(mean, var); the bounds may be infinite."""
    if low == -np.inf:
        mirrored = (mean, var) if high == np.inf else clip_moments(-mean, var, -high, np.inf)
        return (mirrored[0] if high == np.inf else -mirrored[0]), mirrored[1]
    first, square = relu_moments(mean - low, var)
    if high < np.inf:
        over, over_square = relu_moments(mean - high, var)
        first, square = first - over, square - over_square - 2 * (high - low) * over
    return low + first, (square - first**2).clip(0)


def leaky_moments(mean: Reals, var: Reals, slope: Reals | float) -> tuple[Reals, Reals]:
    """Mean and variance of max(x, 0) + slope * min(x, 0) for x from N(mean, var)."""
    first, square = relu_moments(mean, var)
    result = slope * mean + (1 - slope) * first
    return result, (np.square(slope) * (mean**2 + var) + (1 - np.square(slope)) * square - result**2).clip(0)


def expected_inputs(analysis: Analysis) -> dict[str, Reals]:
    """Mean of every channel that a layer reads, [channels] by the name of its weight; NaN where it is not known."""
    walk = _Walk(analysis)
    found: dict[str, Reals] = {}
    with np.errstate(over="ignore", invalid="ignore"):  # what explodes on the way is not known in the end
        for node in analysis.model.graph.nodes:
            name = walk.weights.params.get(node.inputs[1].name, "") if len(node.inputs) > 1 else ""
            if node.op in _CHANNELS and any(a.role == "in" for a in walk.weights.axes.get(name, ())):
                mean = walk.channels(node).mean
                found[name] = np.where(np.isfinite(mean), mean, np.nan)
            walk.visit(node)
    return found


_CHANNELS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": -1}
_CURVES = frozenset({"Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Celu", "Selu", "Gelu", "Softplus", "Erf"})
_CURVES |= {"Softsign", "Mish", "Swish", "Abs", "Exp", "Neg", "ThresholdedRelu"}
_MOVING = frozenset({"Identity", "Cast", "Dropout", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"})
_MOVING |= {"Split", "Gather", "Expand", "Tile", "SpaceToDepth", "Resize", "Upsample", "ReduceMean"}
_MOVING |= {"AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool", "Pad"}


class _Walk:
    """One walk over the nodes: the moments of every position (atom) of every tensor."""

    def __init__(self, analysis: Analysis) -> None:
        self.weights = Weights(analysis)
        self.model, self.views, self.shapes = analysis.model, analysis.trace.trace.views, analysis.shapes
        self.given = {t.name for t in analysis.model.graph.inputs}
        self.known: dict[str, tuple[Places, Moments]] = {}

    def visit(self, node: Node) -> None:
        """Note the moments of what a node computes."""
        rule = _RULES.get(node.op, _move if node.op in _MOVING else _curve if node.op in _CURVES else None)
        if rule is None or not self.weights.data(node):
            return
        for out in node.outputs[:1] if node.op != "Split" else node.outputs:
            parts = [(f.reshape(-1), rule(self, node, f)) for f in self.views.get(out.name, ())]
            if parts:
                self.known[out.name] = _sorted(parts)

    def channels(self, node: Node) -> Moments:
        """[channels] moments of what a layer reads; not known where they vary along other axes too."""
        data = node.inputs[0]
        axis = 0 if node.op == "Gemm" and node.attrs.get("transA") else _CHANNELS[node.op]
        size = self.shapes[data.name][axis] if data.name in self.shapes else 0
        if data.name in self.given:
            return Moments(np.zeros(size), np.ones(size), np.zeros(size, np.bool_))
        factor = next((f for f in self.views.get(data.name, ()) if f.shape[axis] == f.size), np.zeros(size, np.int32))
        return self.find([data], factor.reshape(-1))

    def find(self, tensors: list[Tensor], atoms: Factor) -> Moments:
        """Moments of atoms in the tensors that hold them."""
        found = _nothing(atoms.shape)
        for ids, moments in (self.known[t.name] for t in tensors if t.name in self.known):
            at = np.searchsorted(ids, atoms).clip(max=len(ids) - 1)
            here = ids[at] == atoms
            found = Moments(*(np.where(here, m[at], f) for m, f in zip(moments, found, strict=True)))
        return found

    def read(self, tensor: Tensor, like: Factor) -> Moments:
        """Moments of an operand at the positions of a factor of the result."""
        if is_constant(tensor):
            array = values(tensor)
            array = np.full(1, np.nan) if array is None or array.dtype.kind in "iub" else array.astype(np.float64)
            extra = (1,) * (like.ndim - array.ndim)
            fits = all(a in (1, n) for a, n in zip((*extra, *array.shape), like.shape, strict=False))
            wide = (
                np.broadcast_to(array, like.shape) if array.ndim <= like.ndim and fits else np.full(like.shape, np.nan)
            )
            return Moments(wide, np.zeros(like.shape), np.ones(like.shape, np.bool_))
        raised = [raise_rank(f, like.ndim) for f in self.views.get(tensor.name, ()) if f.ndim <= like.ndim]
        same = next((f for f in raised if f.shape == like.shape), None)
        return _nothing(like.shape) if same is None else self.find([tensor], same)

    def vector(self, tensor: Tensor, like: Factor) -> Reals:
        """A parameter with one number per position of a factor, in its shape; NaN for anything else."""
        array = values(tensor) if is_constant(tensor) else None
        fits = array is not None and array.size == like.size
        return np.asarray(array, np.float64).reshape(like.shape) if fits else np.full(like.shape, np.nan)


def _nothing(shape: tuple[int, ...]) -> Moments:
    return Moments(np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, np.bool_))


def _sorted(parts: list[tuple[Factor, Moments]]) -> tuple[Places, Moments]:
    """Moments by atom, ascending."""
    ids, first = np.unique(np.concatenate([atoms for atoms, _ in parts]), return_index=True)
    joined = (np.concatenate([np.reshape(m[i], -1) for _, m in parts])[first] for i in range(3))
    return ids, Moments(*joined)


# ---- rules: (walk, node, a factor of the output) -> its moments ----------------------------------------------------


def _move(walk: _Walk, node: Node, like: Factor) -> Moments:
    found = walk.find(list(node.inputs), like)
    if (
        node.op == "Pad"
        and all(not np.any(values(t)) for t in node.inputs[2:3] if t.name)
        and not node.attrs.get("value")
    ):
        padded = np.isnan(found.mean) & ~np.isin(like, walk.known.get(node.inputs[0].name, (like[:0],))[0])
        return Moments(*(np.where(padded, v, f) for v, f in zip((0.0, 0.0, True), found, strict=True)))
    return found


def _concat(walk: _Walk, node: Node, like: Factor) -> Moments:
    """By place, not by atom: the same positions may come in twice."""
    axis = int(node.attrs["axis"]) % like.ndim
    if support(like) != (axis,) or any(t.name not in walk.shapes for t in node.inputs):
        return _move(walk, node, like)
    sizes = [walk.shapes[t.name][axis] for t in node.inputs]
    blank = [np.zeros([n if a == axis else 1 for a in range(like.ndim)], np.int32) for n in sizes]
    parts = [walk.read(t, b) for t, b in zip(node.inputs, blank, strict=True)]
    return Moments(*(np.concatenate([p[i] for p in parts], axis) for i in range(3)))


def _layer(walk: _Walk, node: Node, like: Factor) -> Moments:
    """Bias + sum of w E[x], sum of w^2 Var[x]; the model's input counts as white, what is not known as zero."""
    axis = _CHANNELS[node.op] % like.ndim
    weight = real_weight(node)
    if support(like) != (axis,) or weight is None:
        return walk.find(list(node.inputs), like)
    w = taps(node, weight)
    if w.shape[0] * w.shape[1] != like.size:
        return _nothing(like.shape)
    x = walk.channels(node)
    known = np.isfinite(x.mean) | any(walk.weights.is_through(node, a) for _, a in walk.weights.outs(node))
    means, variances = (np.where(known, m, 0.0).reshape(len(w), -1) for m in (x.mean, x.var))
    size = np.abs(w).sum(axis=-1)
    moving = (size > 1e-6 * size.max()) & ~x.fixed.reshape(len(w), 1, -1)
    mean = np.einsum("goit,gi->go", w, means).reshape(like.shape)
    var = np.einsum("goit,gi->go", w**2, variances).reshape(like.shape)
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if bias is not None:
        mean = mean + walk.vector(bias, like) * node.attrs.get("beta", 1.0)
    return Moments(mean, var, ~moving.any(axis=-1).reshape(like.shape))


def real_weight(node: Node) -> Array | None:
    """The weight of a layer as real numbers, dequantised; None where it is computed, or no matrix of a MatMul."""
    tensor = node.inputs[1]
    if not is_constant(tensor) and tensor.inputs and tensor.inputs[0].op == "DequantizeLinear":
        tensor = tensor.inputs[0].inputs[0]
    weight = floats(tensor) if is_constant(tensor) else None
    return None if weight is None or (node.op == "MatMul" and weight.ndim != 2) else weight


def taps(node: Node, weight: Array) -> Reals:
    """[groups, outputs/group, inputs/group, taps] of a layer's weight; strides of a ConvTranspose thin its taps out."""
    w: Reals = weight.astype(np.float64)
    groups = int(node.attrs.get("group", 1))
    if node.op == "Conv":
        return w.reshape(groups, -1, w.shape[1], prod(w.shape[2:]))
    if node.op == "ConvTranspose":
        thin = float(prod(node.attrs.get("strides", [1])))
        return w.reshape(groups, -1, w.shape[1], prod(w.shape[2:])).transpose(0, 2, 1, 3) / thin
    transposed = node.op == "Gemm" and node.attrs.get("transB", 0)
    matrix: Reals = np.multiply(w if transposed else w.T, float(node.attrs.get("alpha", 1.0)))
    return matrix[None, :, :, None]


def _norm(walk: _Walk, node: Node, like: Factor) -> Moments:
    """BatchNormalization: beta and abs(gamma), or what it makes of a constant."""
    x = walk.read(node.inputs[0], like)
    gamma, beta, mean, var = (walk.vector(t, like) for t in node.inputs[1:5])
    scale = gamma / np.sqrt(var + node.attrs.get("epsilon", 1e-5))
    constant = beta + scale * (x.mean - mean)
    return Moments(np.where(x.fixed, constant, beta), np.where(x.fixed, 0.0, scale**2 * var), x.fixed)


def _piecewise(walk: _Walk, node: Node, like: Factor) -> Moments:
    """Relu, Clip, LeakyRelu, PRelu in closed form."""
    x = walk.read(node.inputs[0], like)
    if node.op == "LeakyRelu":
        return Moments(*leaky_moments(x.mean, x.var, float(node.attrs.get("alpha", 0.01))), x.fixed)
    if node.op == "PRelu":
        return Moments(*leaky_moments(x.mean, x.var, walk.read(node.inputs[1], like).mean), x.fixed)
    low, high = (0.0, np.inf) if node.op == "Relu" else _bounds(node)
    return Moments(*clip_moments(x.mean, x.var, low, high), x.fixed)


def _bounds(node: Node) -> tuple[float, float]:
    """Of a Clip: attributes before opset 11, inputs since; NaN where they are computed."""
    bounds = [float(node.attrs.get("min", -np.inf)), float(node.attrs.get("max", np.inf))]
    for i, tensor in enumerate(node.inputs[1:3]):
        if tensor.name:
            array = values(tensor)
            bounds[i] = np.nan if array is None else float(array.reshape(-1)[0])
    return bounds[0], bounds[1]


def _curve(walk: _Walk, node: Node, like: Factor) -> Moments:
    return _integrated(walk.read(node.inputs[0], like), partial(_evaluate, walk, node))


def _integrated(x: Moments, function: Callable[[Reals], Reals]) -> Moments:
    """Moments of a function of normal values, by quadrature."""
    known = np.isfinite(x.mean)
    mean, sd = (np.where(known, v, 0.0)[..., None] for v in (x.mean, np.sqrt(x.var)))
    points = function(mean + sd * _POINTS)
    first = points @ _SHARES
    second = np.square(points - first[..., None]) @ _SHARES
    return Moments(np.where(known, first, np.nan), np.where(known, second, np.nan), x.fixed)


def _evaluate(walk: _Walk, node: Node, x: Reals) -> Reals:
    """Run one element-wise node."""
    from onnx.reference import ReferenceEvaluator

    proto = skeleton(walk.model, [node])
    for field, tensor in ((proto.graph.input, node.inputs[0]), (proto.graph.output, node.outputs[0])):
        field.append(onnx.ValueInfoProto(name=tensor.name))
    (result,) = ReferenceEvaluator(proto).run(None, {node.inputs[0].name: x})
    return np.asarray(result, np.float64)


def _arithmetic(walk: _Walk, node: Node, like: Factor) -> Moments:
    """Sums and products of independent values, or x * f(x)."""
    for x, y in (node.inputs, node.inputs[::-1]) if node.op == "Mul" else ():
        curve = y.inputs[0] if y.inputs else None
        if curve is not None and curve.op in _CURVES and curve.inputs[0] is x:
            return _integrated(walk.read(x, like), partial(_gated, walk, curve))
    operands = [walk.read(t, like) for t in node.inputs]
    means, variances = np.stack([o.mean for o in operands]), np.stack([o.var for o in operands])
    fixed = np.logical_and.reduce([o.fixed for o in operands])
    if node.op == "Sub":
        means[1] = -means[1]
    if node.op not in ("Mul", "Div"):
        return Moments(means.sum(axis=0), variances.sum(axis=0), fixed)
    if node.op == "Div":
        means[1] = 1 / np.where((means[1] == 0) | (variances[1] > 0), np.nan, means[1])
    mean = means.prod(axis=0)
    return Moments(mean, ((variances + means**2).prod(axis=0) - mean**2).clip(0), fixed)


def _gated(walk: _Walk, curve: Node, x: Reals) -> Reals:
    return x * _evaluate(walk, curve, x)


Rule = Callable[[_Walk, Node, Factor], Moments]
_RULES: dict[str, Rule] = {
    "BatchNormalization": _norm,
    "Concat": _concat,
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), _layer),
    **dict.fromkeys(("Relu", "Clip", "LeakyRelu", "PRelu"), _piecewise),
    **dict.fromkeys(("Add", "Sum", "Sub", "Mul", "Div"), _arithmetic),
}
