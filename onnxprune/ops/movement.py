"""Ops that only move data: the same numpy op on every factor. Targets are refitted, 0 and -1 kept where they stay
right.
"""

from __future__ import annotations

from onnxprune import factors
from onnxprune.factors import EMPTY, Factor, Shape, View, along, raise_rank, support, volume
from onnxprune.graph import Node, values
from onnxprune.rules import Arg, Kept, Refuse, Tracer, rule

_COPIES = 1 << 16  # longer axes that Expand makes are not channels


@rule("Reshape")
def reshape(t: Tracer, data: Arg, shape: Arg, *, allowzero: int = 0) -> View:
    """y = x.reshape(shape)"""
    if not data.view:
        return EMPTY
    target = shape.ints("target dimensions")
    y = _reshaped(t, data)

    def refit(kept: Kept) -> dict[str, list[int]]:
        want, given = kept.shape(y, t.shape()), kept.shape(data.view, data.shape)
        new = [_target(v, i, want, given, t.shape(), allowzero) for i, v in enumerate(target)]
        return {"shape": new}

    t.refit(refit)
    return y


def _target(value: int, i: int, want: list[int], given: list[int], before: Shape, allowzero: int) -> int:
    """-1 and a 0 that still copies the right size stay; so does what did not change."""
    if value == -1 or (value == 0 and (allowzero or want[i] == given[i])):
        return value
    return want[i] if want[i] != before[i] or value == 0 else value


def _reshaped(t: Tracer, data: Arg) -> View:
    if volume(data.shape) != volume(t.shape()) or 0 in data.shape:
        raise Refuse(f"the shapes {data.shape} and {t.shape()} do not hold the same number of positions")
    return factors.view(factors.reshape(f, data.shape, t.shape()) for f in data.view)


@rule("Flatten", "Squeeze", "Unsqueeze")
def regroup(t: Tracer, data: Arg, axes: Arg | None = None) -> View:
    """Axes merge, or axes of size 1 come and go. A Squeeze of all that are of size 1 must not take new ones along."""
    if not data.view:
        return EMPTY
    if t.node.op == "Squeeze" and axes is None:
        ones = [a for a, n in enumerate(data.shape) if n == 1]

        def refit(kept: Kept) -> dict[str, list[int]]:
            return {"axes": ones} if kept.shape(data.view, data.shape).count(1) > len(ones) else {}

        t.refit(refit)
    return _reshaped(t, data)


@rule("Transpose")
def transpose(t: Tracer, data: Arg, *, perm: list[int] | None = None) -> View:
    """y[i_perm] = x[i]"""
    order = perm or range(data.rank)[::-1]
    return tuple(f.transpose(order) for f in data.view)


@rule("Expand")
def expand(t: Tracer, input: Arg, shape: Arg) -> View:
    """y = x broadcast to `shape`: positions on a new axis are copies, and leave with what they are combined with."""
    y = tuple(raise_rank(f, len(t.shape())) for f in input.view)
    if shape.value is None:
        certain = t.certain(shape)[::-1]
        if any(a >= len(certain) or certain[a] != 1 for f in y for a in _from_the_end(f)):
            raise Refuse("its target dimensions are computed at run time")
        return y
    target, after = shape.ints("target dimensions"), t.shape()
    before = (1,) * (len(after) - input.rank) + input.shape
    y += tuple(along(t.fresh(n), a, len(after)) for a, n in enumerate(after) if before[a] == 1 < n <= _COPIES)

    def refit(kept: Kept) -> dict[str, list[int]]:
        want, offset = kept.shape(y, after), len(after) - len(target)
        return {
            "shape": [want[offset + i] if want[offset + i] != after[offset + i] else v for i, v in enumerate(target)]
        }

    t.refit(refit)
    return y


def _from_the_end(factor: Factor) -> list[int]:
    """The axes a factor varies along, counted from the last."""
    return [factor.ndim - 1 - a for a in support(factor)]


@rule("Tile")
def tile(t: Tracer, input: Arg, repeats: Arg) -> View:
    """y = np.tile(x, repeats): every copy of a position leaves with it."""
    if not input.view:
        return EMPTY
    times = [-1 if n is None else n for n in t.certain(repeats)] if repeats.value is None else repeats.ints("repeats")
    if len(times) != input.rank or any(times[a] < 0 for f in input.view for a in support(f)):
        raise Refuse("its repeats are computed at run time")
    return tuple(factors.tile(f, times) for f in input.view)


@rule("Shape")
def shape(t: Tracer, data: Arg, *, start: int = 0, end: int | None = None) -> View:
    """Sizes read at run time: harmless where only axes that no factor varies along are picked out of them."""
    axes = range(data.rank)[start:end]
    live = {a for f in data.view for a in axes if f.shape[a] > 1}
    model, output = t.trace.model, t.node.outputs[0]
    picked = [_picked(n, len(axes)) for n in output.outputs]
    if output.name in model.captured or any(o.name == output.name for o in model.graph.outputs):
        picked.append(None)
    if live and (not picked or any(p is None or live.intersection(axes[i] for i in p) for p in picked)):
        t.freeze(data.view, "its size is read at run time")
    t.name(*data.view)
    return EMPTY


def _picked(node: Node, rank: int) -> list[int] | None:
    """Which elements of a shape a Gather or a Slice with constants reads; None where that is not known."""
    given = [values(i) for i in node.inputs[1:]]
    numbers = [[int(v) for v in g.reshape(-1)] for g in given if g is not None]
    if not given or len(numbers) < len(given) or node.attrs.get("axis", 0) != 0:
        return None
    if node.op == "Gather":
        return numbers[0]
    if node.op != "Slice" or len(numbers[0]) != 1:
        return None
    start, end, step = numbers[0][0], numbers[1][0], numbers[3][0] if len(numbers) > 3 else 1
    return list(range(rank)[start:end:step])
