"""Convolutions in a row with random weights, for the tests of passes and of their joint refit."""

from __future__ import annotations

import numpy as np
from onnx import helper

from onnxprune.recover.linear import linear
from onnxprune.recover.passes import FREE, Passes

RELU, RELU6 = (0.0, np.inf), (0.0, 6.0)
# name -> (in, out, kernel, attributes) per layer, ranges, size of the input
CASES = {
    "two of 3x3": ([(3, 8, (3, 3), {"pads": [1] * 4}), (8, 6, (3, 3), {"strides": [2, 2]})], [RELU, RELU], (11, 10)),
    "a bottleneck": (
        [(6, 4, (1, 1), {}), (4, 4, (3, 3), {"pads": [1] * 4}), (4, 6, (1, 1), {})],
        [RELU, RELU, RELU],
        (7, 8),
    ),
    "an inverted residual": (
        [(3, 8, (1, 1), {}), (8, 8, (3, 3), {"group": 8, "strides": [2, 2], "pads": [1, 0, 2, 1]}), (8, 5, (1, 1), {})],
        [RELU6, RELU6, FREE],
        (9, 8),
    ),
    "dilated, padded as at the end": (
        [
            (4, 6, (3, 2), {"dilations": [2, 1], "auto_pad": "SAME_UPPER"}),
            (6, 4, (2, 2), {"group": 2, "strides": [3, 2]}),
        ],
        [(-0.5, 0.5), FREE],
        (12, 9),
    ),
    "padded 1x1, stride above the kernel, an odd pad in front": (
        [
            (3, 5, (1, 1), {"pads": [1, 0, 2, 1]}),
            (5, 4, (2, 2), {"strides": [3, 4]}),
            (4, 6, (2, 2), {"auto_pad": "SAME_LOWER"}),
        ],
        [RELU, RELU, RELU],
        (10, 13),
    ),
    "no activation between, 1 axis": ([(2, 5, (3,), {}), (5, 3, (3,), {"strides": [2]})], [FREE, RELU], (14,)),
    "3 axes": ([(2, 4, (2, 1, 2), {"strides": [2, 1, 1]}), (4, 3, (1, 2, 2), {})], [RELU, FREE], (5, 4, 6)),
}


def layers_of(spec):
    """The layers of a case."""
    made = []
    for inputs, outputs, kernel, attributes in spec:
        node = helper.make_node("Conv", ["x", "w", "b"], ["y"], **attributes)
        layer = linear(node, (outputs, inputs // attributes.get("group", 1), *kernel), "w")
        assert not isinstance(layer, str)
        made.append(layer)
    return made


def random_layers(name, seed=0):
    """Passes, weights, biases and an input of a case."""
    spec, ranges, size = CASES[name]
    layers, rng = layers_of(spec), np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    weights = [normal(*x.shape) / np.float32(np.sqrt(x.unknowns)) for x in layers]
    biases = [0.2 * normal(x.channels) for x in layers]
    return Passes(layers, ranges, size), weights, biases, normal(5, layers[0].inputs, *size), rng
