"""Hand-coupled models for the criteria."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune.analysis import Analysis, Axis
from onnxprune.graph import from_proto


def _analyse(text, weights, axes):
    """Couple a model by hand.

    text: ONNX text whose graph reads the arrays of `weights` by name; axes: (parameter, axis, role, classes) in graph
    order. The first "out" axis on which a class occurs is its group's.
    """
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.items())
    axes = [Axis(param, axis, np.array(classes, np.int32), role) for param, axis, role, classes in axes]
    classes = max(int(a.classes.max()) for a in axes)
    group, groups = np.zeros(classes + 1, np.int32), []
    for axis in (a for a in axes if a.role == "out"):
        new = [c for c in axis.classes if c and not group[c]]
        if new:
            groups.append(axis)
            group[new] = len(groups)
    exact = np.zeros(classes + 1, bool)
    return Analysis(from_proto(proto), {}, classes, exact, tuple(axes), (), (), group, tuple(groups), (), (), None)


@pytest.fixture
def analyse():
    return _analyse


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def two_convs(analyse, rng):
    """Conv -> BatchNormalization -> Relu -> Conv: four classes, and the arrays behind them."""
    weights = {
        "w": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "v": rng.normal(size=(2, 4, 1, 1)).astype(np.float32),
        "gamma": np.array([1, -2, 3, 4], np.float32),
        "beta": np.zeros(4, np.float32),
        "mean": np.zeros(4, np.float32),
        "var": np.array([1, 4, 9, 16], np.float32),
    }
    text = """
    two (float[1,3,8,8] x) => (float[1,2,7,7] y) {
        c = Conv(x, w)
        b = BatchNormalization <epsilon = 0.0> (c, gamma, beta, mean, var)
        r = Relu(b)
        y = Conv(r, v)
    }"""
    ids = [1, 2, 3, 4]
    axes = [("w", 0, "out", ids), ("w", 1, "in", [0, 0, 0])]
    axes += [(name, 0, "with", ids) for name in ("gamma", "beta", "mean", "var")]
    axes += [("v", 0, "out", [0, 0]), ("v", 1, "in", ids)]
    return analyse(text, weights, axes), weights
