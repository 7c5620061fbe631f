"""Scales of BatchNormalization as a criterion."""

from __future__ import annotations

import logging

import numpy as np

from onnxprune.criteria import score


def test_absolute_gamma(two_convs):
    """The score is abs(gamma), whatever the weights are."""
    assert score("bn_scale", two_convs[0])[1:].tolist() == [1, 2, 3, 4]


def test_mean_over_several_nodes_and_fallback(analyse, caplog):
    """Two BatchNormalizations of a class are averaged; a group without one uses l1, and the log says so."""
    weights = {"w": np.ones((2, 2, 1, 1), np.float32), "v": np.diag([7, 8]).astype(np.float32).reshape(2, 2, 1, 1)}
    weights |= {"g": np.array([1, 2], np.float32), "h": np.array([-3, 0], np.float32)}
    weights |= {"b": np.zeros(2, np.float32), "s": np.ones(2, np.float32)}
    text = """g (float[1,2,4,4] x) => (float[1,2,4,4] y) {
        c = Conv(x, w)\n d = BatchNormalization(c, g, b, b, s)\n e = BatchNormalization(d, h, b, b, s)
        y = Conv(e, v) }"""
    axes = [("w", 0, "out", [1, 2]), ("g", 0, "with", [1, 2]), ("h", 0, "with", [1, 2]), ("v", 0, "out", [3, 4])]
    with caplog.at_level(logging.WARNING):
        assert score("bn_scale", analyse(text, weights, axes))[1:].tolist() == [2, 1, 7, 8]
    assert "1 of 2 groups have no BatchNormalization" in caplog.text
