"""Windows refitted on the way through a cut network: never worse, written as told, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import analyse, each, random_plan
from recovering import Case, far

from onnxprune.recover import joint
from onnxprune.recover.program import Store

PLANE = "float[N,3,8,8] x"
BLOCKS = f"""g ({PLANE}) => (float[] y) <float[8,3,3,3] w, float[8] b, float[8,8,3,3] k, float[8] c, float[8,8,3,3] l, float[8] m,
  float[8,8,3,3] k1, float[8] c1, float[8,8,3,3] l1, float[2,8] v> {{
    h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    s = Relu(h)
    i = Conv <pads = [1, 1, 1, 1]> (s, k, c)
    r = Relu(i)
    j = Conv <pads = [1, 1, 1, 1]> (r, l, m)
    a = Add(j, s)
    s1 = Relu(a)
    i1 = Conv <pads = [1, 1, 1, 1]> (s1, k1, c1)
    r1 = Relu(i1)
    j1 = Conv <pads = [1, 1, 1, 1]> (r1, l1)
    a1 = Add(s1, j1)
    s2 = Relu(a1)
    p = GlobalAveragePool(s2)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, v)
}}"""
# name -> (graph, outputs of layers whose window must have been refitted)
CASES = {
    "residual blocks": (BLOCKS, ["j", "j1"]),
    "plain, with BatchNormalization": (
        f"""g ({PLANE}) => (float[] y) <float[8,3,3,3] w, float[8] s, float[8] o, float[8] m, float[8] var,
          float[8,8,3,3] v, float[8] s1, float[8] o1, float[8] m1, float[8] var1, float[8,8,1,1] u, float[8] c, float[4,8,1,1] t> {{
            h = Conv(x, w)
            n = BatchNormalization(h, s, o, m, var)
            r = Relu(n)
            k = Conv(r, v)
            n1 = BatchNormalization(k, s1, o1, m1, var1)
            r1 = Relu(n1)
            q = Conv(r1, u, c)
            r2 = Relu(q)
            y = Conv(r2, t)
        }}""",
        ["q", "y"],
    ),
    "an inverted residual, depthwise, strided": (
        f"""g ({PLANE}) => (float[] y) <float[9,3,1,1] w, float[9] b, float[9,1,3,3] k, float[9] c, float[5,9,1,1] v, float[5] d,
          float low = {{0}}, float high = {{2}}, float[3,5,1,1] t> {{
            h = Conv(x, w, b)
            r = Clip(h, low, high)
            i = Conv <group = 9, strides = [2, 2], pads = [1, 1, 1, 1]> (r, k, c)
            e = Clip(i, low, high)
            z = Conv(e, v, d)
            q = Sigmoid(z)
            y = Conv(q, t)
        }}""",
        ["z"],
    ),
}
DTYPES = {"float32": BLOCKS, "float16": BLOCKS.replace("float[", "float16[")}


def cases(text, **options):
    """A network that lost about a third of its filters, in batches of 24."""
    analysis = analyse(text)
    return Case(analysis, random_plan(analysis, 0.3, 0), batches=8, held=2, samples=24, **options)


def joint_outputs(case, done):
    """Outputs of the last layers of the windows that were refitted."""
    made = {n.name or n.output[0]: n.output[0] for n in done.program.nodes}
    return [made[x.node] for x in done.layers if x.method == "joint"]


@each(CASES, "text, wanted")
def test_better_than_layer_by_layer(text, wanted):
    """A window's error on held inputs is below that of least squares, and so is the network's."""
    case = cases(text)
    single, done = case.repaired(), case.repaired(method="joint")
    assert joint_outputs(case, done) == wanted
    first, found = next(
        (a, b) for a, b in zip(single.layers, done.layers, strict=True) if b.method == "joint"
    )  # up to here both have seen the same
    assert found.node == first.node
    assert found.after < 0.95 * first.after
    assert case.after(done) < case.after(single)


@each(CASES, "text, wanted")
def test_what_is_told_is_what_is_written(text, wanted):
    """The outputs of the walk, whose inner tensors were made anew, are those of the model that is written."""
    case = cases(text)
    done = case.repaired(method="joint")
    assert wanted
    assert case.after(done) == pytest.approx(far(done.outputs, case.reference.outputs), rel=1e-3)


def test_half_precision():
    """Weights in float16 are refitted in float32 and stored as they were."""
    case = cases(DTYPES["float16"])
    done = case.repaired(method="joint")
    assert joint_outputs(case, done) == ["j", "j1"]
    assert {a.dtype for a in done.program.weights.values()} == {np.dtype("float16")}
    assert case.after(done) < case.after(case.repaired())


QUANTISED = BLOCKS.replace("float[8,8,3,3] k,", "int8[8,8,3,3] q, float[8] qs,").replace(
    "i = Conv", "k = DequantizeLinear <axis = 0> (q, qs)\n    i = Conv"
)


def test_integer_weights():
    """The error told for a window with integer weights is the one after they were rounded."""
    case = cases(QUANTISED)
    done = case.repaired(method="joint")
    assert joint_outputs(case, done) == ["j", "j1"]
    assert done.program.weights["q"].dtype == np.int8
    assert case.after(done) == pytest.approx(far(done.outputs, case.reference.outputs), rel=1e-3)
    assert case.after(done) < case.after(case.repaired())


def test_integer_weights_that_round_badly(monkeypatch):
    """Where rounding costs more than the refit brings, the window stays as least squares left it, to the bit."""

    def hardly_better(passes, weights, biases, train, held, **_):
        before = joint.State(passes, weights, biases).error(held)
        return joint.Joint([0.9 * w for w in weights], biases, before, 0.999 * before)

    case = cases(QUANTISED)
    single = case.repaired()
    monkeypatch.setattr(joint, "refit", hardly_better)
    done = case.repaired(method="joint")
    assert joint_outputs(case, done) == ["j1"]  # its weights are not rounded
    for name in ("q", "qs", "l", "m"):
        assert np.array_equal(done.program.weights[name], single.program.weights[name])


def test_one_input_at_a_time():
    """A model that takes one input only is refitted on many at once, too."""
    fixed = BLOCKS.replace("float[N,", "float[1,")
    analysis = analyse(fixed)
    one = Case(analysis, random_plan(analysis, 0.3, 0), batches=192, held=48)
    done = one.repaired(method="joint")
    assert joint_outputs(one, done) == ["j", "j1"]
    assert one.after(done) < one.after(one.repaired())


def test_one_batch():
    """Where all inputs are one batch, the refit is checked on what it has seen."""
    analysis = analyse(BLOCKS)
    case = Case(analysis, random_plan(analysis, 0.3, 0), batches=1, held=0)
    assert case.after(case.repaired(method="joint")) < case.after(case.repaired())


def test_the_same_from_files():
    """Activations in files, not in memory, give the same weights."""
    case, store = cases(BLOCKS), Store(0.0)
    from_files, from_memory = case.repaired(method="joint", store=store), case.repaired(method="joint")
    for name, array in from_memory.program.weights.items():
        np.testing.assert_array_equal(array, from_files.program.weights[name])


def test_all_memory_is_given_back():
    """At the end the store holds nothing that the walks have put there."""
    store = Store()
    case = cases(BLOCKS, store=store)
    held = store.held
    case.repaired(method="joint", store=store)
    assert store.peak > held
    assert store.held == held


def test_no_place_for_a_bias():
    """Where a layer may not get the bias that it lacks, its window stays as least squares left it."""
    case = cases(BLOCKS)
    done = case.repaired(method="joint", new_biases=False)
    assert joint_outputs(case, done) == ["j"]


def test_too_much_work():
    """Where the refits of windows cost too much, layers are refitted one at a time, and that is told."""
    case = cases(BLOCKS)
    done = case.repaired(method="joint", work=1e4)
    assert done.notes == ("to keep to the time, layers are refitted one at a time",)
    single = case.repaired()
    assert not single.notes
    assert [x.after for x in done.layers] == [x.after for x in single.layers]
