"""Partner merging: whoever read a removed filter reads the most similar kept one in its place.

Removed class i with partner j: W[:, j] += s W[:, i] in every consumer, where s is how much stronger i is than j in what
that consumer reads. Exact where filter i is s times filter j (s > 0), biases and BatchNormalization included, and what
lies between scales along: ReLU and its like, pools, sums, depthwise convolutions. No inputs are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from onnxprune.analysis import Analysis, Axis, Labels, Mask
from onnxprune.criteria.weights import rows_by_class
from onnxprune.factors import lines
from onnxprune.graph import FLOATS, Array, Model, Node, Tensor, constant, dtype_of, fresh_name, is_constant
from onnxprune.recover.strength import Places, Reals, Strength, Weights, strengths

Partners = NDArray[np.int32]
Mixer = Any  # scipy.sparse array [kept positions, positions]; the stubs are an optional development dependency
QUANTISED = "its weights are quantised (behind DequantizeLinear)"
_DEAD = 1e-3  # strength of a partner relative to the removed class, below which it is as good as zero
_ROWS = 2048  # rows of a similarity matrix that are in memory at a time


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did to a cut model.

    changed: names of the parameters that it changed or added; skipped: (name, why) of what it left alone.
    """

    changed: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def merge(analysis: Analysis, kept: Mask, smaller: Model, partners: Partners | None = None) -> Repair:
    """Let the consumers of removed classes read their partners instead.

    kept: [classes + 1] bool; smaller: `cut(analysis, kept)`, whose weights are replaced. partners: [classes + 1] int32,
    for each removed class the class that takes its place (itself removed: that one's partner in turn), 0 for none; by
    default the kept class of its group with the most similar filters. A class whose filters do not resemble its
    partner's (cosine of at most 0) is left out.
    """
    weights = Weights(analysis)
    chosen = nearest(analysis, kept) if partners is None else _alike(analysis, kept, partners)
    strength = strengths(weights)
    changed, skipped = [], list(without_partner(analysis, kept, chosen))
    constants, keep = smaller.constants(), analysis.kept_axes(kept)
    for name, axes in weights.axes.items():
        mixers, why = {}, ""
        for axis in (a for a in axes if a.role == "in" and chosen[a.classes].any()):
            pairs = matched(axis.classes, chosen)
            if pairs is None:
                why = f"classes and their partners own different numbers of positions on axis {axis.axis}"
                continue
            mixers[axis.axis] = mixer(kept[axis.classes], *pairs, _ratios(weights, strength, axis, *pairs))
        if mixers and not is_float(constants[name]):
            mixers, why = {}, QUANTISED
        if mixers:
            constants[name].values = mixed(weights.array(name), mixers, keep[name])
            changed.append(name)
        if why:
            skipped.append((name, why))
    return Repair(tuple(changed), tuple(skipped))


def is_float(tensor: Tensor) -> bool:
    """Whether a tensor is an initializer of a float type."""
    return is_constant(tensor) and dtype_of(tensor) in FLOATS


def set_input(model: Model, node: Node, index: int, array: Array, taken: set[str]) -> str:
    """Give a node another constant of the same type; a copy where others read it too. Returns its name.

    taken: tensor names in use.
    """
    tensor = node.inputs[index]
    shown = tensor.name in model.captured or any(o.name == tensor.name for o in model.graph.outputs)
    new = array.astype(dtype_of(tensor))
    if len(tensor.outputs) == 1 and not shown:
        tensor.values = new
    else:
        node.inputs[index] = constant(fresh_name(tensor.name, taken), new)
    return str(node.inputs[index].name)


def without_partner(analysis: Analysis, kept: Mask, partners: Partners) -> Iterator[tuple[str, str]]:
    """Groups that lose classes without a partner."""
    alone = np.bincount(analysis.group[~kept & (partners == 0)], minlength=len(analysis.groups) + 1)
    for group in np.flatnonzero(alone[1:]):
        yield analysis.groups[group].param, f"{alone[group + 1]} removed classes have no partner that resembles them"


# ---- positions -----------------------------------------------------------------------------------------------------


def matched(classes: Labels, partners: Partners) -> tuple[Places, Places] | None:
    """Positions on an axis of the classes with a partner, and those of the partner: the k-th of one with the k-th of
    the other. None where a class and its partner own different numbers of positions.
    """
    count = np.bincount(classes, minlength=len(partners))
    sources = np.flatnonzero(partners[classes])
    target = partners[classes[sources]]
    if (count[classes[sources]] != count[target]).any():
        return None
    order = np.argsort(classes, kind="stable")
    starts = np.cumsum(count) - count
    rank = np.empty(len(classes), np.int64)
    rank[order] = np.arange(len(classes)) - starts[classes[order]]
    return sources, order[starts[target] + rank[sources]]


def mixer(stays: Mask, sources: Places, targets: Places, scales: Reals, own_scales: Reals | None = None) -> Mixer:
    """[kept positions, positions]: takes the kept positions, and adds to each target its sources times their scale.

    own_scales: [positions] of the kept positions themselves, 1 by default.
    """
    own = np.flatnonzero(stays)
    rows = np.concatenate([np.arange(len(own)), (np.cumsum(stays) - 1)[targets]])
    entries = np.concatenate([np.ones(len(own)) if own_scales is None else own_scales[own], scales])
    return sparse.csr_array((entries, (rows, np.concatenate([own, sources]))), shape=(len(own), len(stays)))


def mixed(array: Array, mixers: Mapping[int, Mixer], keep: Mapping[int, Places]) -> Array:
    """The array with its axes multiplied by their mixers or, where they have none, with their kept indices."""
    work = array if array.dtype.itemsize >= 4 else array.astype(np.float32)
    for axis in sorted(keep.keys() - mixers.keys()):
        work = work.take(keep[axis], axis)
    for axis, matrix in mixers.items():
        others = (*work.shape[:axis], *work.shape[axis + 1 :])
        product = matrix.astype(work.dtype) @ lines(work, axis)
        work = np.moveaxis(product.reshape(-1, *others), 0, axis)
    return np.ascontiguousarray(work).astype(array.dtype, copy=False)


def _ratios(weights: Weights, strength: Mapping[str, Strength], axis: Axis, sources: Places, targets: Places) -> Reals:
    """Strength of each source relative to its target in what the consumer reads.

    1 where nothing is known of either; 0 where the target is dead there and cannot stand in.
    """
    read = [strength[t] for t in weights.read_with(axis.param) if t in strength]
    source, target = (sum((s.size(axis.classes[p]) ** 2 for s in read), np.zeros(len(p))) for p in (sources, targets))
    alive = target > _DEAD**2 * source
    return np.where(alive, np.sqrt(source / np.where(alive, target, 1)), (source == 0).astype(np.float64))


# ---- partners ------------------------------------------------------------------------------------------------------


def nearest(analysis: Analysis, kept: Mask) -> Partners:
    """For each removed class the kept class of its group whose filters point most nearly the same way, [classes + 1].

    0 where none does (cosine of at most 0), where no weight reads the class, or where no kept class of the group owns
    as many positions on every axis.
    """
    partners = np.zeros(analysis.classes + 1, np.int32)
    for removed, stay, cosines in similarities(analysis, kept):
        best = cosines.argmax(axis=1)
        partners[removed] = np.where(cosines[np.arange(len(removed)), best] > 0, stay[best], 0)
    return partners


def _alike(analysis: Analysis, kept: Mask, partners: Partners) -> Partners:
    """Given partners: followed to one that is kept, and dropped where their filters are not alike."""
    final = np.where(kept, np.arange(len(partners)), partners)
    for _ in range(len(partners).bit_length()):
        final = final[final]
    final[~kept[final]] = 0
    result = np.zeros(len(partners), np.int32)
    for removed, stay, cosines in similarities(analysis, kept, alike=False):
        at = np.searchsorted(stay, final[removed]).clip(max=len(stay) - 1)
        good = (stay[at] == final[removed]) & (cosines[np.arange(len(removed)), at] > 0)
        result[removed] = np.where(good, final[removed], 0)
    return result


def similarities(
    analysis: Analysis, kept: Mask, *, alike: bool = True
) -> Iterator[tuple[Places, Places, NDArray[np.float32]]]:
    """Cosines between the filters of removed and of kept classes: (removed ids [n], kept ids [m], [n, m]), by group.

    A class is the concatenation of its producer rows and their biases, BatchNormalization folded in. Filters that read
    the same channels (depthwise) have a cosine of their own; those multiply. alike: -1 where two classes own
    different numbers of positions on some axis. Classes that no weight reads, or that are summed over elsewhere (heads'
    dimensions), are left out.
    """
    weights = Weights(analysis)
    stages, pattern, free = list(weights.stages()), patterns(analysis), mergeable(analysis) & ~kept
    for group in np.unique(analysis.group[free]):
        ids = np.flatnonzero(analysis.group == group)
        removed, stay = ids[free[ids]], ids[kept[ids]]
        place = np.full(analysis.classes + 1, -1)
        place[ids] = np.arange(len(ids))
        mine = [s for s in stages if (place[s.axis.classes] >= 0).any()]
        dense = [rows_by_class(s.rows(), place[s.axis.classes], len(ids)) for s in mine if not s.through]
        single = [rows_by_class(s.rows(), place[s.axis.classes], len(ids)) for s in mine if s.through]
        for start in range(0, len(removed) if len(stay) else 0, _ROWS):
            part = removed[start : start + _ROWS]
            cosines = _cosines([m for m in (dense, *([s] for s in single)) if m], place[part], place[stay])
            if alike:
                cosines[pattern[part][:, None] != pattern[stay]] = -1
            yield part, stay, cosines


def _cosines(features: list[list[Array]], a: Places, b: Places) -> NDArray[np.float32]:
    """Product over the features of the cosines between rows a and rows b; a feature is matrices side by side."""
    result = np.full((len(a), len(b)), 1 if features else -1, np.float32)
    for matrices in features:
        norms = sum(np.einsum("nd,nd->n", m, m) for m in matrices)
        scale = np.sqrt(np.outer(norms[a], norms[b]))
        dots = sum(m[a] @ m[b].T for m in matrices)
        result *= np.where(scale > 0, dots / np.where(scale > 0, scale, 1), norms[a][:, None] == norms[b]).clip(0)
    return result


def patterns(analysis: Analysis) -> NDArray[np.uint64]:
    """Equal for two classes iff they own as many positions on every axis (up to a chance of 2^-64)."""
    pattern = np.zeros(analysis.classes + 1, np.uint64)
    keys = np.random.default_rng(0).integers(2**63, size=len(analysis.axes), dtype=np.uint64)
    for axis, key in zip(analysis.axes, keys, strict=True):
        np.add.at(pattern, axis.classes, key)
    return pattern


def mergeable(analysis: Analysis) -> Mask:
    """[classes + 1] bool: some weight reads the class, and nothing else sums over it."""
    read = np.zeros(analysis.classes + 1, np.bool_)
    for axis in (a for a in analysis.axes if a.role == "in"):
        read[axis.classes] = True
    for contracted in analysis.trace.trace.contracted:
        read[analysis.trace.classes[contracted.atoms]] = False
    read[0] = False
    return read
