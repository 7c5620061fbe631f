"""The check that runs on every model: it passes what is right, and catches what is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from graphs import analyse, between, each, oracle, proto

from onnxprune.couple import couple
from onnxprune.cut import cut
from onnxprune.errors import ModelError, VerificationError
from onnxprune.graph import from_proto
from onnxprune.rules import RULES
from onnxprune.shapes import concrete_shapes
from onnxprune.verify import comparable, relative_error, verify

KEPT = np.array([True, True, False, True, False])
TWO = """g (float[1,3,5,5] x) => (float[] y) <float[4,3,1,1] w, float[4] b, float[4,3,1,1] u, float[2,8,1,1] v> {
    h = Conv(x, w, b)
    k = Conv(x, u)
    d = Concat <axis = 1> (h, k)
    y = Conv(d, v)
}"""


def test_a_right_cut_passes():
    """Almost no difference, on an output that silencing changed."""
    found = oracle(analyse(between("d = Relu(h)")), KEPT)
    assert found.relative_error < 1e-6
    assert found.masked_differs
    assert (found.checker, found.compared, found.precision) == ("passed", ("y",), "as stored")
    assert found.as_dict()["compared"] == ["y"]


def test_removing_nothing():
    """There is nothing to compare."""
    found = oracle(analyse(between("d = Relu(h)")), np.ones(5, bool))
    assert (found.relative_error, found.masked_differs) == (0, False)


def test_removing_what_nobody_misses_is_no_failure():
    """Where the readers' columns are zero already, the masked original is the original: reported, not refused."""
    model = proto(between("d = Relu(h)"))
    v = next(t for t in model.graph.initializer if t.name == "v")
    array = onnx.numpy_helper.to_array(v).copy()
    array[:, [1, 3]] = 0
    v.CopyFrom(onnx.numpy_helper.from_array(array, "v"))
    found = oracle(analyse(model), KEPT)
    assert found.relative_error < 1e-6
    assert not found.masked_differs


def test_inputs_are_seeded():
    """The same seed finds the same difference, another seed another one."""
    found = []
    for seed in (1, 1, 2):
        with pytest.raises(VerificationError) as caught:
            verify(*mutated(TWO, WRONG["columns in another order"]), seed=seed)
        found.append(str(caught.value))
    assert found[0] == found[1] != found[2]


def test_half_precision_is_compared_in_single():
    """Rounding to half precision would hide a wrong rewrite."""
    found = oracle(analyse(between("d = Relu(h)").replace("float[", "float16[")), KEPT)
    assert found.precision == "float32, widened from half precision"
    assert found.relative_error < 1e-6


# ---- what is wrong is caught ---------------------------------------------------------------------------------------------


def mutated(text, change):
    """The cut model of a plan, after `change` has had its way with its constants."""
    analysis = analyse(text)
    kept = np.ones(analysis.classes + 1, bool)
    kept[[2, analysis.classes]] = False
    model = cut(analysis, kept)
    change(model.constants(), analysis.model.constants(), model)
    return analysis, kept, model


def set_values(constant, array):
    constant.values = np.ascontiguousarray(array)


WRONG = {
    "other filters than planned": lambda c, o, m: set_values(c["w"], o["w"].values[[0, 1, 3]]),
    "another bias than planned": lambda c, o, m: set_values(c["b"], o["b"].values[[0, 1, 3]]),
    "columns in another order": lambda c, o, m: set_values(c["v"], c["v"].values[:, ::-1]),
    "columns of the wrong part of a Concat": lambda c, o, m: set_values(c["v"], o["v"].values[:, [0, 1, 2, 4, 5, 6]]),
    "a Concat in another order": lambda c, o, m: m.graph.nodes[2].inputs.reverse(),
    "one weight by a hundredth": lambda c, o, m: set_values(c["v"], c["v"].values * np.float32(1.01)),
    "a dead activation": lambda c, o, m: set_values(c["u"], c["u"].values * np.float32(0)),
}


@each({name: (change,) for name, change in WRONG.items()}, ["change"])
def test_a_wrong_cut_is_caught(change):
    """Shapes fit, numbers do not: our bug, with the output and the way around it."""
    with pytest.raises(VerificationError, match=r"differs from the masked original by .* at tensor 'y'.*--keep"):
        verify(*mutated(TWO, change))


MISFIT = {
    "an uncut bias": lambda c, o, m: set_values(c["b"], o["b"].values),
    "uncut columns": lambda c, o, m: set_values(c["v"], o["v"].values),
    "a cut of too much": lambda c, o, m: set_values(c["u"], c["u"].values[1:]),
}


@each({name: (change,) for name, change in MISFIT.items()}, ["change"])
def test_shapes_that_do_not_fit_are_caught(change):
    """Whoever sees it first, the checker or onnxruntime, nothing passes."""
    with pytest.raises((VerificationError, ModelError)):
        verify(*mutated(TWO, change))


def test_the_first_node_that_differs_is_named():
    """Not the graph output, but where the difference begins."""
    text = """g (float[1,3,5,5] x) => (float[] y, float[] n) <float[4,3,1,1] w, float[2,4,1,1] v> {
        h = Conv(x, w)
        d = Conv(h, v)
        n = Neg(d)
        y = Relu(n)
    }"""
    with pytest.raises(VerificationError, match=r"at tensor 'd', output of node '' \(Conv\)"):
        verify(*mutated(text, lambda c, o, m: set_values(c["v"], -c["v"].values)))


def test_a_rule_that_forgets_a_tie_is_caught(monkeypatch):
    """A Concat in the wrong order runs happily; only the numbers tell."""
    original = RULES["", "Concat"]
    monkeypatch.setitem(RULES, ("", "Concat"), lambda t, a, b, *, axis: original(t, b, a, axis=axis))
    analysis = analyse(TWO)
    kept = np.ones(analysis.classes + 1, bool)
    kept[2] = False
    with pytest.raises(VerificationError, match="differs from the masked original"):
        oracle(analysis, kept)


def test_a_group_that_is_not_refitted_is_caught(monkeypatch):
    """The depthwise convolution of the cut model would not fit its channels."""
    analysis = analyse(between("d = Conv <group = 4> (h, k)", "float[4,1,1,1] k"))
    assert oracle(analysis, KEPT).masked_differs
    analysis.trace.trace.refits.clear()
    with pytest.raises((VerificationError, ModelError)):
        oracle(analysis, KEPT)


def test_removed_channels_that_leak_are_caught(monkeypatch):
    """A rule that thinks a maximum does not depend on any channel: what is alive in the removed ones shows."""
    monkeypatch.setitem(RULES, ("", "ReduceMax"), lambda t, data, axes: t.name(*data.view) or ())
    text = """g (float[5,3] x) => (float[] y) <float[3,4] w, float[4] b> {
        h = Gemm(x, w, b)
        y = ReduceMax <axes = [1]> (h)
    }"""
    analysis = analyse(text)
    assert analysis.classes == 4
    for channel in (1, 2, 3, 4):
        with pytest.raises(VerificationError, match="at tensor 'y'"):
            oracle(analysis, np.isin(range(5), (0, channel)))


# ---- the checker and the signature -----------------------------------------------------------------------------------------


def test_a_changed_signature_is_caught():
    """Inputs and outputs must be exactly the original's."""
    analysis = analyse(between("d = Relu(h)"))
    small = cut(analysis, KEPT)
    header = onnx.ModelProto()
    header.CopyFrom(small.header)
    header.graph.output[0].name = "other"
    with pytest.raises((VerificationError, ModelError)):
        verify(analysis, KEPT, replace(small, header=header))
    header.graph.output[0].CopyFrom(small.header.graph.output[0])
    header.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    with pytest.raises(VerificationError, match="graph inputs of the cut model changed"):
        verify(analysis, KEPT, replace(small, header=header))


def test_a_model_that_is_invalid_from_the_start_is_not_our_bug():
    """The original fails the checker as well: the model is unusable, and says so."""
    model = proto(between("d = Relu(h)"))
    relu = next(n for n in model.graph.node if n.op_type == "Relu")
    relu.attribute.append(onnx.helper.make_attribute("unheard_of", 1))
    view = from_proto(model)
    analysis = couple(view, concrete_shapes(from_proto(proto(between("d = Relu(h)")))))
    with pytest.raises(ModelError, match="onnxruntime refuses the model"):
        verify(analysis, KEPT, cut(analysis, KEPT))


# ---- what is compared --------------------------------------------------------------------------------------------------------


def compared(text):
    analysis = analyse(text)
    return comparable(analysis.model, analysis)


def test_indices_are_compared_by_what_they_were_computed_from():
    """Float noise can flip an ArgMax: the scores stand in for it, and for all that depends on it."""
    text = """g (float[5,3] x) => (float[5,2] y, int64[5,1] i, float[5,1] c) <float[3,4] w, float[4,2] v> {
        h = MatMul(x, w)
        y = MatMul(h, v)
        i = ArgMax <axis = 1> (y)
        c = Cast <to = 1> (i)
    }"""
    assert compared(text) == ("y",)
    assert compared(text.replace("float[5,2] y, ", "")) == ("y",)


def test_both_outputs_of_top_k_are_indices():
    """Values and indices come from the scores."""
    text = """g (float[5,3] x) => (float[5,2] t, int64[5,2] i) <float[3,4] w, float[4,3] v, int64[1] k = {2}> {
        h = MatMul(x, w)
        s = MatMul(h, v)
        t, i = TopK(s, k)
    }"""
    assert compared(text) == ("s",)


def test_a_squashed_output_is_compared_before_it_saturates():
    """A Softmax at the end would hide differences: its input is compared, too."""
    text = "g (float[5,3] x) => (float[5,4] y) <float[3,6] w, float[6,4] v> { h = MatMul(x, w)  s = MatMul(h, v)  y = Softmax(s) }"
    assert compared(text) == ("y", "s")


def test_random_numbers_are_not_compared():
    """What depends on them differs from run to run."""
    text = """g (float[5,3] x) => (float[5,4] y, float[5,4] z) <float[3,6] w, float[6,4] v> {
        h = MatMul(x, w)
        y = MatMul(h, v)
        r = RandomNormalLike(y)
        z = Add(y, r)
    }"""
    assert compared(text) == ("y",)
    kept = np.array([True, False, True, True, False, True, True])
    assert oracle(analyse(text), kept).relative_error < 1e-6


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        ("y", ("y", "z")),
        ("y, half", ("y", "z")),
        ("y, half, off", ("y", "z")),
        ("y, none, on", ("y", "z")),
        ("y, half, on", ("y",)),
        ("y, , on", ("y",)),
        ("y, half, given", ("y",)),
        ("y, ratio, on", ("y",)),
    ],
)
def test_a_dropout_is_compared_where_it_drops_nothing(inputs, names):
    """It draws random numbers in training with a ratio: by the values, whatever is left out; unknown ones may be so."""
    text = f"""g (float[5,3] x, bool given, float ratio) => (float[5,4] y, float[5,4] z)
      <float[3,6] w, float[6,4] v, float half = {{0.5}}, float none = {{0}}, bool on = {{1}}, bool off = {{0}}> {{
        h = MatMul(x, w)
        y = MatMul(h, v)
        z = Dropout({inputs})
    }}"""
    assert compared(text) == names


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0),
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([1.0, -4.0], [-4.0, 1.0], 1.25),
        ([0.0, 0.0], [0.0, 0.5], 0.5),
        ([1.0, np.nan], [1.0, np.nan], 0),
        ([1.0, np.nan], [1.0, 1.0], 0),
        ([1.0, 1.0], [1.0, np.inf], np.inf),
        ([np.nan, np.nan], [np.nan, np.nan], np.nan),
        ([1.0], [1.0, 1.0], np.inf),
        ([], [], 0),
    ],
)
def test_relative_error(a, b, error):
    """Largest difference by largest magnitude; infinite where shapes or what is finite differ, NaN where nothing is."""
    np.testing.assert_equal(relative_error(np.array(a), np.array(b)), error)
