"""Networks in which some filters are copies or multiples of others: what repairs without inputs must do exactly."""

from __future__ import annotations

import numpy as np
from graphs import analyse

from onnxprune import runtime
from onnxprune.graph import values
from onnxprune.recover.merge import matched
from onnxprune.verify import relative_error

RELU = """g (float[2,3,6,6] x) => (float[] y) <float[5,3,3,3] w, float[5] b, float[2,5,1,1] v> {
    h = Conv(x, w, b)
    d = Relu(h)
    y = Conv(d, v)
}"""
HALVES = """g (float[2,3,6,6] x) => (float[] y, float[] z) <float[5,3,1,1] w, float[2,5,1,1] v, float[3,2,1,1] u,
  int64[1] axis = {1}, int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}> {
    h = Conv(x, w)
    y = Conv(h, v)
    a = Slice(h, zero, two, axis)
    b = Slice(h, two, four, axis)
    d = Add(a, b)
    z = Conv(d, u)
}"""
INT8 = """g (float[2,3,6,6] x) => (float[] y, float[] z) <float[5,3,1,1] w, int8[2,5,1,1] v, float scale_v, float[2,5,1,1] u> {
    h = Conv(x, w)
    d = Relu(h)
    q = DequantizeLinear(v, scale_v)
    y = Conv(d, q)
    z = Conv(d, u)
}"""
# name -> graph, then what the copy is: parameter -> factor of its rows, 1 for those that are not named
EXACT = {
    "convolutions": (RELU, {"w": 2.5, "b": 2.5}),
    "a residual stream": (
        """g (float[2,3,6,6] x) => (float[] y) <float[5,3,3,3] w, float[5] b, float[5,5,1,1] u, float[5] c, float[4,5,1,1] k,
          float[5,4,1,1] l, float[5] m, float[2,5,1,1] v> {
            h = Conv(x, w, b)
            s = Relu(h)
            h1 = Conv(s, u, c)
            a = Add(s, h1)
            s1 = Relu(a)
            i = Conv(s1, k)
            r = Relu(i)
            h2 = Conv(r, l, m)
            a1 = Add(s1, h2)
            s2 = Relu(a1)
            p = GlobalAveragePool(s2)
            y = Conv(p, v)
        }""",
        dict.fromkeys(("w", "b", "u", "c", "l", "m"), 0.4),
    ),
    "a depthwise chain": (
        """g (float[2,3,6,6] x) => (float[] y) <float[5,3,1,1] w, float[5] b, float[5,1,3,3] k, float[5] c, float[2,5,1,1] v> {
            h = Conv(x, w, b)
            r = Relu(h)
            e = Conv <group = 5> (r, k, c)
            d = Relu(e)
            y = Conv(d, v)
        }""",
        {"w": 2.0, "b": 2.0, "c": 2.0},
    ),
    "a depthwise chain with a multiple of its own": (
        """g (float[2,3,6,6] x) => (float[] y) <float[5,3,1,1] w, float[5] b, float[5,1,3,3] k, float[2,5,1,1] v> {
            h = Conv(x, w, b)
            e = Conv <group = 5> (h, k)
            d = Relu(e)
            y = Conv(d, v)
        }""",
        {"w": 2.0, "b": 2.0, "k": 3.0},
    ),
    "groups that leave whole": (
        """g (float[2,3,6,6] x) => (float[] y) <float[10,3,1,1] w, float[10] b, float[15,2,3,3] k, float[15] c, float[2,15,1,1] v> {
            h = Conv(x, w, b)
            r = Relu(h)
            e = Conv <group = 5> (r, k, c)
            d = Relu(e)
            y = Conv(d, v)
        }""",
        {"w": 3.0, "b": 3.0, "c": 3.0},
    ),
    "the same channels of every group": (
        """g (float[2,3,6,6] x) => (float[] y) <float[10,3,1,1] w, float[10] b, float[4,5,3,3] k> {
            h = Conv(x, w, b)
            r = Relu(h)
            y = Conv <group = 2> (r, k)
        }""",
        {"w": 3.0, "b": 3.0},
    ),
    "Flatten": (
        """g (float[2,3,4,4] x) => (float[] y) <float[5,3,1,1] w, float[5] b, float[80,2] v> {
            h = Conv(x, w, b)
            r = Relu(h)
            f = Flatten(r)
            y = Gemm(f, v)
        }""",
        {"w": 2.5, "b": 2.5},
    ),
    "BN scaled by its own parameters": (
        """g (float[2,3,6,6] x) => (float[] y) <float[5,3,3,3] w, float[5] b, float[5] s, float[5] o, float[5] m, float[5] var, float[2,5,1,1] v> {
            h = Conv(x, w, b)
            n = BatchNormalization(h, s, o, m, var)
            d = Relu(n)
            y = Conv(d, v)
        }""",
        {"s": 2.5, "o": 2.5},
    ),
    "BN scaled by its statistics": (
        """g (float[2,3,6,6] x) => (float[] y) <float[5,3,3,3] w, float[5] s, float[5] o, float[5] m, float[5] var, float[2,5,1,1] v> {
            h = Conv(x, w)
            n = BatchNormalization <epsilon = 0.0> (h, s, o, m, var)
            d = LeakyRelu(n)
            y = Conv(d, v)
        }""",
        {"w": -4.0, "m": -4.0, "var": 16.0, "s": -2.5, "o": 2.5},
    ),
    "BN before the convolution, another factor in each": (
        """g (float[2,3,6,6] x) => (float[] y, float[] z) <float[5,3,3,3] w, float[5] s, float[5] o, float[5] m, float[5] var,
          float[5] s1, float[5] o1, float[5] m1, float[5] var1, float[2,5,1,1] v, float[2,5,1,1] u> {
            h = Conv(x, w)
            n = BatchNormalization(h, s, o, m, var)
            d = Relu(n)
            y = Conv(d, v)
            n1 = BatchNormalization(h, s1, o1, m1, var1)
            d1 = Relu(n1)
            z = Conv(d1, u)
        }""",
        {"s": 2.0, "o": 2.0, "s1": 0.5, "o1": 0.5},
    ),
    "MatMul, Add, two consumers": (
        """g (float[2,7,3] x) => (float[] y, float[] z) <float[3,5] w, float[5] b, float[5,2] v, float[5,3] u> {
            h = MatMul(x, w)
            a = Add(b, h)
            d = Relu(a)
            y = MatMul(d, v)
            z = MatMul(h, u)
        }""",
        {"w": 2.5, "b": 2.5},
    ),
    "ConvTranspose and Concat": (
        """g (float[2,3,4,4] x) => (float[] y) <float[3,5,2,2] w, float[5] b, float[4,3,1,1] u, float[9,2,1,1] v> {
            h = ConvTranspose <strides = [2, 2]> (x, w, b)
            k = Conv(x, u)
            s = ConvTranspose <strides = [2, 2], group = 4> (k, t)
            c = Concat <axis = 1> (h, s)
            d = Relu(c)
            y = ConvTranspose(d, v)
        }""".replace("float[9,2,1,1] v", "float[4,1,2,2] t, float[9,2,1,1] v"),
        {"w": 2.5, "b": 2.5},
    ),
    "a gate": (
        """g (float[2,3,6,6] x) => (float[] y) <float[5,3,1,1] w, float[5] b, float[2,5,1,1] k, float[5,2,1,1] l, float[2,5,1,1] v> {
            h = Conv(x, w, b)
            r = Relu(h)
            p = GlobalAveragePool(r)
            q = Conv(p, k)
            e = Conv(q, l)
            s = Sigmoid(e)
            d = Mul(r, s)
            y = Conv(d, v)
        }""",
        {"w": 2.5, "b": 2.5},
    ),
    "a copy, where nothing scales along": (
        """g (float[2,3,6,6] x) => (float[] y) <float[5,3,1,1] w, float[5] b, float[5] a, float[2,5,1,1] v> {
            h = Conv(x, w, b)
            t = Tanh(h)
            c = Unsqueeze(a, axes)
            m = Mul(t, c)
            d = HardSwish(m)
            y = Conv(d, v)
        }""".replace("float[2,5,1,1] v", "int64[3] axes = {0, 2, 3}, float[2,5,1,1] v"),
        {},
    ),
    "a copied LSTM unit": (
        """g (float[4,2,3] x) => (float[] y) <float[1,20,3] w, float[1,20,5] r, float[1,40] b, float[5,2] v> {
            h, s, c = LSTM <hidden_size = 5> (x, w, r, b)
            d = Squeeze(h, axes)
            y = MatMul(d, v)
        }""".replace("float[5,2] v", "int64[1] axes = {1}, float[5,2] v"),
        {},
    ),
}


def arrays(model):
    """Every parameter as float64."""
    return {name: np.asarray(values(c), np.float64) for name, c in model.constants().items()}


def imitate(analysis, copies, factors):
    """Make the filters of one class those of another, times a factor per parameter; copies: [classes + 1], 0 for none."""
    constants = analysis.model.constants()
    for axis in (a for a in analysis.axes if a.role != "in" and copies[a.classes].any()):
        array = values(constants[axis.param]).copy()
        sources, targets = matched(axis.classes, copies)
        rows = np.moveaxis(array, axis.axis, 0)
        rows[sources] = factors.get(axis.param, 1.0) * rows[targets]
        constants[axis.param].values = array


def outputs(model):
    """What the model computes from random inputs."""
    exported = model.to_proto()
    return runtime.session(exported).run(runtime.random_inputs(exported, {}, seed=0))


def errors(model, reference):
    """Largest relative error of each output."""
    return [relative_error(reference[name], array) for name, array in outputs(model).items()]


def copied(text, factors, pairs=((2, 4), (5, 1)), **options):
    """A coupled model in which class i imitates class j, and a choice that removes all i: (analysis, kept)."""
    analysis = analyse(text, **options)
    copies = np.zeros(analysis.classes + 1, np.int32)
    copies[[i for i, _ in pairs]] = [j for _, j in pairs]
    imitate(analysis, copies, factors)
    return analysis, copies == 0, copies
