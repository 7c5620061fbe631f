"""Normalisations: exact per channel and per whole group, inexact where the statistics run over channels."""

from __future__ import annotations

import numpy as np
from graphs import CHANNELS, analyse, assert_sound, between, each, expected, golden, oracle, random_plan
from tables import prunes, refuses

FOUR = [1, 2, 3, 4]
TOKENS = "g (float[2,5,3] x) => (float[] y) <float[3,4] w, float[4] b, float[4,2] v{}> {{ h = MatMul(x, w)  e = Add(h, b)  {}  y = MatMul(d, v) }}"
TOKEN = {"w.1 b.0 v.0": FOUR}
DECOMPOSED = """
    m = ReduceMean <axes = [-1]> (e)
    c = Sub(e, m)
    q = Mul(c, c)
    n = ReduceMean <axes = [-1]> (q)
    p = Add(n, eps)
    r = Sqrt(p)
    z = Div(c, r)
    u = Mul(z, g)
    d = Add(u, o)"""

EXACT = {
    "BatchNormalization": (
        between("d = BatchNormalization(h, s, o, m, var)", "float[4] s, float[4] o, float[4] m, float[4] var"),
        CHANNELS | {"s.0 o.0 m.0 var.0": FOUR},
    ),
    "BatchNormalization after a Gemm": (
        """g (float[5,3] x) => (float[] y)
          <float[3,4] w, float[4] s, float[4] o, float[4] m, float[4] var, float[4,2] v> {
            h = Gemm(x, w)
            d = BatchNormalization(h, s, o, m, var)
            y = Gemm(d, v)
        }""",
        {"w.1 s.0 o.0 m.0 var.0 v.0": FOUR},
    ),
    "BatchNormalization in training": (
        between(
            "d, rm, rv = BatchNormalization <training_mode = 1> (h, s, o, m, var)",
            "float[4] s, float[4] o, float[4] m, float[4] var",
        ),
        CHANNELS | {"s.0 o.0 m.0 var.0": FOUR},
    ),
    "InstanceNormalization": (
        between("d = InstanceNormalization(h, s, o)", "float[4] s, float[4] o"),
        CHANNELS | {"s.0 o.0": FOUR},
    ),
    "GroupNorm as torch writes it: whole groups": (
        between(
            """r = Reshape(h, split)
            n = InstanceNormalization(r, one, zero)
            t = Reshape(n, join)
            m = Mul(t, s)
            d = Add(m, o)""",
            """int64[3] split = {0, 2, -1}, float[2] one = {1, 1}, float[2] zero = {0, 0}, int64[4] join = {1, 4, 6, 6},
            float[4,1,1] s, float[4,1,1] o""",
        ),
        {"w.0 b.0 v.1 s.0 o.0": [1, 1, 2, 2], "one.0 zero.0": [1, 2]},
    ),
    "LpNormalization": (TOKENS.format("", "d = LpNormalization(e)"), TOKEN),
    "LpNormalization of the first order": (TOKENS.format("", "d = LpNormalization <p = 1> (e)"), TOKEN),
    "MeanVarianceNormalization": (
        between("d = MeanVarianceNormalization <axes = [0, 2, 3]> (h)").replace("[] y", "[1,2,6,6] y"),
        CHANNELS,
    ),
    "Softmax along another axis": (between("d = Softmax <axis = 2> (h)"), CHANNELS),
    "LayerNormalization over space": (
        between("d = LayerNormalization(h, s, o)", "float[6] s, float[6] o"),
        CHANNELS,
    ),
}

INEXACT = {
    "LayerNormalization": (
        TOKENS.format(", float[4] g, float[4] o", "d = LayerNormalization(e, g, o)"),
        TOKEN | {"g.0 o.0": FOUR},
    ),
    "LayerNormalization without a bias": (
        TOKENS.format(", float[4] g", "d = LayerNormalization(e, g)"),
        TOKEN | {"g.0": FOUR},
    ),
    "LayerNormalization, decomposed": (
        TOKENS.format(", float eps = {0.001}, float[4] g, float[4] o", DECOMPOSED),
        TOKEN | {"g.0 o.0": FOUR},
    ),
    "LRN": (between("d = LRN <size = 3> (h)"), CHANNELS),
    "GroupNorm of a single group, as torch writes it": (
        between(
            """r = Reshape(h, split)
            n = InstanceNormalization(r, one, zero)
            t = Reshape(n, join)
            m = Mul(t, s)
            d = Add(m, o)""",
            """int64[3] split = {0, 1, -1}, float[1] one = {1}, float[1] zero = {0}, int64[4] join = {1, 4, 6, 6},
            float[4,1,1] s, float[4,1,1] o""",
        ),
        CHANNELS | {"s.0 o.0": FOUR},
    ),
    "a mean over channels": (
        between("d = ReduceMean <axes = [1]> (h)").replace("[2,4,1,1] v", "[2,1,1,1] v"),
        {"w.0 b.0": FOUR},
    ),
}

REFUSE = {
    "LayerNormalization over channels and space": (
        between("d = LayerNormalization <axis = 1> (h, s, o)", "float[4,6,6] s, float[4,6,6] o"),
        {"w.0": "LayerNormalization over several axes"},
    ),
    "Softmax over channels": (between("d = Softmax <axis = 1> (h)"), {"w.0": "Softmax normalises over them"}),
    "LogSoftmax over channels": (between("d = LogSoftmax <axis = 1> (h)"), {"w.0": "Softmax normalises over them"}),
    "Hardmax over channels": (between("d = Hardmax <axis = 1> (h)"), {"w.0": "Softmax normalises over them"}),
    "MeanVarianceNormalization over channels": (
        between("d = MeanVarianceNormalization <axes = [1]> (h)").replace("[] y", "[1,2,6,6] y"),
        {"w.0": "its rule does not let positions of axis (1,) of h go"},
    ),
    "the running statistics of a BatchNormalization in training": (
        """g (float[1,3,6,6] x) => (float[] y, float[] rm) <float[4,3,1,1] w, float[4] s, float[4] o, float[4] m, float[4] var,
          float[2,4,1,1] v> {
            h = Conv(x, w)
            d, rm, rv = BatchNormalization <training_mode = 1> (h, s, o, m, var)
            y = Conv(d, v)
        }""",
        {"w.0": "it is a result of the model (graph output rm)"},
    ),
}


test_must_prune, test_stays_sound = prunes(EXACT | INEXACT)
test_must_refuse = refuses(REFUSE)


@each(EXACT, "text, table")
def test_exact(text, table):
    """None of these classes needs --inexact."""
    assert not analyse(text).inexact.any()


@each(INEXACT, "text, table")
def test_inexact(text, table):
    """All of these classes are marked: their removal changes the statistics even where they are dead."""
    analysis = analyse(text)
    assert analysis.inexact[1:].all()
    assert not analysis.inexact[0]


@each(
    {"RMSNormalization": ("RMSNormalization(e, g)",), "with an axis": ("RMSNormalization <axis = 2> (e, g)",)}, ["call"]
)
def test_rms_normalization(call):
    """Since operator set 23: inexact, like LayerNormalization."""
    analysis = analyse(TOKENS.format(", float[4] g", f"d = {call}"), opset=23)
    assert golden(analysis) == expected(TOKEN | {"g.0": FOUR})
    assert analysis.inexact[1:].all()
    assert_sound(analysis)


def test_layer_normalization_on_the_kept_positions():
    """By hand in numpy: what remains is normalised with its own mean and variance."""
    text, _ = INEXACT["LayerNormalization"]
    analysis = analyse(text)
    kept = np.array([True, True, False, True, True])
    w, b, v, g, o = (analysis.model.constants()[n].values for n in ("w", "b", "v", "g", "o"))
    stay = [0, 2, 3]
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    e = x @ w[:, stay] + b[stay]
    z = (e - e.mean(-1, keepdims=True)) / np.sqrt(e.var(-1, keepdims=True) + 1e-5)
    want = (z * g[stay] + o[stay]) @ v[stay]

    from onnxprune.cut import cut
    from onnxprune.runtime import session

    assert np.allclose(session(cut(analysis, kept).to_proto()).run({"x": x})["y"], want, atol=1e-5)
    assert oracle(analysis, kept).relative_error <= 1e-5


def test_the_other_outputs_of_layer_normalization():
    """Mean and inverse deviation do not vary along the channels that may leave."""
    analysis = analyse(
        """g (float[2,5,3] x) => (float[] y, float[] m) <float[3,4] w, float[4] g, float[4,2] v> {
            h = MatMul(x, w)
            d, m, i = LayerNormalization(h, g)
            y = MatMul(d, v)
        }"""
    )
    assert golden(analysis) == expected({"w.1 g.0 v.0": FOUR})
    assert_sound(analysis)


def test_a_group_norm_group_is_exact_but_not_its_channels():
    """Channels of one group are one class, so that removing any is removing all."""
    analysis = analyse(EXACT["GroupNorm as torch writes it: whole groups"][0])
    kept = random_plan(analysis, 0.5, 0)
    assert analysis.classes == 2
    assert oracle(analysis, kept).masked_differs
