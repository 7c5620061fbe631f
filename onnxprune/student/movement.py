"""Operators that move elements, and those that make shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nn

from onnxprune.errors import UnsupportedError
from onnxprune.student.table import op

Sizes = Sequence[int]


def ints(x: Tensor | None) -> list[int]:
    """Sizes, axes or bounds as Python numbers."""
    return [] if x is None else [int(v) for v in x.reshape(-1).tolist()]


@op("Constant")
def constant(
    *,
    value: Tensor | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
) -> Tensor:
    """A stored value."""
    if value is not None:
        return value
    held = next(v for v in (value_float, value_floats, value_int, value_ints) if v is not None)
    whole = value_int is not None or value_ints is not None
    return torch.tensor(held, dtype=torch.int64 if whole else torch.float32)


@op("Shape")
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """Sizes of the axes."""
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@op("Size")
def size(x: Tensor) -> Tensor:
    """Number of elements."""
    return torch.tensor(x.numel(), dtype=torch.int64)


@op("Reshape")
def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    """0 keeps a size unless `allowzero`, -1 takes what is left."""
    sizes = ints(shape)
    return x.reshape(sizes if allowzero else [s or x.shape[i] for i, s in enumerate(sizes)])


@op("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Two axes."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), -1)


@op("Transpose")
def transpose(x: Tensor, *, perm: Sizes | None = None) -> Tensor:
    """y[perm(i)] = x[i]."""
    return x.permute(*(perm or range(x.ndim)[::-1]))


@op("Squeeze")
def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without axes of size 1."""
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


@op("Unsqueeze")
def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    """With new axes of size 1."""
    rank = x.ndim + axes.numel()
    for axis in sorted(a % rank for a in ints(axes)):
        x = x.unsqueeze(axis)
    return x


@op("Concat")
def concat(*x: Tensor, axis: int) -> Tensor:
    """One after the other."""
    return torch.cat(x, axis)


@op("Split")
def split(x: Tensor, split: Tensor | None = None, *, axis: int = 0, num_outputs: int = 0) -> tuple[Tensor, ...]:
    """Parts of given sizes, or equal ones with the last one smaller."""
    sizes = -(-x.shape[axis] // num_outputs) if split is None else ints(split)
    return tuple(torch.split(x, sizes, axis))


@op("Slice")
def slice_(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    """Part of some axes, also backwards."""
    chosen = ints(axes) or list(range(starts.numel()))
    for axis, start, end, step in zip(chosen, ints(starts), ints(ends), ints(steps) or [1] * len(chosen), strict=True):
        size = x.shape[axis]
        start, end, step = slice(start, end if end >= -size or step > 0 else None, step).indices(size)  # noqa: PLW2901
        if step > 0:
            x = x.narrow(axis, start, max(end - start, 0))
            x = x if step == 1 else x.index_select(axis, torch.arange(0, x.shape[axis], step, device=x.device))
        else:
            x = x.index_select(axis, torch.tensor(range(start, end, step), dtype=torch.int64, device=x.device))
    return x


@op("Gather")
def gather(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Positions of one axis."""
    axis %= max(data.ndim, 1)
    index = indices.to(data.device, torch.int64)
    index = torch.where(index < 0, index + data.shape[axis], index)
    found = data.index_select(axis, index.reshape(-1))
    return found.reshape([*data.shape[:axis], *index.shape, *data.shape[axis + 1 :]])


@op("GatherElements")
def gather_elements(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """One position of an axis per element."""
    index = indices.to(data.device)
    return torch.gather(data, axis, torch.where(index < 0, index + data.shape[axis], index))


@op("GatherND")
def gather_nd(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Elements or slices by tuples of positions."""
    if batch_dims:
        raise UnsupportedError("GatherND with batch_dims is not known here")
    return data[tuple(indices.to(data.device).movedim(-1, 0))]


@op("ScatterND")
def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """Some elements replaced."""
    if reduction != "none":
        raise UnsupportedError(f"ScatterND with the reduction {reduction!r} is not known here")
    return data.index_put(tuple(indices.to(data.device).movedim(-1, 0)), updates)


@op("Expand")
def expand(x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast in both directions."""
    return x.expand(torch.broadcast_shapes(x.shape, ints(shape)))


@op("Tile")
def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """Copies side by side."""
    return x.tile(ints(repeats))


@op("ConstantOfShape")
def constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    """The same value everywhere."""
    value = torch.zeros(1) if value is None else value
    return value.reshape(()).expand(ints(shape)).clone()


@op("Range")
def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Numbers in equal steps."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@op("Trilu")
def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """Upper or lower triangle."""
    diagonal = 0 if k is None else int(k)
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@op("Pad")
def pad(
    x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, *, mode: str = "constant"
) -> Tensor:
    """Elements added, or with negative numbers taken away, at the ends of axes."""
    given, chosen = ints(pads), [a % x.ndim for a in ints(axes)] or list(range(x.ndim))
    widths = {a: (given[i], given[i + len(chosen)]) for i, a in enumerate(chosen)}
    if mode == "constant":
        flat = [w for a in reversed(range(x.ndim)) for w in widths.get(a, (0, 0))]
        return nn.pad(x, flat, value=0.0 if value is None else value.item())
    for axis, (before, after) in widths.items():
        if before or after:
            index = np.pad(
                np.arange(x.shape[axis]), (before, after), mode={"edge": "edge", "reflect": "reflect"}.get(mode, "wrap")
            )  # type: ignore[call-overload]
            x = x.index_select(axis, torch.from_numpy(index).to(x.device))
    return x


@op("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels to pixels."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        return x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


@op("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    """Pixels to channels."""
    n, c, h, w = x.shape
    b = blocksize
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


@op("Resize", "Upsample")
def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    antialias: int = 0,
    axes: Sizes | None = None,
    keep_aspect_ratio_policy: str = "stretch",
    **_: float,
) -> Tensor:
    """Nearest or linear, one axis after the other."""
    if mode not in ("nearest", "linear") or antialias or keep_aspect_ratio_policy != "stretch":
        raise UnsupportedError(f"Resize in the mode {mode!r} (or with antialias or an aspect ratio) is not known here")
    chosen = [a % x.ndim for a in axes] if axes else list(range(x.ndim))
    given = [] if scales is None or not scales.numel() else scales.reshape(-1).tolist()
    wanted = ints(sizes) or [int(np.floor(x.shape[a] * s)) for a, s in zip(chosen, given, strict=True)]
    for i, (axis, size) in enumerate(zip(chosen, wanted, strict=True)):
        scale = given[i] if given else size / x.shape[axis]
        if size != x.shape[axis] or scale != 1:
            x = _resized(x, axis, size, scale, mode, coordinate_transformation_mode, nearest_mode)
    return x


_ROUND: dict[str, Callable[[Any], Any]] = {
    "round_prefer_floor": lambda p: np.ceil(p - 0.5),
    "round_prefer_ceil": lambda p: np.floor(p + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _resized(x: Tensor, axis: int, size: int, scale: float, mode: str, coordinates: str, nearest: str) -> Tensor:
    old, at = x.shape[axis], np.arange(size)
    place: Any
    if coordinates == "asymmetric":
        place = at / scale
    elif coordinates == "align_corners":
        place = at * ((old - 1) / max(size - 1, 1))
    elif coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and size > 1):
        place = (at + 0.5) / scale - 0.5
    elif coordinates == "pytorch_half_pixel":
        place = np.zeros(size)
    else:
        raise UnsupportedError(f"Resize with the coordinates {coordinates!r} is not known here")
    if mode == "nearest":
        index = np.clip(_ROUND[nearest](place), 0, old - 1).astype(np.int64)
        return x.index_select(axis, torch.from_numpy(index).to(x.device))
    place = np.clip(place, 0, old - 1)
    low = np.minimum(np.floor(place), old - 1).astype(np.int64)
    high = np.minimum(low + 1, old - 1)
    part = torch.from_numpy((place - low).astype(np.float32)).to(x.device)
    part = part.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    first, second = (x.index_select(axis, torch.from_numpy(i).to(x.device)) for i in (low, high))
    return first + (second - first) * part
