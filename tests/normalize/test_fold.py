"""Nodes that read only constants are evaluated, within limits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from cleaning import cleaned, initializer, names, ops, parse
from onnx import helper, numpy_helper

from onnxprune.graph import from_proto
from onnxprune.normalize import normalize
from onnxprune.normalize.fold import fold_constants

FOLDS = {
    "shape chain": (
        """g (float[2,3] x) => (float[] y) <int64[2] s = {2, 3}, int64 i = {1}, int64[1] m = {-1}, int64[1] z = {0}> {
        a = Gather(s, i) b = Unsqueeze(a, z) c = Concat<axis = 0>(m, b) y = Reshape(x, c) }""",
        ["Reshape"],
        {"c": [-1, 3]},
    ),
    "weight norm": (
        """g (float[1,2] x) => (float[] y) <float[2,2] v = {3, 4, 6, 8}> {
        n = ReduceL2<axes = [0], keepdims = 1>(v) w = Div(v, n) y = MatMul(x, w) }""",
        ["MatMul"],
        {"w": np.float32([[3, 4], [6, 8]]) / np.sqrt(np.float32([45, 80]))},
    ),
    "several outputs": (
        """g (float[2] x) => (float[] y) <float[4] w = {1, 2, 3, 4}, int64[2] s = {2, 2}> {
        a, b = Split<axis = 0>(w, s) c = Add(x, a) y = Add(c, b) }""",
        ["Add", "Add"],
        {"a": [1, 2], "b": [3, 4]},
    ),
    "uniform weight": (
        """g (float[2] x) => (float[] y) <int64[1] s = {2}> {
        w = ConstantOfShape<value = float[1] {0.5}>(s) y = Add(x, w) }""",
        ["Add"],
        {"w": [0.5, 0.5]},
    ),
    "size that depends on data": (
        """g (float[2,2] x) => (float[] y) <float[4] w = {1, 0, 0, 2}, int64[1] m = {-1}> {
        a = NonZero(w) b = Reshape(a, m) y = Gather<axis = 1>(x, c) c = Mod(b, two) }""".replace(
            "y = Gather<axis = 1>(x, c) c = Mod(b, two)", "c = Mod(b, two) y = Gather<axis = 1>(x, c)"
        ).replace("int64[1] m", "int64 two = {2}, int64[1] m"),
        ["Gather"],
        {"c": [0, 1]},
    ),
    "what a graph output reads": (
        "g (float[2] x) => (float[2] y, float[2] z) <float[2] w = {1, 2}> { a = Neg(w) y = Abs(a) z = Add(x, a) }",
        ["Abs", "Add"],
        {"a": [-1, -2]},
    ),
}


def inferred(text, **options):
    """The model, its output's shape as inference finds it."""
    model = parse(text.replace("float[] y", "float y"), **options)
    if "float[] y" in text:
        model.graph.output[0].type.tensor_type.ClearField("shape")
        known = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output[0]
        model.graph.output[0].CopyFrom(known)
    return model


@pytest.mark.parametrize("name", FOLDS)
def test_folds(name):
    """The nodes are gone, and their results are initializers under the same names."""
    text, expected, results = FOLDS[name]
    after = cleaned(inferred(text))
    assert ops(after) == expected
    for key, value in results.items():
        np.testing.assert_allclose(initializer(after, key), value, rtol=1e-6)


STAYS = {
    "graph output": ("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Neg(w) }", ["Neg"]),
    "random": (
        """g (float[2] x) => (float[2] y) <int64[1] s = {2}> {
        a = RandomNormal<shape = [2]>() b = RandomNormalLike(a) c = Bernoulli(b) d = Add(x, c) y = Neg(d) }""",
        ["RandomNormal", "RandomNormalLike", "Bernoulli", "Add", "Neg"],
    ),
    "layers": (
        """g (float[2,2] x) => (float[2,2] y) <float[2,2] v = {1, 2, 3, 4}, float[2,2] w = {1, 2, 3, 4}> {
        a = MatMul(v, w) b = Gemm(v, a) c = Einsum<equation = "ij,jk->ik">(v, b) y = Add(x, c) }""",
        ["MatMul", "Gemm", "Einsum", "Add"],
    ),
    "dequantised weight": (
        """g (float[2] x) => (float[2] y) <int8[2] w = {1, 2}, float s = {0.5}> {
        a = DequantizeLinear(w, s) y = Add(x, a) }""",
        ["DequantizeLinear", "Add"],
    ),
    "quantised": (
        """g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float s = {0.5}, int8 z = {0}> {
        q = QuantizeLinear(w, s, z) a = DequantizeLinear(q, s, z) y = Add(x, a) }""",
        ["QuantizeLinear", "DequantizeLinear", "Add"],
    ),
    "subgraph": (
        """g (float[1] x) => (float[1] y) <bool b = {1}> {
        a = If(b)<then_branch = t () => (float[1] p) { p = Neg(x) }, else_branch = e () => (float[1] q) { q = Abs(x) }>
        y = Neg(a) }""",
        ["If", "Neg"],
    ),
    "read by a subgraph": (
        """g (bool b, float[1] x) => (float[1] y) <float[1] w = {3}> { a = Neg(w)
        y = If(b)<then_branch = t () => (float[1] p) { p = Add(x, a) },
        else_branch = e () => (float[1] q) { q = Neg(x) }> }""",
        ["Neg", "If"],
    ),
    "what onnxruntime and the reference both refuse": (
        """g (float[2] x) => (float[2] y) <float[2] v = {1, 2}, float[3] w = {1, 2, 3}> {
        a = Add(v, w) b = Neg(x) y = Abs(b) }""",
        ["Neg", "Abs"],
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    """What is random, a layer, quantisation, a subgraph or an output is not folded."""
    text, expected = STAYS[name]
    assert ops(cleaned(parse(text), run=name != "random" and "refuse" not in name)) == expected


def test_other_domain_stays():
    """An op of another domain is not ours to evaluate."""
    model = parse(
        "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = com.acme.Op(w) y = Add(x, a) }",
        domains=', "com.acme" : 1',
    )
    assert ops(cleaned(model, run=False)) == ["Op", "Add"]


def test_failing_node_stays():
    """A node that fails when it is run stays, and the others fold."""
    model = parse("""g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, int64[1] i = {7}, float[2] v = {1, 2}> {
        a = Gather(w, i) b = Neg(v) c = Add(x, a) y = Add(c, b) }""")
    after = cleaned(model, run=False)
    assert ops(after) == ["Gather", "Add", "Add"]
    assert initializer(after, "b").tolist() == [-1, -2]


def test_bfloat16():
    """What onnxruntime cannot run, the reference implementation evaluates."""
    model = parse("""g (float[2] x) => (float[2] y) { b = Exp(w) c = Cast<to = 1>(b) y = Add(x, c) }""")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0.5, 2], ml_dtypes.bfloat16), "w"))
    after = cleaned(model, run=False)
    assert ops(after) == ["Add"]
    np.testing.assert_allclose(initializer(after, "c"), np.exp([0.5, 2]), rtol=4e-3)


BOMBS = {
    "ConstantOfShape": "b = ConstantOfShape<value = float[1] {0.0}>(big)",
    "Expand": "b = Expand(one, big)",
    "Tile": "b = Tile(row, big)",
    "Range": "b = Range(nil, huge, step)",
    "OneHot": "b = OneHot(index, depth, pair)",
    "EyeLike": "e = ConstantOfShape(square) b = EyeLike<dtype = 1>(e)",
    "Pad": "b = Pad(row, pads)",
    "Resize": "b = Resize(image, , , sizes)",
    "Upsample by Resize": "b = Resize(image, , scales)",
    "chain": "a = Expand(one, some) b = Tile(a, times)",
    "Concat doubling": " ".join(f"c{i + 1} = Concat<axis = 0>(c{i}, c{i})" for i in range(40))
    + " b = Expand(one, c40)",
}
CONSTANTS = """<int64[2] big = {1000000, 1000000}, float[1] one = {1}, float[1,1] row = {1}, float nil = {0},
    float huge = {1000000000000}, float step = {1}, int64[1] index = {0}, int64 depth = {1000000000000},
    float[2] pair = {0, 1}, int64[2] square = {1000000, 1000000}, int64[4] pads = {0, 0, 1000000, 1000000},
    float[1,1,1,1] image = {1}, int64[4] sizes = {1, 1, 1000000, 1000000}, float[4] scales = {1, 1, 1000000, 1000000},
    int64[1] some = {1000000}, int64[1] times = {1000000}, int64[1] c0 = {1}>"""


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_stays(name):
    """A few bytes that ask for a terabyte are never evaluated; the node stays."""
    model = parse(
        f"g (float[1] x) => (float[1] y) {CONSTANTS} {{ {BOMBS[name]} m = ReduceMax<keepdims = 0>(b) y = Add(x, m) }}"
    )
    last = ops(model)[-3]
    after = normalize(model, fold_cap=1 << 25)
    assert last in [n.op for n in after.graph.nodes]
    assert sum(t.values.nbytes for t in after.constants().values()) <= 1 << 25


def test_cap_is_on_the_total():
    """Results fold in order while the initializers stay within the cap; a second run finds nothing more."""
    lines = " ".join(
        f"w{i} = ConstantOfShape<value = float[1] {{0.5}}>(s{i}) y{i + 1} = Add(y{i}, w{i})" for i in range(4)
    )
    shapes = ", ".join(f"int64[1] s{i} = {{1000}}" for i in range(4))
    model = parse(f"g (float[1000] x) => (float[1000] y) <{shapes}> {{ y0 = Abs(x) {lines} y = Neg(y4) }}")
    after = cleaned(model, fold_cap=10_000)
    assert ops(after).count("ConstantOfShape") == 2
    assert ops(cleaned(model)).count("ConstantOfShape") == 0


def test_cap_does_not_hinder_what_does_not_grow():
    """In a model above the cap, a Transpose of a weight still folds: the weight itself goes."""
    model = weighted("t = Transpose(w) y = MatMul(x, t)")
    assert ops(cleaned(model, fold_cap=16)) == ["MatMul"]
    assert ops(cleaned(weighted("t = Concat<axis = 0>(w, w) y = MatMul(x, t)", rows=40), fold_cap=16)) == [
        "Concat",
        "MatMul",
    ]


def weighted(nodes, rows=20, columns=80):
    """A model with a weight of 1,600 elements and more, which counts as large."""
    model = parse(f"g (float[2,{columns}] x) => (float[2,k] y) {{ {nodes} }}")
    array = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(array if "Concat" not in nodes else array.T.copy(), "w"))
    if "Concat" in nodes:
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", 1, [2, 2 * columns]))
    return model


def test_tied_weight_stays():
    """Transpose(W) beside Gather(W), a tied embedding, is not parted from W."""
    model = parse("""g (int64[2] i) => (float[2,40] y) { e = Gather(w, i) t = Transpose(w) y = MatMul(e, t) }""")
    model.graph.initializer.append(numpy_helper.from_array(np.random.default_rng(0).random((40, 40), np.float32), "w"))
    after = cleaned(model)
    assert ops(after) == ["Gather", "Transpose", "MatMul"]
    assert names(after) == {"w"}


def test_small_shared_constant_folds():
    """A small float is not a weight: reading it elsewhere does not stop folding."""
    model = parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { n = Neg(w) a = Add(x, w) y = Add(a, n) }")
    assert ops(cleaned(model)) == ["Add", "Add"]


def test_same_result_is_computed_once():
    """Layers that share a weight through equal Transposes still share it, and the model does not grow."""
    model = parse("""g (float[2,40] x) => (float[2,40] y) {
        t1 = Transpose(w) a = MatMul(x, t1) t2 = Transpose(w) b = MatMul(a, t2) t3 = Transpose<perm = [1, 0]>(w)
        y = MatMul(b, t3) }""")
    model.graph.initializer.append(
        numpy_helper.from_array(np.random.default_rng(0).random((40, 40), np.float32) / 20, "w")
    )
    after = cleaned(model)
    assert [list(n.input) for n in after.graph.node] == [["x", "t1"], ["a", "t1"], ["b", "t3"]]


def test_pass_reports_nothing_to_do():
    """On a graph without constant nodes the pass returns 0 and leaves weights unread."""
    model = from_proto(parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }"))
    assert fold_constants(model, 1 << 30) == 0
