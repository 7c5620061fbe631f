"""Identity and Dropout nodes that change nothing are bypassed."""

from __future__ import annotations

import pytest
from cleaning import cleaned, names, ops, parse

GOES = {
    "identity": ("g (float[2] x) => (float[2] y) { a = Relu(x) b = Identity(a) y = Neg(b) }", 17, ["Relu", "Neg"]),
    "of an input": ("g (float[2] x) => (float[2] y) { b = Identity(x) y = Neg(b) }", 17, ["Neg"]),
    "chain": ("g (float[2] x) => (float[2] y) { b = Identity(x) c = Identity(b) y = Add(b, c) }", 17, ["Add"]),
    "of a weight": (
        "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { b = Identity(w) y = Add(x, b) }",
        17,
        ["Add"],
    ),
    "dropout 7": ("g (float[2] x) => (float[2] y) { b = Dropout<ratio = 0.4>(x) y = Neg(b) }", 7, ["Neg"]),
    "dropout 10": ("g (float[2] x) => (float[2] y) { b, m = Dropout<ratio = 0.4>(x) y = Neg(b) }", 10, ["Neg"]),
    "dropout 13": ("g (float[2] x) => (float[2] y) { b = Dropout(x) y = Neg(b) }", 13, ["Neg"]),
    "dropout, not training": (
        "g (float[2] x) => (float[2] y) <float r = {0.5}, bool t = {0}> { b = Dropout(x, r, t) y = Neg(b) }",
        17,
        ["Neg"],
    ),
    "dropout, ratio 0": (
        "g (float[2] x) => (float[2] y) <float r = {0.0}, bool t = {1}> { b = Dropout(x, r, t) y = Neg(b) }",
        17,
        ["Neg"],
    ),
    "dropout 22": ("g (float[2] x) => (float[2] y) <float r = {0.5}> { b = Dropout(x, r) y = Neg(b) }", 22, ["Neg"]),
}


@pytest.mark.parametrize("name", GOES)
def test_goes(name):
    """The node is gone and its consumers read its input."""
    text, opset, expected = GOES[name]
    assert ops(cleaned(parse(text, opset=opset, ir=10 if opset > 21 else 8))) == expected


STAYS = {
    "writes the output": ("g (float[2] x) => (float[2] y) { a = Relu(x) y = Identity(a) }", ["Relu", "Identity"]),
    "passes the input on": ("g (float[2] x) => (float[2] y) { y = Identity(x) }", ["Identity"]),
    "mask is an output": (
        "g (float[2] x) => (float[2] y, bool[2] m) { b, m = Dropout(x) y = Neg(b) }",
        ["Dropout", "Neg"],
    ),
    "mask is read": (
        "g (float[2] x) => (float[2] y, bool[2] z) { b, m = Dropout(x) y = Neg(b) z = Not(m) }",
        ["Dropout", "Neg", "Not"],
    ),
    "read by a subgraph": (
        """g (bool b, float[2] x) => (float[2] y) { a = Identity(x)
        y = If(b)<then_branch = t () => (float[2] p) { p = Neg(a) },
        else_branch = e () => (float[2] q) { q = Abs(a) }> }""",
        ["Identity", "If"],
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    """A node whose name or mask is needed stays."""
    text, expected = STAYS[name]
    assert ops(cleaned(parse(text))) == expected


def test_training_stays():
    """Dropout in training mode is random: it stays."""
    text = "g (float[2] x) => (float[2] y) <float r = {0.5}, bool t = {1}> { b = Dropout(x, r, t) y = Neg(b) }"
    assert ops(cleaned(parse(text), run=False)) == ["Dropout", "Neg"]


def test_training_as_input_stays():
    """Dropout whose mode is given at run time stays."""
    text = "g (float[2] x, bool t) => (float[2] y) <float r = {0.5}> { b = Dropout(x, r, t) y = Neg(b) }"
    assert ops(cleaned(parse(text), run=False)) == ["Dropout", "Neg"]


def test_weight_keeps_its_name():
    """Where an Identity passed a weight on, its consumer reads the weight itself."""
    model = parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { b = Identity(w) y = Add(x, b) }")
    assert names(cleaned(model)) == {"w"}
