"""Arithmetic on symbolic sizes agrees with arithmetic on numbers, whatever the symbols stand for."""

from __future__ import annotations

import operator
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.shapes import sizes
from onnxprune.shapes.sizes import Size, each, expanded, known, reshaped, vector, volume

N, M = Size(1, ("N",)), Size(1, ("M",))
symbolic = st.builds(
    lambda f, s: Size(f, tuple(sorted(s))),
    st.sampled_from([-3, -1, 1, 2, 6]),
    st.lists(st.sampled_from("NM"), min_size=1, max_size=2),
)
element = st.one_of(st.none(), st.integers(-6, 6), symbolic)
assignment = st.fixed_dictionaries({"N": st.integers(0, 4), "M": st.integers(0, 4)})


def number(item, values):
    """What an element stands for."""
    return item.factor * prod(values[s] for s in item.symbols) if isinstance(item, Size) else item


BINARY = {
    "add": (sizes.add, operator.add),
    "subtract": (sizes.subtract, operator.sub),
    "multiply": (sizes.multiply, operator.mul),
    "divide": (sizes.divide, lambda a, b: int(np.trunc(a / b))),
    "modulo": (sizes.modulo, operator.mod),
    "equal": (sizes.equal, operator.eq),
    "less": (sizes.less, operator.lt),
    "minimum": (sizes.minimum, min),
    "maximum": (sizes.maximum, max),
}


@pytest.mark.parametrize("name", BINARY)
@given(element, element, assignment)
def test_binary(name, a, b, values):
    """Where the result is certain, it is right for every value of the symbols."""
    function, meaning = BINARY[name]
    result = function(a, b)
    if result is None:
        return
    x, y = number(a, values), number(b, values)
    if x is None or y is None:
        assert result == 0  # nothing else is certain about what is not known: 0 * x
    elif name not in ("divide", "modulo") or y:
        assert number(result, values) == meaning(x, y)


@pytest.mark.parametrize("name", BINARY)
@given(st.integers(-6, 6), st.integers(-6, 6))
def test_numbers(name, a, b):
    """Numbers always have a certain result, except a division by zero."""
    function, meaning = BINARY[name]
    expected = None if name in ("divide", "modulo") and b == 0 else meaning(a, b)
    assert function(a, b) == expected


CERTAIN = {
    "12*N / 12": (sizes.divide(Size(12, ("N",)), 12), N),
    "12*N / N": (sizes.divide(Size(12, ("N",)), N), 12),
    "N*M / M": (sizes.divide(Size(1, ("M", "N")), M), N),
    "N / 2": (sizes.divide(N, 2), None),
    "6*N % 3": (sizes.modulo(Size(6, ("N",)), 3), 0),
    "N + N": (sizes.add(N, N), Size(2, ("N",))),
    "N - N": (sizes.subtract(N, N), 0),
    "N + M": (sizes.add(N, M), None),
    "N + 0": (sizes.add(N, 0), N),
    "N + 1": (sizes.add(N, 1), None),
    "N = -1": (sizes.equal(N, -1), 0),
    "N = 0": (sizes.equal(N, 0), None),
    "N = M": (sizes.equal(N, M), None),
    "-1 < N": (sizes.less(-1, N), 1),
    "same on both sides": (sizes.select(None, N, N), N),
    "volume": (volume((N, 3, M, 2)), Size(6, ("M", "N"))),
    "text": (str(Size(6, ("M", "N"))), "6*M*N"),
}


@pytest.mark.parametrize("name", CERTAIN)
def test_certain(name):
    """What is known of symbolic sizes, and what is not."""
    found, expected = CERTAIN[name]
    assert found == expected


RESHAPES = {
    "numbers": ((2, 6), (3, 4), False, (3, 4)),
    "-1": ((N, 6, 4), (-1, 24), False, (N, 24)),
    "-1 beside the batch": ((N, 6, 4), (N, -1), False, (N, 24)),
    "0 copies": ((N, 6, 4), (0, 0, -1), False, (N, 6, 4)),
    "0 is meant": ((N, 0), (0, N), True, (0, N)),
    "unknown input": (None, (-1, 4, 0), False, (None, 4, None)),
    "unknown target": ((N, 6), (None, -1), False, (None, None)),
    "heads": ((Size(12, ("N",)), 7, 5), (-1, 12, 7, 5), False, (N, 12, 7, 5)),
}


@pytest.mark.parametrize("name", RESHAPES)
def test_reshaped(name):
    """Shape after Reshape."""
    dims, target, allowzero, expected = RESHAPES[name]
    assert reshaped(dims, target, allowzero) == expected


EXPANSIONS = {
    "grown": ((1, 6), (N, 6), (N, 6)),
    "new axis": ((6,), (N, 1), (N, 6)),
    "number against a symbol": ((N, 6), (1, 6), (N, 6)),
    "number against unknown": ((None, 6), (3, 1), (3, 6)),
    "two symbols": ((N, 6), (M, 6), (None, 6)),
}


@pytest.mark.parametrize("name", EXPANSIONS)
def test_expanded(name):
    """Shape after Expand."""
    dims, target, expected = EXPANSIONS[name]
    assert expanded(dims, target) == expected


def test_vectors():
    """Functions apply element by element with broadcasting; a vector is known when all of it is."""
    product = each(sizes.multiply, vector([N, 2, None]), vector([3]))
    assert product.tolist() == [Size(3, ("N",)), 6, None]
    assert [known(vector(v)) for v in ([1, 2], [1, N], [1, None])] == [True, False, False]
    assert not known(None)
