"""Following shapes and shape arithmetic through a model with symbolic dimensions."""

from __future__ import annotations

import pytest
from cleaning import parse

from onnxprune.shapes.sizes import Size
from onnxprune.shapes.symbolic import interpret

N = Size(1, ("N",))

SHAPES = {
    "convolution": (
        "g (float[N,3,8,8] x, float[4,3,3,3] w) => (float[] y) { a = Conv<strides = [2, 2]>(x, w) y = Flatten(a) }",
        17,
        {"a": (N, 4, 3, 3), "y": (N, 36)},
    ),
    "reshape to a multiple and back": (
        """g (float[N,6,4] x) => (float[] y) <int64[3] t = {-1, 3, 4}, int64[3] u = {-1, 6, 4}> {
        a = Reshape(x, t) b = Relu(a) y = Reshape(b, u) }""",
        17,
        {"b": (Size(2, ("N",)), 3, 4), "y": (N, 6, 4)},
    ),
    "computed target": (
        """g (float[N,6,4] x) => (float[] y) <int64[1] k = {24}> {
        n = Shape<end = 1>(x) t = Concat<axis = 0>(n, k) y = Reshape(x, t) }""",
        17,
        {"n": (1,), "t": (2,), "y": (N, 24)},
    ),
    "computed fill": (
        "g (float[N,6] x) => (float[] y) { s = Shape(x) y = ConstantOfShape(s) }",
        17,
        {"y": (N, 6)},
    ),
    "computed repeats": (
        """g (float[N,6] x, float[1,6] p) => (float[] y) <int64[1] one = {1}> {
        n = Shape<end = 1>(x) t = Concat<axis = 0>(n, one) q = Tile(p, t) y = Add(x, q) }""",
        17,
        {"q": (N, 6), "y": (N, 6)},
    ),
    "expand": (
        """g (float[N,6] x, float[1,6] p) => (float[] y) { s = Shape(x) y = Expand(p, s) }""",
        17,
        {"y": (N, 6)},
    ),
    "a name that means nothing": (
        "g (float[None,6] x) => (float[] y) { y = Relu(x) }",
        17,
        {"y": (Size(1, ("x@0",)), 6)},
    ),
    "a name for two things": (
        "g (float[k,k] x) => (float[] y) { y = Relu(x) }",
        17,
        {"y": (Size(1, ("x@0",)), Size(1, ("x@1",)))},
    ),
    "group normalisation, which onnx does not infer": (
        """g (float[N,4,5] x, float[4] s, float[4] b) => (float[] y) {
        a = GroupNormalization<num_groups = 2>(x, s, b) y = Relu(a) }""",
        21,
        {"y": (N, 4, 5)},
    ),
    "attention, for which onnx takes a symbol for 0": (
        """g (float[2,3,L,8] q, float[2,3,S,8] k, float[2,3,S,8] v) => (float[] y, float[] z) {
        y, , , z = Attention(q, k, v) }""",
        23,
        {"y": (2, 3, Size(1, ("L",)), 8), "z": (2, 3, Size(1, ("L",)), Size(1, ("z@3",)))},
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    """Shapes are exact in the symbols, or a new name where nothing is certain."""
    text, opset, expected = SHAPES[name]
    shapes = interpret(parse(text, opset=opset, ir=10)).shapes
    assert {key: shapes[key] for key in expected} == expected


def test_values():
    """Elements of computed shapes: numbers, symbols, and what is unknown."""
    model = parse("""g (float[N,6,H] x, int64[1] i) => (int64[4] t) <int64 two = {2}, int64[1] z = {0}> {
        s = Shape(x) h = Gather(s, two) k = Div(h, two) k1 = Unsqueeze(k, z) t = Concat<axis = 0>(s, k1) q = Size(x)
        u = Concat<axis = 0>(s, i) }""")
    values = interpret(model).values
    assert values["t"].tolist() == [N, 6, Size(1, ("H",)), None]
    assert values["q"].item() == Size(6, ("H", "N"))
    assert "u" not in values


def test_overflow_is_unknown():
    """What does not fit into 64 bits has no certain value."""
    text = "g (float[1] x) => (int64[1] y) <int64[1] a = {4611686018427387904}> { y = Add(a, a) }"
    assert interpret(parse(text)).values["y"].tolist() == [None]


def test_unknown_op_and_subgraph():
    """Behind an op of another domain or a subgraph nothing is known, and that is no error."""
    model = parse(
        """g (bool b, float[N,6] x) => (float[] y, float[] z) { a = com.acme.Op(x) y = Relu(a)
        z = If(b)<then_branch = t () => (float[N,6] p) { p = Neg(x) },
        else_branch = e () => (float[N,6] q) { q = Abs(x) }> }""",
        domains=', "com.acme" : 1',
    )
    assert not {"a", "y", "z"} & interpret(model).shapes.keys()


def test_bomb():
    """A chain that doubles a vector forty times stops being followed; memory is not touched."""
    lines = " ".join(f"c{i + 1} = Concat<axis = 0>(c{i}, c{i})" for i in range(40))
    facts = interpret(parse(f"g (float[1] x) => (float[] y) <int64[1] c0 = {{1}}> {{ {lines} y = Expand(x, c40) }}"))
    assert "c10" in facts.values
    assert "c11" not in facts.values
    assert facts.shapes["c40"] == (2**40,)
