"""Convolutions, pools, resizing and depth-to-space."""

from __future__ import annotations

from graphs import CHANNELS, analyse, between, each, golden, reasons
from tables import prunes

X = "g (float[1,3,5,5] x) => (float[] y) "
SPATIAL = "g (float[1,3] x) => (float[] y) <float[3,6] w, int64[3] s = {1, 1, 6}, float[2,1,3] v> { h = MatMul(x, w)  d = Reshape(h, s) "

PRUNE = {
    "1-D": (
        """g (float[1,3,8] x) => (float[] y) <float[4,3,3] w, float[4] b, float[2,4,1] v> {
            h = Conv(x, w, b)
            y = Conv(h, v)
        }""",
        CHANNELS,
    ),
    "2-D": (
        X
        + """<float[4,3,3,3] w, float[4] b, float[2,4,1,1] v> {
            h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            y = Conv(h, v)
        }""",
        CHANNELS,
    ),
    "3-D": (
        """g (float[1,3,4,4,4] x) => (float[] y) <float[4,3,2,2,2] w, float[2,4,1,1,1] v> {
            h = Conv(x, w)
            y = Conv(h, v)
        }""",
        {"w.0 v.1": [1, 2, 3, 4]},
    ),
    "dilated, strided": (
        X
        + """<float[4,3,2,2] w, float[2,4,2,2] v> {
            h = Conv <dilations = [2, 2]> (x, w)
            y = Conv <strides = [2, 2], auto_pad = "SAME_UPPER"> (h, v)
        }""",
        {"w.0 v.1": [1, 2, 3, 4]},
    ),
    "few large groups lose the same channels": (
        X
        + """<float[6,3,1,1] u, float[4,3,3,3] w, float[4] b, float[2,4,1,1] v> {
            a = Conv(x, u)
            h = Conv <group = 2> (a, w, b)
            y = Conv(h, v)
        }""",
        {"u.0": [1, 2, 3, 1, 2, 3], "w.1": [1, 2, 3], "w.0 b.0 v.1": [4, 5, 4, 5]},
    ),
    "few large groups, transposed": (
        X
        + """<float[6,3,1,1] u, float[6,2,2,2] w, float[4] b, float[4,2,1,1] v> {
            a = Conv(x, u)
            h = ConvTranspose <group = 2> (a, w, b)
            y = ConvTranspose(h, v)
        }""",
        {"u.0 w.0": [1, 2, 3, 1, 2, 3], "w.1": [4, 5], "b.0 v.0": [4, 5, 4, 5]},
    ),
    "grouped: inputs and outputs of a group go together": (
        X
        + """<float[4,3,1,1] u, float[6,2,3,3] w, float[6] b, float[2,6,1,1] v> {
            a = Conv(x, u)
            h = Conv <group = 2> (a, w, b)
            y = Conv(h, v)
        }""",
        {"u.0": [1, 1, 2, 2], "w.0 b.0 v.1": [1, 1, 1, 2, 2, 2]},
    ),
    "depthwise with a multiplier of 2": (
        X
        + """<float[3,3,1,1] u, float[6,1,3,3] w, float[6] b, float[2,6,1,1] v> {
            a = Conv(x, u)
            h = Conv <group = 3> (a, w, b)
            y = Conv(h, v)
        }""",
        {"u.0": [1, 2, 3], "w.0 b.0 v.1": [1, 1, 2, 2, 3, 3]},
    ),
    "transposed": (
        X
        + """<float[3,4,2,2] w, float[4] b, float[4,2,1,1] v> {
            h = ConvTranspose <strides = [2, 2]> (x, w, b)
            y = ConvTranspose(h, v)
        }""",
        {"w.1 b.0 v.0": [1, 2, 3, 4]},
    ),
    "transposed and grouped": (
        X
        + """<float[4,3,1,1] u, float[4,3,2,2] w, float[6] b, float[6,2,1,1] v> {
            a = Conv(x, u)
            h = ConvTranspose <group = 2> (a, w, b)
            y = ConvTranspose(h, v)
        }""",
        {"u.0 w.0": [1, 1, 2, 2], "b.0 v.0": [1, 1, 1, 2, 2, 2]},
    ),
    "one of several weights, chosen at run time": (
        """g (float[1,3,5,5] x, int64 i) => (float[] y) <float[4,3,1,1] w, float[4] b, float[3,2,4,1,1] bank> {
            h = Conv(x, w, b)
            k = Gather(bank, i)
            y = Conv(h, k)
        }""",
        {"w.0 b.0 bank.2": [1, 2, 3, 4]},
    ),
    "a weight computed from an input": (
        """g (float[1,3,5,5] x, float[1,3] z) => (float[] y)
          <float[4,3,1,1] w, float[4] b, float[3,4] u, float[4] c, int64[4] s = {1, 4, 1, 1}, float[2,1,1,1] p> {
            h = Conv(x, w, b)
            a = Gemm(z, u, c)
            m = Reshape(a, s)
            k = Mul(m, p)
            y = Conv(h, k)
        }""",
        {"w.0 b.0 u.1 c.0": [1, 2, 3, 4]},
    ),
    "a weight of a transposed convolution computed from an input": (
        """g (float[1,3,5,5] x, float[1,3] z) => (float[] y)
          <float[4,3,1,1] w, float[4] b, float[3,4] u, float[4] c, int64[4] s = {4, 1, 1, 1}, float[1,2,1,1] p> {
            h = Conv(x, w, b)
            a = Gemm(z, u, c)
            m = Reshape(a, s)
            k = Mul(m, p)
            y = ConvTranspose(h, k)
        }""",
        {"w.0 b.0 u.1 c.0": [1, 2, 3, 4]},
    ),
    "AveragePool": (between("d = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (h)"), CHANNELS),
    "GlobalAveragePool": (between("d = GlobalAveragePool(h)"), CHANNELS),
    "GlobalLpPool": (between("d = GlobalLpPool(h)"), CHANNELS),
    "GlobalMaxPool": (between("d = GlobalMaxPool(h)"), CHANNELS),
    "LpPool": (between("d = LpPool <kernel_shape = [2, 2]> (h)"), CHANNELS),
    "MaxPool": (between("d = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (h)"), CHANNELS),
    "Resize by scales": (between("d = Resize(h, , r)", "float[4] r = {1, 1, 2, 2}"), CHANNELS),
    "Resize to sizes": (between('d = Resize <mode = "linear"> (h, , , r)', "int64[4] r = {1, 4, 9, 3}"), CHANNELS),
    "DepthToSpace DCR": (
        X
        + """<float[8,3,1,1] w, float[2,2,1,1] v> {
            h = Conv(x, w)
            d = DepthToSpace <blocksize = 2> (h)
            y = Conv(d, v)
        }""",
        {"w.0": [1, 2, 1, 2, 1, 2, 1, 2], "v.1": [1, 2]},
    ),
    "DepthToSpace CRD": (
        X
        + """<float[8,3,1,1] w, float[2,2,1,1] v> {
            h = Conv(x, w)
            d = DepthToSpace <blocksize = 2, mode = "CRD"> (h)
            y = Conv(d, v)
        }""",
        {"w.0": [1, 1, 1, 1, 2, 2, 2, 2], "v.1": [1, 2]},
    ),
    "SpaceToDepth": (
        between("s = SpaceToDepth <blocksize = 2> (h)  d = DepthToSpace <blocksize = 2> (s)"),
        CHANNELS,
    ),
    "SpaceToDepth feeding a conv": (
        """g (float[1,3,4,4] x) => (float[] y) <float[2,3,1,1] w, float[3,8,1,1] v> {
            h = Conv(x, w)
            d = SpaceToDepth <blocksize = 2> (h)
            y = Conv(d, v)
        }""",
        {"w.0": [1, 2], "v.1": [1, 2] * 4},
    ),
}

FORGOTTEN = "its rule does not let positions of axis (2,) of d go"
REFUSE = {
    "conv over a prunable spatial axis": (SPATIAL + "y = Conv(d, v) }", {"w.1": FORGOTTEN}),
    "transposed conv over a prunable spatial axis": (
        SPATIAL.replace("[2,1,3]", "[1,2,3]") + "y = ConvTranspose(d, v) }",
        {"w.1": FORGOTTEN},
    ),
    "pool over a prunable axis": (SPATIAL + "y = MaxPool <kernel_shape = [2]> (d) }", {"w.1": FORGOTTEN}),
    "global pool over a prunable axis": (SPATIAL + "y = GlobalAveragePool(d) }", {"w.1": FORGOTTEN}),
    "resize along a prunable axis": (
        SPATIAL.replace("v>", "v, float[3] r = {1, 1, 2}>") + "y = Resize(d, , r) }",
        {"w.1": FORGOTTEN},
    ),
    "resize over channels with a scale that keeps their number": (
        between("d = Resize(h, , r)", "float[4] r = {1, 1.2, 1, 1}"),
        {"w.0": "its rule does not let positions of axis (1,) of h go"},
    ),
    "resize that crops channels": (
        between(
            'd = Resize <coordinate_transformation_mode = "tf_crop_and_resize", mode = "linear"> (h, roi, r)',
            "float[8] roi = {0, 0.5, 0, 0, 1, 1, 1, 1}, float[4] r = {1, 1, 1, 1}",
        ),
        {"w.0": "its rule does not let positions of axis (1,) of h go"},
    ),
    "the indices of a pool": (
        X.replace("float[] y", "float[] y, int64[] i")
        + """<float[4,3,1,1] w, float[2,4,1,1] v> {
            h = Conv(x, w)
            d, i = MaxPool <kernel_shape = [2, 2]> (h)
            y = Conv(d, v)
        }""",
        {"w.0": "the indices of MaxPool count through all channels"},
    ),
    "space-to-depth over a prunable spatial axis": (
        """g (float[4,3] x) => (float[] y) <float[3,6] w, int64[4] s = {1, 4, 6, 1}> {
            h = MatMul(x, w)
            d = Reshape(h, s)
            y = SpaceToDepth <blocksize = 1> (d)
        }""",
        {"w.1": FORGOTTEN},
    ),
}


test_must_prune, test_stays_sound = prunes(PRUNE)


@each(REFUSE, "text, why")
def test_must_refuse(text, why):
    """Nothing can be removed of these axes, and the reason says why."""
    analysis = analyse(text)
    found = reasons(analysis)
    for axis, reason in why.items():
        assert axis not in golden(analysis)
        assert reason in found[axis]
