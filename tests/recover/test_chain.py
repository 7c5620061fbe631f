"""What follows a layer: affine steps, sums, activations; and where a bias is written back to."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import analyse, each

from onnxprune.recover.chain import chain
from onnxprune.recover.layers import sites
from onnxprune.recover.program import program, run_through
from onnxprune.recover.view import View

HEAD = """g (float[N,3,6,6] x) => (float[] out) <float[4,3,1,1] w, float[4] b, float[4,4,3,3] v, float[4] c, float[4] s, float[4] o,
  float[4] m, float[4] var, float[4,1,1] scale, float[1,4,1,1] shift, float[1,6,6,4] last, float six = {{6}}, float zero = {{0}},
  float[6,6] plane, float[1,1,1,4] ends> {{
    h = Conv(x, w, b)
    r = Relu(h)
    k = Conv <pads = [1, 1, 1, 1]> (r, {})
    {}
}}"""
BN = "n = BatchNormalization(k, s, o, m, var)"
# what follows k -> end, other, (low, high), order
FOLLOWS = {
    "nothing": ("out = Sigmoid(k)", "k", "", (-np.inf, np.inf), ()),
    "Relu": ("out = Relu(k)", "k", "", (0, np.inf), ()),
    "Clip": ("out = Clip(k, zero, six)", "k", "", (0, 6), ()),
    "Clip from above": ("out = Clip(k, , six)", "k", "", (-np.inf, 6), ()),
    "a computed Clip": ("u = ReduceMax <keepdims = 0> (x)\n out = Clip(k, zero, u)", "k", "", (-np.inf, np.inf), ()),
    "BatchNormalization": (f"{BN}\n out = Relu(n)", "n", "", (0, np.inf), ()),
    "layer scale": ("a = Mul(scale, k)\n i = Add(a, shift)\n out = Relu(i)", "i", "", (0, np.inf), ()),
    "Sub and Div": ("a = Sub(k, shift)\n i = Div(a, scale)\n out = Tanh(i)", "i", "", (-np.inf, np.inf), ()),
    "Sub the other way": ("a = Sub(shift, k)\n out = Relu(a)", "k", "", (-np.inf, np.inf), ()),
    "a map of the plane": ("a = Mul(k, plane)\n out = Relu(a)", "k", "", (-np.inf, np.inf), ()),
    "a sum": ("a = Add(k, r)\n out = Relu(a)", "a", "r", (0, np.inf), ()),
    "a sum, shortcut first": (f"{BN}\n a = Add(r, n)\n out = Clip(a, zero, six)", "a", "r", (0, 6), ()),
    "a sum with what comes later": ("e = Sigmoid(r)\n a = Add(k, e)\n out = Relu(a)", "k", "", (-np.inf, np.inf), ()),
    "a sum with itself": ("a = Add(k, k)\n out = Relu(a)", "k", "", (-np.inf, np.inf), ()),
    "a Transpose": (
        "t = Transpose <perm = [0, 2, 3, 1]> (k)\n a = Add(t, ends)\n out = Relu(a)",
        "a",
        "",
        (0, np.inf),
        (0, 2, 3, 1),
    ),
    "two readers": ("a = Sigmoid(k)\n out = Add(k, a)", "k", "", (-np.inf, np.inf), ()),
}


def follow(body, bias="v, c", **options):
    """Program of a graph, and the chain of k."""
    analysis = analyse(HEAD.format(bias, body))
    whole = program(analysis.model, analysis.shapes)
    site = next(s for s in sites(whole)[0] if s.layer.y == "k")
    return whole, site, chain(whole, site.layer, site.index, **options)


@each(FOLLOWS, "body, end, other, limits, order")
def test_chain(body, end, other, limits, order):
    """Where the fit aims, what is added there, where the activation behind is flat, how the axes lie."""
    found = follow(body)[2]
    assert (found.end, found.other, (found.low, found.high), found.order) == (end, other, limits, order)
    assert ((found.low, found.high) != (-np.inf, np.inf)) == (limits != (-np.inf, np.inf))


@each(FOLLOWS, "body, end, other, limits, order")
def test_the_map_is_right(body, end, other, limits, order):
    """Scale and shift of the chain turn the layer's output into its end."""
    whole, site, found = follow(body)
    x = np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)
    names = [n for n in ("k", end, other) if n]
    tensors = {}
    run_through(whole, [{"x": x}], names, lambda _, t: tensors.update(t))
    scale, shift = (v.reshape(-1, 1, 1) for v in found.affine())
    given = found.restore(tensors[end]) - (tensors[other] if other else 0)
    np.testing.assert_allclose(tensors["k"] * scale + shift, given, rtol=1e-4, atol=1e-4)
    assert (found.end, (found.low, found.high), found.order) == (end, limits, order)
    assert site.layer.y == "k"


def test_no_sums():
    """Without sums the chain ends before an Add, and the activation behind that does not count."""
    found = follow("a = Add(k, r)\n out = Relu(a)", sums=False)[2]
    assert (found.end, found.other, found.low, found.high) == ("k", "", -np.inf, np.inf)


SPREAD = {
    "the other operand": "p = GlobalAveragePool(r)\n k = Conv <pads = [1, 1, 1, 1]> (r, v, c)\n out = Add(k, p)",
    "the output": "p = GlobalAveragePool(r)\n k = Conv(p, u)\n out = Add(r, k)",
}


@each({name: (body,) for name, body in SPREAD.items()}, ["body"])
def test_sums_that_spread(body):
    """An Add that spreads one of its operands is not aimed at."""
    text = HEAD.format("v, c", "").replace("k = Conv <pads = [1, 1, 1, 1]> (r, v, c)", body)
    analysis = analyse(text.replace("float[4] c,", "float[4] c, float[4,4,1,1] u,"))
    whole = program(analysis.model, analysis.shapes)
    site = next(s for s in sites(whole)[0] if s.layer.y == "k")
    found = chain(whole, site.layer, site.index)
    assert (found.end, found.other, found.low, found.high) == ("k", "", -np.inf, np.inf)


def test_results_end_a_chain():
    """A tensor that is a result of the model is not gone beyond."""
    analysis = analyse(HEAD.format("v, c", "out = Relu(k)").replace("=> (float[] out)", "=> (float[] k, float[] out)"))
    whole = program(analysis.model, analysis.shapes)
    site = next(s for s in sites(whole)[0] if s.layer.y == "k")
    found = chain(whole, site.layer, site.index)
    assert (found.low, found.high) == (-np.inf, np.inf)


# layer's inputs, what follows -> the initializers that a repair changes
PLACES = {
    "its own bias": ("v, c", "out = Relu(k)", {"v", "c"}),
    "its own bias, before BN": ("v, c", f"{BN}\n out = Relu(n)", {"v", "c"}),
    "a new bias": ("v", "out = Relu(k)", {"v", "k_bias"}),
    "beta of BN": ("v", f"{BN}\n out = Relu(n)", {"v", "o"}),
    "the constant of an Add": ("v", "a = Add(k, shift)\n i = Mul(a, scale)\n out = Relu(i)", {"v", "shift"}),
    "beta of a shared BN": ("v", f"{BN}\n i = Relu(n)\n l = Add(i, e)\n out = Relu(l)", {"v", "o"}),
    "before a Transpose": (
        "v",
        "t = Transpose <perm = [0, 2, 3, 1]> (k)\n a = Add(t, ends)\n out = Relu(a)",
        {"v", "ends"},
    ),
}


@each(PLACES, "inputs, body, changed")
def test_where_the_bias_goes(inputs, body, changed):
    """A weight and bias written for the end of the chain act there as asked, through the place that there is."""
    text = HEAD.format(inputs, body).replace("float[6,6] plane", "float[6,6] plane, float[1,1,1,1] e")
    analysis = analyse(text)
    whole = program(analysis.model, analysis.shapes)
    site = next(s for s in sites(whole)[0] if s.layer.y == "k")
    old = dict(whole.weights)
    view = View(whole, site, np.arange(4))
    assert view.intercept
    rng = np.random.default_rng(2)
    weight, bias = rng.standard_normal(view.weight.shape), rng.standard_normal(4)
    view.write(weight, bias)
    assert {n for n, a in whole.weights.items() if n not in old or not np.array_equal(a, old[n])} == changed
    again = view.anew()
    np.testing.assert_allclose(again.weight, weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again.bias, bias, rtol=1e-4, atol=1e-5)


def test_no_place_for_a_bias():
    """A MatMul that nothing is added to has no intercept."""
    analysis = analyse(
        "g (float[N,3] x) => (float[] y) <float[3,4] w, float[4,2] v> { h = MatMul(x, w)\n y = MatMul(h, v) }"
    )
    whole = program(analysis.model, analysis.shapes)
    site = sites(whole)[0][1]
    view = View(whole, site, np.arange(2))
    assert not view.intercept


def test_a_dead_channel():
    """A channel that BN multiplies by zero keeps its weight, and nothing becomes infinite."""
    analysis = analyse(HEAD.format("v", f"{BN}\n out = Relu(n)"))
    gamma = analysis.model.constants()["s"]
    gamma.values = np.array([1, 0, 2, 3], np.float32)
    whole = program(analysis.model, analysis.shapes)
    site = next(s for s in sites(whole)[0] if s.layer.y == "k")
    old = site.read(whole)
    view = View(whole, site, np.arange(4))
    view.write(view.weight + 1, view.bias + 1)
    new = site.read(whole)
    assert np.array_equal(new[1], old[1])
    assert not np.isclose(new[[0, 2, 3]], old[[0, 2, 3]]).any()
    assert all(np.isfinite(a).all() for a in whole.weights.values())


@pytest.mark.parametrize("pair", ["o", "m"])
def test_a_shared_beta(pair):
    """A beta that something else reads too takes no bias: the layer gets one of its own."""
    analysis = analyse(HEAD.format("v", f"{BN}\n out = Relu(n)").replace("s, o, m, var)", f"s, {pair}, {pair}, var)"))
    whole = program(analysis.model, analysis.shapes)
    site = next(s for s in sites(whole)[0] if s.layer.y == "k")
    view = View(whole, site, np.arange(4))
    view.write(view.weight, view.bias + 1)
    again = view.anew()
    np.testing.assert_allclose(again.bias, view.bias + 1, rtol=1e-4, atol=1e-5)
