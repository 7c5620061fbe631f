"""Exact arithmetic on dimensions that may be symbolic: 12, N, 12*N; None where nothing is known.

A shape computation is followed element by element. Whatever is not certain for every value of the symbols becomes None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Size:
    """`factor` (not 0) times the product of `symbols` (sorted, at least one; each the size of some dimension)."""

    factor: int
    symbols: tuple[str, ...]

    def __str__(self) -> str:
        return "*".join(self.symbols if self.factor == 1 else (str(self.factor), *self.symbols))


Element: TypeAlias = int | Size | None
Dims: TypeAlias = tuple[Element, ...]
Vector: TypeAlias = NDArray[np.object_]  # an integer tensor of any rank whose items are Elements


def _size(factor: int, symbols: Iterable[str]) -> int | Size:
    ordered = tuple(sorted(symbols))
    return Size(factor, ordered) if factor and ordered else factor


def _parts(a: int | Size) -> tuple[int, tuple[str, ...]]:
    return (a.factor, a.symbols) if isinstance(a, Size) else (int(a), ())


def multiply(a: Element, b: Element) -> Element:
    """a * b."""
    if a == 0 or b == 0:
        return 0
    if a is None or b is None:
        return None
    (f, s), (g, t) = _parts(a), _parts(b)
    return _size(f * g, s + t)


def add(a: Element, b: Element) -> Element:
    """a + b; certain only for like terms."""
    if a is None or b is None:
        return None
    (f, s), (g, t) = _parts(a), _parts(b)
    if f == 0 or g == 0:
        return b if f == 0 else a
    return _size(f + g, s) if s == t else None


def subtract(a: Element, b: Element) -> Element:
    """a - b."""
    return add(a, multiply(b, -1))


def divide(a: Element, b: Element) -> Element:
    """Integer division as ONNX does it (towards zero); certain for symbols only where it leaves no remainder."""
    if a is None or b is None or b == 0:
        return None
    (f, s), (g, t) = _parts(a), _parts(b)
    if not s and not t:
        return abs(f) // abs(g) * (1 if (f < 0) == (g < 0) else -1)
    if f % g or Counter(t) - Counter(s):
        return None
    return _size(f // g, (Counter(s) - Counter(t)).elements())


def modulo(a: Element, b: Element) -> Element:
    """Remainder with the sign of the divisor, as integer Mod has it."""
    if isinstance(a, int) and isinstance(b, int) and b:
        return a % b
    quotient = divide(a, b)
    return None if quotient is None else 0


def equal(a: Element, b: Element) -> Element:
    """1 where certainly equal, 0 where certainly different."""
    if a is not None and a == b:
        return 1
    return 0 if less(a, b) or less(b, a) else None


def less(a: Element, b: Element) -> Element:
    """1 where certainly a < b, 0 where certainly not."""
    if a is None or b is None:
        return None
    (f, s), (g, t) = _parts(a), _parts(b)
    if s == t:
        return int(f < g) if not s or f >= g else None
    certain = f * g < 0 and not (s and t)  # a dimension is never negative, but it may be 0
    return int(f < 0) if certain else None


def minimum(a: Element, b: Element) -> Element:
    """Certain where the order is."""
    return select(less(a, b), a, b)


def maximum(a: Element, b: Element) -> Element:
    """Certain where the order is."""
    return select(less(a, b), b, a)


def select(condition: Element, a: Element, b: Element) -> Element:
    """`a` where the condition holds, else `b`; where it is unknown, what both agree on."""
    if not isinstance(condition, int):
        return a if a == b else None
    return a if condition else b


def volume(dims: Iterable[Element]) -> Element:
    """Product of the dimensions."""
    one: Element = 1
    return reduce(multiply, dims, one)


def each(function: Callable[..., Element], *args: Vector) -> Vector:
    """Apply a function of Elements with broadcasting."""
    return np.asarray(np.frompyfunc(function, len(args), 1)(*args), dtype=object)


def vector(items: Sequence[Element]) -> Vector:
    """A one-dimensional Vector."""
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out


def known(items: Vector | None) -> bool:
    """Whether every element is a number."""
    return items is not None and all(isinstance(e, int) for e in items.flat)


def reshaped(dims: Dims | None, target: Sequence[Element], allowzero: bool = False) -> Dims:
    """Shape after Reshape; None for a dimension that is not certain."""
    out = list(target)
    for i, t in enumerate(target):
        if t == 0 and not allowzero:
            out[i] = dims[i] if dims is not None and i < len(dims) else None
    if -1 in out and dims is not None:
        at = out.index(-1)
        out[at] = divide(volume(dims), volume(out[:at] + out[at + 1 :]))
    return tuple(None if e is None or (isinstance(e, int) and e < 0) else e for e in out)


def expanded(dims: Dims, target: Sequence[Element]) -> Dims:
    """Shape after Expand: both sides broadcast against each other."""
    rank = max(len(dims), len(target))
    left, right = (1,) * (rank - len(dims)) + dims, (1,) * (rank - len(target)) + tuple(target)
    return tuple(_broadcast(a, b) for a, b in zip(left, right, strict=True))


def _broadcast(a: Element, b: Element) -> Element:
    if a == 1 or (a is not None and a == b):
        return b
    if b == 1:
        return a
    sizes = [e for e in (a, b) if isinstance(e, int)]
    return sizes[0] if sizes else None  # a number that is not 1 wins against whatever may stand opposite
