"""Fused attention and rotary embedding: whole heads."""

from __future__ import annotations

from graphs import analyse, assert_sound, expected, golden
from tables import prunes, refuses

# Two tokens of 3 features; 4 query heads of 2 dimensions. `o` reads what comes out of the attention.
PROJECT = "g (float[2,5,3] x) => (float[] y) <float[3,8] q, float[3,{0}] k, float[3,{1}] v, float[{2},3] o{3}> {{\
 qs = MatMul(x, q)  ks = MatMul(x, k)  vs = MatMul(x, v)  {4}  y = MatMul(h, o) }}"
FOUR_HEADS = "int64[4] s = {0, 0, 4, 2}, int64[3] t = {0, 0, -1}"
SPLIT = """
    q1 = Reshape(qs, s)  q4 = Transpose <perm = [0, 2, 1, 3]> (q1)
    k1 = Reshape(ks, s)  k4 = Transpose <perm = [0, 2, 1, 3]> (k1)
    v1 = Reshape(vs, s)  v4 = Transpose <perm = [0, 2, 1, 3]> (v1)"""
JOIN = "c = Transpose <perm = [0, 2, 1, 3]> (a)  h = Reshape(c, t)"
HEADS = [1, 1, 2, 2, 3, 3, 4, 4]
SHARED = [1, 1, 1, 1, 2, 2, 2, 2]  # query heads that share two key and value heads

PRUNE = {
    "3-D": (
        PROJECT.format(8, 8, 8, "", "h = Attention <q_num_heads = 4, kv_num_heads = 4> (qs, ks, vs)"),
        {"q.1 k.1 v.1 o.0": HEADS},
    ),
    "3-D with two key and value heads": (
        PROJECT.format(4, 4, 8, "", "h = Attention <q_num_heads = 4, kv_num_heads = 2> (qs, ks, vs)"),
        {"q.1 o.0": SHARED, "k.1 v.1": [1, 1, 2, 2]},
    ),
    "3-D with values of another size, causal": (
        PROJECT.format(
            8, 12, 12, "", "h = Attention <q_num_heads = 4, kv_num_heads = 4, is_causal = 1, scale = 0.3> (qs, ks, vs)"
        ),
        {"q.1 k.1": HEADS, "v.1 o.0": [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]},
    ),
    "4-D": (
        PROJECT.format(8, 8, 8, ", " + FOUR_HEADS, f"{SPLIT}  a = Attention(q4, k4, v4)  {JOIN}"),
        {"q.1 k.1 v.1 o.0": HEADS},
    ),
    "a mask per head": (
        PROJECT.format(
            8, 8, 8, ", float[4,5,5] m", "h = Attention <q_num_heads = 4, kv_num_heads = 4> (qs, ks, vs, m)"
        ),
        {"q.1 k.1 v.1 o.0": HEADS, "m.0": [1, 2, 3, 4]},
    ),
    "one mask for all heads": (
        PROJECT.format(8, 8, 8, ", float[5,5] m", "h = Attention <q_num_heads = 4, kv_num_heads = 4> (qs, ks, vs, m)"),
        {"q.1 k.1 v.1 o.0": HEADS},
    ),
    "the scores as a further output": (
        PROJECT.format(
            8,
            8,
            8,
            ", int64[1] axis = {1}, int64[1] last = {-1}",
            """a, pk, pv, z = Attention <q_num_heads = 4, kv_num_heads = 4> (qs, ks, vs)
            e = ReduceSum <keepdims = 0> (z, axis)
            i = ReduceSum(e, last)
            h = Add(a, i)""",
        ),
        {"q.1 k.1 v.1 o.0": HEADS},
    ),
    "rotary embedding of 3-D queries": (
        PROJECT.format(
            8,
            8,
            8,
            ", float[2,5,1] co, float[2,5,1] si",
            """qr = RotaryEmbedding <num_heads = 4> (qs, co, si)
            h = Attention <q_num_heads = 4, kv_num_heads = 4> (qr, ks, vs)""",
        ),
        {"q.1 k.1 v.1 o.0": HEADS},
    ),
    "rotary embedding of 4-D queries": (
        PROJECT.format(
            8,
            8,
            8,
            ", float[2,5,1] co, float[2,5,1] si, " + FOUR_HEADS,
            f"{SPLIT}  qr = RotaryEmbedding(q4, co, si)  a = Attention(qr, k4, v4)  {JOIN}",
        ),
        {"q.1 k.1 v.1 o.0": HEADS},
    ),
}

REFUSE = {
    "a mask per head that is an input": (
        PROJECT.format(8, 8, 8, "", "h = Attention <q_num_heads = 4, kv_num_heads = 4> (qs, ks, vs, m)").replace(
            "(float[2,5,3] x)", "(float[2,5,3] x, float[2,4,5,5] m)"
        ),
        {"q.1": "one mask per head", "k.1": "one mask per head"},
    ),
    "keys and values from outside": (
        PROJECT.format(
            8, 8, 8, "", "h, nk, nv = Attention <q_num_heads = 4, kv_num_heads = 4> (qs, ks, vs, , pk, pv)"
        ).replace("(float[2,5,3] x)", "(float[2,5,3] x, float[2,4,3,2] pk, float[2,4,3,2] pv)"),
        {"q.1": "keys and values are cached outside"},
    ),
    "scores that are a result": (
        PROJECT.format(
            8, 8, 8, "", "h, pk, pv, z = Attention <q_num_heads = 4, kv_num_heads = 4> (qs, ks, vs)"
        ).replace("float[] y", "float[] y, float[] z"),
        {"q.1": "it is a result of the model (graph output z)"},
    ),
}


test_must_prune, test_stays_sound = prunes(PRUNE, opset=23)
test_must_refuse = refuses(REFUSE, opset=23)


def test_rotary_embedding_and_attention_since_24():
    """Operator set 24 has the same rules."""
    text, table = PRUNE["rotary embedding of 3-D queries"]
    analysis = analyse(text, opset=24)
    assert golden(analysis) == expected(table)
    assert_sound(analysis)
