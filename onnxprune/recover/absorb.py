"""Constant absorption: the mean output of removed channels goes into the biases of their consumers.

y = sum over c of W[:, c] x_c: where x_c is (nearly) constant, its part of y is a bias. Exact for channels whose filters
are zero, but for the borders that a convolution pads with zeros. Without inputs the mean comes from biases and from
BatchNormalization (see `expected.py`); with inputs, measured means are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxprune.analysis import Analysis, Mask
from onnxprune.criteria.weights import floats
from onnxprune.graph import Array, Model, Node, Tensor, constant, dtype_of, fresh_name, shape_of, values
from onnxprune.recover.expected import expected_inputs, real_weight, taps
from onnxprune.recover.merge import Repair, is_float, set_input
from onnxprune.recover.strength import Reals, Weights

_WEIGHT_AT = 1  # the input that is the weight


def absorb(analysis: Analysis, kept: Mask, smaller: Model, means: Mapping[str, Array] | None = None) -> Repair:
    """Add to the bias of every consumer what its removed inputs contribute on average.

    kept: [classes + 1] bool; smaller: `cut(analysis, kept)`, whose biases change. means: for each consumer's weight (by
    name) the mean of each channel of the uncut input that it is applied to, [channels], NaN where not known; without it
    what biases and BatchNormalization tell. As if nothing were padded: at the borders, where a convolution reads zeros,
    too much is added; a strided ConvTranspose gets the mean over its phases. The sum goes into the bias, into the
    running mean of a BatchNormalization behind a layer without one, or into a new bias.
    """
    weights, taken = Weights(analysis), smaller.names()
    given = expected_inputs(analysis) if means is None else means
    changed, skipped = [], []
    for node in list(smaller.graph.nodes):
        for name in _consumed(weights, kept, node):
            label = node.name or node.outputs[0].name
            try:
                mean, note = _removed_mean(weights, kept, node, name, given)
                response = taps(node, np.asarray(floats(weights.constants[name]))).sum(
                    axis=-1
                )  # [groups, outputs/group, inputs/group]
                delta = _kept_outputs(analysis, kept, node, name, np.einsum("goi,gi->go", response, mean))
                changed.append(_add(analysis, smaller, node, delta, taken))
            except _Skip as reason:
                note = str(reason)
            if note:
                skipped.append((label, note))
    return Repair(tuple(changed), tuple(skipped))


class _Skip(Exception):  # noqa: N818 - a decision with a reason, not a failure
    """Leave a layer alone."""


def _consumed(weights: Weights, kept: Mask, node: Node) -> list[str]:
    """The weights with which a node reads positions that are removed."""
    names = {weights.params.get(t.name, "") for t in node.inputs} if weights.data(node) else set()
    axes = [a for name in sorted(names) for a in weights.axes.get(name, ()) if a.role == "in"]
    return list(dict.fromkeys(a.param for a in axes if not kept[a.classes].all()))


def _removed_mean(weights: Weights, kept: Mask, node: Node, name: str, means: Mapping[str, Array]) -> tuple[Reals, str]:
    """[groups, channels/group] mean of each input channel that is removed, 0 for the others; and what is not known."""
    weight = node.inputs[_WEIGHT_AT]
    if node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or weights.params.get(weight.name) != name:
        raise _Skip(f"{node.op} with this weight has no bias of a known form")
    if real_weight(node) is None:
        raise _Skip("its weight is computed, or no matrix")
    (axis,) = (a for a in weights.axes[name] if a.role == "in")
    gone = ~kept[axis.classes]
    groups = int(node.attrs.get("group", 1)) if node.op == "Conv" else 1
    gone = np.tile(gone, groups)
    mean = np.asarray(means.get(name, np.full(gone.size, np.nan)), np.float64)
    if mean.shape != gone.shape:
        raise ValueError(f"means of {name!r} must be of shape {gone.shape}, one per channel read, not {mean.shape}")
    unknown = gone & ~np.isfinite(mean)
    if unknown.sum() == gone.sum():
        raise _Skip("the mean of what it loses is not known")
    note = f"the means of {unknown.sum()} of {gone.sum()} removed inputs are not known" if unknown.any() else ""
    return np.where(gone & ~unknown, mean, 0.0).reshape(int(node.attrs.get("group", 1)), -1), note


def _kept_outputs(analysis: Analysis, kept: Mask, node: Node, name: str, response: Reals) -> Reals:
    """[kept outputs] of a response, [groups, outputs/group]."""
    if node.op == "Conv":
        response = response.reshape(1, -1)
    filters = 0 if node.op == "Conv" or (node.op == "Gemm" and node.attrs.get("transB", 0)) else 1
    stay = analysis.kept_axes(kept).get(name, {}).get(filters)
    return (response if stay is None else response[:, stay]).reshape(-1)


# ---- where a bias goes ---------------------------------------------------------------------------------------------


def _add(analysis: Analysis, model: Model, node: Node, delta: Reals, taken: set[str]) -> str:
    """Add [outputs] to what a layer computes; returns the name of the parameter that holds it."""
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    beta = float(node.attrs.get("beta", 1.0))
    if bias is not None and is_float(bias) and beta:
        return _shift(model, node, 2, delta / beta, taken)
    behind = _only_reader(model, node)
    if behind is not None and _takes_mean(analysis, behind, node):
        return _shift(model, behind, 3, -delta, taken)
    if bias is not None:
        raise _Skip("its bias is computed, or not used")
    if node.op == "MatMul":
        return _add_behind(model, behind, delta, taken)
    name = fresh_name(f"{node.name or node.outputs[0].name}_bias", taken)
    new = constant(name, delta.astype(_float_type(node.inputs[_WEIGHT_AT])))
    if len(node.inputs) > 2:  # a bias that is left out by an empty name
        node.inputs[2] = new
    else:
        node.inputs.append(new)
    return name


def _float_type(weight: Tensor) -> np.dtype[Any]:
    """The type of a weight, or of the scale that it is dequantised with."""
    found = dtype_of(weight if is_float(weight) else weight.inputs[0].inputs[1])
    assert found is not None, "only types that can be read get atoms"
    return found


def _add_behind(model: Model, behind: Node | None, delta: Reals, taken: set[str]) -> str:
    """Add to the constant that a MatMul's only reader adds."""
    if behind is not None and behind.op == "Add":
        for i, tensor in enumerate(behind.inputs):
            if is_float(tensor) and shape_of(tensor)[-1:] == delta.shape:
                return _shift(model, behind, i, delta, taken)
    raise _Skip("nothing is added to this MatMul that could hold a bias")


def _only_reader(model: Model, node: Node) -> Node | None:
    out = node.outputs[0]
    hidden = out.name not in model.captured and all(o.name != out.name for o in model.graph.outputs)
    return out.outputs[0] if hidden and len(out.outputs) == 1 else None


def _takes_mean(analysis: Analysis, norm: Node, node: Node) -> bool:
    """Whether a node is a BatchNormalization over the outputs of a layer, with statistics of its own."""
    over = node.op != "MatMul" or len(analysis.shapes.get(node.outputs[0].name, ())) == 2
    return norm.op == "BatchNormalization" and over and not norm.attrs.get("training_mode") and is_float(norm.inputs[3])


def _shift(model: Model, node: Node, index: int, delta: Reals, taken: set[str]) -> str:
    """Add to the constant that a node reads."""
    return set_input(model, node, index, np.asarray(values(node.inputs[index])) + delta, taken)
