"""Reductions: axes that are not reduced are carried; what a sum, a mean or a maximum over channels does differs."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from onnxprune.factors import Factor, View, along, support
from onnxprune.ops.normalization import observed, renormalise
from onnxprune.rules import Arg, Tracer, rule


def _axes(X: Arg, axes: Arg | None, noop: int) -> tuple[int, ...]:
    if axes is None or (axes.value is not None and axes.value.size == 0):
        return () if noop else tuple(range(X.rank))
    return tuple(a % X.rank for a in axes.ints("axes"))


def _without(view: View, axes: tuple[int, ...], keepdims: int) -> View:
    return view if keepdims else tuple(f.squeeze(axes) for f in view)


@rule("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
def reduce_sum(
    t: Tracer, data: Arg, axes: Arg | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> View:
    """Sums: a removed position contributes nothing."""

    def alone(f: Factor, axis: int) -> None:
        t.bracket(axis, f.reshape(-1), restores=False)
        t.name(f)

    return _reduce(t, data, _axes(data, axes, noop_with_empty_axes), keepdims, alone, sums=True)


@rule("ReduceMean")
def reduce_mean(
    t: Tracer, data: Arg, axes: Arg | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> View:
    """Means: over channels, removing some changes the number they are divided by."""

    def alone(f: Factor, axis: int) -> None:
        renormalise(t, axis, f.reshape(-1), [], "a mean", restores=False)

    return _reduce(t, data, _axes(data, axes, noop_with_empty_axes), keepdims, alone)


@rule("ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")
def reduce_other(
    t: Tracer, data: Arg, axes: Arg | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> View:
    """Maxima and their like: every position that is reduced is observable."""

    def alone(f: Factor, axis: int) -> None:
        t.freeze([f], f"{t.node.op} reads every one of them")

    return _reduce(t, data, _axes(data, axes, noop_with_empty_axes), keepdims, alone)


def _reduce(
    t: Tracer, data: Arg, axes: tuple[int, ...], keepdims: int, alone: Callable[[Factor, int], None], sums: bool = False
) -> View:
    """Carry what is not reduced, whole lines of what partly is, and leave to `alone` what varies only along one reduced
    axis.

    Where reduced positions may leave (`sums`), they do so rather than whole lines if there are more of them.
    """
    out = list(t.others(data, *axes))
    for f in data.view:
        inner = [a for a in support(f) if a in axes]
        reduced = prod(f.shape[a] for a in inner)
        if len(inner) == 1 and (inner == list(support(f)) or (sums and reduced > f.size // reduced)):
            alone(along(t.project(f, inner[0]), inner[0], f.ndim), inner[0])
        elif inner and len(inner) < len(support(f)):
            out.append(t.whole(f, *inner))
        elif inner:
            t.freeze([f], f"{t.node.op} over axes that vary jointly")
    return _without(tuple(out), axes, keepdims)


@rule("ArgMax", "ArgMin")
def arg_max(t: Tracer, data: Arg, *, axis: int = 0, keepdims: int = 1) -> View:
    """An index into `axis`: its positions must all stay."""
    y = observed(t, data, (axis % data.rank,), "their indices are a result")
    return _without(y, (axis % data.rank,), keepdims)


@rule("TopK")
def top_k(t: Tracer, X: Arg, K: Arg | None = None, *, axis: int = -1) -> list[View]:
    """Values and indices along `axis`: its positions must all stay."""
    y = observed(t, X, (axis % X.rank,), "their indices are a result")
    return [y, y]


@rule("CumSum", "CumProd")
def cumulative(t: Tracer, x: Arg, axis: Arg) -> View:
    """Running sums along `axis` depend on all positions before."""
    return observed(t, x, (axis.ints("axis")[0] % x.rank,), "running sums read them in order")
