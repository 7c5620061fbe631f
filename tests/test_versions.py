"""Ops whose form changed between operator sets: the same classes and sound plans in each, and the file keeps its form."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import CHANNELS, analyse, assert_sound, between, expected, golden, reasons

from onnxprune.cut import cut
from onnxprune.masking import masked
from onnxprune.runtime import session
from onnxprune.verify import relative_error

FOUR = [1, 2, 3, 4]
NEWEST = 26  # what onnxruntime 1.31 loads
HALVES = {"w.0": [1, 2, 1, 2], "v.1": [1, 2]}
MIDDLE = {"w.0 b.0": FOUR, "v.1": [2, 3]}


def narrow(op, weights="", channels=2):
    """`between` with two channels (or another number of them) after the op."""
    return between(op, weights).replace("[2,4,1,1] v", f"[2,{channels},1,1] v")


GATED = "a, c = {}  s = Sigmoid(c)  d = Mul(a, s)"
# op: [(operator sets, graph, classes)]; the sets are those in which a form began or ended.
FORMS = {
    "Softmax": [
        ((7, 11, 12), between("d = Softmax <axis = 3> (h)"), CHANNELS),
        ((13, NEWEST), between("d = Softmax <axis = 2> (h)"), CHANNELS),
    ],
    "Slice": [
        ((7, 9), narrow("d = Slice <axes = [1], starts = [1], ends = [3]> (h)"), MIDDLE),
        (
            (10, 11, 13, NEWEST),
            narrow("d = Slice(h, s, e, s)", "int64[1] s = {1}, int64[1] e = {3}"),
            MIDDLE,
        ),
    ],
    "Pad": [
        ((7, 10), between("d = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1]> (h)"), CHANNELS),
        ((11, 13, 17), between("d = Pad(h, p)", "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}"), CHANNELS),
        ((18, NEWEST), between("d = Pad(h, p, , a)", "int64[2] p = {1, 1}, int64[1] a = {2}"), CHANNELS),
    ],
    "Pad of channels": [
        (
            (7, 10),
            narrow("d = Pad <pads = [0, 1, 0, 0, 0, 0, 0, 0], value = 0.5> (h)", channels=5),
            {"w.0 b.0": FOUR, "v.1": [5, 1, 2, 3, 4]},
        ),
        (
            (11, 13, NEWEST),
            narrow("d = Pad(h, p, c)", "int64[8] p = {0, 1, 0, 0, 0, 0, 0, 0}, float c = {0.5}", 5),
            {"w.0 b.0": FOUR, "v.1": [5, 1, 2, 3, 4]},
        ),
    ],
    "Clip": [
        ((7, 10), between("d = Clip <min = -0.5, max = 0.5> (h)"), CHANNELS),
        ((11, 12, 13, NEWEST), between("d = Clip(h, l, u)", "float l = {-0.5}, float u = {0.5}"), CHANNELS),
    ],
    "Squeeze and Unsqueeze": [
        ((7, 11, 12), between("u = Unsqueeze <axes = [2]> (h)  d = Squeeze <axes = [2]> (u)"), CHANNELS),
        ((13, 21, NEWEST), between("u = Unsqueeze(h, a)  d = Squeeze(u, a)", "int64[1] a = {2}"), CHANNELS),
    ],
    "ReduceSum": [
        ((7, 11, 12), between("d = ReduceSum <axes = [2]> (h)"), CHANNELS),
        ((13, NEWEST), between("d = ReduceSum(h, a)", "int64[1] a = {2}"), CHANNELS),
    ],
    "ReduceMean": [
        ((7, 11, 13, 17), between("d = ReduceMean <axes = [2, 3]> (h)"), CHANNELS),
        ((18, NEWEST), between("d = ReduceMean(h, a)", "int64[2] a = {2, 3}"), CHANNELS),
    ],
    "ReduceMax": [
        ((7, 12, 17), between("d = ReduceMax <axes = [3]> (h)"), CHANNELS),
        ((18, 20, NEWEST), between("d = ReduceMax(h, a)", "int64[1] a = {3}"), CHANNELS),
    ],
    "Split": [
        ((7, 11, 12), narrow(GATED.format("Split <axis = 1, split = [2, 2]> (h)")), HALVES | {"b.0": [1, 2, 1, 2]}),
        ((7, 11, 12), narrow(GATED.format("Split <axis = 1> (h)")), HALVES | {"b.0": [1, 2, 1, 2]}),
        (
            (13, 17, NEWEST),
            narrow(GATED.format("Split <axis = 1> (h, p)"), "int64[2] p = {2, 2}"),
            HALVES | {"b.0": [1, 2, 1, 2]},
        ),
        ((13, 17), narrow(GATED.format("Split <axis = 1> (h)")), HALVES | {"b.0": [1, 2, 1, 2]}),
        ((18, NEWEST), narrow(GATED.format("Split <axis = 1, num_outputs = 2> (h)")), HALVES | {"b.0": [1, 2, 1, 2]}),
    ],
    "Split into uneven parts": [
        (
            opsets,
            narrow(f"a, c = {call}  d = Concat <axis = 1> (c, a)", weights, 4),
            {"w.0 b.0": FOUR, "v.1": [3, 4, 1, 2]},
        )
        for opsets, call, weights in (
            ((7, 12), "Split <axis = 1> (h)", ""),
            ((13, 17), "Split <axis = 1> (h)", ""),
            ((18, NEWEST), "Split <axis = 1, num_outputs = 2> (h)", ""),
        )
    ],
    "Dropout": [
        ((7, 10), between("d = Dropout <ratio = 0.3> (h)"), CHANNELS),
        ((12, 13, NEWEST), between("d = Dropout(h, r)", "float r = {0.3}"), CHANNELS),
    ],
    "Upsample": [
        ((7, 8), between('d = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]> (h)'), CHANNELS),
        ((9,), between('d = Upsample <mode = "nearest"> (h, s)', "float[4] s = {1, 1, 2, 2}"), CHANNELS),
    ],
    "Resize": [
        ((10,), between('d = Resize <mode = "linear"> (h, s)', "float[4] s = {1, 1, 2, 2}"), CHANNELS),
        ((11,), between("d = Resize(h, r, s)", "float[0] r = {}, float[4] s = {1, 1, 2, 2}"), CHANNELS),
        (
            (11, 12),
            between("d = Resize(h, r, n, z)", "float[0] r = {}, float[0] n = {}, int64[4] z = {1, 4, 9, 9}"),
            CHANNELS,
        ),
        ((13, NEWEST), between("d = Resize(h, , s)", "float[4] s = {1, 1, 2, 2}"), CHANNELS),
        ((13, NEWEST), between("d = Resize(h, , , z)", "int64[4] z = {1, 4, 9, 9}"), CHANNELS),
        ((18, 19, NEWEST), between("d = Resize <axes = [2, 3]> (h, , , z)", "int64[2] z = {9, 9}"), CHANNELS),
    ],
    "GroupNormalization": [
        (
            (21, NEWEST),
            between("d = GroupNormalization <num_groups = 2> (h, s, o)", "float[4] s, float[4] o"),
            {"w.0 b.0 v.1 s.0 o.0": [1, 1, 2, 2]},
        ),
    ],
    "BatchNormalization": [
        (
            (7, 8, 9, 13, 14, 15, NEWEST),
            between("d = BatchNormalization(h, s, o, m, var)", "float[4] s, float[4] o, float[4] m, float[4] var"),
            CHANNELS | {"s.0 o.0 m.0 var.0": FOUR},
        ),
    ],
    "TopK": [
        ((7, 9), between("d, i = TopK <axis = 2, k = 3> (h)"), CHANNELS),
        ((10, 11, NEWEST), between("d, i = TopK <axis = 2> (h, k)", "int64[1] k = {3}"), CHANNELS),
    ],
    "CumSum": [((11, 14, NEWEST), between("d = CumSum(h, a)", "int64 a = {3}"), CHANNELS)],
    "Gemm without C": [
        (
            (11, 13, NEWEST),
            "g (float[5,3] x) => (float[] y) <float[3,4] w, float[4,2] v> { h = Gemm(x, w)  y = Gemm(h, v) }",
            {"w.1 v.0": FOUR},
        ),
    ],
    "a plain chain": [((7, 8, 9, 10, 12, 14, 16, 19, 22, 24, 25, NEWEST), between("d = Relu(h)"), CHANNELS)],
}
CASES = [
    pytest.param(opset, text, table, id=f"{op} {opset}" + (f" {i}" if i else ""))
    for op, forms in FORMS.items()
    for i, (opsets, text, table) in enumerate(forms)
    for opset in opsets
]


@pytest.mark.parametrize(("opset", "text", "table"), CASES)
def test_form(opset, text, table):
    """Each form gives the same classes, and sound plans."""
    analysis = analyse(text, opset=opset)
    assert golden(analysis) == expected(table)
    assert_sound(analysis)
    assert analysis.model.opset == opset


@pytest.mark.parametrize("opset", [18, 20])
def test_group_normalization_with_one_scale_per_group(opset):
    """The first form of the op: so faulty that the checker refuses it, but onnxruntime runs it."""
    text = between("d = GroupNormalization <num_groups = 2> (h, s, o)", "float[2] s, float[2] o")
    analysis = analyse(text, opset=opset)
    assert golden(analysis) == expected({"w.0 b.0 v.1": [1, 1, 2, 2], "s.0 o.0": [1, 2]})
    kept = np.array([True, False, True])
    x = {"x": np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)}
    small, reference, original = (
        session(m.to_proto()).run(x)["y"] for m in (cut(analysis, kept), masked(analysis, kept), analysis.model)
    )
    assert relative_error(reference, small) <= 1e-5
    assert relative_error(original, reference) > 0.01


FROZEN = {
    "Softmax over all trailing axes": (7, 12, between("d = Softmax <axis = 1> (h)"), "Softmax normalises over them"),
    "Softmax, whose axis was 1 by default": (7, 12, between("d = Softmax(h)"), "Softmax normalises over them"),
    "LogSoftmax, likewise": (11, 12, between("d = LogSoftmax(h)"), "Softmax normalises over them"),
    "Softmax over channels": (13, NEWEST, between("d = Softmax <axis = 1> (h)"), "Softmax normalises over them"),
    "TopK over channels": (7, 9, between("d, i = TopK <axis = 1, k = 4> (h)"), "their indices are a result"),
    "TopK over channels, today": (
        10,
        NEWEST,
        between("d, i = TopK <axis = 1> (h, k)", "int64[1] k = {4}"),
        "their indices are a result",
    ),
}


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("case", FROZEN)
def test_frozen_form(case, end):
    """Channels freeze in both the first and the last operator set of a form."""
    text, why = FROZEN[case][2:]
    analysis = analyse(text, opset=FROZEN[case][end])
    assert not golden(analysis)
    assert why in reasons(analysis)["w.0"]


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_from_an_axis_on(op):
    """Before operator set 13 everything from the axis on is normalised at once, later the axis alone."""
    text = f"""g (float[2,5,3] x) => (float[] y) <float[3,4] w, float[4,2] v> {{
        h = MatMul(x, w)
        d = {op} <axis = 1> (h)
        y = MatMul(d, v)
    }}"""
    assert not golden(analyse(text, opset=11))
    assert "Softmax normalises over them" in reasons(analyse(text, opset=11))["w.1"]
    assert golden(analyse(text, opset=13)) == expected({"w.1 v.0": FOUR})
    assert_sound(analyse(text, opset=13))


def test_softmax_over_the_last_axis_by_default():
    """Since operator set 13 the default is the last axis alone: channels go."""
    assert golden(analyse(between("d = Softmax(h)"), opset=13)) == expected(CHANNELS)


def test_mean_over_channels_in_every_form():
    """Inexact, whether the axes are an attribute or an input."""
    for opset, call, weights in ((17, "ReduceMean <axes = [1]> (h)", ""), (18, "ReduceMean(h, a)", "int64[1] a = {1}")):
        analysis = analyse(narrow(f"d = {call}", weights, 1), opset=opset)
        assert golden(analysis) == expected({"w.0 b.0": FOUR})
        assert analysis.inexact[1:].all()


def node(text, opset, op):
    """The node of the model without its second and fourth channel."""
    analysis = analyse(text, opset=opset)
    kept = np.array([True, True, False, True, False, *[True] * (analysis.classes - 4)])
    return next(n for n in cut(analysis, kept).graph.nodes if n.op == op)


def test_refits_keep_the_form():
    """What was an attribute stays one, what was an input stays one."""
    old = node(narrow("d = Slice <axes = [1], starts = [1], ends = [3]> (h)"), 9, "Slice")
    assert (list(old.attrs["starts"]), list(old.attrs["ends"]), len(old.inputs)) == ([1], [2], 1)
    new = node(narrow("d = Slice(h, s, e, s)", "int64[1] s = {1}, int64[1] e = {3}"), 10, "Slice")
    assert ([i.values.tolist() for i in new.inputs[1:]], new.attrs) == ([[1], [2], [1]], {})
    parts = "a, c = {}  d = Concat <axis = 1> (c, a)"
    old = node(narrow(parts.format("Split <axis = 1> (h)"), channels=4), 12, "Split")
    assert (list(old.attrs.get("split", ())), len(old.inputs)) == ([1, 1], 1)
    new = node(narrow(parts.format("Split <axis = 1, num_outputs = 2> (h)"), channels=4), 18, "Split")
    assert (new.inputs[1].values.tolist(), new.attrs) == ([1, 1], {"axis": 1})
    old = node(narrow("d = Pad <pads = [0, -1, 0, 0, 0, 0, 0, 1]> (h)", channels=3), 10, "Pad")
    assert list(old.attrs["pads"]) == [0, -1, 0, 0, 0, 0, 0, 1]
