"""Second moments of what every layer of a program reads, for criteria and for quick refits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.linalg import LinAlgError
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from onnxprune.analysis import Analysis, Labels, Mask
from onnxprune.criteria import InputStatistics
from onnxprune.graph import Array
from onnxprune.parallel import each
from onnxprune.recover.layers import Site
from onnxprune.recover.linear import product
from onnxprune.recover.program import Feeds, Program, run_through
from onnxprune.recover.reference import Reference

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Reader:
    """A layer with the statistics of its inputs."""

    site: Site
    inputs: InputStatistics


def readers(
    analysis: Analysis, kept: Mask, program: Program, sites: Sequence[Site], reference: Reference
) -> list[Reader]:
    """Statistics of the layers of a program, the cleaned model or one cut to `kept`, on the reference's inputs.

    The positions are those of the reference.
    """
    labels = {x.weight: (x.inputs[kept[x.inputs]], x.outputs[kept[x.outputs]]) for x in analysis.layers if x.weight}
    known = [s for s in sites if s.layer.y in reference.layers and s.weight in labels]
    sums = _moments(program, known, reference)
    found = []
    for s in known:
        inputs, outputs = labels[s.weight]
        if not inputs.any():  # one label may stand for all
            inputs = np.zeros(s.layer.inputs, np.int32)
        gram, mean, count = sums[s.layer.y]
        weight = s.layer.matrix(s.read(program)).astype(np.float64)
        follows = s.layer.groups > 1 and not inputs.any()
        classes = _rows(s, inputs, outputs)
        found.append(Reader(s, InputStatistics(classes, follows, gram / count, mean / count, weight)))
    return found


def _rows(site: Site, inputs: Labels, outputs: Labels) -> Labels:
    """Class of every row of the weight's matrix, [groups, d].

    inputs: of the weight's own input axis, which the groups of a convolution share; where nothing can go along it, a
    group's inputs leave with its outputs.
    """
    groups = site.layer.groups
    shared = np.tile(inputs, (groups, 1)) if inputs.size * groups == site.layer.inputs else inputs.reshape(groups, -1)
    own = outputs.reshape(groups, -1)[:, :1] if groups > 1 else np.zeros((1, 1), np.int32)
    result: Labels = np.tile(np.where(shared > 0, shared, own), (1, site.layer.taps))
    return result


def _moments(program: Program, sites: Sequence[Site], reference: Reference) -> dict[str, tuple[Array, Array, int]]:
    """Sum of x x' [groups, d, d] and of x [groups, d], float32, and their number, on the batches that fits may see."""
    sums: dict[str, list[Array]] = {}

    def visit(index: int, tensors: Feeds) -> None:
        def add(s: Site) -> None:
            rows = s.layer.rows(tensors[s.layer.x], reference.layers[s.layer.y].positions[index])
            parts = [product(rows, rows), rows.sum(1)]
            held = sums.get(s.layer.y)
            sums[s.layer.y] = parts if held is None else [np.add(a, b, out=a) for a, b in zip(held, parts, strict=True)]

        each(add, sites)

    batches = reference.batches[: reference.train]
    run_through(program, batches, [s.layer.x for s in sites], visit, "statistics of the layers' inputs: batch")
    counts = {y: sum(len(p.sample) for p in layer.positions[: len(batches)]) for y, layer in reference.layers.items()}
    return {y: (gram, mean, counts[y]) for y, (gram, mean) in sums.items()}


def refitted(reader: Reader, lost: Mask, program: Program) -> dict[str, Array]:
    """The stored weight, and the bias if it has one, of a layer that reads nothing of the classes `lost`
    any more, after the best linear refit.
    """
    s, site, layer = reader.inputs, reader.site, reader.site.layer
    bias = program.weights.get(layer.bias)
    biased = bias is not None and bias.size == layer.channels and layer.beta != 0
    weight = np.array(s.weight)
    shift = np.zeros((len(weight), weight.shape[2]))
    for g, (moments, classes) in enumerate(zip(s.centred(bias=biased), s.classes, strict=True)):
        gone = lost[classes]
        if not gone.any():
            continue
        stay = ~gone
        if stay.any():
            weight[g][stay] = _solved(moments[np.ix_(stay, stay)], moments[stay] @ s.weight[g])
        weight[g][gone] = 0
        shift[g] = s.mean[g] @ (s.weight[g] - weight[g])
    stored = site.stored(program, layer.from_matrix(weight.astype(np.float32)))
    if biased and bias is not None:
        moved = bias.astype(np.float64) + shift.reshape(bias.shape) / layer.beta
        stored[layer.bias] = moved.astype(bias.dtype)
    return stored


def _solved(matrix: Reals, right: Reals) -> Reals:
    """The solution of a symmetric system; the shortest one where rounding has made it singular."""
    try:
        result: Reals = cho_solve(cho_factor(matrix), right)
    except LinAlgError:
        result = np.linalg.lstsq(matrix, right, rcond=None)[0].astype(np.float64)
    return result
