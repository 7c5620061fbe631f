"""Shape arithmetic that gives the same for every batch size becomes constants."""

from __future__ import annotations

import numpy as np
import pytest
from cleaning import cleaned, initializer, ops, parse

from onnxprune.normalize.shape_values import expand_target, reshape_target, resize_scales
from onnxprune.shapes.sizes import Size

INDICES = "int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, int64 i3 = {3}, int64[1] z = {0}, int64[1] m = {-1}"
N = Size(1, ("N",))
MATRIX = "g (float[N,6,4] x) => (float[a,b] y)"

BECOME_CONSTANT = {
    "all sizes are known": (
        """g (float[2,6,4] x) => (float[a,b] y) <int64[1] z = {0}, int64[1] two = {2}, int64[1] m = {-1}> {
        s = Shape(x) h = Slice(s, z, two) p = ReduceProd<keepdims = 1>(h) t = Concat<axis = 0>(p, m) y = Reshape(x,
        t) }""",
        {"t": [12, -1]},
    ),
    "batch kept, channels merged": (
        f"""{MATRIX} <{INDICES}> {{
        s = Shape(x) n = Gather(s, i0) c = Gather(s, i1) h = Gather(s, i2) k = Mul(c, h)
        n1 = Unsqueeze(n, z) k1 = Unsqueeze(k, z) t = Concat<axis = 0>(n1, k1) y = Reshape(x, t) }}""",
        {"y_shape": [0, 24]},
    ),
    "-1 becomes the number it stands for": (
        f"""{MATRIX} <{INDICES}> {{
        s = Shape(x) n = Gather(s, i0) n1 = Unsqueeze(n, z) t = Concat<axis = 0>(n1, m) y = Reshape(x, t) }}""",
        {"y_shape": [0, 24]},
    ),
    "batch merged into another axis": (
        f"""{MATRIX} <{INDICES}> {{
        s = Shape(x) n = Gather(s, i0) c = Gather(s, i1) h = Gather(s, i2) k = Mul(n, c)
        k1 = Unsqueeze(k, z) h1 = Unsqueeze(h, z) t = Concat<axis = 0>(k1, h1) y = Reshape(x, t) }}""",
        {"y_shape": [-1, 4]},
    ),
    "heads: a multiple of the batch and back": (
        f"""g (float[N,6,4] x) => (float[a,b,c] y) <{INDICES}, int64 two = {{2}}, int64[1] half = {{2}}> {{
        s = Shape(x) n = Gather(s, i0) c = Gather(s, i1) d = Mul(n, two) n1 = Unsqueeze(n, z) c1 = Unsqueeze(c, z)
        d1 = Unsqueeze(d, z) t = Concat<axis = 0>(d1, c1, half) a = Reshape(x, t)
        r = Relu(a) u = Shape(r) e = Gather(u, i0) f = Div(e, two) f1 = Unsqueeze(f, z)
        v = Concat<axis = 0>(f1, c1, m) y = Reshape(r, v) }}""",
        {"a_shape": [-1, 6, 2], "y_shape": [-1, 6, 4]},
    ),
    "Shape with start and end, allowzero": (
        f"""{MATRIX} <{INDICES}, int64[1] k = {{24}}> {{
        n = Shape<start = 0, end = 1>(x) t = Concat<axis = 0>(n, k) y = Reshape<allowzero = 1>(x, t) }}""",
        {"y_shape": [-1, 24]},
    ),
    "expand to what it already is": (
        f"""g (float[N,6,1] x) => (float[N,6,5] y) <{INDICES}, int64[1] five = {{5}}> {{
        s = Shape(x) n = Gather(s, i0) n1 = Unsqueeze(n, z) c = Gather(s, i1) c1 = Unsqueeze(c, z)
        t = Concat<axis = 0>(n1, c1, five) y = Expand(x, t) }}""",
        {"y_shape": [1, 1, 5]},
    ),
    "torch's expand with -1": (
        f"""g (float[N,6,1] x) => (float[N,6,5] y) <{INDICES}, int64[1] five = {{5}}, int64[1] three = {{3}}> {{
        s = Shape(x) n = Gather(s, i0) n1 = Unsqueeze(n, z) t = Concat<axis = 0>(n1, m, five)
        o = ConstantOfShape<value = int64[1] {{1}}>(three) mm = Mul(o, m) e = Equal(t, mm) w = Where(e, o, t)
        y = Expand(x, w) }}""",
        {"y_shape": [1, 1, 5]},
    ),
    "scale of attention": (
        f"""g (float[N,6,4] x) => (float[N,6,4] y) <{INDICES}> {{
        s = Shape(x) h = Gather(s, i2) f = Cast<to = 1>(h) q = Sqrt(f) y = Div(x, q) }}""",
        {"q": 2.0},
    ),
    "behind Tile and Split": (
        f"""g (float[N,3,4] x) => (float[a,b] y) <{INDICES}, int64[3] r = {{1, 2, 1}}> {{
        a = Tile(x, r) s = Shape(a) n, c, h = Split<axis = 0>(s) p = Mul(c, h) t = Concat<axis = 0>(n, p)
        y = Reshape(a, t) }}""",
        {"y_shape": [0, 24]},
    ),
}


@pytest.mark.parametrize("name", BECOME_CONSTANT)
def test_becomes_constant(name):
    """The nodes that computed a certain value are gone; sizes are explicit but for the batch."""
    text, expected = BECOME_CONSTANT[name]
    after = cleaned(parse(text))
    assert {key: initializer(after, key).tolist() for key in expected} == expected
    assert "Shape" not in ops(after)


STAYS = {
    "two sizes that are not known": f"""g (float[N,6,H,W] x) => (float[a,b,c,d,e] y)
        <{INDICES}, int64[2] k = {{2, 3}}> {{
        s = Shape(x) n = Gather(s, i0) h = Gather(s, i2) w = Gather(s, i3) n1 = Unsqueeze(n, z) h1 = Unsqueeze(h, z)
        w1 = Unsqueeze(w, z) t = Concat<axis = 0>(h1, w1, n1, k) y = Reshape(x, t) }}""",
    "a name that means nothing": f"""g (float[None,None,3] x) => (float[a,b,c] y) <{INDICES}, int64[1] k = {{3}}> {{
        s = Shape(x) n = Gather(s, i0) c = Gather(s, i1) n1 = Unsqueeze(n, z) c1 = Unsqueeze(c, z)
        t = Concat<axis = 0>(c1, n1, k) y = Reshape(x, t) }}""",
    "class token over the batch": f"""g (float[N,6,4] x) => (float[N,7,4] y)
        <{INDICES}, float[1,1,4] w = {{1, 2, 3, 4}}> {{
        s = Shape(x) n = Gather(s, i0) n1 = Unsqueeze(n, z) t = Concat<axis = 0>(n1, m2, m2) m2 = Neg(m)
        e = Expand(w, t) y = Concat<axis = 1>(e, x) }}""".replace(
        "t = Concat<axis = 0>(n1, m2, m2) m2 = Neg(m)", "m2 = Neg(m) t = Concat<axis = 0>(n1, m2, m2)"
    ),
    "the shape is the result": "g (float[2,6] x) => (int64[2] y) { y = Shape(x) }",
    "values of the data": """g (float[N,6] x, int64[2] t) => (float[a,b] y) { y = Reshape(x, t) }""",
}


@pytest.mark.parametrize("name", [n for n in STAYS if n != "values of the data"])
def test_stays(name):
    """What is not certain for every batch size stays computed."""
    model = parse(STAYS[name])
    assert "Shape" in ops(cleaned(model))


def test_target_given_at_run_time_stays():
    """A Reshape target that is an input of the model is not touched."""
    after = cleaned(parse(STAYS["values of the data"]), run=False)
    assert list(after.graph.node[0].input) == ["x", "t"]


def test_captured_value_stays():
    """A shape that a subgraph reads keeps its node."""
    model = parse("""g (bool b, float[2,3] x) => (int64[2] y) { s = Shape(x)
        y = If(b)<then_branch = t () => (int64[2] p) { p = Neg(s) },
        else_branch = e () => (int64[2] q) { q = Abs(s) }> }""")
    assert ops(cleaned(model)) == ["Shape", "If"]


TARGETS = {
    "numbers": ((N, 6), [-1, 6], False, [-1, 6]),
    "kept": ((N, 6), [N, 2, 3], False, [0, 2, 3]),
    "kept, zero means zero": ((N, 6), [N, 2, 3], True, [-1, 2, 3]),
    "moved": ((6, N), [N, 6], False, [-1, 6]),
    "unknown": ((N, 6), [None, 6], False, [-1, 6]),
    "zero copies": ((N, 6, 4), [0, 0, -1], False, [0, 0, 4]),
    "-1 of a multiple": ((N, 6, 4), [-1, 8], False, [-1, 8]),
    "two unknown": ((N, 6), [None, N, 6], False, None),
    "a zero that is meant": ((N, 0), [0, N], True, None),
}


@pytest.mark.parametrize("name", TARGETS)
def test_reshape_target(name):
    """At most one -1, zeros only where the size is kept at its place, numbers where they are certain."""
    dims, target, allowzero, expected = TARGETS[name]
    assert reshape_target(dims, target, allowzero) == expected


EXPANSIONS = {
    "kept": ((N, 6, 1), [N, 6, 5], [1, 1, 5]),
    "new axes": ((6,), [2, 6], [2, 1]),
    "fewer axes": ((N, 6), [6], [1]),
    "grown to the batch": ((1, 6), [N, 6], None),
    "unknown": ((N, 6), [None, 6], None),
}


@pytest.mark.parametrize("name", EXPANSIONS)
def test_expand_target(name):
    """1 for what the input has already; a size that is not a number and not the input's own cannot be constant."""
    dims, target, expected = EXPANSIONS[name]
    assert expand_target(dims, target) == expected


SCALES = {
    "upsampled": ((N, 6, 5, 7), [N, 6, 10, 14], [1, 1, 2, 2]),
    "an odd ratio": ((N, 6, 33, 1), [N, 6, 520, 5], [1, 1, np.float32(520) / np.float32(33), 5]),
    "not the batch of the input": ((N, 6, 5, 7), [Size(1, ("M",)), 6, 10, 14], None),
    "height not known": ((N, 6, Size(1, ("H",)), 7), [N, 6, 10, 14], None),
    "rounding would lose a column": ((N, 6, 5, 7), [N, 6, 10, 13], None),
}


@pytest.mark.parametrize("name", SCALES)
def test_resize_scales(name):
    """Scales lead to the same sizes, also in the arithmetic of onnxruntime; where not, sizes stay."""
    dims, target, expected = SCALES[name]
    assert resize_scales(dims, target) == expected


RESIZE = f"""g (float[N,6,5,7] x) => (float[N,6,10,21] y) <{INDICES}, int64[2] hw = {{10, 21}}, int64[1] two = {{2}}> {{
    s = Shape(x) nc = Slice(s, z, two, z) t = Concat<axis = 0>(nc, hw) y = Resize<MODE>(x, , , t) }}"""


@pytest.mark.parametrize("mode", ['mode = "nearest"', 'mode = "linear"', 'mode = "cubic"'])
@pytest.mark.parametrize("where", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
def test_resize(mode, where):
    """Interpolation to fixed sizes, whatever the batch, needs no shape at run time, and gives the same."""
    text = RESIZE.replace("MODE", f'{mode}, coordinate_transformation_mode = "{where}"')
    assert ops(cleaned(parse(text))) == ["Resize"]


def test_resize_of_some_axes_stays():
    """Sizes of some axes, or bounds that keep the aspect, are not scales."""
    text = RESIZE.replace("MODE", 'axes = [0, 1, 2, 3], keep_aspect_ratio_policy = "not_larger"')
    model = parse(text.replace("float[N,6,10,21] y", "float[N,6,a,b] y"), opset=18)
    assert "Shape" in ops(cleaned(model, run=False))
