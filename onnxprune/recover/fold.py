"""Model folding: clusters of filters become their centroids, with the variance that averaging takes away put back.

Producers get the mean of a cluster's rows, consumers the sum of its columns (Wang et al., 2025). The mean of k
pre-activations with deviations sd and correlations rho has the variance sum_ij rho_ij sd_i sd_j / k^2: the rows are
multiplied by the root of the mean variance over that one. Correlations are cosines between the filters, as if inputs
were white; deviations are those of a BatchNormalization behind the filters, else their norms.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from onnxprune.analysis import Analysis, Axis, Mask
from onnxprune.criteria.weights import batchnorm_folds
from onnxprune.factors import lines
from onnxprune.graph import Array, Model, Node, values
from onnxprune.recover.merge import (
    QUANTISED,
    Mixer,
    Partners,
    Repair,
    is_float,
    matched,
    mergeable,
    mixed,
    mixer,
    nearest,
    patterns,
    set_input,
    without_partner,
)
from onnxprune.recover.strength import Reals, Weights


def fold(
    analysis: Analysis, kept: Mask, smaller: Model, clusters: Partners | None = None, *, variance: bool = True
) -> Repair:
    """Replace the kept classes' filters by the centroids of their clusters.

    kept: [classes + 1] bool; smaller: `cut(analysis, kept)`, whose parameters are replaced. clusters: [classes + 1]
    int32, for each removed class the kept class whose cluster it belongs to, 0 for none; by default the one of its
    group with the most similar filters. variance: whether rows are rescaled to the mean variance of their cluster, by
    at most the root of its size. Biases are averaged; the correction turns about the mean of the betas where a
    BatchNormalization tells the mean. Clusters of classes that own different numbers of positions are left out.
    """
    weights, norms = Weights(analysis), _norms(analysis)
    chosen = _sound(weights, kept, nearest(analysis, kept) if clusters is None else clusters)
    constants, keep, taken = smaller.constants(), analysis.kept_axes(kept), smaller.names()
    nodes = {n.outputs[0].name: n for n in smaller.graph.nodes}
    told, changed = {name for norm in norms.values() for name in norm.vectors}, []
    for name in (n for n, axes in weights.axes.items() if any(chosen[a.classes].any() for a in axes) and n not in told):
        norm, mixers = norms.get(name), {}
        for axis in (a for a in weights.axes[name] if chosen[a.classes].any()):
            cluster = _Clusters(axis, chosen, norm if norm is not None and norm.axis == axis.axis else None)
            gain = (
                cluster.gain(lines(weights.array(name), axis.axis)) if axis.role == "out" and variance else cluster.one
            )
            mixers[axis.axis] = cluster.mixer(kept, gain)
            if cluster.norm is not None:
                node, stays = nodes[cluster.norm.node], kept[axis.classes]
                gamma = cluster.scale(cluster.norm) * cluster.norm.root
                changed.append(set_input(smaller, node, 1, gamma[stays], taken))
                changed.append(set_input(smaller, node, 2, cluster.beta(cluster.norm, gain)[stays], taken))
        constants[name].values = mixed(weights.array(name), mixers, keep[name])
        changed.append(name)
    quantised = [(n, QUANTISED) for n in keep if not is_float(constants[n]) and weights.reads(n)]
    return Repair(tuple(changed), (*without_partner(analysis, kept, chosen), *quantised))


class _Norm(NamedTuple):
    """A BatchNormalization behind a layer alone.

    node: name of its output; axis: that of the filters. [filters]: scale = gamma / sqrt(var + eps), root = that root,
    deviation of its outputs, offset = bias - mean, beta. vectors: names of the parameters of both.
    """

    node: str
    axis: int
    scale: Reals
    root: Reals
    deviation: Reals
    offset: Reals
    beta: Reals
    vectors: tuple[str, ...]


def _norms(analysis: Analysis) -> dict[str, _Norm]:
    """Every BatchNormalization whose parameters can be read, by the weight of the layer before it."""
    nodes = {n.inputs[0].inputs[0].inputs[1].name: n for n in analysis.model.graph.nodes if _follows(n)}
    found = {}
    for weight, ((axis, scale), _) in batchnorm_folds(analysis).items():
        node = nodes.get(weight)
        if node is None:
            continue
        vectors = [*node.inputs[1:5], *node.inputs[0].inputs[0].inputs[2:3]]
        arrays = [np.asarray(values(t), np.float64) for t in vectors]
        if all(a.shape == scale.shape for a in arrays):
            _, beta, mean, var, *bias = arrays
            root = np.sqrt(var + node.attrs.get("epsilon", 1e-5))
            deviation, offset = np.abs(scale) * np.sqrt(var), sum(bias) - mean
            names = tuple(t.name for t in vectors)
            found[weight] = _Norm(node.outputs[0].name, axis, scale, root, deviation, offset, beta, names)
    return found


def _follows(node: Node) -> bool:
    """Whether it is a BatchNormalization behind a node with a weight."""
    layer = node.inputs[0].inputs[0] if node.op == "BatchNormalization" and node.inputs[0].inputs else None
    return layer is not None and len(layer.inputs) > 1


def _sound(weights: Weights, kept: Mask, clusters: Partners) -> Partners:
    """Clusters of classes that own the same positions, all of parameters of float types."""
    pattern = patterns(weights.analysis)
    good = ~kept & kept[clusters] & mergeable(weights.analysis) & (pattern == pattern[clusters])
    for axis in (a for n, axes in weights.axes.items() if not is_float(weights.constants[n]) for a in axes):
        good[axis.classes] = False
    return np.where(good, clusters, 0).astype(np.int32)


class _Clusters:
    """The positions on one axis by cluster.

    sources, targets: positions of the members and of their centres; size [positions] members of a centre, itself
    included; sums [positions, positions]: adds up each cluster at its centre; norm: the BatchNormalization behind them.
    """

    def __init__(self, axis: Axis, chosen: Partners, norm: _Norm | None) -> None:
        pairs, n = matched(axis.classes, chosen), len(axis.classes)
        assert pairs is not None, "patterns agree"
        self.axis, self.norm, self.one = axis, norm, np.ones(n)
        self.sources, self.targets = pairs
        self.size: Reals = np.bincount(self.targets, minlength=n) + self.one
        self.sums = mixer(np.ones(n, np.bool_), self.sources, self.targets, np.ones(len(self.sources)))

    def mean(self, numbers: Reals) -> Reals:
        """[positions] mean over the cluster of each centre."""
        mean: Reals = (self.sums @ numbers) / self.size
        return mean

    def gain(self, rows: Array) -> Reals:
        """[positions] root of (mean variance of a cluster / variance of its mean), at most the root of its size."""
        wide = rows.astype(np.float32) if rows.dtype.itemsize < 4 else rows
        norms = np.sqrt(np.einsum("nd,nd->n", wide, wide, dtype=np.float64))
        deviation = norms if self.norm is None else self.norm.deviation
        signed = deviation / np.where(norms > 0, norms, 1) * (1 if self.norm is None else np.sign(self.norm.scale))
        total = self.sums.astype(wide.dtype) @ (wide * signed.astype(wide.dtype)[:, None])
        variance = np.einsum("nd,nd->n", total, total, dtype=np.float64) / self.size**2
        gain: Reals = np.sqrt(np.minimum(self.mean(deviation**2) / np.where(variance > 0, variance, 1), self.size))
        return np.where((variance > 0) & (self.size > 1), gain, 1.0)

    def scale(self, norm: _Norm) -> Reals:
        """[positions] scale of a centroid's BatchNormalization: the root mean square of its cluster's, never zero."""
        size = np.sqrt(self.mean(norm.scale**2))
        return np.where(self.size > 1, np.where(norm.scale < 0, -1, 1) * np.where(size > 0, size, 1), norm.scale)

    def beta(self, norm: _Norm, gain: Reals) -> Reals:
        """[positions] beta of the centroids: the mean of the outputs stays while deviations from it are scaled."""
        shift = gain * self.mean(norm.scale * norm.offset + norm.beta) + (1 - gain) * self.mean(norm.beta)
        return np.where(self.size > 1, shift - self.scale(norm) * norm.offset, norm.beta)

    def mixer(self, kept: Mask, gain: Reals) -> Mixer:
        """Means of producers and vectors, in units of the BatchNormalization behind them; sums of consumers."""
        stays, part = kept[self.axis.classes], gain / self.size
        if self.axis.role == "in":
            return mixer(stays, self.sources, self.targets, np.ones(len(self.sources)))
        if self.norm is None:
            return mixer(stays, self.sources, self.targets, part[self.targets], part)
        alone, scale = self.size == 1, self.scale(self.norm)
        unit = part / np.where(scale == 0, 1, scale)
        own = np.where(alone, 1.0, unit * self.norm.scale)
        return mixer(stays, self.sources, self.targets, unit[self.targets] * self.norm.scale[self.sources], own)
