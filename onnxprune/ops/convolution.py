"""Convolutions and pools: filters are rows of the weight, input channels its columns."""

from __future__ import annotations

from math import prod

import numpy as np

from onnxprune.factors import Factor, View, along
from onnxprune.rules import Arg, Kept, Refuse, Tracer, rule


@rule("Conv")
def conv(t: Tracer, X: Arg, W: Arg, B: Arg | None = None, *, group: int = 1) -> View:
    """y[:, o] = sum over c of x[:, c] * w[o, c], c within the group of o"""
    filters, columns = t.atoms(W, 0), t.atoms(W, 1)
    if group == 1:
        t.tie(t.atoms(X, 1), columns, "input channels are the columns of the weight")
    elif group < columns.size:
        _same_in_every_group(t, X, filters.reshape(group, -1), columns)
    else:
        columns = _whole_groups(t, X, filters.reshape(group, -1))
    _bias(t, B, filters)
    _computed(t, X, W)
    taps = prod(W.shape[2:]) * prod(t.shape()[2:]) * t.shape()[0]
    t.layer(
        W, filters, columns, (taps, *W.shape[:2]), [along(filters, 1, 3)] + [along(columns, 2, 3)] * (columns.size > 1)
    )
    return (along(filters, 1, X.rank),)


@rule("ConvTranspose")
def conv_transpose(t: Tracer, X: Arg, W: Arg, B: Arg | None = None, *, group: int = 1) -> View:
    """y[:, o] = sum over c of x[:, c] * w[c, o], c within the group of o"""
    rows, filters = t.atoms(W, 0), t.atoms(W, 1)
    if group == 1:
        t.tie(t.atoms(X, 1), rows, "input channels are the rows of a transposed weight")
    elif group < rows.size // group:
        grid = rows.reshape(group, -1)
        t.tie(t.atoms(X, 1).reshape(group, -1), grid, SAME)
        t.tie(grid, grid[:1], SAME)
        filters = np.tile(filters, group)
    else:
        _whole_groups(t, X, rows.reshape(group, -1))
        filters = np.repeat(rows.reshape(group, -1)[:, 0], W.shape[1])
    _bias(t, B, filters)
    _computed(t, X, W)
    taps = prod(W.shape[2:]) * prod(X.shape[2:]) * X.shape[0]
    one_group = filters[: W.shape[1]]
    factors = [along(rows, 1, 3)] + [along(one_group, 2, 3)] * (group < max(rows.size // group, 2))
    t.layer(W, filters, rows, (taps, *W.shape[:2]), factors)
    return (along(filters, 1, X.rank),)


WHOLE = "the inputs and outputs of one conv group go together"
SAME = "the same channels go in every conv group"


def _whole_groups(t: Tracer, X: Arg, rows: Factor) -> Factor:
    """Many small groups: a group goes as a whole, and `group` shrinks. rows: [group, rows of the weight per group]"""
    t.tie(t.atoms(X, 1).reshape(len(rows), -1), rows[:, :1], WHOLE)
    t.tie(rows, rows[:, :1], WHOLE)

    def refit(kept: Kept) -> dict[str, int]:
        return {"group": int(kept.mask(rows[:, 0]).sum())}

    t.refit(refit)
    return np.zeros(1, np.int32)


def _same_in_every_group(t: Tracer, X: Arg, rows: Factor, columns: Factor) -> None:
    """Few large groups: they lose the same channels, and `group` stays. columns: [input channels per group]"""
    t.tie(t.atoms(X, 1).reshape(len(rows), -1), columns, SAME)
    t.tie(rows, rows[:1], SAME)


def _computed(t: Tracer, X: Arg, W: Arg) -> None:
    """A weight that is itself computed cannot be zeroed: silence what it is applied to."""
    if not W.param and (channels := t.atoms(X, 1)).any():
        t.sums(0, along(channels, 1, X.rank))


def _bias(t: Tracer, B: Arg | None, filters: Factor) -> None:
    if B is not None:
        t.tie(filters, t.atoms(B, 0), "one bias per filter")


@rule("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
def pool(t: Tracer, X: Arg) -> list[View]:
    """y[:, c] = pool of x[:, c] over space; the indices that MaxPool can return count through all channels."""
    if len(t.node.outputs) > 1 and t.node.outputs[1].name:
        raise Refuse("the indices of MaxPool count through all channels")
    return [t.others(X, *range(2, X.rank))]


@rule("Resize")
def resize(
    t: Tracer,
    X: Arg,
    roi: Arg | None = None,
    scales: Arg | None = None,
    sizes: Arg | None = None,
    *,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    keep_aspect_ratio_policy: str = "stretch",
) -> View:
    """y = x interpolated along the axes whose size changes."""
    if keep_aspect_ratio_policy != "stretch":
        raise Refuse(f"a Resize with the policy {keep_aspect_ratio_policy!r}")
    which = [a % X.rank for a in axes or range(X.rank)]
    crop = roi if coordinate_transformation_mode == "tf_crop_and_resize" else None
    y = t.others(X, *_interpolated(t, X, which, crop, scales))
    if sizes is not None and y:
        given = sizes.ints("sizes")

        def refit(kept: Kept) -> dict[str, list[int]]:
            new = kept.shape(y, t.shape())
            return {"sizes": [new[a] if new[a] != t.shape()[a] else g for a, g in zip(which, given, strict=True)]}

        t.refit(refit)
    return y


def _interpolated(t: Tracer, X: Arg, which: list[int], crop: Arg | None, scales: Arg | None) -> set[int]:
    """Axes along which positions mix: the size changes, or a crop or a scale near 1 moves positions."""
    changed = {i for i, (a, b) in enumerate(zip(X.shape, t.shape(), strict=True)) if a != b}
    if scales is not None and scales.value is not None and scales.value.size:
        changed |= {a for a, s in zip(which, scales.value, strict=True) if s != 1}
    if crop is not None:
        if crop.value is None:
            raise Refuse("the region that it crops is computed at run time")
        starts, ends = crop.value.reshape(2, -1)
        changed |= {a for a, start, end in zip(which, starts, ends, strict=True) if (start, end) != (0, 1)}
    return changed


@rule("Upsample")
def upsample(t: Tracer, X: Arg, scales: Arg | None = None) -> View:
    """The older name of Resize."""
    return resize(t, X, None, scales)


@rule("DepthToSpace")
def depth_to_space(t: Tracer, input: Arg, *, blocksize: int, mode: str = "DCR") -> View:
    """b*b channels become one: they go together. DCR: channel = (block, c); CRD: channel = (c, block)."""
    channels, area = t.atoms(input, 1), blocksize**2
    grid = channels.reshape(area, -1) if mode == "DCR" else channels.reshape(-1, area).T
    t.tie(grid, grid[:1], "channels that become one channel go together")
    return (along(grid[0], 1, input.rank),)


@rule("SpaceToDepth")
def space_to_depth(t: Tracer, input: Arg, *, blocksize: int) -> View:
    """One channel becomes b*b: channel = (block, c)."""
    return (along(np.tile(t.atoms(input, 1), blocksize**2), 1, input.rank),)
