"""Means without inputs, against integrals over the normal distribution."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import analyse, each
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm

from onnxprune.graph import values
from onnxprune.recover.expected import clip_moments, expected_inputs, leaky_moments, relu_moments

# x [3] -> h [4 channels], normal with mean `o` and deviation abs(s); what is between, and the means that v reads
HEAD = """g (float[1,3,6,6] x) => (float[] y) <float[4,3,1,1] w, float[4] s, float[4] o, float[4] m, float[4] var, float[2,4,1,1] v> {{
    c = Conv(x, w)
    h = BatchNormalization <epsilon = 0.0> (c, s, o, m, var)
    {}
    y = Conv(d, v)
}}"""
FUNCTIONS = {
    "Relu": ("d = Relu(h)", lambda x: max(x, 0)),
    "Clip": ("d = Clip(h, low, high)", lambda x: min(max(x, -0.5), 1.5)),
    "LeakyRelu": ("d = LeakyRelu <alpha = 0.3> (h)", lambda x: max(x, 0.3 * x)),
    "Sigmoid": ("d = Sigmoid(h)", expit),
    "Tanh": ("d = Tanh(h)", np.tanh),
    "a swish of two nodes": ("i = Sigmoid(h)\n d = Mul(h, i)", lambda x: x * expit(x)),
    "the same, other way round": ("i = Sigmoid(h)\n d = Mul(i, h)", lambda x: x * expit(x)),
    "a chain": ("i = Relu(h)\n j = AveragePool <kernel_shape = [2, 2]> (i)\n d = Identity(j)", lambda x: max(x, 0)),
    "constants": ("i = Mul(h, two)\n j = Sub(i, half)\n k = Div(j, two)\n d = Relu(k)", lambda x: max(x - 0.25, 0)),
}
SCALARS = ", float low = {-0.5}, float high = {1.5}, float two = {2}, float half = {0.5}> {"
EVEN = ", float[4] s1, float[4] o1, float[4] m1, float[4] var1> {"
SECOND = "k = BatchNormalization <epsilon = 0.0> (c, s1, o1, m1, var1)\n"


def model(body, extra="> {", width=4):
    """Coupled, and its parameters as float64; width: channels that v reads."""
    text = HEAD.format(body).replace("> {", extra, 1).replace("float[2,4,1,1] v", f"float[2,{width},1,1] v")
    analysis = analyse(text)
    return analysis, {n: np.asarray(values(c), np.float64) for n, c in analysis.model.constants().items()}


def moment(function, mean, sd, power=1):
    """E[f(x)^power] for x from N(mean, sd^2), by quadrature cut where the functions have kinks."""
    if sd == 0:
        return function(mean) ** power
    kinks = [(k - mean) / sd for k in (-0.5, 0, 0.25, 1.5) if abs(k - mean) < 9 * sd]
    integrand = lambda z: function(mean + sd * z) ** power * norm.pdf(z)  # noqa: E731
    return quad(integrand, -10, 10, points=kinks, epsabs=1e-12, limit=200)[0]


GRID = [(mean, sd) for mean in (-3.0, -0.5, 0.0, 0.7, 4.0) for sd in (0.0, 0.3, 1.0, 5.0)]
CLOSED = {
    "relu": (
        lambda x: max(x, 0),
        lambda m, v: (relu_moments(m, v)[0], relu_moments(m, v)[1] - relu_moments(m, v)[0] ** 2),
    ),
    "clip": (lambda x: min(max(x, -0.5), 1.5), lambda m, v: clip_moments(m, v, -0.5, 1.5)),
    "clip from below": (lambda x: max(x, -0.5), lambda m, v: clip_moments(m, v, -0.5, np.inf)),
    "clip from above": (lambda x: min(x, 1.5), lambda m, v: clip_moments(m, v, -np.inf, 1.5)),
    "no clip": (lambda x: x, lambda m, v: clip_moments(m, v, -np.inf, np.inf)),
    "leaky": (lambda x: max(x, 0.3 * x), lambda m, v: leaky_moments(m, v, 0.3)),
    "a steep side": (lambda x: x if x > 0 else -2 * x, lambda m, v: leaky_moments(m, v, -2.0)),
}


@each(CLOSED, ["function", "closed"])
def test_closed_forms(function, closed):
    """Mean and variance of the piecewise linear functions equal the integrals, with no deviation at all too."""
    mean, sd = np.array(GRID).T
    first = np.array([moment(function, m, s) for m, s in GRID])
    second = np.array([moment(function, m, s, 2) for m, s in GRID])
    found = closed(mean, sd**2)
    np.testing.assert_allclose(found[0], first, atol=1e-9)
    np.testing.assert_allclose(found[1], second - first**2, atol=1e-8)


def test_tiny_deviations():
    """Deviations near the smallest number give the function of the mean, without a warning."""
    assert relu_moments(np.array([2.0, -2.0]), np.array([1e-320, 1e-320]))[0].tolist() == [2.0, 0.0]


@each(FUNCTIONS, ["body", "function"])
def test_behind_batchnorm(body, function):
    """A BatchNormalization gives N(beta, gamma^2), whatever it reads; functions of that have the integral's mean."""
    analysis, p = model(body, SCALARS)
    want = [moment(function, mean, abs(sd)) for mean, sd in zip(p["o"], p["s"], strict=True)]
    np.testing.assert_allclose(expected_inputs(analysis)["v"], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "mean", "var"),
    [
        ("d = Add(h, k)", lambda a, b: a[0] + b[0], lambda a, b: a[1] + b[1]),
        ("d = Sub(h, k)", lambda a, b: a[0] - b[0], lambda a, b: a[1] + b[1]),
        (
            "d = Mul(h, k)",
            lambda a, b: a[0] * b[0],
            lambda a, b: a[1] * b[1] + a[1] * b[0] ** 2 + b[1] * a[0] ** 2,
        ),
    ],
    ids=["Add", "Sub", "Mul"],
)
def test_sums_and_products(body, mean, var):
    """Branches count as independent: means and variances add, and multiply as those of independent values do."""
    analysis, p = model(SECOND + body.replace("d =", "i =") + "\n d = Relu(i)", EVEN)
    a, b = (p["o"], p["s"] ** 2), (p["o1"], p["s1"] ** 2)
    want = relu_moments(mean(a, b), var(a, b))[0]
    np.testing.assert_allclose(expected_inputs(analysis)["v"], want, rtol=1e-5)


def test_without_batchnorm():
    """The model's input is white; a layer has the mean w E[x] + b and the variance w^2 Var[x]."""
    text = """g (float[1,3,6,6] x) => (float[] y) <float[4,3,2,2] w, float[4] b, float[5,4,3,3] u, float[5] c, float[5,1,2,2] k, float[5,2] v> {
        h = Conv(x, w, b)
        r = Relu(h)
        i = Conv(r, u, c)
        j = Relu(i)
        e = Conv <group = 5> (j, k)
        p = GlobalAveragePool(e)
        d = Flatten(p)
        y = Gemm(d, v)
    }"""
    analysis = analyse(text)
    p = {n: np.asarray(values(c), np.float64) for n, c in analysis.model.constants().items()}
    mean, square = relu_moments(p["b"], np.square(p["w"]).sum(axis=(1, 2, 3)))
    found = expected_inputs(analysis)
    np.testing.assert_allclose(found["u"], mean, rtol=1e-6)
    inner, var = p["u"].sum(axis=(2, 3)) @ mean + p["c"], np.square(p["u"]).sum(axis=(2, 3)) @ (square - mean**2)
    np.testing.assert_allclose(found["v"], relu_moments(inner, var)[0] * p["k"].sum(axis=(1, 2, 3)), rtol=1e-6)


def test_the_same_positions_twice():
    """Concat goes by place: both copies of a channel have the mean of their own branch, and constants their values."""
    text = """g (float[1,3,6,6] x) => (float[] y) <float[4,3,1,1] w, float[4] b, float[1,2,6,6] z, float[2,10,1,1] v> {
        h = Conv(x, w, b)
        r = Relu(h)
        d = Concat <axis = 1> (h, r, z)
        y = Conv(d, v)
    }"""
    analysis = analyse(text)
    p = {n: np.asarray(values(c), np.float64) for n, c in analysis.model.constants().items()}
    found = expected_inputs(analysis)["v"]
    np.testing.assert_allclose(found[:4], p["b"], rtol=1e-6)
    np.testing.assert_allclose(found[4:8], relu_moments(p["b"], np.square(p["w"]).sum(axis=(1, 2, 3)))[0], rtol=1e-6)
    assert np.isnan(found[8:]).all()  # varies along space


def test_padded_channels_are_zero():
    """Channels that a Pad adds (shortcuts of option A) are known to be 0; those that it moves keep their mean."""
    body = "i = Pad(h, pads)\n k = Conv(x, u)\n d = Add(i, k)"
    analysis, p = model(body, ", int64[8] pads = {0, 1, 0, 0, 0, 1, 0, 0}, float[6,3,1,1] u> {", width=6)
    np.testing.assert_allclose(expected_inputs(analysis)["v"], [0, *p["o"], 0], rtol=1e-6)


def test_what_explodes_is_not_known():
    """Values beyond all numbers on the way give no warning, and no number."""
    analysis, _ = model("i = Exp(h)\n j = Mul(i, i)\n d = Relu(j)")
    analysis.model.constants()["o"].values = np.array([600, 0, 0, 0], np.float32)
    found = expected_inputs(analysis)["v"]
    assert np.isnan(found).tolist() == [True, False, False, False]


@pytest.mark.parametrize("body", ["d = Sin(h)", "i = Conv(x, w)\n d = Max(h, i)"], ids=["Sin", "Max"])
def test_what_is_not_known(body):
    """No rule, no number."""
    analysis, _ = model(body)
    assert np.isnan(expected_inputs(analysis)["v"]).all()
