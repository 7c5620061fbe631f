"""Reductions, ArgMax, TopK and running sums."""

from __future__ import annotations

import pytest
from graphs import CHANNELS, analyse, assert_sound, between, expected, golden, reasons
from tables import prunes, refuses

FOUR = [1, 2, 3, 4]
# Over channels: 5 tokens of 4 channels become 5 numbers.
OVER = "g (float[2,5,3] x) => (float[] y) <float[3,4] w, float[4] b{1}> {{ h = MatMul(x, w)  d = Add(h, b)  {0} }}"
ROWS = {"w.1 b.0": FOUR}
LINEAR = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
MEAN = ("ReduceMean",)
ORDERED = ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")


def reduced(op, axes, keepdims=1):
    """`op` as of operator set 18: d = op(h) over `axes`."""
    return f"d = {op} <keepdims = {keepdims}> (h, axes)", f"int64[{len(axes)}] axes = {{{', '.join(map(str, axes))}}}"


@pytest.mark.parametrize("op", [*LINEAR, *MEAN, *ORDERED])
def test_over_space(op):
    """Axes that are not reduced are carried, exactly, whatever the reduction."""
    positive = "a = Abs(h)  p = Add(a, one)" if "Log" in op else "p = Identity(h)"
    call, axes = reduced(op, (2, -1))
    analysis = analyse(between(f"{positive}  {call.replace('(h,', '(p,')}", f"{axes}, float one = {{1}}"), opset=18)
    assert golden(analysis) == expected(CHANNELS)
    assert not analysis.inexact.any()
    assert_sound(analysis)


@pytest.mark.parametrize("op", [*LINEAR, *MEAN, *ORDERED])
def test_over_space_without_keeping_the_axes(op):
    """The factor of the channels moves with the axes that disappear."""
    text = f"""g (float[1,3,5,5] x) => (float[] y) <float[4,3,1,1] w, float[4,2] v, int64[2] axes = {{2, 3}}> {{
        h = Conv(x, w)
        a = Abs(h)
        d = {op} <keepdims = 0> (a, axes)
        y = MatMul(d, v)
    }}"""
    analysis = analyse(text, opset=18)
    assert golden(analysis) == expected({"w.0 v.0": FOUR})
    assert_sound(analysis)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("op", LINEAR)
def test_sums_over_channels(op, keepdims):
    """A removed channel contributes nothing: exact."""
    analysis = analyse(OVER.format(f"y = {op} <keepdims = {keepdims}> (d, axes)", ", int64[1] axes = {-1}"), opset=18)
    assert golden(analysis) == expected(ROWS)
    assert not analysis.inexact.any()
    assert_sound(analysis)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_mean_over_channels(keepdims):
    """The mean over fewer channels is another function: inexact."""
    text = OVER.format(f"y = ReduceMean <keepdims = {keepdims}> (d, axes)", ", int64[1] axes = {-1}")
    analysis = analyse(text, opset=18)
    assert golden(analysis) == expected(ROWS)
    assert analysis.inexact[1:].all()
    assert_sound(analysis)


@pytest.mark.parametrize("op", ORDERED)
def test_extrema_over_channels(op):
    """Every channel is observable."""
    analysis = analyse(OVER.format(f"y = {op}(d, axes)", ", int64[1] axes = {-1}"), opset=18)
    assert not golden(analysis)
    assert f"{op} reads every one of them" in reasons(analysis)["w.1"]


def test_sum_over_everything():
    """Without axes, everything is summed; without axes and with noop_with_empty_axes, nothing is."""
    analysis = analyse(OVER.format("y = ReduceSum(d)", ""), opset=18)
    assert golden(analysis) == expected(ROWS)
    assert_sound(analysis)
    analysis = analyse(between("d = ReduceSum <noop_with_empty_axes = 1> (h)"), opset=18)
    assert golden(analysis) == expected(CHANNELS)
    assert_sound(analysis)


def test_sum_over_two_prunable_axes():
    """Both go, independently."""
    text = """g (float[4,3] x) => (float[] y) <float[5,4] p, float[3,6] w, float[6] b, int64[2] axes = {0, 1}> {
        a = MatMul(p, x)
        h = MatMul(a, w)
        d = Add(h, b)
        y = ReduceSum <keepdims = 0> (d, axes)
    }"""
    analysis = analyse(text, opset=18)
    assert golden(analysis) == expected({"p.0": [1, 2, 3, 4, 5], "w.1 b.0": [6, 7, 8, 9, 10, 11]})
    assert_sound(analysis)


def test_mean_over_two_prunable_axes():
    """Both go, inexactly, and the reference is computed on what is kept of either."""
    text = """g (float[4,3] x) => (float[] y) <float[5,4] p, float[3,6] w, float[6] b, int64[2] axes = {0, 1}> {
        a = MatMul(p, x)
        h = MatMul(a, w)
        d = Add(h, b)
        y = ReduceMean(d, axes)
    }"""
    analysis = analyse(text, opset=18)
    assert golden(analysis) == expected({"p.0": [1, 2, 3, 4, 5], "w.1 b.0": [6, 7, 8, 9, 10, 11]})
    assert analysis.inexact[1:].all()
    assert_sound(analysis)


JOINT = """g (float[1,3] x) => (float[] y) <float[3,6] w, int64[3] s = {{1, 2, 3}}, int64[1] axes = {{1}}, float[3,2] v> {{
    h = MatMul(x, w)
    j = Reshape(h, s)
    d = {} <keepdims = 0> (j, axes)
    y = MatMul(d, v)
}}"""


@pytest.mark.parametrize("op", [*LINEAR, "ReduceMean", "ReduceMax"])
def test_over_one_of_two_joint_axes(op):
    """Whole lines along the reduced axis go, exactly."""
    analysis = analyse(JOINT.format(op), opset=18)
    assert golden(analysis) == expected({"w.1": [1, 2, 3, 1, 2, 3], "v.0": [1, 2, 3]})
    assert not analysis.inexact.any()
    assert_sound(analysis)


def test_sum_of_counts():
    """Sums of integers, too."""
    text = OVER.format(
        "p = Mul(d, ten)  i = Cast <to = 7> (p)  s = ReduceSum(i, axes)  y = Cast <to = 1> (s)",
        ", int64[1] axes = {-1}, float ten = {10}",
    )
    analysis = analyse(text, opset=18)
    assert golden(analysis) == expected(ROWS)
    assert_sound(analysis)


PRUNE = {
    "ArgMax along another axis": (
        between("i = ArgMax <axis = 2> (h)  c = Cast <to = 1> (i)  d = Add(h, c)"),
        CHANNELS,
    ),
    "ArgMin along another axis": (
        between(
            "i = ArgMin <axis = 3, keepdims = 0> (h)  u = Unsqueeze(i, ax)  c = Cast <to = 1> (u)  d = Add(h, c)",
            "int64[1] ax = {-1}",
        ),
        CHANNELS,
    ),
    "TopK along another axis": (
        between("e, i = TopK <axis = 2> (h, k)  c = Cast <to = 1> (i)  d = Add(e, c)", "int64[1] k = {3}"),
        CHANNELS,
    ),
    "CumSum along another axis": (between("d = CumSum(h, ax)", "int64 ax = {2}"), CHANNELS),
}

REFUSE = {
    "ArgMax over channels": (
        between("i = ArgMax <axis = 1> (h)  c = Cast <to = 1> (i)  d = Add(h, c)"),
        {"w.0": "their indices are a result"},
    ),
    "TopK over channels": (
        between("d, i = TopK <axis = 1> (h, k)", "int64[1] k = {4}"),
        {"w.0": "their indices are a result"},
    ),
    "CumSum over channels": (
        between("d = CumSum(h, ax)", "int64 ax = {1}"),
        {"w.0": "running sums read them in order"},
    ),
}


test_must_prune, test_stays_sound = prunes(PRUNE)
test_must_refuse = refuses(REFUSE)


def test_axes_known_at_run_time_only():
    """Axes that are an input of the model freeze what they may reduce."""
    text = between("d = ReduceSum(h, axes)").replace("6] x)", "6] x, int64[1] axes)").replace("[] y", "[n,2,a,b] y")
    analysis = analyse(text, opset=18)
    assert not golden(analysis)
    assert "its axes are computed at run time" in reasons(analysis)["w.0"]
