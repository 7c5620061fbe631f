"""Element-wise ops: they carry, and broadcasting ties their operands."""

from __future__ import annotations

import pytest
from graphs import CHANNELS, analyse, assert_sound, between, each, expected, golden
from tables import prunes, refuses

DOMAIN_1 = ("Acos", "Asin", "Atanh")  # arguments within -1..1
POSITIVE = ("Acosh", "Log", "Sqrt")  # arguments of at least 1
UNARY = (
    *(
        "Abs",
        "Asinh",
        "Atan",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "HardSigmoid",
        "HardSwish",
    ),
    *(
        "Identity",
        "LeakyRelu",
        "Neg",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Shrink",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
    ),
    *("Softplus", "Softsign", "Tan", "Tanh", "ThresholdedRelu", *DOMAIN_1, *POSITIVE),
)
SINCE = {"Mish": 18, "Gelu": 20, "Swish": 24}  # the first operator set that has them

TYPED = {
    "Cast": "d = Cast <to = 1> (h)",
    "Cast to half and back": "c = Cast <to = 10> (h)  d = Cast <to = 1> (c)",
    "CastLike": "d = CastLike(h, h)",
    "Dropout": "d = Dropout(h)",
    "Dropout with its mask": "e, m = Dropout(h)  c = Cast <to = 1> (m)  d = Mul(e, c)",
    "IsNaN, Not": "i = IsNaN(h)  n = Not(i)  c = Cast <to = 1> (n)  d = Mul(h, c)",
    "IsInf": "i = IsInf(h)  n = Not(i)  c = Cast <to = 1> (n)  d = Mul(h, c)",
    "Greater, And, Or, Xor": """
        n = Neg(h)  p = Greater(h, n)  q = LessOrEqual(h, n)  r = Xor(p, q)  s = And(p, r)  u = Or(s, q)
        c = Cast <to = 1> (u)  d = Mul(h, c)""",
    "Less, Equal, GreaterOrEqual": """
        n = Neg(h)  p = Less(h, n)  q = GreaterOrEqual(h, n)  r = Equal(p, q)  s = Not(r)
        c = Cast <to = 1> (s)  d = Mul(h, c)""",
    "bits of integers": """
        i = Cast <to = 12> (h)  j = BitShift <direction = "LEFT"> (i, i)  k = BitwiseXor(i, j)
        l = BitwiseAnd(k, i)  m = BitwiseOr(k, l)  n = BitwiseNot(m)  o = BitwiseNot(n)  c = Cast <to = 1> (o)  d = Add(h, c)""",
}

BINARY = ("Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Sub", "Sum")
TWO = """g (float[1,3,5,5] x) => (float[] y) <float[4,3,1,1] w, float[4,3,1,1] u, float[2,4,1,1] v> {{
    h = Conv(x, w)
    k = Conv(x, u)
    d = {}
    y = Conv(d, v)
}}"""
TIED = {"w.0 u.0 v.1": [1, 2, 3, 4]}

PRUNE = {
    "a vector per channel": (between("d = Mul(h, s)", "float[4,1,1] s"), CHANNELS | {"s.0": [1, 2, 3, 4]}),
    "a full constant": (between("d = Add(h, s)", "float[1,4,6,6] s"), CHANNELS | {"s.1": [1, 2, 3, 4]}),
    "a constant of size 1 along channels": (between("d = Add(h, s)", "float[1,1,6,6] s"), CHANNELS),
    "a scalar": (between("d = Pow(h, s)", "float s = {2}"), CHANNELS),
    "PRelu with a slope per channel": (between("d = PRelu(h, s)", "float[4,1,1] s"), CHANNELS | {"s.0": [1, 2, 3, 4]}),
    "bounds of Clip": (between("d = Clip(h, lo, hi)", "float lo = {-0.5}, float hi = {0.5}"), CHANNELS),
    "Where of a condition, an activation and a constant": (
        between("n = Neg(h)  c = Greater(h, n)  d = Where(c, h, s)", "float[4,1,1] s"),
        CHANNELS | {"s.0": [1, 2, 3, 4]},
    ),
    "CastLike reads its example's type only": (
        """g (float[1,3] x) => (float[] y, float[] z) <float[3,4] w, float[3,2] u, float[4,2] v> {
            h = MatMul(x, w)
            z = MatMul(x, u)
            d = CastLike(h, z)
            y = MatMul(d, v)
        }""",
        {"w.1 v.0": [1, 2, 3, 4]},
    ),
    "an example of CastLike stays prunable": (
        """g (float[1,3] x) => (float[] y, float[] z) <float[3,4] w, float[4,2] v> {
            h = MatMul(x, w)
            c = CastLike(x, h)
            z = Relu(c)
            y = MatMul(h, v)
        }""",
        {"w.1 v.0": [1, 2, 3, 4]},
    ),
    "squeeze and excite": (
        between(
            "p = GlobalAveragePool(h)  e = Conv(p, r)  f = Relu(e)  i = Conv(f, o)  s = Sigmoid(i)  d = Mul(h, s)",
            "float[2,4,1,1] r, float[4,2,1,1] o",
        ),
        CHANNELS | {"r.1 o.0": [1, 2, 3, 4], "r.0 o.1": [5, 6]},
    ),
    "a residual stream": (
        between("e = Conv(h, r)  d = Add(h, e)", "float[4,4,1,1] r"),
        CHANNELS | {"r.0 r.1": [1, 2, 3, 4]},
    ),
    "outer sum of two vectors": (
        """g (float[1,3] x) => (float[] y) <float[3,4] w, float[3,5] u, int64[2] s = {4, 1}, float[5,2] v, float[2,4] q> {
            a = MatMul(x, w)
            b = MatMul(x, u)
            c = Reshape(a, s)
            h = Add(c, b)
            t = Tanh(h)
            m = MatMul(t, v)
            y = MatMul(q, m)
        }""",
        {"w.1 q.1": [1, 2, 3, 4], "u.1 v.0": [5, 6, 7, 8, 9]},
    ),
    "joint positions meet a vector along one of their axes": (
        """g (float[1,3] x) => (float[] y) <float[3,6] w, int64[2] s = {2, 3}, float[3] c, float[3,2] v> {
            a = MatMul(x, w)
            h = Reshape(a, s)
            d = Add(h, c)
            y = MatMul(d, v)
        }""",
        {"w.1": [1, 2, 3, 1, 2, 3], "c.0 v.0": [1, 2, 3]},
    ),
}

REFUSE = {
    "an operand that is an input": (
        """g (float[1,3] x, float[1,4] z) => (float[] y) <float[3,4] w, float[4,2] v> {
            h = MatMul(x, w)
            d = Add(h, z)
            y = MatMul(d, v)
        }""",
        {
            "w.1": "operands of an element-wise op lose the same positions, and not every operand can lose positions there"
        },
    ),
}


test_must_prune, test_stays_sound = prunes(PRUNE)
test_must_refuse = refuses(REFUSE)


@pytest.mark.parametrize("op", [*UNARY, *SINCE])
def test_unary(op):
    """Every unary op carries channels, exactly."""
    before = (
        "p = Sigmoid(h)" if op in DOMAIN_1 else "e = Exp(h)  p = Add(e, one)" if op in POSITIVE else "p = Identity(h)"
    )
    analysis = analyse(between(f"{before}  d = {op}(p)", "float one = {1}"), opset=SINCE.get(op, 17))
    assert golden(analysis) == expected(CHANNELS)
    assert_sound(analysis)


@each(TYPED, "op")
def test_other_types(op):
    """Through casts, comparisons, logic and bits as well."""
    analysis = analyse(between(op), opset=18)
    assert golden(analysis) == expected(CHANNELS)
    assert_sound(analysis)


@pytest.mark.parametrize("op", BINARY)
def test_binary(op):
    """Two operands lose the same channels."""
    analysis = analyse(TWO.format(f"{op}(h, k)"))
    assert golden(analysis) == expected(TIED)
    assert_sound(analysis)


def test_integer_mod():
    """Mod of integers, and of floats with fmod."""
    analysis = analyse(TWO.format("Mod <fmod = 1> (h, k)"))
    assert golden(analysis) == expected(TIED)
    assert_sound(analysis)


@pytest.mark.parametrize("op", ["Gelu", "QuickGelu", "FastGelu", "BiasGelu"])
def test_fused_gelu(op):
    """onnxruntime's own forms; a bias goes with its channel."""
    bias = ", s" if op in ("FastGelu", "BiasGelu") else ""
    text = f"""g (float[5,3] x) => (float[5,2] y) <float[3,4] w, float[4] s, float[4,2] v> {{
        h = MatMul(x, w)
        d = com.microsoft.{op}(h{bias})
        y = MatMul(d, v)
    }}"""
    analysis = analyse(text, domains=', "com.microsoft" : 1')
    assert golden(analysis) == expected({"w.1 v.0": [1, 2, 3, 4]} | ({"s.0": [1, 2, 3, 4]} if bias else {}))
    assert_sound(analysis)
