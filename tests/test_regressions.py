"""Graphs that once came out wrong, each with the fact that now holds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune.errors import ModelError, UsageError


def model(body, results="y", *, header="float[1, 4, 8, 8] x", constants="", **shapes):
    """A model from ONNX text with seeded random weights of these shapes."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g ({header}) => ({results}) <{constants}> {{ {body} }}"""
    proto = onnx.parser.parse_model(text.replace(" <> ", " "))
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return proto


PAIR = {"w": (8, 4, 3, 3), "v": (4, 8, 1, 1)}
OUT = "float[1, 4, 6, 6] y"
FREE = {"align": 1, "min_keep": 0, "best_effort": True, "method": "random"}

SOUND = {
    "a weight computed from two": (
        model("k = Add(v, e) h = Conv(x, w) y = Conv(h, k)", OUT, e=(4, 8, 1, 1), **PAIR),
        {},
    ),
    "a weight behind an op that is not 0 at 0": (model("k = Exp(v) h = Conv(x, w) y = Conv(h, k)", OUT, **PAIR), {}),
    "an activation as the weight": (
        model(
            "q = Conv(z, u, b) h = Conv(x, w) y = Conv(h, q)",
            OUT,
            header="float[1, 4, 8, 8] x, float[4, 3, 1, 1] z",
            u=(8, 3, 1, 1),
            b=(8,),
            **PAIR,
        ),
        {},
    ),
    "a stepped Slice from the end": (
        model(
            "h = Conv(x, w) a = Slice(h, s, e, c, t) b = Slice(h, r, e, c, t) d = Concat<axis = 1>(a, b) y = Conv(d, v)",
            OUT,
            constants="int64[1] s = {-8}, int64[1] r = {-7}, int64[1] e = {1000}, int64[1] c = {1}, int64[1] t = {2}",
            **PAIR,
        ),
        {},
    ),
    "a part that only a pool reads": (
        model(
            "h = Conv(x, w) a, c = Split<axis = 1>(h, s) p = AveragePool<kernel_shape = [1, 1]>(a)"
            " d = Concat<axis = 1>(c, p) y = Conv(d, v)",
            OUT,
            constants="int64[2] s = {2, 6}",
            **PAIR,
        ),
        {},
    ),
    "two prunable axes merged, then summed": (
        model(
            "a = MatMul(x, w) b = MatMul(x, u) c = Unsqueeze(a, two) d = Unsqueeze(b, one) e = Mul(c, d)"
            " f = Reshape(e, s) g = ReduceSum<keepdims = 1>(f, one) y = MatMul(g, v)",
            "float[1, 3] y",
            header="float[1, 5] x",
            constants="int64[1] one = {1}, int64[1] two = {2}, int64[2] s = {0, 28}",
            w=(5, 4),
            u=(5, 7),
            v=(1, 3),
        ),
        {},
    ),
    "noise is all that is left": (
        model(
            "h = Conv(x, w) r = Reshape(h, s) i = InstanceNormalization(r, g, o) k = Reshape(i, t) c = Conv(k, v)"
            " p = GlobalAveragePool(c) y = Flatten(p)",
            "float[1, 4] y",
            constants="int64[3] s = {0, 1, -1}, int64[4] t = {0, 8, 6, 6}, float[1] g = {1.0}, float[1] o = {0.0}",
            **PAIR,
        ),
        {"inexact": True},
    ),
    "a Squeeze where a width becomes 1": (
        model(
            "h = Conv(x, w) p = GlobalAveragePool(h) s = Squeeze(p) y = MatMul(s, v)",
            "float[3] y",
            w=(8, 4, 3, 3),
            v=(8, 3),
        ),
        {},
    ),
    "NaN in half of the outputs": (
        model(
            "h = Conv(x, w) l = Log(h) k = Conv(l, v) r = Conv(h, v) y = Concat<axis = 1>(k, r)",
            "float[1, 8, 6, 6] y",
            **PAIR,
        ),
        {},
    ),
}


@pytest.mark.parametrize("share", [0.8, 0.5, 0.15])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("case", SOUND)
def test_stays_sound(case, seed, share):
    """Random plans of any depth give a valid model that equals its masked original."""
    proto, options = SOUND[case]
    report = onnxprune.compress(proto, params=share, seed=seed, **FREE, **options, recover="none").report
    assert report.verification.relative_error <= 1e-5


def test_nothing_finite_is_not_our_bug():
    """Where nothing that the model computes is finite the cut cannot be judged: the model is at fault, not the rules."""
    proto = model("h = Conv(x, w) l = Div(h, zero) y = Conv(l, v)", OUT, constants="float zero = {0.0}", **PAIR)
    with pytest.raises(ModelError, match="is finite"):
        onnxprune.compress(proto, params=0.5, **FREE, recover="none")


def test_unsorted_nodes_make_no_difference():
    """A ModelProto with its nodes in reverse has the plan of the sorted one, and stays in reverse."""
    proto = model("h = Conv(x, w) r = Relu(h) y = Conv(r, v)", OUT, **PAIR)
    turned = onnx.ModelProto()
    turned.CopyFrom(proto)
    nodes = list(turned.graph.node)[::-1]
    turned.graph.ClearField("node")
    turned.graph.node.extend(nodes)
    before = turned.SerializeToString()
    assert onnxprune.make_plan(turned, params=0.6, align=1).keep == onnxprune.make_plan(proto, params=0.6, align=1).keep
    assert turned.SerializeToString() == before


def test_keep_takes_the_names_that_analyze_prints():
    """A layer without a name is known by its output; an activation protects nothing, and that is an error."""
    proto = model("h = Conv(x, w) r = Relu(h) y = Conv(r, v)", OUT, **PAIR)
    assert "w" not in onnxprune.make_plan(proto, params=0.9, align=1, best_effort=True, keep=["h"]).keep
    with pytest.raises(UsageError, match="names no layer"):
        onnxprune.make_plan(proto, params=0.6, keep=["x"])


def test_a_fault_shows_on_its_own_scale():
    """A small branch beside a large one is compared before the Concat that hides it."""
    proto = model(
        "h = Conv(x, w) a = Conv(h, v) b = Conv(h, u) c = Sigmoid(a) d = Mul(c, k) y = Concat<axis = 1>(d, b)",
        "float[1, 8, 6, 6] y",
        constants="float k = {640.0}",
        u=(4, 8, 1, 1),
        **PAIR,
    )
    assert {"a", "b", "y"} <= set(
        onnxprune.compress(proto, params=0.6, align=1, recover="none").report.verification.compared
    )


def test_a_model_that_no_op_accepts_is_named():
    """A Conv whose weight has other input channels than its input is the model's fault, and the node is named."""
    proto = model("h = Conv(x, w) y = Conv(h, v)", OUT, w=(8, 4, 3, 3), v=(4, 7, 1, 1))
    with pytest.raises(ModelError, match=r"node 'y' \(Conv\) does not fit its inputs"):
        onnxprune.analyze(proto)


def test_a_sum_over_another_element_type():
    """A sum inside an island of half precision is silenced in that type."""
    proto = model(
        "h = Conv(x, w) c = Cast<to = 10>(h) n = LpNormalization<axis = 1>(c) f = Cast<to = 1>(n) y = Conv(f, v)",
        OUT,
        **PAIR,
    )
    assert onnxprune.compress(proto, params=0.6, align=1, recover="none").report.verification.relative_error < 1e-3


def test_noise_is_not_compared():
    """Where an output is noised at run time, what the noise is added to is compared in its place."""
    proto = model("h = Conv(x, w) k = Conv(h, v) n = RandomNormalLike(k) y = Add(k, n)", OUT, **PAIR)
    report = onnxprune.compress(proto, params=0.6, align=1, recover="none").report
    assert report.verification.compared == ("k",)
