"""Absorption: exact for channels that are constant; where the bias goes; measured means by the formula."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from copies import RELU, errors, outputs
from graphs import analyse, each

from onnxprune import runtime
from onnxprune.cut import cut
from onnxprune.graph import values
from onnxprune.recover.absorb import absorb
from onnxprune.recover.merge import Repair
from onnxprune.verify import check

# name -> graph, its filters that are zero in channels 2 and 5, then the names of what holds the constants
CONSTANT = {
    "a bias that is there": (
        RELU.replace("float[2,5,1,1] v", "float[2,5,3,3] v, float[2] c").replace("(d, v)", "(d, v, c)"),
        "w",
        {"c"},
    ),
    "a new bias": (RELU.replace("[2,5,1,1]", "[2,5,3,3]"), "w", {"y_bias"}),
    "a BN behind, rather than a new bias": (
        """g (float[2,3,6,6] x) => (float[] y) <float[5,3,1,1] w, float[5] b, float[4,5,3,3] u, float[4] s, float[4] o, float[4] m, float[4] var, float[2,4,1,1] v> {
            h = Conv(x, w, b)
            d = Sigmoid(h)
            k = Conv(d, u)
            n = BatchNormalization(k, s, o, m, var)
            r = Relu(n)
            y = Conv(r, v)
        }""",
        "w",
        {"m"},
    ),
    "a BN between": (
        """g (float[2,3,6,6] x) => (float[] y) <float[5,3,1,1] w, float[5] b, float[5] s, float[5] o, float[5] m, float[5] var, float[2,5,1,1] v> {
            h = Conv(x, w, b)
            n = BatchNormalization(h, s, o, m, var)
            d = HardSwish(n)
            y = Conv(d, v)
        }""",
        "w",
        {"y_bias"},
    ),
    "a depthwise chain": (
        """g (float[2,3,6,6] x) => (float[] y) <float[5,3,1,1] w, float[5] b, float[5,1,3,3] k, float[5] c, float[2,5,1,1] v> {
            h = Conv(x, w, b)
            r = Clip(h, low, high)
            e = Conv <group = 5> (r, k, c)
            d = LeakyRelu <alpha = 0.2> (e)
            y = Conv(d, v)
        }""".replace("float[2,5,1,1] v", "float low = {0}, float high = {6}, float[2,5,1,1] v"),
        "w",
        {"y_bias"},
    ),
    "the same channels of every group": (
        """g (float[2,3,6,6] x) => (float[] y) <float[10,3,1,1] w, float[10] b, float[4,5,3,3] k> {
            h = Conv(x, w, b)
            d = Relu(h)
            y = Conv <group = 2> (d, k)
        }""",
        "w",
        {"y_bias"},
    ),
    "a residual stream": (
        """g (float[2,3,6,6] x) => (float[] y) <float[5,3,1,1] w, float[5] b, float[5,5,1,1] u, float[5] c, float[2,5,1,1] v> {
            h = Conv(x, w, b)
            r = Relu(h)
            k = Conv(x1, u, c)
            a = Add(r, k)
            p = GlobalAveragePool(a)
            d = Relu(p)
            y = Conv(d, v)
        }""".replace("x1, u", "x, u").replace("[5,5,1,1] u", "[5,3,1,1] u"),
        "w u",
        {"y_bias"},
    ),
    "Flatten, Gemm with alpha and beta": (
        """g (float[2,3,4,4] x) => (float[] y) <float[5,3,1,1] w, float[5] b, float[2,80] v, float[1,2] c> {
            h = Conv(x, w, b)
            d = Relu(h)
            f = Flatten(d)
            y = Gemm <transB = 1, alpha = 0.5, beta = -2.0> (f, v, c)
        }""",
        "w",
        {"c"},
    ),
    "Gemm without a bias": (
        """g (float[7,3] x) => (float[] y) <float[3,5] w, float[5] b, float[5,2] v> {
            h = Gemm(x, w, b)
            d = Softplus(h)
            y = Gemm(d, v)
        }""",
        "w",
        {"y_bias"},
    ),
    "a Gemm's scalar bias becomes a vector": (
        """g (float[7,3] x) => (float[] y) <float[3,5] w, float[5] b, float[5,2] v, float[1] c> {
            h = Gemm(x, w, b)
            d = Elu(h)
            y = Gemm(d, v, c)
        }""",
        "w",
        {"c"},
    ),
    "MatMul and what is added to it": (
        """g (float[2,7,3] x) => (float[] y) <float[3,5] w, float[5] b, float[5,2] v, float[7,2] p> {
            h = MatMul(x, w)
            a = Add(b, h)
            d = Tanh(a)
            k = MatMul(d, v)
            y = Add(p, k)
        }""",
        "w",
        {"p"},
    ),
    "ConvTranspose": (
        """g (float[2,3,6,6] x) => (float[] y) <float[3,5,1,1] w, float[5] b, float[5,1,1] slope, float[5,2,1,1] v> {
            h = ConvTranspose(x, w, b)
            d = PRelu(h, slope)
            y = ConvTranspose(d, v)
        }""",
        "w",
        {"y_bias"},
    ),
    "int8 weights": (
        """g (float[2,3,6,6] x) => (float[] y) <float[5,3,1,1] w, float[5] b, int8[2,5,1,1] v, float scale_v> {
            h = Conv(x, w, b)
            d = Relu(h)
            q = DequantizeLinear(v, scale_v)
            y = Conv(d, q)
        }""",
        "w",
        {"y_bias"},
    ),
    "a gate, concatenated": (
        """g (float[2,3,6,6] x) => (float[] y) <float[5,3,1,1] w, float[5] b, float[5,3,1,1] u, float[5] c, float[2,10,1,1] v> {
            h = Conv(x, w, b)
            k = Conv(x, u, c)
            s = HardSigmoid(k)
            m = Mul(h, s)
            i = Concat <axis = 1> (m, h)
            d = MaxPool <kernel_shape = [2, 2]> (i)
            y = Conv(d, v)
        }""",
        "w u",
        {"y_bias"},
    ),
}
OTHERS = {
    "MatMul without a bias": (
        """g (float[7,3] x) => (float[] y) <float[3,5] w, float[5] b, float[5,2] v> {
            h = Gemm(x, w, b)
            d = Relu(h)
            y = MatMul(d, v)
        }""",
        "y",
        "nothing is added to this MatMul that could hold a bias",
    ),
    "a bias that is computed": (
        """g (float[7,3] x, float[2] c) => (float[] y) <float[3,5] w, float[5] b, float[5,2] v> {
            h = Gemm(x, w, b)
            d = Relu(h)
            y = Gemm(d, v, c)
        }""",
        "y",
        "its bias is computed, or not used",
    ),
    "a mean that is not known": (
        """g (float[2,7,3] x) => (float[] y) <float[3,5] w, float[5] b, float[5,2] v, float[2] c> {
            h = MatMul(x, w)
            a = Add(h, b)
            d = Sin(a)
            k = MatMul(d, v)
            y = Add(k, c)
        }""",
        "k",
        "the mean of what it loses is not known",
    ),
    "a recurrence": (
        """g (float[4,2,3] x) => (float[] y) <float[3,5] v, float[5] b, float[1,8,5] w, float[1,8,2] r> {
            h = MatMul(x, v)
            d = Add(h, b)
            s, y, c = LSTM <hidden_size = 2> (d, w, r)
        }""",
        "s",
        "LSTM with this weight has no bias of a known form",
    ),
}


def constants(text, names):
    """A coupled model without the filters that make classes 2 and 5, and the choice that removes these classes."""
    analysis = analyse(text)
    for name in names.split():
        axis = next(a for a in analysis.axes if a.param == name and a.role == "out")
        weight = np.moveaxis(values(analysis.model.constants()[name]).copy(), axis.axis, 0)
        weight[np.isin(axis.classes, (2, 5))] = 0
        analysis.model.constants()[name].values = np.ascontiguousarray(np.moveaxis(weight, 0, axis.axis))
    kept = np.ones(analysis.classes + 1, bool)
    kept[[2, 5]] = False
    return analysis, kept


def inputs_of(analysis, names, feeds):
    """What some tensors of the original are."""
    return runtime.session(analysis.model.to_proto(), extra=names).run(feeds, names)


@each(CONSTANT, ["text", "zero", "holders"])
def test_constants_are_absorbed_exactly(text, zero, holders):
    """Channels without weights give constants: their consumers' biases take them over without a trace."""
    analysis, kept = constants(text, zero)
    reference, small = outputs(analysis.model), cut(analysis, kept)
    assert min(errors(small, reference)) > 1e-2
    done = absorb(analysis, kept, small)
    assert max(errors(small, reference)) < 2e-6
    assert done == Repair(tuple(done.changed), ())
    assert set(done.changed) == holders
    check(small, analysis)


@each(OTHERS, ["text", "node", "reason"])
def test_what_cannot_be_absorbed(text, node, reason):
    """Layers without a place for a bias, and means that nothing tells, are left as they were cut, with the reason."""
    analysis, kept = constants(text, "v" if "LSTM" in text else "w")
    small = cut(analysis, kept)
    before = small.to_proto().SerializeToString()
    assert absorb(analysis, kept, small) == Repair((), ((node, reason),))
    assert small.to_proto().SerializeToString() == before


def test_borders_are_as_if_nothing_were_padded():
    """With padding, the inside is exact and the border, where the convolution reads zeros, is not."""
    text = RELU.replace("[2,5,1,1]", "[2,5,3,3]").replace("Conv(d", "Conv <pads = [1, 1, 1, 1]> (d")
    analysis, kept = constants(text, "w")
    small = cut(analysis, kept)
    absorb(analysis, kept, small)
    difference = np.abs(outputs(small)["y"] - outputs(analysis.model)["y"])
    assert difference[..., 1:-1, 1:-1].max() < 1e-5
    assert difference[..., 0, :].min() > 1e-3


def test_a_shared_bias_is_not_shared_any_more():
    """A bias that several layers read changes for one of them only."""
    text = """g (float[2,3,6,6] x) => (float[] y, float[] z) <float[5,3,1,1] w, float[5] b, float[2,5,1,1] v, float[2,3,1,1] u, float[2] c> {
        h = Conv(x, w, b)
        d = Relu(h)
        y = Conv(d, v, c)
        z = Conv(x, u, c)
    }"""
    analysis, kept = constants(text, "w")
    small = cut(analysis, kept)
    done = absorb(analysis, kept, small)
    assert max(errors(small, outputs(analysis.model))) < 2e-6
    assert done.changed == ("c_1",)
    assert np.array_equal(values(small.constants()["c"]), values(analysis.model.constants()["c"]))


# ---- measured means ------------------------------------------------------------------------------------------------

GROUPED = """g (float[2,3,6,6] x) => (float[] y) <float[10,3,1,1] w, float[4,5,3,3] k, float[4] c> {
    h = Conv(x, w)
    d = Relu(h)
    y = Conv <group = 2> (d, k, c)
}"""


def test_formula():
    """bias += sum over removed c of mean_c sum_k W[:, c, k]; every group has channels, and means, of its own."""
    analysis = analyse(GROUPED)
    kept = np.array([True, True, False, True, True, False])
    means = np.arange(1.0, 11.0)
    small = cut(analysis, kept)
    assert absorb(analysis, kept, small, means={"k": means}) == Repair(("c",), ())
    weight = values(analysis.model.constants()["k"]).astype(np.float64)
    want = values(analysis.model.constants()["c"]).astype(np.float64)
    for o in range(4):
        for c in (1, 4):
            want[o] += means[5 * (o // 2) + c] * weight[o, c].sum()
    np.testing.assert_allclose(values(small.constants()["c"]), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("consumer", "weight"),
    [
        ("Conv(d, v)", "[2,5,1,1]"),
        ("ConvTranspose(d, v)", "[5,2,1,1]"),
        ("ConvTranspose <strides = [2, 2]> (d, v)", "[5,2,2,2]"),
    ],
)
def test_measured_means_keep_the_mean_of_the_outputs(consumer, weight):
    """Whatever the inputs, the mean of every output stays what it was, over the phases of a stride too."""
    text = RELU.replace("Conv(d, v)", consumer).replace("[2,5,1,1]", weight)
    analysis = analyse(text)
    kept = np.array([True, False, True, True, False, True])
    exported = analysis.model.to_proto()
    feeds = runtime.random_inputs(exported, {}, seed=0)
    means = inputs_of(analysis, ["d"], feeds)["d"].mean(axis=(0, 2, 3))
    small = cut(analysis, kept)
    before, plain = outputs(analysis.model)["y"].mean(axis=(0, 2, 3)), outputs(small)["y"].mean(axis=(0, 2, 3))
    assert np.abs(before - plain).max() > 1e-2
    absorb(analysis, kept, small, means={"v": means})
    np.testing.assert_allclose(outputs(small)["y"].mean(axis=(0, 2, 3)), before, rtol=1e-5, atol=1e-5)


def test_means_that_are_not_known():
    """NaN counts as 0 and is told; a layer without means is left alone."""
    analysis = analyse(GROUPED)
    kept = np.array([True, True, False, True, True, False])
    means = np.where(np.arange(10) == 1, np.nan, 1.0)
    small, other = cut(analysis, kept), cut(analysis, kept)
    done = absorb(analysis, kept, small, means={"k": means})
    assert done == Repair(("c",), (("y", "the means of 1 of 4 removed inputs are not known"),))
    absorb(analysis, kept, other, means={"k": np.nan_to_num(means)})
    assert np.array_equal(values(small.constants()["c"]), values(other.constants()["c"]))
    assert absorb(analysis, kept, other, means={}) == Repair((), (("y", "the mean of what it loses is not known"),))


def test_means_of_the_wrong_shape():
    """One mean per channel of the uncut input is needed."""
    analysis, kept = constants(RELU, "w")
    with pytest.raises(ValueError, match=r"means of 'v' must be of shape \(5,\), one per channel read, not \(3,\)"):
        absorb(analysis, kept, cut(analysis, kept), means={"v": np.zeros(3)})


# ---- the model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "double"])
def test_element_types(kind):
    """A bias has the type of the model, and is rounded once."""
    analysis, kept = constants(RELU.replace("float[", f"{kind}["), "w")
    small = cut(analysis, kept)
    absorb(analysis, kept, small)
    weight, b = (np.asarray(values(analysis.model.constants()[n]), np.float64) for n in ("v", "b"))
    bias = values(small.constants()["y_bias"])
    assert bias.dtype == values(analysis.model.constants()["v"]).dtype
    want = weight[:, [1, 4], 0, 0] @ np.maximum(b[[1, 4]], 0)
    np.testing.assert_allclose(bias.astype(np.float64), want, rtol=float(ml_dtypes.finfo(bias.dtype).eps))


def test_the_original_is_not_touched():
    """Absorption edits the cut model only, and nothing where nothing was removed."""
    analysis, kept = constants(RELU, "w")
    before = analysis.model.to_proto().SerializeToString()
    absorb(analysis, kept, cut(analysis, kept))
    whole = cut(analysis, np.ones_like(kept))
    assert absorb(analysis, np.ones_like(kept), whole) == Repair((), ())
    assert analysis.model.to_proto().SerializeToString() == whole.to_proto().SerializeToString() == before
