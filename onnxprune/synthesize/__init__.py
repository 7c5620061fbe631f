"""Calibration inputs made from the graph alone, for models without data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite, prod

import numpy as np
from numpy.typing import NDArray

from onnxprune.clock import Progress
from onnxprune.errors import UsageError
from onnxprune.graph import Array, Model
from onnxprune.runtime import input_specs
from onnxprune.synthesize.choice import balanced, herd
from onnxprune.synthesize.inputs import Range, Shapes, Source, sources
from onnxprune.synthesize.statistics import Moments, Network, Site, convolutions, normalizations

__all__ = ["Synthetic", "synthesize"]

_POOL = 8  # candidates per input that is wanted
_ELEMENTS = 2**26  # of all candidates together, 256 MB as float32, unless more are wanted
_CHUNK = 2**21  # elements made at a time
_MACS = 2e11  # multiply-adds for looking at candidates
_TRIAL = 16  # inputs on which a range is tried
_RANGES: tuple[Range | None, ...] = (None, (0.0, 1.0), (0.0, 255.0))
_FAR = 1e4  # deviations beyond this, in units of the running statistics, count as much
_EVEN = 1.0  # weight of even classes beside the statistics


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Made-up inputs: arrays [count, ...] by name, and one sentence about them for the report."""

    inputs: dict[str, Array]
    description: str


def synthesize(model: Model, shapes: Shapes, count: int, *, seed: int, input_range: Range | None = None) -> Synthetic:
    """Make `count` samples of every input (more where a fixed batch size does not divide it), in random order.

    shapes: of every tensor, as `concrete_shapes` gives them. input_range: lowest and highest value of floating-point
    inputs; by default mean 0 and deviation 1, [0, 1] or [0, 255], whichever the network's layers answer to most
    normally. Where there are BatchNormalizations, or classes, candidates are chosen so that the running statistics are
    met and the predicted classes are even; they take 256 MB, or twice what is returned where that is more, once more
    while samples are copied out, and as much again for activations and scalar products. Raises UsageError for a missing
    shape, a count below 1 and a range that is none; UnsupportedError for inputs that no values are known for.

    Families, constants and the way of choosing were compared by refitting networks for which there are real images, and
    judged on held-out images of the training side. What is returned depends on the graph and the seed alone.
    """
    _check(count, input_range)
    made = sources(model, shapes)
    batch = next((s.dims[0] for s in input_specs(model.header) if s.dims and isinstance(s.dims[0], int)), 0)
    count = ceil(count / batch) * batch if batch else count
    rng = np.random.default_rng(seed)
    sites = normalizations(model)
    telling = sites or convolutions(model, shapes)
    guessed = input_range is None and bool(telling) and any(s.scaled for s in made)
    span = _guess(Network(model, shapes, telling, batch), made, batch, rng) if guessed else input_range
    pool = _pool(model, shapes, made, count)
    network = Network(model, shapes, sites, batch) if pool > count else None
    if network is None or not (sites or network.classifies):
        return Synthetic(_feeds(made, count, rng, span), _describe(made, count, span, guessed, ""))
    feeds = _feeds(made, pool, rng, span)
    chosen, how = _choose(*network.look(feeds), sites, count, rng)
    taken = {name: array[chosen] for name, array in feeds.items()}
    return Synthetic(taken, _describe(made, count, span, guessed, f", chosen from {pool} {how}"))


def _check(count: int, span: Range | None) -> None:
    if count < 1:
        raise UsageError(f"{count} synthetic inputs are asked for; at least 1 is needed")
    if span is not None and not (all(map(isfinite, span)) and span[0] < span[1]):
        raise UsageError(f"the input range {span} must go from a lower to a higher finite value")


def _feeds(made: Sequence[Source], count: int, rng: np.random.Generator, span: Range | None) -> dict[str, Array]:
    """`count` samples of every input, made in chunks so that what is needed in between stays small."""
    arrays = {s.name: np.empty((count, *s.shape), s.dtype) for s in made}
    for source in made:
        starts = range(0, count, max(1, _CHUNK // max(prod(source.shape), 1)))
        for start in Progress("making inputs: part", len(starts)).over(starts):
            part = arrays[source.name][start : start + starts.step]
            part[:] = source.fed(source.sample(rng, len(part)), span)
    return arrays


def _pool(model: Model, shapes: Shapes, made: Sequence[Source], count: int) -> int:
    """How many candidates are made: a multiple of `count`, as memory and time allow."""
    elements = max(1, sum(prod(s.shape) for s in made))
    times = max(min(_POOL, _ELEMENTS // (elements * count)), 2)
    return count * max(1, min(times, int(_MACS / max(1, count * _macs(model, shapes)))))


def _macs(model: Model, shapes: Shapes) -> float:
    """About the multiply-adds of one sample: those of the convolutions and of products with initializers."""
    total = 0
    for node in (n for n in model.graph.nodes if n.op in ("Conv", "ConvTranspose", "Gemm", "MatMul")):
        out, weight = shapes.get(node.outputs[0].name, ()), shapes.get(node.inputs[1].name, ())
        if node.op == "Conv":
            total += prod(out[1:]) * prod(weight[1:])
        elif node.op == "ConvTranspose":
            total += prod(shapes.get(node.inputs[0].name, ())[1:]) * prod(weight[1:])
        else:
            total += prod(out[1:]) * max(weight[-2:], default=1)
    return float(total)


def _guess(network: Network, made: Sequence[Source], batch: int, rng: np.random.Generator) -> Range | None:
    """The range under which the first layer's output, and the median layer's, is closest to mean 0 and deviation 1."""
    trial = ceil(_TRIAL / batch) * batch if batch else _TRIAL
    raw = {s.name: s.sample(rng, trial) for s in made}
    return min(_RANGES, key=lambda span: _strangeness(network, {s.name: s.fed(raw[s.name], span) for s in made}))


def _strangeness(network: Network, feeds: dict[str, Array]) -> float:
    found = [m.divergence() for m in network.look(feeds)[0]]
    return found[0] + float(np.median(found))


def _choose(
    moments: Sequence[Moments],
    classes: NDArray[np.intp] | None,
    sites: Sequence[Site],
    count: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.intp], str]:
    """Indices of the candidates to take, shuffled, and why these, in words."""
    known = "" if classes is None else f"the {len(np.unique(classes))} classes predicted are as even as can be"
    if not sites and classes is not None:
        return balanced(classes, count, rng), f"so that {known}"
    found = (m.deviations(s).astype(np.float32) for m, s in zip(moments, sites, strict=True))
    features = [np.clip(np.nan_to_num(f, nan=_FAR), -_FAR, _FAR) for f in found]
    gram = sum((f @ f.T for f in features), np.zeros((), np.float32)) / np.float32(len(features))
    if classes is not None:
        gram += np.float32(_EVEN) * _evenness(classes)
    plural = "s" if len(sites) > 1 else ""
    how = f"by the statistics of {len(sites)} BatchNormalization{plural}" + (f" and so that {known}" if known else "")
    return rng.permutation(herd(gram, count)), how


def _evenness(classes: NDArray[np.intp]) -> NDArray[np.float32]:
    """Scalar products of one-hot classes minus even shares, over the classes that occur."""
    _, label, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    return np.equal.outer(label, label).astype(np.float32) - np.float32(1 / len(sizes))


def _describe(made: Sequence[Source], count: int, span: Range | None, guessed: bool, chosen: str) -> str:
    kinds = ", ".join(dict.fromkeys(s.what for s in made))
    where = "mean 0 and deviation 1" if span is None else f"in [{span[0]:g}, {span[1]:g}]"
    scale = f"; {where}{', guessed from the activations' if guessed else ''}" if any(s.scaled for s in made) else ""
    return f"{count} synthetic inputs ({kinds}{scale}){chosen}"
