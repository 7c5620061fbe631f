"""Atoms, and which arrays of them are the same ones."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import between, proto

from onnxprune.couple import _distinct, components
from onnxprune.graph import from_proto
from onnxprune.trace import NEW, Trace, whole

WHOLE = {
    "itself": lambda a: a,
    "reshaped": lambda a: a.reshape(1, -1, 1, 1),
    "transposed": lambda a: a.reshape(2, 3).T,
    "with new axes": lambda a: a[None, :, None],
    "reversed": lambda a: a[::-1],
    "broadcast over nothing": lambda a: np.broadcast_to(a, (1, 6)),
}
PART = {
    "a slice": lambda a: a[1:],
    "a copy": lambda a: a.copy(),
    "half of it, twice": lambda a: np.broadcast_to(a[:3], (2, 3)),
    "one of it, six times": lambda a: np.broadcast_to(a[:1], (6,)),
}


@pytest.fixture
def trace():
    return Trace(from_proto(proto(between("d = Relu(h)"))), {})


@pytest.mark.parametrize("view", WHOLE.values(), ids=WHOLE)
def test_views_of_all_of_an_array(trace, view):
    """They are known as the array that they show, in whatever order and shape."""
    atoms = trace.fresh(6)
    assert whole(view(atoms)) is atoms
    assert trace.block(view(atoms)) == slice(1, 7)


@pytest.mark.parametrize("view", PART.values(), ids=PART)
def test_views_of_part_of_an_array(trace, view):
    """They are not: taking them for the whole would forget the rest."""
    part = view(trace.fresh(6))
    assert whole(part) is part
    assert trace.block(part) is None
    assert trace.where(part) is part


def test_arrays_without_a_common_atom(trace):
    """Overlap is seen wherever it is, within one array too, and leaves no mark."""
    a, b = trace.fresh(4), trace.fresh(3)
    assert _distinct(trace, [a, b.reshape(1, 3)])
    assert not _distinct(trace, [a, b, a[2:3]])
    assert not _distinct(trace, [np.zeros(2, np.int32), b])
    assert not trace.marked.any()


def test_room_for_more_atoms(trace):
    """Marks, roles and parents of the first atoms survive when the arrays grow."""
    first = trace.fresh(3)
    trace.marked[first] = 1
    trace.roles[first] = 2
    trace.tie(first, trace.fresh(3), ("", ""), "")
    more = trace.fresh(2 * NEW)
    assert trace.marked[1:4].tolist() == [1, 1, 1]
    assert trace.roles[1:4].tolist() == [2, 2, 2]
    assert components(trace)[1:8].tolist() == [1, 2, 3, 1, 2, 3, more[0]]


def test_components(trace):
    """Ties connect element by element, through arrays that adopt and through links; atom 0 names what is frozen."""
    a, b, c, d = (trace.fresh(3) for _ in range(4))
    trace.tie(a, b, ("", ""), "")
    trace.tie(b, c[::-1], ("", ""), "")
    trace.tie(c[:1], d[:1], ("", ""), "")
    trace.tie(d[1:2], 0, ("", ""), "")
    found = components(trace)
    same = lambda *atoms: len({int(found[x]) for x in atoms}) == 1  # noqa: E731
    assert same(a[0], b[0], c[2])
    assert same(a[2], b[2], c[0], d[0])
    assert same(0, d[1])
    assert found[0] == 0
    assert len(set(found.tolist())) == 5
