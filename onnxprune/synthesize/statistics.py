"""What the network says of candidate inputs: the statistics of its layers, and its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper

from onnxprune import runtime
from onnxprune.clock import Progress
from onnxprune.graph import FLOATS, Array, Model, Node, values
from onnxprune.synthesize.inputs import Shapes

Reals = NDArray[np.float64]
_BYTES = 2**27  # of activations at a time
_HUGE = 1e30  # in place of infinity and NaN
_ALIVE = 3  # activations of the largest size that a run holds beside the tapped ones


@dataclass(frozen=True, slots=True)
class Site:
    """A tensor whose channels have a known mean and deviation, [channels]: what a BatchNormalization reads.

    expected: the variance that training saw, divided by deviation squared: 1 but for channels that are nearly dead.
    """

    tensor: str
    mean: Reals
    deviation: Reals
    expected: Reals


def normalizations(model: Model) -> list[Site]:
    """The inputs of all BatchNormalizations that use running statistics."""
    nodes = [n for n in model.graph.nodes if n.op == "BatchNormalization" and not n.attrs.get("training_mode")]
    found = {n.inputs[0].name: _site(n) for n in nodes if all(values(t) is not None for t in n.inputs[3:5])}
    return list(found.values())


def _site(node: Node) -> Site:
    mean, variance = (np.asarray(values(t), np.float64) for t in node.inputs[3:5])
    smoothed = np.maximum(variance, 0) + float(node.attrs.get("epsilon", 1e-5))
    return Site(node.inputs[0].name, mean, np.sqrt(smoothed), variance / smoothed)


def convolutions(model: Model, shapes: Shapes) -> list[Site]:
    """The outputs of all convolutions. Where BatchNormalization was folded into them, mean and deviation are known to
    be of the order of 0 and 1, no more.
    """
    names = [n.outputs[0].name for n in model.graph.nodes if n.op == "Conv"]
    channels = {name: shapes[name][1] for name in names if len(shapes.get(name, ())) > 2}
    return [Site(name, np.zeros(c), np.ones(c), np.ones(c)) for name, c in channels.items()]


@dataclass(frozen=True, slots=True)
class Moments:
    """Of every sample, over its positions and relative to the site: mean, and mean square; both [samples, channels]."""

    mean: Reals
    square: Reals

    def deviations(self, site: Site) -> Reals:
        """[samples, 2 * channels]: their averages over samples are 0 where the statistics match."""
        both = np.concatenate([self.mean, self.square - site.expected], 1)
        return np.asarray(both / np.sqrt(self.mean.shape[1]), np.float64)

    def divergence(self) -> float:
        """KL divergence of the pooled normal distribution from (0, 1), the median over the channels that are alive."""
        mean = self.mean.mean(axis=0)
        variance = self.square.mean(axis=0) - mean**2
        alive = variance > 1e-6
        found = 0.5 * (variance[alive] + mean[alive] ** 2 - 1 - np.log(variance[alive]))
        return float(np.median(found)) if alive.any() else np.inf


class Network:
    """The model, ready to look at inputs; `batch` is the batch size that its inputs fix, or 0."""

    def __init__(self, model: Model, shapes: Shapes, sites: Sequence[Site], batch: int) -> None:
        light, weights = model.split()
        outputs = {o.name for o in light.graph.output}
        extra = [s.tensor for s in sites if s.tensor not in outputs]
        self._session = runtime.session(light, weights=weights, extra=extra, optimize=not sites)
        self._sites = sites
        self._answer = next((o.name for o in model.header.graph.output if _is_answer(o, shapes)), None)
        leading = max((shapes[i][0] for i in self._session.inputs if shapes.get(i)), default=1)
        sizes = [prod(shapes.get(o.name, ())) for n in model.graph.nodes for o in n.outputs]
        held = sum(prod(shapes.get(s.tensor, ())) for s in sites) + _ALIVE * max(sizes, default=1)
        self._batch = batch or int(np.clip(_BYTES * leading // max(4 * held, 1), 1, 64))

    @property
    def classifies(self) -> bool:
        """Whether the model answers with one number per class."""
        return self._answer is not None

    def look(self, feeds: dict[str, Array]) -> tuple[list[Moments], NDArray[np.intp] | None]:
        """Moments at every site, and the predicted class of every sample, [samples] (None where there are none)."""
        count = len(next(iter(feeds.values())))
        wanted = [s.tensor for s in self._sites] + ([self._answer] if self._answer else [])
        found: list[list[Moments]] = [[] for _ in self._sites]
        answers: list[NDArray[np.intp]] = []
        starts = range(0, count, self._batch)
        for start in Progress("looking at made-up inputs: batch", len(starts)).over(starts):
            ran = self._session.run({n: a[start : start + self._batch] for n, a in feeds.items()}, wanted or None)
            for site, parts in zip(self._sites, found, strict=True):
                parts.append(_moments(ran[site.tensor], site))
            if self._answer is not None:
                answer = ran[self._answer]
                answers.append(answer.reshape(len(answer), -1).argmax(axis=1))
        joined = [Moments(*map(np.concatenate, zip(*((m.mean, m.square) for m in p), strict=True))) for p in found]
        return joined, np.concatenate(answers) if answers else None


def _is_answer(output: ValueInfoProto, shapes: Shapes) -> bool:
    """Whether the output is one number per class for every sample."""
    shape, kind = shapes.get(output.name, ()), output.type.tensor_type.elem_type
    classes = len(shape) > 1 and shape[1] > 1 and prod(shape[2:]) == 1
    return classes and kind != TensorProto.UNDEFINED and helper.tensor_dtype_to_np_dtype(kind) in FLOATS


def _moments(activations: Array, site: Site) -> Moments:
    """From raw moments, so that large activations are read twice only; activations that overflow become large ones."""
    flat = activations.reshape(*activations.shape[:2], -1).astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        raw = _finite(flat.mean(axis=2, dtype=np.float64))
        square = _finite(np.einsum("ncp,ncp->nc", flat, flat)) / flat.shape[2]
    centred = square - 2 * site.mean * raw + site.mean**2
    return Moments((raw - site.mean) / site.deviation, centred / site.deviation**2)


def _finite(values: Array) -> Reals:
    return np.nan_to_num(values.astype(np.float64), nan=_HUGE, posinf=_HUGE, neginf=-_HUGE)
