"""Quantised weights: scales and zero points along with their channel."""

from __future__ import annotations

from tables import prunes, refuses

FOUR = [1, 2, 3, 4]


def quantised(w, rest, axis="", v="int8[2,4,1,1]"):
    """conv(x, dequantised w), relu, conv(dequantised v); `rest`: scale and zero point of w, if any."""
    names = ", ".join(item.split()[1].split("=")[0] for item in rest)
    return f"""g (float[1,3,5,5] x) => (float[] y) <{w} w, {", ".join(rest)}, {v} v, float t = {{0.02}}, float[4] b> {{
        f = DequantizeLinear{axis} (w, {names})
        h = Conv(x, f, b)
        r = Relu(h)
        g = DequantizeLinear(v, t)
        y = Conv(r, g)
    }}"""


W = "int8[4,3,1,1]"
PRUNE = {
    "per tensor": (quantised(W, ["float s={0.05}"]), {"w.0 b.0 v.1": FOUR}),
    "per tensor with a zero point": (quantised(W, ["float s={0.05}", "int8 z={3}"]), {"w.0 b.0 v.1": FOUR}),
    "per channel": (quantised(W, ["float[4] scale"], " <axis = 0>"), {"w.0 scale.0 b.0 v.1": FOUR}),
    "per channel with zero points": (
        quantised("uint8[4,3,1,1]", ["float[4] scale", "uint8[4] z={1,2,3,4}"], " <axis = 0>"),
        {"w.0 scale.0 z.0 b.0 v.1": FOUR},
    ),
    "the columns of a reader with a zero point per row": (
        """g (float[5,3] x) => (float[] y) <float[3,4] w, float[4] b, uint8[4,2] v, float[2] scale, uint8[2] z={3,200}> {
            h = Gemm(x, w, b)
            f = DequantizeLinear <axis = 1> (v, scale, z)
            y = MatMul(h, f)
        }""",
        {"w.1 b.0 v.0": FOUR},
    ),
    "the columns of a reader with a zero point per column": (
        """g (float[5,3] x) => (float[] y) <float[3,4] w, float[4] b, uint8[4,2] v, float[4] scale, uint8[4] z={3,200,7,9}> {
            h = Gemm(x, w, b)
            f = DequantizeLinear <axis = 0> (v, scale, z)
            y = MatMul(h, f)
        }""",
        {"w.1 b.0 v.0 scale.0 z.0": FOUR},
    ),
    "a weight that is transposed after it": (
        """g (float[5,3] x) => (float[] y) <int8[4,3] w, float s={0.1}, int8 z={-2}, int8[2,4] v> {
            f = DequantizeLinear(w, s, z)
            t = Transpose(f)
            h = MatMul(x, t)
            g = DequantizeLinear(v, s, z)
            u = Transpose(g)
            y = MatMul(h, u)
        }""",
        {"w.0 v.1": FOUR},
    ),
    "an activation that is quantised and back": (
        """g (float[5,3] x) => (float[] y) <float[3,4] w, float[4] b, float s={0.1}, uint8 z={128}, float[4,2] v> {
            h = Gemm(x, w, b)
            q = QuantizeLinear(h, s, z)
            d = DequantizeLinear(q, s, z)
            y = MatMul(d, v)
        }""",
        {"w.1 b.0 v.0": FOUR},
    ),
}

REFUSE = {
    "blocks": (
        """g (float[5,4] x) => (float[] y) <int8[4,4] w, float[2,4] scale, float[4,2] v> {
            f = DequantizeLinear <axis = 0, block_size = 2> (w, scale)
            h = MatMul(x, f)
            y = MatMul(h, v)
        }""",
        {},
    ),
    "a quantised convolution": (
        """g (uint8[1,3,5,5] x) => (float[] y) <float s={0.1}, uint8 z={128}, uint8[4,3,1,1] w, float[2,4,1,1] v> {
            q = QLinearConv(x, s, z, w, s, z, s, z)
            d = DequantizeLinear(q, s, z)
            y = Conv(d, v)
        }""",
        {},
    ),
}


test_must_prune, test_stays_sound = prunes(PRUNE, seeds=(0, 1))
test_must_refuse = refuses(REFUSE, opset=21)
