"""Concat, Split, Slice, Gather and ScatterND."""

from __future__ import annotations

import numpy as np
from graphs import analyse, assert_sound, each, expected, golden, oracle, random_plan, reasons
from tables import prunes, refuses

FOUR = [1, 2, 3, 4]
# Two convs with 4 and 3 filters, and one that reads 7 channels.
TWO = """g (float[1,3,5,5] x) => (float[] y) <float[4,3,1,1] w, float[3,3,1,1] u, float[2,{0},1,1] v{1}> {{
    h = Conv(x, w)
    k = Conv(x, u)
    {2}
    y = Conv(d, v)
}}"""
# A conv with 6 filters; its parts are read by `p` and `v`.
SIX = """g (float[1,3,5,5] x) => (float[] y) <float[6,3,1,1] w, float[2,{0},1,1] v{1}> {{
    h = Conv(x, w)
    {2}
    y = Conv(d, v)
}}"""
TOKENS = (
    "g (float[2,5,3] x) => (float[] y) <float[3,4] w, float[4,2] v{0}> {{ h = MatMul(x, w)  {1}  y = MatMul(d, v) }}"
)

PRUNE = {
    "Concat of channels": (
        TWO.format(7, "", "d = Concat <axis = 1> (h, k)"),
        {"w.0": FOUR, "u.0": [5, 6, 7], "v.1": range(1, 8)},
    ),
    "Concat of channels, the other way round": (
        TWO.format(7, "", "d = Concat <axis = -3> (k, h)"),
        {"w.0": FOUR, "u.0": [5, 6, 7], "v.1": [5, 6, 7, 1, 2, 3, 4]},
    ),
    "Concat with an input that is fixed": (
        TWO.format(10, "", "d = Concat <axis = 1> (h, x, k)"),
        {"w.0": FOUR, "u.0": [5, 6, 7], "v.1": [1, 2, 3, 4, 0, 0, 0, 5, 6, 7]},
    ),
    "Concat of a tensor with itself": (
        SIX.format(12, "", "d = Concat <axis = 1> (h, h)"),
        {"w.0": range(1, 7), "v.1": [*range(1, 7), *range(1, 7)]},
    ),
    "Concat of tokens": (
        TOKENS.format(", float[2,1,4] c", "d = Concat <axis = 1> (c, h)"),
        {"w.1 v.0 c.2": FOUR},
    ),
    "Concat of tokens of two activations": (
        TOKENS.format(", float[3,4] u", "k = MatMul(x, u)  d = Concat <axis = 1> (k, h)"),
        {"w.1 v.0 u.1": FOUR},
    ),
    "Concat of joint positions": (
        TOKENS.format(
            ", float[3,4] u, int64[4] s = {2, 5, 2, 2}, int64[3] t = {2, 5, 8}",
            "k = MatMul(x, u)  a = Reshape(h, s)  b = Reshape(k, s)  c = Concat <axis = 3> (a, b)  d = Reshape(c, t)",
        ).replace("[4,2] v", "[8,2] v"),
        {"w.1": [1, 2, 1, 2], "u.1": [3, 4, 3, 4], "v.0": [1, 2, 3, 4, 1, 2, 3, 4]},
    ),
    "Split into sizes": (
        SIX.format(
            2, ", int64[2] s = {4, 2}, float[2,4,1,1] p", "a, d = Split <axis = 1> (h, s)  b = Conv(a, p)"
        ).replace("y = Conv(d, v)", "c = Conv(d, v)  y = Add(b, c)"),
        {"w.0": range(1, 7), "p.1": FOUR, "v.1": [5, 6]},
    ),
    "Split into equal parts by their number": (
        SIX.format(3, "", "a, b = Split <axis = 1> (h)  s = Sigmoid(b)  d = Mul(a, s)"),
        {"w.0": [1, 2, 3, 1, 2, 3], "v.1": [1, 2, 3]},
    ),
    "Split and joined in another order": (
        SIX.format(6, ", int64[2] s = {2, 4}", "a, b = Split <axis = 1> (h, s)  d = Concat <axis = 1> (b, a)"),
        {"w.0": range(1, 7), "v.1": [3, 4, 5, 6, 1, 2]},
    ),
    "a part of a single channel, which stays": (
        SIX.format(6, ", int64[3] s = {1, 2, 3}", "a, b, c = Split <axis = 1> (h, s)  d = Concat <axis = 1> (c, a, b)"),
        {"w.0": [0, 1, 2, 3, 4, 5], "v.1": [3, 4, 5, 0, 1, 2]},
    ),
    "Split along another axis": (
        SIX.format(6, ", int64[2] s = {2, 3}", "a, d = Split <axis = 2> (h, s)"),
        {"w.0 v.1": range(1, 7)},
    ),
    "Slice of channels; what nobody reads can go by itself": (
        SIX.format(3, ", int64[1] b = {2}, int64[1] e = {5}, int64[1] a = {1}", "d = Slice(h, b, e, a)"),
        {"w.0": range(1, 7), "v.1": [3, 4, 5]},
    ),
    "Slice from the end, open": (
        SIX.format(
            5, ", int64[1] b = {-5}, int64[1] e = {9223372036854775807}, int64[1] a = {-3}", "d = Slice(h, b, e, a)"
        ),
        {"w.0": range(1, 7), "v.1": [2, 3, 4, 5, 6]},
    ),
    "Slice of channels and space": (
        SIX.format(
            3,
            ", int64[3] b = {3, 1, 0}, int64[3] e = {6, 4, 5}, int64[3] a = {1, 2, 3}, int64[3] t = {1, 1, 2}",
            "d = Slice(h, b, e, a, t)",
        ),
        {"w.0": range(1, 7), "v.1": [4, 5, 6]},
    ),
    "Slices with a step of 2: pairs go together": (
        SIX.format(
            3,
            ", int64[1] b = {0}, int64[1] o = {1}, int64[1] e = {6}, int64[1] a = {1}, int64[1] t = {2}",
            "k = Slice(h, b, e, a, t)  l = Slice(h, o, e, a, t)  s = Sigmoid(l)  d = Mul(k, s)",
        ),
        {"w.0": [1, 1, 2, 2, 3, 3], "v.1": [1, 2, 3]},
    ),
    "Gather of channels, one twice": (
        SIX.format(4, ", int64[4] i = {5, 0, -6, 3}", "d = Gather <axis = 1> (h, i)"),
        {"w.0": range(1, 7), "v.1": [6, 1, 1, 4]},
    ),
    "Gather of all channels in another order": (
        SIX.format(6, ", int64[6] i = {0, 3, 1, 4, 2, 5}", "d = Gather <axis = 1> (h, i)"),
        {"w.0": range(1, 7), "v.1": [1, 4, 2, 5, 3, 6]},
    ),
    "Gather of one row": (
        TOKENS.format(", int64 i = {-2}", "d = Gather <axis = 1> (h, i)"),
        {"w.1 v.0": FOUR},
    ),
    "Gather by a matrix": (
        SIX.format(
            3,
            ", int64[2,3] i = {0, 1, 2, 3, 4, 5}, int64[1] a = {1}",
            "k = Gather <axis = 1> (h, i)  d = ReduceSum <keepdims = 0> (k, a)",
        ),
        {"w.0": [1, 2, 3, 1, 2, 3], "v.1": [1, 2, 3]},
    ),
    "an embedding, looked up by tokens": (
        """g (int64[2,5] x) => (float[] y) <float[6,4] w, float[4,2] v> {
            h = Gather(w, x)
            y = MatMul(h, v)
        }""",
        {"w.1 v.0": FOUR},
    ),
    "an embedding, looked up by one token": (
        """g (int64 x) => (float[] y) <float[6,4] w, float[4,2] v> {
            h = Gather(w, x)
            y = MatMul(h, v)
        }""",
        {"w.1 v.0": FOUR},
    ),
    "ScatterND of tokens": (
        TOKENS.format(", int64[3,2] i = {0, 0, 1, 2, 1, 4}, float[3,4] c", "d = ScatterND(h, i, c)"),
        {"w.1 v.0 c.1": FOUR},
    ),
    "ScatterND of an activation": (
        TOKENS.format(
            ", int64[1,1] i = {1}, float[3,4] u, int64[1] b = {0}, int64[1] e = {1}",
            "k = MatMul(x, u)  r = Slice(k, b, e)  d = ScatterND(h, i, r)",
        ),
        {"w.1 v.0 u.1": FOUR},
    ),
}

REFUSE = {
    "Concat along another axis with an input": (
        TOKENS.format("", "d = Concat <axis = 1> (z, h)").replace("3] x)", "3] x, float[2,1,4] z)"),
        {
            "w.1": "inputs of a Concat lose the same positions on the other axes, and not every operand can lose positions there"
        },
    ),
    "Slice backwards over channels": (
        SIX.format(
            6,
            ", int64[1] b = {-1}, int64[1] e = {-10}, int64[1] a = {1}, int64[1] t = {-1}",
            "d = Slice(h, b, e, a, t)",
        ),
        {"w.0": "a Slice with steps over part of the channels, or backwards"},
    ),
    "Slice with steps over some channels": (
        SIX.format(
            2, ", int64[1] b = {0}, int64[1] e = {4}, int64[1] a = {1}, int64[1] t = {2}", "d = Slice(h, b, e, a, t)"
        ),
        {"w.0": "a Slice with steps over part of the channels, or backwards"},
    ),
    "Slice from a place that is an input": (
        SIX.format(2, ", int64[1] e = {4}, int64[1] a = {1}", "d = Slice(h, b, e, a)")
        .replace("5] x)", "5] x, int64[1] b)")
        .replace("[] y", "[1,2,5,5] y"),
        {"w.0": "its starts are computed at run time"},
    ),
    "Gather of one channel": (
        """g (float[1,3,5,5] x) => (float[] y) <float[6,3,1,1] w, int64 i = {2}> {
            h = Conv(x, w)
            d = Gather <axis = 1> (h, i)
            y = Relu(d)
        }""",
        {"w.0": "one of these positions is picked by its index"},
    ),
    "Gather of channels that are an input": (
        SIX.format(4, "", "d = Gather <axis = 1> (h, i)").replace("5] x)", "5] x, int64[4] i)"),
        {"w.0": "its indices are computed at run time"},
    ),
    "ScatterND over channels": (
        SIX.format(6, ", int64[1,2] i = {0, 3}, float[1,5,5] c", "d = ScatterND(h, i, c)"),
        {"w.0": "its rule does not let positions of axis (1,) of h go"},
    ),
    "ScatterND to places that are an input": (
        TOKENS.format(", float[1,4] c", "d = ScatterND(h, i, c)").replace("3] x)", "3] x, int64[1,2] i)"),
        {"w.1": "its indices are computed at run time"},
    ),
    "an op without a rule: ScatterElements": (
        TOKENS.format(
            ", int64[2,1,4] i = {0, 0, 0, 0, 1, 1, 1, 1}, float[2,1,4] c", "d = ScatterElements <axis = 1> (h, i, c)"
        ),
        {"w.1": "there is no rule for the op ScatterElements"},
    ),
}


test_must_prune, test_stays_sound = prunes(PRUNE, seeds=(0, 1))
test_must_refuse = refuses(REFUSE)


def test_split_by_number_of_outputs():
    """Since operator set 18 the number of parts can stand for their sizes: sizes replace it once they differ."""
    text = (
        SIX.format(3, "", "a, d = Split <axis = 1, num_outputs = 2> (h)  b = Conv(a, v)")
        .replace("y = Conv(d, v)", "c = Conv(d, q)  y = Add(b, c)")
        .replace("1] v", "1] v, float[2,3,1,1] q")
    )
    analysis = analyse(text, opset=18)
    assert golden(analysis) == expected({"w.0": range(1, 7), "v.1": [1, 2, 3], "q.1": [4, 5, 6]})
    assert_sound(analysis, seeds=range(3))


ONE = {
    "Slice": SIX.format(1, ", int64[1] b = {2}, int64[1] e = {3}, int64[1] a = {1}", "d = Slice(h, b, e, a)"),
    "Gather": SIX.format(1, ", int64[1] i = {2}", "d = Gather <axis = 1> (h, i)"),
    "Split": SIX.format(1, ", int64[3] s = {2, 1, 3}", "a, d, c = Split <axis = 1> (h, s)"),
}


@each({name: (text,) for name, text in ONE.items()}, ["text"])
def test_one_channel_that_is_read_by_itself_stays(text):
    """Without it, nothing would be left of the tensor; the others are not read."""
    analysis = analyse(text)
    assert golden(analysis) == {"w.0": [1, 2, 0, 3, 4, 5]}
    assert "nothing would be left of d" in reasons(analysis)["w.0"]
    assert oracle(analysis, random_plan(analysis, 1.0, 0)).relative_error <= 1e-6


def test_a_whole_part_may_go():
    """Of parts that meet again in a Concat, one can lose all its channels."""
    text, _ = PRUNE["Split and joined in another order"]
    kept = np.array([True, False, False, True, True, False, True])
    assert oracle(analyse(text), kept).relative_error <= 1e-5
