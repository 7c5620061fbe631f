"""Ops that select or join positions along one axis: Concat, Split, Slice, Gather, ScatterND."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from onnxprune import factors
from onnxprune.analysis import Mask
from onnxprune.factors import EMPTY, Factor, View, along, support
from onnxprune.ops.normalization import observed
from onnxprune.rules import Arg, Kept, Refuse, Tracer, components, rule


@rule("Concat")
def concat(t: Tracer, *inputs: Arg, axis: int) -> View:
    """y = concatenate(inputs, axis): atoms are joined along `axis`, and tied across inputs along the others."""
    axis %= inputs[0].rank
    if all(len(x.view) == 1 and support(x.view[0]) == (axis,) for x in inputs):
        t.name(*(x.view[0] for x in inputs))
        return (along(np.concatenate([x.view[0].reshape(-1) for x in inputs]), axis, inputs[0].rank),)
    out: list[Factor] = []
    for axes in components([support(f) for x in inputs for f in x.view]):
        inside = [[f for f in x.view if axes.intersection(support(f))] for x in inputs]
        if axis in axes:
            out.append(_joined(t, inputs, inside, axis))
        else:
            operands = [
                (tuple(fs), tuple(d if a in axes else 1 for a, d in enumerate(x.shape)))
                for fs, x in zip(inside, inputs, strict=True)
            ]
            out += t.align(operands, "inputs of a Concat lose the same positions on the other axes")
    return factors.view(out)


def _joined(t: Tracer, inputs: tuple[Arg, ...], inside: list[list[Factor]], axis: int) -> Factor:
    """One factor along the concatenated axis; with the others it varies along where every input has one such factor."""
    supports = {tuple(a for a in support(f) if a != axis) for fs in inside for f in fs}
    sizes = [x.shape[axis] for x in inputs]
    if len(supports) == 1 and all(len(fs) == 1 for fs in inside):
        others = [1] * inputs[0].rank
        for a in next(iter(supports)):
            others[a] = inputs[0].shape[a]
        y = factors.concat([fs[0] for fs in inside], sizes, axis, tuple(others))
    else:
        t.freeze([f for fs in inside for f in fs if f.shape[axis] == 1], "not every input of the Concat varies there")
        y = along(np.concatenate([t.atoms(x, axis) for x in inputs]), axis, inputs[0].rank)
    return y


@rule("Split")
def split(t: Tracer, input: Arg, split: Arg | None = None, *, axis: int = 0) -> list[View]:
    """Consecutive parts along `axis`."""
    axis %= input.rank
    lengths = [t.shape(i)[axis] for i in range(len(t.node.outputs))]
    slices = [slice(a, b) for a, b in pairwise(np.cumsum([0, *lengths]))]
    parts = [tuple(factors.cut(f, axis, where) for f in input.view) for where in slices]
    if any(f.shape[axis] > 1 for f in input.view):

        def refit(kept: Kept) -> dict[str, Any]:
            new = [kept.shape(p, t.shape(i))[axis] for i, p in enumerate(parts)]
            return {"split": new, "num_outputs": None} if new != lengths else {}

        t.refit(refit)
    return [factors.view(p) for p in parts]


@rule("Slice")
def slice_(
    t: Tracer,
    data: Arg,
    starts: Arg | None = None,
    ends: Arg | None = None,
    axes: Arg | None = None,
    steps: Arg | None = None,
) -> View:
    """y = x[..., start:end:step, ...]; what is not read does not matter."""
    if not data.view or starts is None or ends is None:
        return EMPTY
    begin, end = starts.ints("starts"), ends.ints("ends")
    which = [a % data.rank for a in (axes.ints("axes") if axes is not None else range(len(begin)))]
    stride = steps.ints("steps") if steps is not None else [1] * len(begin)
    ranges = {
        a: slice(*slice(b, e, s).indices(data.shape[a])) for a, b, e, s in zip(which, begin, end, stride, strict=True)
    }
    live = [a for a in which if any(f.shape[a] > 1 for f in data.view)]
    for a in live:
        _strided(t, data, a, ranges[a])
    y = data.view
    for a in live:
        y = tuple(factors.cut(f, a, ranges[a]) for f in y)
    _unread(t, data.view, y)

    def refit(kept: Kept) -> dict[str, list[int]]:
        new_begin, new_end = list(begin), list(end)
        for i, a in enumerate(which):
            if a in live:
                mask = _mask(kept, data.view, data.shape, a)
                if not mask.all():
                    step_one = ranges[a].step == 1
                    new_begin[i] = int(mask[: ranges[a].start].sum()) if step_one else ranges[a].start
                    new_end[i] = int(mask[: ranges[a].stop].sum())
        return {"starts": new_begin, "ends": new_end} if (new_begin, new_end) != (begin, end) else {}

    t.refit(refit)
    return factors.view(y)


def _strided(t: Tracer, data: Arg, axis: int, where: slice) -> None:
    """Every n-th position of a whole axis stays every n-th as long as blocks of n go together; nothing else can be
    written.
    """
    size, step = data.shape[axis], where.step
    if step == 1:
        return
    if step < 1 or size % step or where.start >= step or where.stop <= size - step:
        raise Refuse("a Slice with steps over part of the channels, or backwards")
    grid = t.atoms(data, axis).reshape(-1, step)
    t.tie(grid, grid[:, :1], "a Slice with steps takes one position of each block")


def _unread(t: Tracer, before: View, after: View) -> None:
    """What is not selected does not matter. What is the only one selected stays: an axis cannot become empty."""
    for f, g in zip(before, after, strict=True):
        t.name(f[~np.isin(f, g)])


def _mask(kept: Kept, view: View, shape: tuple[int, ...], axis: int) -> Mask:
    """[size of axis] bool: the indices of one axis that stay. An index is gone once all its positions are."""
    mask = np.ones(shape[axis], bool)
    for f in (f for f in view if f.shape[axis] > 1):
        mask &= kept.mask(factors.lines(f, axis).reshape(-1)).reshape(shape[axis], -1).any(1)
    return mask


@rule("Gather")
def gather(t: Tracer, data: Arg, indices: Arg, *, axis: int = 0) -> View:
    """y = take(x, indices, axis); indices known only at run time freeze the axis."""
    axis %= data.rank
    rank = len(indices.shape)
    if not any(f.shape[axis] > 1 for f in data.view):
        return tuple(factors.take(f, np.zeros((1,) * rank, np.int64), axis) for f in data.view)
    if indices.value is None:
        kept = observed(t, data, (axis,), "its indices are computed at run time")
        return tuple(factors.take(f, np.zeros((1,) * rank, np.int64), axis) for f in kept)
    index = np.array(indices.ints("indices"), np.int64).reshape(indices.shape) % data.shape[axis]
    if rank == 0:
        return _pick(t, data, int(index), axis)
    new_axes = range(axis, axis + rank)
    y = tuple(factors.compress(factors.take(f, index, axis), new_axes if rank > 1 else ()) for f in data.view)
    _unread(t, data.view, y)

    def refit(kept: Kept) -> dict[str, Any]:
        new = (np.cumsum(_mask(kept, data.view, data.shape, axis)) - 1)[index]
        for i, a in enumerate(new_axes):
            new = new.compress(_mask(kept, y, t.shape(), a), i)
        return {"indices": new}

    t.refit(refit)
    return factors.view(y)


def _pick(t: Tracer, data: Arg, index: int, axis: int) -> View:
    """One index: the axis goes away. Joint factors stop varying along it; a factor of it alone must keep that index."""
    out = []
    for f in data.view:
        if f.shape[axis] > 1 and support(f) == (axis,):
            t.freeze([f], "one of these positions is picked by its index")
        elif f.shape[axis] > 1:
            out.append(t.whole(f, axis).squeeze(axis))
        else:
            out.append(f.squeeze(axis))
    return tuple(out)


@rule("ScatterND")
def scatter_nd(t: Tracer, data: Arg, indices: Arg, updates: Arg) -> View:
    """y = x with rows, found by constant indices, replaced: the leading axes stay, the others are tied."""
    k = indices.shape[-1]
    indices.ints("indices")
    leading = len(indices.shape) - 1
    rest = tuple(f for f in t.others(data, *range(k)))
    tail = tuple(f.reshape(f.shape[k:]) for f in rest)
    new = tuple(f.reshape(f.shape[leading:]) for f in t.others(updates, *range(leading)))
    y = t.align(
        [(tail, data.shape[k:]), (new, updates.shape[leading:])], "rows and their replacements lose the same positions"
    )
    return tuple(f.reshape((1,) * k + f.shape) for f in y)


@rule("GatherND")
def gather_nd(t: Tracer, data: Arg, indices: Arg, *, batch_dims: int = 0) -> View:
    """Slices found by indices into the leading axes: those axes stay, the others are carried."""
    leading = batch_dims + indices.shape[-1]
    lifted = (1,) * (len(t.shape()) - data.rank + leading)
    return tuple(f.reshape(lifted + f.shape[leading:]) for f in t.others(data, *range(leading)))
