"""Products that sum over an axis: in one common frame of axes, operands align as in broadcasting, then axes are summed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.factors import EMPTY, Shape, View, raise_rank, support
from onnxprune.rules import Arg, Refuse, Tracer, rule

NONE = np.zeros(1, np.int32)
WHY = "operands of a product lose the same positions"


@rule("MatMul")
def matmul(t: Tracer, A: Arg, B: Arg) -> View:
    """y[..., m, n] = sum over k of a[..., m, k] * b[..., k, n]"""
    a = A if A.rank > 1 else _reshaped(A, (1, *A.shape))
    b = B if B.rank > 1 else _reshaped(B, (*B.shape, 1))
    left = (tuple(f[..., None] for f in a.view), (*a.shape, 1))
    right = (tuple(np.expand_dims(f, -3) for f in b.view), (*b.shape[:-2], 1, *b.shape[-2:]))
    rank = max(a.rank, b.rank) + 1
    y = _product(t, [(A, left), (B, right)], rank - 2, (-1, -2 if B.rank > 1 else -1))
    lost = [rank - 2] + [rank - 3] * (A.rank == 1) + [rank - 1] * (B.rank == 1)
    return tuple(np.squeeze(f, tuple(lost)) for f in y)


def _reshaped(arg: Arg, shape: Shape) -> Arg:
    return Arg(arg.name, shape, tuple(f.reshape(shape) for f in arg.view), arg.param, arg.value)


def _product(t: Tracer, operands: list[tuple[Arg, tuple[View, Shape]]], summed: int, axes: tuple[int, int]) -> View:
    """Contract two operands over frame axis `summed`, which is axis `axes[i]` of operand i; records the layer."""
    views = [v for _, v in operands]
    frame = np.broadcast_shapes(*(s for _, s in views))
    y, gone = t.contract(views, [summed], WHY)
    if not any(a.param for a, _ in operands):
        for f in gone:
            t.sums(0, axes[0], f.reshape(-1))
    _record(t, operands, [summed], frame, (*y, *gone))
    return y


def _record(
    t: Tracer, operands: Sequence[tuple[Arg, tuple[View, Shape]]], summed: Sequence[int], frame: Shape, factors: View
) -> None:
    """The layer: of its weight, what varies along summed axes reads, the last of the others is its filters."""
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
    y = _product(t, [(A, frame_a), (B, frame_b)], 1, (0 if transA else 1, 1 if transB else 0))
    out = tuple(np.squeeze(f, 1) for f in y)
    if C is None:
        return out
    return t.align([(out, t.shape()), (C.view, C.shape)], "one bias per output")


def _turned(arg: Arg, transpose: int) -> Arg:
    return Arg(arg.name, arg.shape[::-1], tuple(f.T for f in arg.view), arg.param, arg.value) if transpose else arg


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
    frame = np.broadcast_shapes(*(s for _, s in views))
    summed = [i for i, c in enumerate(letters) if c not in result]
    y, gone = t.contract(views, summed, WHY)
    if not any(a.param for a in operands):
        for f in gone:
            letter = letters[support(f)[0]]
            i = next(i for i, term in enumerate(terms) if letter in term)
            t.sums(i, terms[i].index(letter), f.reshape(-1))
    _record(t, list(zip(operands, views, strict=True)), summed, frame, (*y, *gone))
    return tuple(_to_result(f, letters, result) for f in y)


def _in_frame(arg: Arg, term: str, letters: str) -> tuple[View, Shape]:
    order = sorted(range(len(term)), key=lambda i: letters.index(term[i]))
    missing = tuple(i for i, c in enumerate(letters) if c not in term)
    view = tuple(np.expand_dims(f.transpose(order), missing) for f in arg.view)
    sizes = dict(zip(term, arg.shape, strict=True))
    return view, tuple(sizes.get(c, 1) for c in letters)


def _to_result(factor: np.ndarray, letters: str, result: str) -> np.ndarray:  # type: ignore[type-arg]
    lost = tuple(i for i, c in enumerate(letters) if c not in result)
    kept = [c for c in letters if c in result]
    return np.squeeze(factor, lost).transpose([kept.index(c) for c in result])

