"""Repairs that change weights once, without looking at what the cut network computes: merge, fold, absorb, ridge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Analysis, Mask
from onnxprune.graph import Model
from onnxprune.recover.absorb import absorb
from onnxprune.recover.fold import fold
from onnxprune.recover.layers import sites
from onnxprune.recover.merge import Partners, Repair, merge
from onnxprune.recover.program import program, write_back
from onnxprune.recover.sequence import LayerRecovery
from onnxprune.recover.statistics import Reader

Reals = NDArray[np.float64]
METHODS = ("absorb", "merge", "fold", "ridge")


def repair(
    method: str,
    analysis: Analysis,
    kept: Mask,
    smaller: Model,
    readers: Sequence[Reader],
    *,
    partners: Partners | None = None,
    ridge: float = 1e-3,
) -> list[LayerRecovery]:
    """Change the weights of a cut model in place, and tell per layer (or parameter) what was done.

    readers: what the layers of the uncut model read; wanted by "absorb" and "ridge". partners: for "merge", the class
    that takes the place of each one; by default the most similar.
    """
    if method == "ridge":
        done = _channel_ridge(analysis, kept, smaller, readers, ridge)
    elif method == "absorb":
        done = absorb(analysis, kept, smaller, {r.site.weight: _channel_means(r) for r in readers})
    elif method == "merge":
        done = merge(analysis, kept, smaller, partners)
    else:
        done = fold(analysis, kept, smaller)
    ops = {t.name: (n.name or n.outputs[0].name, n.op) for n in smaller.graph.nodes for t in n.inputs}
    names = {n.name or n.outputs[0].name: n.op for n in smaller.graph.nodes}
    told = [(name, method, "") for name in done.changed] + [(name, "none", why) for name, why in done.skipped]
    found = []
    for name, how, why in told:
        node, op = ops.get(name, (name, names.get(name, "")))
        found.append(LayerRecovery(node, op, None, None, how, why))
    return found


def _channel_means(reader: Reader) -> Reals:
    """Mean of each input channel, [channels]."""
    mean = reader.inputs.mean.astype(np.float64)
    result: Reals = mean.reshape(len(mean), reader.site.layer.taps, -1).mean(1).reshape(-1)
    return result


def _channel_ridge(analysis: Analysis, kept: Mask, smaller: Model, readers: Sequence[Reader], ridge: float) -> Repair:
    """Express every removed channel by the kept ones, as ridge regression on the original's inputs would, and let the
    consumers read that: B = G[:, P] (G[P, P] + ridge mean(diag) I)^-1, W' = W B, with G the Gram matrix of channels.
    """
    narrow, changed = program(smaller), []
    labels = {x.weight: x.outputs for x in analysis.layers if x.weight}
    known = {r.site.weight: r for r in readers}
    for site in sites(narrow)[0]:
        reader = known.get(site.weight)
        if reader is None or reader.inputs.follows or kept[reader.inputs.classes].all():
            continue
        full, outs = reader.inputs, kept[labels[site.weight]]
        taps, groups = site.layer.taps, reader.site.layer.groups
        channels = full.classes.reshape(groups, taps, -1)[:, 0]
        parts = []
        for g in range(groups if groups == site.layer.groups else 0):
            stay = kept[channels[g]]
            c = len(stay)
            blocks = full.gram[g].reshape(taps, c, taps, c).astype(np.float64)
            gram = np.einsum("kakb->ab", blocks)
            inner = gram[np.ix_(stay, stay)]
            inner += ridge * np.trace(inner) / len(inner) * np.eye(len(inner))
            express = np.linalg.solve(inner, gram[stay])  # [kept, channels]
            weight = full.weight[g].reshape(taps, c, -1)[:, :, outs.reshape(groups, -1)[g]]
            parts.append((express @ weight).reshape(-1, weight.shape[2]))
        if parts:
            site.write(narrow, site.layer.from_matrix(np.stack(parts).astype(np.float32)))
            changed.append(site.weight)
    write_back(narrow, smaller)
    return Repair(tuple(changed), ())
