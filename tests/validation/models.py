"""Small models for comparisons, as ONNX text, with weights that are given."""

from __future__ import annotations

import numpy as np
from graphs import proto
from onnx import numpy_helper


def linear(seed=0, noise=0.0, outputs="float[N,4] y", body="y = MatMul(x, w)", inputs="float[N,6] x", shape="6,4"):
    """A model of one weight `w`, float [6, 4] unless told; the same seed and more noise give a worse candidate."""
    model = proto(f"g ({inputs}) => ({outputs}) <float[{shape}] w> {{ {body} }}")
    rng = np.random.default_rng(seed)
    size = tuple(map(int, shape.split(",")))
    weight = rng.normal(size=size) + noise * np.random.default_rng(99).normal(size=size)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight.astype(np.float32), "w"))
    return model


def two(noise=0.0):
    """Two inputs, two outputs: scores [N,4] and values [N,6]."""
    body = "s = Add(a, b)\n y = MatMul(s, w)\n z = Mul(a, b)"
    return linear(0, noise, "float[N,4] y, float[N,6] z", body, "float[N,6] a, float[N,6] b")


def inputs(n=200, seed=1):
    """float32 [n, 6]."""
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)


def labels(model, x, wrong=0.1):
    """Classes that the model of `linear` gives, but for a share of wrong ones."""
    weight = numpy_helper.to_array(model.graph.initializer[0])
    y = (x @ weight).argmax(1)
    swapped = np.random.default_rng(5).random(len(x)) < wrong
    return np.where(swapped, (y + 1) % weight.shape[1], y)
