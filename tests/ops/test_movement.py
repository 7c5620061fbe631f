"""Ops that only move data, and the refitting of their targets."""

from __future__ import annotations

import numpy as np
from graphs import CHANNELS, analyse, assert_sound, between, expected, golden
from tables import prunes, refuses

from onnxprune.cut import cut

FOUR = [1, 2, 3, 4]
TOKENS = "g (float[2,5,3] x) => (float[] y) <float[3,{0}] w, float[{1},2] v{2}> {{ h = MatMul(x, w)  {3}  y = MatMul(d, v) }}"
FLATTENED = """g (float[1,3,2,2] x) => (float[] y) <float[4,3,1,1] w, float[16,2] v{0}> {{
    h = Conv(x, w)
    {1}
    y = MatMul(d, v)
}}"""
SPACE = {"w.0": FOUR, "v.0": [c for c in FOUR for _ in range(4)]}

PRUNE = {
    "Reshape with 0": (TOKENS.format(4, 4, ", int64[3] s = {0, 0, 0}", "d = Reshape(h, s)"), {"w.1 v.0": FOUR}),
    "Reshape that merges tokens": (
        TOKENS.format(4, 4, ", int64[2] s = {-1, 4}", "d = Reshape(h, s)"),
        {"w.1 v.0": FOUR},
    ),
    "Reshape of channels into -1": (
        TOKENS.format(4, 4, ", int64[2] s = {10, -1}", "d = Reshape(h, s)"),
        {"w.1 v.0": FOUR},
    ),
    "Reshape with allowzero": (
        TOKENS.format(4, 4, ", int64[3] s = {5, 2, 4}", "d = Reshape <allowzero = 1> (h, s)"),
        {"w.1 v.0": FOUR},
    ),
    "heads split and merged again": (
        TOKENS.format(
            6,
            6,
            ", int64[4] s = {2, 5, 2, 3}, int64[3] t = {2, 5, 6}",
            "a = Reshape(h, s)  r = Relu(a)  d = Reshape(r, t)",
        ),
        {"w.1 v.0": [1, 2, 3, 1, 2, 3]},
    ),
    "heads split and merged the other way round": (
        TOKENS.format(
            6,
            6,
            ", int64[4] s = {2, 5, 2, 3}, int64[3] t = {2, 5, 6}",
            "a = Reshape(h, s)  r = Transpose <perm = [0, 1, 3, 2]> (a)  d = Reshape(r, t)",
        ),
        {"w.1": [1, 2, 3, 1, 2, 3], "v.0": [1, 1, 2, 2, 3, 3]},
    ),
    "channels flattened by Reshape": (FLATTENED.format(", int64[2] s = {1, 16}", "d = Reshape(h, s)"), SPACE),
    "channels flattened by Flatten": (FLATTENED.format("", "d = Flatten(h)"), SPACE),
    "channels flattened last": (
        FLATTENED.format("", "t = Transpose <perm = [0, 2, 3, 1]> (h)  d = Flatten(t)"),
        {"w.0": FOUR, "v.0": FOUR * 4},
    ),
    "Flatten of tokens, which are fixed": (
        TOKENS.format(4, 4, "", "d = Flatten <axis = 2> (h)"),
        {"w.1 v.0": FOUR},
    ),
    "Transpose": (
        """g (float[2,5,3] x) => (float[] y) <float[3,4] w, float[2,4] v> {
            h = MatMul(x, w)
            t = Transpose <perm = [0, 2, 1]> (h)
            y = MatMul(v, t)
        }""",
        {"w.1 v.1": FOUR},
    ),
    "Transpose in reverse by default": (
        """g (float[5,3] x) => (float[] y) <float[3,4] w, float[2,4] v> {
            h = MatMul(x, w)
            t = Transpose(h)
            y = MatMul(v, t)
        }""",
        {"w.1 v.1": FOUR},
    ),
    "Squeeze and Unsqueeze": (
        between(
            "e = Unsqueeze(h, two)  f = Squeeze(e, first)  i = Unsqueeze(f, last)  d = Squeeze(i, both)",
            "int64[2] two = {0, 3}, int64[1] first = {0}, int64[1] last = {-1}, int64[2] both = {2, -1}",
            "6",
        ),
        CHANNELS,
    ),
    "Expand with the number of channels": (
        between("p = GlobalAveragePool(h)  d = Expand(p, s)", "int64[4] s = {1, 4, 6, 6}"),
        CHANNELS,
    ),
    "Expand without it, by fewer axes": (
        between("p = GlobalAveragePool(h)  d = Expand(p, s)", "int64[2] s = {6, 1}"),
        CHANNELS,
    ),
    "a class token, expanded to the size of the batch": (
        """g (float[n,5,3] x) => (float[] y) <float[3,4] w, float[1,1,4] c, float[4,2] v, int64[1] zero = {0}, int64[1] one = {1}> {
            h = MatMul(x, w)
            z = Shape(x)
            n = Slice(z, zero, one)
            s = Concat <axis = 0> (n, one, one)
            e = Expand(c, s)
            d = Concat <axis = 1> (e, h)
            y = MatMul(d, v)
        }""",
        {"w.1 c.2 v.0": FOUR},
    ),
    "a class token, tiled to the size of the batch": (
        """g (float[n,5,3] x) => (float[] y) <float[3,4] w, float[1,1,4] c, float[4,2] v, int64[1] zero = {0}, int64[1] one = {1}> {
            h = MatMul(x, w)
            z = Shape(x)
            n = Slice(z, zero, one)
            s = Concat <axis = 0> (n, one, one)
            e = Tile(c, s)
            d = Concat <axis = 1> (e, h)
            y = MatMul(d, v)
        }""",
        {"w.1 c.2 v.0": FOUR},
    ),
    "copies that meet what can leave": (
        """g (float[5,3] x) => (float[] y) <float[3,4] w, int64[2] s = {0, 1}, int64[2] t = {4, 5}, int64[2] u = {4, 1},
          float[5] k, float[2,4] v> {
            h = MatMul(x, w)
            q = Transpose(h)
            e = Expand(k, t)
            d = Mul(q, e)
            y = MatMul(v, d)
        }""",
        {"w.1 v.1": FOUR},
    ),
    "Tile of another axis": (between("d = Tile(h, r)", "int64[4] r = {1, 1, 2, 3}"), CHANNELS),
    "Tile of channels": (
        """g (float[1,3,5,5] x) => (float[] y) <float[4,3,1,1] w, float[2,8,1,1] v, int64[4] r = {1, 2, 1, 1}> {
            h = Conv(x, w)
            d = Tile(h, r)
            y = Conv(d, v)
        }""",
        {"w.0": FOUR, "v.1": FOUR * 2},
    ),
    "a weight that is transposed before use": (
        """g (float[2,5,3] x) => (float[] y) <float[4,3] w, float[4,2] v> {
            t = Transpose(w)
            h = MatMul(x, t)
            y = MatMul(h, v)
        }""",
        {"w.0 v.0": FOUR},
    ),
    "a weight that is reshaped before use": (
        """g (float[1,3,5,5] x) => (float[] y) <float[4,3] w, int64[4] s = {4, 3, 1, 1}, float[2,4,1,1] v> {
            r = Reshape(w, s)
            h = Conv(x, r)
            y = Conv(h, v)
        }""",
        {"w.0 v.1": FOUR},
    ),
    "the size of another axis, read at run time": (
        TOKENS.format(
            4,
            4,
            ", int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}",
            """z = Shape(h)
            m = Gather(z, zero)
            n = Slice(z, one, two)
            p = Mul(m, n)
            c = Cast <to = 1> (p)
            d = Mul(h, c)""",
        ),
        {"w.1 v.0": FOUR},
    ),
}

REFUSE = {
    "Reshape to a shape that is an input": (
        TOKENS.format(4, 4, "", "d = Reshape(h, s)").replace("3] x)", "3] x, int64[3] s)").replace("[] y", "[a,b,2] y"),
        {"w.1": "its target dimensions are computed at run time"},
    ),
    **{
        f"{op} of channels by a number computed at run time": (
            f"""g (float[2,5,3] x, float[k] z) => (float[2,5,2] y) <float[3,4] w, float[4,2] v, int64[2] ones = {{1, 1}}> {{
                h = MatMul(x, w)
                n = Shape(z)
                s = Concat <axis = 0> (ones, n)
                d = {op}(h, s)
                y = MatMul(d, v)
            }}""",
            {"w.1": why},
        )
        for op, why in {
            "Expand": "its target dimensions are computed at run time",
            "Tile": "its repeats are computed at run time",
        }.items()
    },
    "the number of channels, read at run time": (
        TOKENS.format(4, 4, "", "z = Shape(h)  c = Cast <to = 1> (z)  n = ReduceMax(c)  d = Mul(h, n)"),
        {"w.1": "its size is read at run time"},
    ),
    "the number of channels as a result": (
        TOKENS.format(4, 4, ", int64[1] one = {1}", "z = Shape(h)  n = Gather(z, one)  d = Relu(h)").replace(
            "float[] y", "float[] y, int64[] z"
        ),
        {"w.1": "its size is read at run time"},
    ),
}


test_must_prune, test_stays_sound = prunes(PRUNE)
test_must_refuse = refuses(REFUSE)


def refitted(text, *removed):
    analysis = analyse(text)
    kept = np.ones(analysis.classes + 1, bool)
    kept[list(removed)] = False
    return {
        name: c.values.tolist() for name, c in cut(analysis, kept).constants().items() if c.values.dtype == np.int64
    }


def test_targets_are_refitted_where_they_must_be():
    """-1 and a 0 that still copies the right size stay as they are; only the number that changed changes."""
    assert refitted(PRUNE["Reshape with 0"][0], 2) == {"s": [0, 0, 0]}
    assert refitted(PRUNE["Reshape that merges tokens"][0], 2) == {"s": [-1, 3]}
    assert refitted(PRUNE["Reshape of channels into -1"][0], 2) == {"s": [10, -1]}
    assert refitted(PRUNE["heads split and merged again"][0], 2) == {"s": [2, 5, 2, 2], "t": [2, 5, 4]}
    assert refitted(PRUNE["Expand with the number of channels"][0], 2, 3) == {"s": [1, 2, 6, 6]}
    assert refitted(PRUNE["Expand without it, by fewer axes"][0], 2, 3) == {"s": [6, 1]}
    assert refitted(PRUNE["Tile of channels"][0], 1) == {"r": [1, 2, 1, 1]}


def test_a_target_shared_by_two_reshapes():
    """Where only one of them must change, the other keeps the original constant."""
    text = """g (float[5,4] x) => (float[] y, float[] z) <float[4,4] w, float[4,2] v, int64[3] s = {5, 2, 2}, int64[2] t = {5, 4}> {
        h = MatMul(x, w)
        a = Reshape(h, s)
        b = Reshape(a, t)
        y = MatMul(b, v)
        z = Reshape(x, s)
    }"""
    analysis = analyse(text)
    assert golden(analysis) == expected({"w.1 v.0": [1, 2, 1, 2]})
    assert refitted(text, 1) == {"s_1": [5, 2, 1], "t": [5, 2], "s": [5, 2, 2]}
    assert_sound(analysis)
