"""What a metric reads: the output that holds predictions, in the form the metric needs, and labels that fit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

from onnxprune.data.columns import describe
from onnxprune.errors import DataError
from onnxprune.graph import Array
from onnxprune.validation.metrics import Metric, Needs

_SIGMOIDS = frozenset({"Sigmoid", "HardSigmoid", "Softmax"})
_MOVES = frozenset(
    {"Cast", "Clip", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Reading:
    """How predictions are read of an output.

    output: its name; "" for all outputs. bound: what a single score per sample must exceed for class 1: 0.5 of a
    probability, 0 of a logit; None elsewhere. numbers: whether the output holds class numbers, not scores. count: as
    in `whole`.
    """

    output: str
    needs: Needs
    bound: float | None = None
    numbers: bool = False
    count: int | None = None

    def predictions(self, outputs: Mapping[str, Array]) -> Any:
        """Predictions of a batch, samples along axis 0, in the form that the metric needs."""
        if not self.output:
            return next(iter(outputs.values())) if len(outputs) == 1 else dict(outputs)
        found = outputs[self.output]
        if self.needs in {"values", "outputs"}:
            return found
        if self.bound is not None:
            single = found.reshape(len(found)).astype(np.float64)
            return (
                _of_two(single, self.bound) if self.needs == "probabilities" else (single > self.bound).astype(np.intp)
            )
        if self.needs == "probabilities":
            return probabilities(found)
        if self.numbers:
            return _squeezed(found)
        return found.argmax(axis=1) if self.needs == "classes" else found

    def targets(self, labels: Array, outputs: Mapping[str, Array], start: int) -> Array:
        """Labels as the metric takes them; start: the number of the first sample, for messages. Raises DataError."""
        if self.needs == "outputs":
            return labels
        found = outputs[self.output]
        if self.needs == "values":
            return _values(labels, found, start, self.count)
        return _classes(labels, found, self, start)


def whole(array: Array, count: int | None) -> str:
    """Element type and shape that a batch has as part of all the data; count: samples of these, None if not known."""
    return describe(("N" if count is None else count, *array.shape[1:]), array.dtype)


def finite(values: Array) -> Array:
    """As float64, infinity as the largest float32: masked scores are infinite."""
    return np.clip(values.astype(np.float64), -_LARGEST, _LARGEST)


def probabilities(scores: Array) -> Array:
    """Rows [n, classes] that are no probabilities yet become their softmax, in float64."""
    rows = finite(scores)
    if rows.size and rows.min() >= 0 and np.allclose(rows.sum(axis=1), 1, atol=1e-3):
        return np.asarray(rows / rows.sum(axis=1, keepdims=True))
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _of_two(single: Array, bound: float) -> Array:
    one = single if bound else 1 / (1 + np.exp(-np.clip(single, -700, 700)))
    return np.stack([1 - one, one], axis=1)


def reading(
    metric: Metric,
    model: ModelProto,
    outputs: Mapping[str, Array],
    labels: Array,
    wanted: str | None,
    count: int | None,
) -> Reading:
    """How a metric reads a model's outputs; decided on the first batch.

    wanted: the name of the output; without it the first that fits is taken. count: samples of the data, None if not
    known. Raises DataError where none fits the metric and the labels.
    """
    if metric.needs == "outputs":
        return Reading(wanted or "", "outputs", count=count)
    fitting = _fits_values if metric.needs == "values" else _fits_classes
    names = [wanted] if wanted else [n for n, a in outputs.items() if fitting(a, labels)]
    if not names:
        told = ", ".join(f"'{n}' {whole(a, count)}" for n, a in outputs.items())
        what = (
            "values like the labels"
            if metric.needs == "values"
            else "scores of classes, or class numbers, for the labels"
        )
        raise DataError(
            f"--metric {metric.name} needs an output with {what}: the labels are "
            f"{whole(labels, count)}, the outputs {told}{one_hot(labels, outputs)}"
        )
    found = outputs[names[0]]
    numbers = metric.needs != "values" and _numbers(found, labels)
    single = metric.needs != "values" and not numbers and found.size == len(found)
    if metric.needs == "probabilities" and (numbers or not (single or found.ndim == 2)):
        raise DataError(f"--metric {metric.name} needs one score per class; '{names[0]}' is {whole(found, count)}")
    bound = (0.5 if _is_probability(model, names[0]) else 0.0) if single else None
    return Reading(names[0], metric.needs, bound, numbers, count)


def classifies(outputs: Mapping[str, Array], labels: Array) -> bool:
    """Whether the labels are class numbers that an output has scores for."""
    return labels.dtype.kind in "iub" and any(_fits_classes(a, labels) and a.size > len(a) for a in outputs.values())


def _squeezed(labels: Array) -> Array:
    return labels.reshape(len(labels)) if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _fits_classes(output: Array, labels: Array) -> bool:
    """Scores [n, classes, ...], class numbers [n, ...], or one score per sample for labels [n, ...]."""
    wanted = _squeezed(labels).shape
    if _numbers(output, labels) or (output.size == len(output) and len(wanted) == 1):
        return True
    return output.ndim > 1 and output.shape[1] > 1 and (output.shape[0], *output.shape[2:]) == wanted


def _numbers(output: Array, labels: Array) -> bool:
    return output.dtype.kind in "iub" and _squeezed(output).shape == _squeezed(labels).shape


def _fits_values(output: Array, labels: Array) -> bool:
    return output.size == labels.size and len(output) == len(labels) and output.dtype.kind not in "OSU"


def one_hot(labels: Array, outputs: Mapping[str, Array]) -> str:
    alike = labels.ndim == 2 and any(labels.shape == a.shape for a in outputs.values())
    return "; store class numbers, not one row per sample: labels.argmax(1)" if alike else ""


def _is_probability(model: ModelProto, output: str) -> bool:
    """Whether a score comes out of a sigmoid, moved and cast at most."""
    makers: dict[str, NodeProto] = {o: n for n in model.graph.node for o in n.output}
    node = makers.get(output)
    while node is not None and node.op_type in _MOVES:
        node = makers.get(node.input[0])
    return node is not None and node.op_type in _SIGMOIDS


def _classes(labels: Array, output: Array, read: Reading, start: int) -> Array:
    if labels.dtype.kind not in "iub":
        raise DataError(f"the labels are {whole(labels, read.count)}, not class numbers: store them as integers")
    found = _squeezed(labels)
    if not _fits_classes(output, labels):
        raise DataError(
            f"labels {whole(labels, read.count)} do not fit the output '{read.output}' {whole(output, read.count)}"
        )
    if read.numbers:
        return found
    classes = 2 if read.bound is not None else output.shape[1]
    wrong = ((found < 0) | (found >= classes)).reshape(len(found), -1).any(axis=1)
    if wrong.any():
        first = int(wrong.argmax())
        values = np.ravel(found[first])
        value = values[((values < 0) | (values >= classes)).argmax()]
        raise DataError(
            f"the label of sample {start + first} is {value}; the output '{read.output}' has the classes 0 to "
            f"{classes - 1}"
        )
    return found.astype(np.intp)


def _values(labels: Array, output: Array, start: int, count: int | None) -> Array:
    if labels.dtype.kind not in "iubf":
        raise DataError(f"the labels are {whole(labels, count)}, not numbers")
    if not _fits_values(output, labels):
        raise DataError(f"labels {whole(labels, count)} do not fit an output {whole(output, count)}")
    bad = ~np.isfinite(labels).reshape(len(labels), -1).all(axis=1)
    if bad.any():
        raise DataError(f"the label of sample {start + int(bad.argmax())} is NaN or infinity")
    return labels.reshape(output.shape)
