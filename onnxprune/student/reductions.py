"""Operators that reduce axes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from onnxprune.student.movement import ints
from onnxprune.student.table import OPS, op

Axes = tuple[int, ...]
_REDUCTIONS: dict[str, Callable[[Tensor, Axes, bool], Tensor]] = {
    "L1": lambda x, a, k: x.abs().sum(a, keepdim=k),
    "L2": lambda x, a, k: torch.linalg.vector_norm(x, 2, a, keepdim=k),
    "LogSum": lambda x, a, k: x.sum(a, keepdim=k).log(),
    "LogSumExp": lambda x, a, k: torch.logsumexp(x, a, keepdim=k),
    "Max": lambda x, a, k: x.amax(a, keepdim=k),
    "Mean": lambda x, a, k: x.mean(a, keepdim=k),
    "Min": lambda x, a, k: x.amin(a, keepdim=k),
    "Sum": lambda x, a, k: x.sum(a, keepdim=k),
    "SumSquare": lambda x, a, k: x.square().sum(a, keepdim=k),
}


def _reduce(
    function: Callable[[Tensor, Axes, bool], Tensor],
    x: Tensor,
    axes: Tensor | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Tensor:
    chosen = tuple(ints(axes))
    if not chosen and noop_with_empty_axes:
        return x
    return function(x, chosen or tuple(range(x.ndim)), bool(keepdims))


OPS.update({("", f"Reduce{name}"): partial(_reduce, function) for name, function in _REDUCTIONS.items()})


@op("ReduceProd")
def reduce_prod(x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Product, one axis after the other."""
    chosen = ints(axes)
    if not chosen and noop_with_empty_axes:
        return x
    for axis in sorted((a % x.ndim for a in chosen or range(x.ndim)), reverse=True):
        x = x.prod(axis, keepdim=bool(keepdims))
    return x


@op("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Position of the largest value."""
    return x.argmax(axis, keepdim=bool(keepdims))


@op("CumSum")
def cum_sum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running sum along an axis."""
    place = int(axis)
    x = x.flip(place) if reverse else x
    total = x.cumsum(place)
    total = total - x if exclusive else total
    return total.flip(place) if reverse else total


@op("TopK")
def top_k(x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """Largest values and their positions."""
    found = torch.topk(x, int(k), axis, bool(largest), bool(sorted))
    return found.values, found.indices
