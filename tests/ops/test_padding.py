"""Pad: constants over channels are positions of their own."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import CHANNELS, analyse, assert_sound, between, expected, golden
from tables import prunes, refuses

from onnxprune.cut import cut

FOUR = [1, 2, 3, 4]
# The shortcut of a CIFAR ResNet: every other pixel of 3 channels, padded to 7 channels, plus a conv with 7 filters.
SHORTCUT = """g (float[1,3,4,4] x) => (float[] y)
  <float[3,3,1,1] w, float[7,3,1,1] u, float[7] b, float[2,7,1,1] v, int64[8] pads = {0, 2, 0, 0, 0, 2, 0, 0},
   int64[2] start = {0, 0}, int64[2] end = {4, 4}, int64[2] axes = {2, 3}, int64[2] two = {2, 2}> {
    h = Conv(x, w)
    r = Relu(h)
    s = Slice(r, start, end, axes, two)
    p = Pad(s, pads)
    k = Conv <strides = [2, 2]> (r, u, b)
    d = Add(p, k)
    y = Conv(d, v)
}"""


def padded(pads, channels, call="Pad(h, pads)", weights=""):
    return f"""g (float[1,3,5,5] x) => (float[] y) <float[4,3,1,1] w, float[4] b, float[2,{channels},1,1] v, int64[8] pads = {{{pads}}}{weights}> {{
        h = Conv(x, w, b)
        d = {call}
        y = Conv(d, v)
    }}"""


PRUNE = {
    "the shortcut of a CIFAR ResNet": (
        SHORTCUT,
        {"w.0 u.1": [1, 2, 3], "u.0 b.0 v.1": [4, 5, 1, 2, 3, 6, 7]},
    ),
    "channels on both sides, read by a conv": (
        padded("0, 1, 0, 0, 0, 2, 0, 0", 7),
        {"w.0 b.0": FOUR, "v.1": [5, 1, 2, 3, 4, 6, 7]},
    ),
    "channels padded with another number": (
        padded("0, 1, 0, 0, 0, 2, 0, 0", 7, "Pad(h, pads, c)", ", float c = {0.5}"),
        {"w.0 b.0": FOUR, "v.1": [5, 1, 2, 3, 4, 6, 7]},
    ),
    "channels and space": (
        padded("0, 1, 2, 0, 0, 0, 0, 3", 5),
        {"w.0 b.0": FOUR, "v.1": [5, 1, 2, 3, 4]},
    ),
    "cropped channels": (padded("0, -1, 0, 0, 0, -1, 0, 0", 2), {"w.0 b.0": FOUR, "v.1": [2, 3]}),
    "channels cropped here and padded there": (
        padded("0, -1, 1, 1, 0, 1, -1, 0", 4, "Pad(h, pads, c)", ", float c = {0.5}"),
        {"w.0 b.0": FOUR, "v.1": [2, 3, 4, 5]},
    ),
    "space, reflected": (padded("0, 0, 1, 2, 0, 0, 2, 1", 4, 'Pad <mode = "reflect"> (h, pads)'), CHANNELS),
    "space, by its edge": (padded("0, 0, 1, 2, 0, 0, 2, 1", 4, 'Pad <mode = "edge"> (h, pads)'), CHANNELS),
    "cropped space": (padded("0, 0, -1, 0, 0, 0, -2, 1", 4), CHANNELS),
}

REFUSE = {
    "reflected channels": (
        padded("0, 1, 0, 0, 0, 1, 0, 0", 6, 'Pad <mode = "reflect"> (h, pads)'),
        {"w.0": "mode 'reflect' copies channels"},
    ),
    "the edge of channels": (
        padded("0, 1, 0, 0, 0, 1, 0, 0", 6, 'Pad <mode = "edge"> (h, pads)'),
        {"w.0": "mode 'edge' copies channels"},
    ),
    "widths that are an input": (
        between("d = Pad(h, pads)").replace("6] x)", "6] x, int64[8] pads)").replace("[] y", "[1,2,a,b] y"),
        {"w.0": "its pads are computed at run time"},
    ),
}


test_must_prune, test_stays_sound = prunes(PRUNE, seeds=(0, 1))
test_must_refuse = refuses(REFUSE)


def test_widths_are_refitted_on_either_side():
    """Each padded position leaves with its partner in the other branch."""
    analysis = analyse(SHORTCUT)
    kept = np.ones(analysis.classes + 1, bool)
    kept[[2, 4, 5, 7]] = False
    assert cut(analysis, kept).constants()["pads"].values.tolist() == [0, 0, 0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(("opset", "mode"), [(18, "constant"), (19, "wrap")])
def test_some_axes(opset, mode):
    """Since operator set 18 only some axes can be named; wrapping came with 19."""
    text = between(f'd = Pad <mode = "{mode}"> (h, pads, , axes)', "int64[2] pads = {1, 2}, int64[1] axes = {-1}")
    analysis = analyse(text, opset=opset)
    assert golden(analysis) == expected(CHANNELS)
    assert_sound(analysis)


def test_some_axes_over_channels():
    """The axis of the channels may be the one that is named."""
    text = padded("0, 2", 6, "Pad(h, pads, , axes)", ", int64[1] axes = {-3}").replace("int64[8]", "int64[2]")
    analysis = analyse(text, opset=18)
    assert golden(analysis) == expected({"w.0 b.0": FOUR, "v.1": [1, 2, 3, 4, 5, 6]})
    assert_sound(analysis)
