"""Concrete shapes of every tensor."""

from __future__ import annotations

import onnx
import pytest
from cleaning import parse

from onnxprune.errors import UsageError
from onnxprune.graph import from_proto
from onnxprune.shapes import concrete_shapes, parse_input_shape, skeleton


def shapes(text, given=None, **options):
    """Shapes of a graph given as text."""
    return concrete_shapes(from_proto(parse(text, **options)), given)


CNN = """g (float[{}] x) => (float[a,b] y) <float[4,3,3,3] w, int64[2] t = {{0, -1}}> {{
    a = Conv(x, w) b = Relu(a) y = Reshape(b, t) }}"""


def weighted(dims):
    """A convolution and a Reshape, with a real weight."""
    model = parse(CNN.format(dims))
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [4, 3, 3, 3], [0.0] * 108)
    model.graph.ClearField("value_info")
    kept = [t for t in model.graph.initializer if t.name != "w"]
    model.graph.ClearField("initializer")
    model.graph.initializer.extend([*kept, tensor])
    return from_proto(model)


def test_every_tensor():
    """Inputs, initializers, inner tensors and outputs; a symbolic batch is 1."""
    expected = {"x": (1, 3, 8, 8), "w": (4, 3, 3, 3), "t": (2,), "a": (1, 4, 6, 6), "b": (1, 4, 6, 6), "y": (1, 144)}
    assert concrete_shapes(weighted("N,3,8,8")) == expected
    assert concrete_shapes(weighted("1,3,8,8")) == expected


def test_given_shape():
    """A shape that is given counts, for the batch and for any other symbol."""
    found = concrete_shapes(weighted("N,3,H,W"), {"x": (2, 3, 5, 7)})
    assert (found["a"], found["y"]) == ((2, 4, 3, 5), (2, 60))


def test_outputs_declared_otherwise():
    """What the file says of its outputs does not hinder: the batch given wins."""
    text = "g (float[N,3] x) => (float[1,3] y) { y = Relu(x) }"
    assert shapes(text, {"x": (4, 3)})["y"] == (4, 3)


def test_symbol_of_another_input():
    """A symbol has the same size in all inputs."""
    text = "g (float[B,L] x, float[B,L] m) => (float[B,L] y) { y = Mul(x, m) }"
    assert shapes(text, {"x": (1, 77)})["m"] == (1, 77)


def test_computed_shapes_are_followed():
    """A Reshape to a target computed from the batch size has a shape, with everything behind it."""
    text = """g (float[N,6,4] x) => (float[a,b] y) <int64[1] k = {24}> {
        n = Shape<end = 1>(x) t = Concat<axis = 0>(n, k) a = Reshape(x, t) y = Relu(a) }"""
    assert shapes(text)["y"] == (1, 24)


def test_last_resort_is_a_run():
    """What inference cannot know (a subgraph's result, the size of a selection) is seen in one run."""
    text = """g (float[1,4] x) => (float[a,b] y) <bool c = {1}, float[2] w = {1, 1}> {
        i = NonZero(w) z = If(c)<then_branch = t () => (float[p,q] u) { u = Concat<axis = 0>(x, x) },
        else_branch = e () => (float[r,s] v) { v = Neg(x) }> y = Relu(z) }"""
    found = shapes(text)
    assert (found["y"], found["z"], found["i"]) == ((2, 4), (2, 4), (1, 2))


def test_unknown_is_left_out():
    """A model that does not run: tensors whose shape nobody knows are absent, the others are there."""
    text = "g (float[1,4] x) => (float[1,4] y) { a = com.acme.Op(x) b = Relu(a) y = Neg(x) }"
    found = shapes(text, domains=', "com.acme" : 1')
    assert found == {"x": (1, 4), "y": (1, 4)}


REFUSED = {
    "other symbols": ("float[N,3,H,W]", {}, r"'x' .*\[N, 3, H, W\].*--input-shape name:1,3,224,224"),
    "fixed size": ("float[N,3,8,8]", {"x": (1, 4, 8, 8)}, r"x:1,4,8,8 contradicts the model, which has \[N, 3, 8, 8\]"),
    "rank": ("float[N,3,8,8]", {"x": (1, 3, 8)}, "contradicts the model"),
    "no such input": ("float[N,3,8,8]", {"z": (1, 3, 8, 8)}, "no such input; it has x"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    """Missing, contradicting and unknown shapes are the user's to correct."""
    kind, given, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        shapes(f"g ({kind} x) => (float y) {{ y = ReduceSum<keepdims = 0>(x) }}", given)


def test_input_without_a_shape():
    """An input of unknown rank needs a shape; given, it is taken as it is."""
    model = parse("g (float[1] x) => (float[1] y) { y = Relu(x) }")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UsageError, match="'x' has no shape"):
        concrete_shapes(from_proto(model))
    assert concrete_shapes(from_proto(model), {"x": (2, 5)})["y"] == (2, 5)


def test_parse_input_shape():
    """Name and sizes; the name may hold a colon."""
    assert parse_input_shape("x:1,3,224,224") == ("x", (1, 3, 224, 224))
    assert parse_input_shape("input:0:4") == ("input:0", (4,))


@pytest.mark.parametrize("text", ["x", "x:", ":1,2", "x:1,b", "x:0,3", "x:1,-1", "x:1.5"])
def test_parse_input_shape_refuses(text):
    """Anything else names the form that is meant."""
    with pytest.raises(UsageError, match="name:1,3,224,224"):
        parse_input_shape(text)


def test_skeleton_has_no_weights():
    """Large constants become inputs with type and shape; shapes, bodies and attributes stay."""
    model = parse("""g (bool c, float[2,64] x) => (float[2,64] y) <int64[2] t = {2, 64}, float[64] w> {
        a = Reshape(x, t) b = Mul(a, w) d = LeakyRelu<alpha = 0.25>(b)
        y = If(c)<then_branch = t () => (float[2,64] p) { p = Neg(d) },
        else_branch = e () => (float[2,64] q) { q = Add(d, w) }> }""")
    model.graph.ClearField("value_info")
    model.graph.initializer.append(onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [64], [0.0] * 64))
    light = skeleton(from_proto(model))
    assert [i.name for i in light.graph.input] == ["c", "x", "w"]
    assert [t.name for t in light.graph.initializer] == ["t"]
    before, after = ([(n.op_type, list(n.input), list(n.attribute)) for n in m.graph.node] for m in (model, light))
    assert after == before


def test_skeleton_of_some_nodes():
    """Only the nodes asked for, and what they read that is constant."""
    model = from_proto(
        parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = Neg(w) b = Abs(x) y = Add(a, b) }")
    )
    light = skeleton(model, model.graph.nodes[:1])
    assert [n.op_type for n in light.graph.node] == ["Neg"]
    assert ([t.name for t in light.graph.initializer], list(light.graph.input)) == (["w"], [])


def test_custom_operators_are_declared_by_the_file():
    """Of an operator that nobody can infer, the file's value_info gives the shape, its symbols bound as in the inputs."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "com.acme" : 1]>
    g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) <float[N, 3, 8, 8] d> { d = com.acme.MyOp(x) y = Relu(d) }""")
    shapes = concrete_shapes(from_proto(model))
    assert (shapes["d"], shapes["y"]) == ((1, 3, 8, 8), (1, 3, 8, 8))
