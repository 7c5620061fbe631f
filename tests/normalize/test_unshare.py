"""Initializers that are shared by coincidence get one copy per use."""

from __future__ import annotations

import numpy as np
import pytest
from cleaning import cleaned, initializer, names, parse
from onnx import numpy_helper

TWO = "g (float[2,3] x) => (float[2,3] y) {}{{ a = {}(x, c) y = {}(a, c) }}"


def shared(weights, op="Add"):
    """A model that reads the initializer `c` twice."""
    return parse(TWO.format(weights, op, op))


def test_zeros():
    """A vector of zeros that serves two nodes becomes two; the first use keeps the name."""
    after = cleaned(shared("<float[3] c = {0, 0, 0}>"))
    assert names(after) == {"c", "c_1"}
    assert [list(n.input) for n in after.graph.node] == [["x", "c"], ["a", "c_1"]]
    np.testing.assert_array_equal(initializer(after, "c_1"), np.zeros(3, np.float32), strict=True)


def test_shapes():
    """A Reshape target that serves two nodes becomes two, whatever its values."""
    assert names(cleaned(shared("<int64[2] c = {2, 3}>", op="Reshape"))) == {"c", "c_1"}


def test_twice_in_one_node():
    """Scale and variance of one BatchNormalization are parted as well, in any element type."""
    model = parse("""g (float16[1,3,2,2] x) => (float16[1,3,2,2] y)
        <float16[3] one = {1, 1, 1}, float16[3] nil = {0, 0, 0}> {
        y = BatchNormalization(x, one, nil, nil, one) }""")
    after = cleaned(model, run=False)
    assert list(after.graph.node[0].input) == ["x", "one", "nil", "nil_1", "one_1"]


def test_name_taken():
    """The name of a copy is one that nothing else has."""
    model = parse("g (float[3] x) => (float[3] y) <float[3] c = {0, 0, 0}> { c_1 = Add(x, c) y = Add(c_1, c) }")
    assert names(cleaned(model)) == {"c", "c_2"}


STAYS = {
    "weight": "<float[3] c = {1, 2, 3}>",
    "scalar": "<float c = {2}>",
    "one element": "<float[1] c = {2}>",
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    """Real weight tying, and what has nothing to be pruned, stays shared."""
    assert names(cleaned(shared(STAYS[name]))) == {"c"}


def test_large_stays():
    """A million equal values stay shared: copies would cost more than they free."""
    model = parse("g (float[1024] x) => (float[1024,1024] y) { a = Add(x, c) y = Add(a, c) }")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1024, 1024), np.float32), "c"))
    assert names(cleaned(model)) == {"c"}


def test_embedding_stays():
    """A table of 8-bit weights that two layers read is tied, not shared by coincidence."""
    table = np.arange(8, dtype=np.int8).reshape(4, 2)
    model = parse("""g (int64[1] i) => (float[1,2] y) <float s = {0.5}> {
        a = DequantizeLinear(c, s) b = Gather(a, i) d = DequantizeLinear(c, s) e = Gather(d, i) y = Add(b, e) }""")
    model.graph.initializer.append(numpy_helper.from_array(table, "c"))
    assert "c_1" not in names(cleaned(model))


def test_captured_stays():
    """What a subgraph reads from outside is not copied."""
    model = parse("""g (bool b, float[2] x) => (float[2] y)
        <float[2] c = {0, 0}> { a = Add(x, c) d = Sub(a, c)
        y = If(b)<then_branch = t () => (float[2] p) { p = Add(d, c) },
        else_branch = e () => (float[2] q) { q = Neg(d) }> }""")
    assert names(cleaned(model)) == {"c"}
