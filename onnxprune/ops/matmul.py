"""Products that sum over an axis: in a common frame, operands align as in broadcasting, then axes are summed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.factors import EMPTY, Factor, Shape, View, along, raise_rank, support
from onnxprune.rules import IN, Arg, Refuse, Tracer, rule

NONE = np.zeros(1, np.int32)
Operand = tuple[Arg, tuple[View, Shape]]  # an input, with its view and its shape in the frame
Own = Callable[[int, Factor], Factor]  # (number of the operand, factor in the frame) -> the same factor of that input
WHY = "operands of a product lose the same positions"


@rule("MatMul")
def matmul(t: Tracer, A: Arg, B: Arg) -> View:
    """y[..., m, n] = sum over k of a[..., m, k] * b[..., k, n]"""
    a = A if A.rank > 1 else _reshaped(A, (1, *A.shape))
    b = B if B.rank > 1 else _reshaped(B, (*B.shape, 1))
    left = (tuple(f[..., None] for f in a.view), (*a.shape, 1))
    right = (tuple(np.expand_dims(f, -3) for f in b.view), (*b.shape[:-2], 1, *b.shape[-2:]))
    rank = max(a.rank, b.rank) + 1
    y = _product(t, [(A, left), (B, right)], [rank - 2], _along((A, B), (-1, -2 if B.rank > 1 else -1)))
    lost = [rank - 2] + [rank - 3] * (A.rank == 1) + [rank - 1] * (B.rank == 1)
    return tuple(np.squeeze(f, tuple(lost)) for f in y)


def _reshaped(arg: Arg, shape: Shape) -> Arg:
    return replace(arg, shape=shape, view=tuple(f.reshape(shape) for f in arg.view))


def _along(args: tuple[Arg, Arg], axes: tuple[int, int]) -> Own:
    return lambda i, f: along(f.reshape(-1), axes[i] % args[i].rank, args[i].rank)


def _product(t: Tracer, operands: Sequence[Operand], summed: Sequence[int], own: Own) -> View:
    """Contract operands over the frame axes `summed`, and record the layer."""
    views = [v for _, v in operands]
    frame = np.broadcast_shapes(*(s for _, s in views))
    y, gone = t.contract(views, summed, WHY)
    for f in gone:
        over = [a - len(frame) for a in support(f)]
        readers = [i for i, (_, s) in enumerate(views) if all(s[a] > 1 for a in over)]
        if not any(operands[i][0].param for i in readers):
            t.sums(readers[0], own(readers[0], f))
    _record(t, operands, summed, frame, (*y, *gone))
    return y


def _record(t: Tracer, operands: Sequence[Operand], summed: Sequence[int], frame: Shape, factors: View) -> None:
    """The layer: of its weight, what varies along summed axes reads, the last of the others is its filters."""
    for f in (f for arg, (held, _) in operands if arg.param for f in held):
        if any(f.shape[a - len(frame)] > 1 for a in summed):
            t.trace.roles[f] |= IN
    weight, held = next(((a, v) for a, (v, _) in reversed(operands) if a.param), (None, EMPTY))
    view = [raise_rank(f, len(frame)) for f in held]
    reads = [f.reshape(-1) for f in view if any(f.shape[a] > 1 for a in summed)]
    rows = [f.reshape(-1) for f in view if not any(f.shape[a] > 1 for a in summed)]
    t.layer(weight, rows[-1] if rows else NONE, reads[0] if reads else NONE, frame, factors)


@rule("Gemm")
def gemm(t: Tracer, A: Arg, B: Arg, C: Arg | None = None, *, transA: int = 0, transB: int = 0) -> View:
    """y = a @ b + c, with either operand transposed first."""
    a, b = _turned(A, transA), _turned(B, transB)
    frame_a = (tuple(f[..., None] for f in a.view), (*a.shape, 1))
    frame_b = (tuple(f[None] for f in b.view), (1, *b.shape))
    y = _product(t, [(A, frame_a), (B, frame_b)], [1], _along((A, B), (0 if transA else 1, 1 if transB else 0)))
    out = tuple(np.squeeze(f, 1) for f in y)
    if C is None:
        return out
    return t.align([(out, t.shape()), (C.view, C.shape)], "one bias per output")


def _turned(arg: Arg, transpose: int) -> Arg:
    return replace(arg, shape=arg.shape[::-1], view=tuple(f.T for f in arg.view)) if transpose else arg


@rule("Einsum")
def einsum(t: Tracer, *operands: Arg, equation: str) -> View:
    """Letters are the axes of the frame; those missing from the result are summed over."""
    if isinstance(equation, bytes):
        equation = equation.decode()
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in left or any(len(set(s)) < len(s) for s in terms) or len(terms) != len(operands):
        raise Refuse(f"Einsum equation {equation!r} has an ellipsis, a repeated letter or no explicit result")
    letters = "".join(dict.fromkeys(left.replace(",", "")))
    views = [_in_frame(a, term, letters) for a, term in zip(operands, terms, strict=True)]
    summed = [i for i, c in enumerate(letters) if c not in result]
    y = _product(t, list(zip(operands, views, strict=True)), summed, lambda i, f: _to_result(f, letters, terms[i]))
    return tuple(_to_result(f, letters, result) for f in y)


def _in_frame(arg: Arg, term: str, letters: str) -> tuple[View, Shape]:
    order = sorted(range(len(term)), key=lambda i: letters.index(term[i]))
    missing = tuple(i for i, c in enumerate(letters) if c not in term)
    view = tuple(np.expand_dims(f.transpose(order), missing) for f in arg.view)
    sizes = dict(zip(term, arg.shape, strict=True))
    return view, tuple(sizes.get(c, 1) for c in letters)


def _to_result(factor: Factor, letters: str, result: str) -> Factor:
    lost = tuple(i for i, c in enumerate(letters) if c not in result)
    kept = [c for c in letters if c in result]
    return np.squeeze(factor, lost).transpose([kept.index(c) for c in result])
