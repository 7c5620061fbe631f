"""Products: MatMul of every rank, Gemm, Einsum, and attention written out in them."""

from __future__ import annotations

import numpy as np
from graphs import analyse
from tables import prunes, refuses

GEMM = "g (float[5,3] x) => (float[] y) "
FOUR = [1, 2, 3, 4]

PRUNE = {
    "MatMul of rank 2": (
        GEMM + "<float[3,4] w, float[4] b, float[4,2] v> { h = MatMul(x, w)  d = Add(h, b)  y = MatMul(d, v) }",
        {"w.1 b.0 v.0": FOUR},
    ),
    "MatMul of ranks 3 and 2": (
        "g (float[2,5,3] x) => (float[] y) <float[3,4] w, float[4,2] v> { h = MatMul(x, w)  d = Relu(h)  y = MatMul(d, v) }",
        {"w.1 v.0": FOUR},
    ),
    "MatMul of ranks 4 and 2": (
        "g (float[2,2,5,3] x) => (float[] y) <float[3,4] w, float[4,2] v> { h = MatMul(x, w)  y = MatMul(h, v) }",
        {"w.1 v.0": FOUR},
    ),
    "MatMul of ranks 1 and 2": (
        "g (float[3] x) => (float[] y) <float[3,4] w, float[4,2] v> { h = MatMul(x, w)  d = Tanh(h)  y = MatMul(d, v) }",
        {"w.1 v.0": FOUR},
    ),
    "MatMul of ranks 2 and 1": (
        "g (float[5,3] x) => (float[] y) <float[3,4] w, float[4] v> { h = MatMul(x, w)  d = Tanh(h)  y = MatMul(d, v) }",
        {"w.1 v.0": FOUR},
    ),
    "MatMul of ranks 1 and 1": (
        "g (float[3] x) => (float[] y) <float[3,4] w, float[4] v> { h = MatMul(x, w)  d = Tanh(h)  y = MatMul(d, v) }",
        {"w.1 v.0": FOUR},
    ),
    "MatMul of ranks 1 and 3": (
        """g (float[3] x) => (float[] y) <float[3,4] w, float[2,4,3] v, int64[1] a = {0}, float[3] z> {
            h = MatMul(x, w)
            d = MatMul(h, v)
            y = MatMul(d, z)
        }""",
        {"w.1 v.1": FOUR, "v.2 z.0": [5, 6, 7]},
    ),
    "a batched weight, of which whole matrices can go": (
        """g (float[1,5,3] x) => (float[] y) <float[2,3,4] w, float[2,4,3] v, int64[1] a = {0}> {
            h = MatMul(x, w)
            d = MatMul(h, v)
            y = ReduceSum(d, a)
        }""",
        {"w.0 v.0": [1, 2], "w.2 v.1": [3, 4, 5, 6]},
    ),
    "the weight on the left": (
        "g (float[3,5] x) => (float[] y) <float[4,3] w, float[2,4] v> { h = MatMul(w, x)  d = Relu(h)  y = MatMul(v, d) }",
        {"w.0 v.1": FOUR},
    ),
    "weights on the left and on the right": (
        """g (float[5,3] x) => (float[] y) <float[4,5] p, float[3,6] w, float[2,4] q, float[6,2] v> {
            a = MatMul(p, x)
            h = MatMul(a, w)
            d = Relu(h)
            b = MatMul(q, d)
            y = MatMul(b, v)
        }""",
        {"p.0 q.1": FOUR, "w.1 v.0": [5, 6, 7, 8, 9, 10]},
    ),
    "q k and attention v of one head": (
        """g (float[2,5,3] x) => (float[] y) <float[3,4] q, float[4] c, float[3,4] k, float[3,4] v, float[4,2] o> {
            a = MatMul(x, q)
            qs = Add(a, c)
            ks = MatMul(x, k)
            kt = Transpose <perm = [0, 2, 1]> (ks)
            s = MatMul(qs, kt)
            p = Softmax(s)
            vs = MatMul(x, v)
            h = MatMul(p, vs)
            y = MatMul(h, o)
        }""",
        {"q.1 c.0 k.1": FOUR, "v.1 o.0": [5, 6, 7, 8]},
    ),
    "q k and attention v of two heads": (
        """g (float[2,5,3] x) => (float[] y)
          <float[3,4] q, float[3,4] k, float[3,4] v, float[4,2] o, int64[4] s = {0, 0, 2, 2}, int64[3] t = {0, 0, -1}> {
            qf = MatMul(x, q)
            kf = MatMul(x, k)
            vf = MatMul(x, v)
            q4 = Reshape(qf, s)
            k4 = Reshape(kf, s)
            v4 = Reshape(vf, s)
            qs = Transpose <perm = [0, 2, 1, 3]> (q4)
            kt = Transpose <perm = [0, 2, 3, 1]> (k4)
            vs = Transpose <perm = [0, 2, 1, 3]> (v4)
            a = MatMul(qs, kt)
            p = Softmax(a)
            c = MatMul(p, vs)
            d = Transpose <perm = [0, 2, 1, 3]> (c)
            h = Reshape(d, t)
            y = MatMul(h, o)
        }""",
        {"q.1 k.1": [1, 2, 1, 2], "v.1 o.0": [3, 4, 3, 4]},
    ),
    "one projection for q, k and v": (
        """g (float[2,5,3] x) => (float[] y)
          <float[3,12] w, float[12] b, float[4,2] o, int64[5] s = {2, 5, 3, 2, 2}, int64[3] t = {2, 5, 4},
           int64 zero = {0}, int64 one = {1}, int64 two = {2}> {
            f = MatMul(x, w)
            e = Add(f, b)
            r = Reshape(e, s)
            u = Transpose <perm = [2, 0, 3, 1, 4]> (r)
            qs = Gather(u, zero)
            ks = Gather(u, one)
            vs = Gather(u, two)
            kt = Transpose <perm = [0, 1, 3, 2]> (ks)
            a = MatMul(qs, kt)
            p = Softmax(a)
            c = MatMul(p, vs)
            d = Transpose <perm = [0, 2, 1, 3]> (c)
            h = Reshape(d, t)
            y = MatMul(h, o)
        }""",
        {"w.1 b.0": [1, 2] * 6, "o.0": [1, 2, 1, 2]},
    ),
    "Gemm": (
        GEMM + "<float[3,4] w, float[4] b, float[4,2] v> { h = Gemm(x, w, b)  y = Gemm(h, v) }",
        {"w.1 b.0 v.0": FOUR},
    ),
    "Gemm with scales and both operands transposed": (
        """g (float[3,5] x) => (float[] y) <float[4,3] w, float[4] b, float[2,4] v> {
            h = Gemm <transA = 1, transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)
            y = Gemm <transB = 1> (h, v)
        }""",
        {"w.0 b.0 v.1": FOUR},
    ),
    "Gemm with the weight on the left": (
        """g (float[3,5] x) => (float[] y) <float[3,4] w, float[4,1] b, float[2,4] v> {
            h = Gemm <transA = 1> (w, x, b)
            y = Gemm(v, h)
        }""",
        {"w.1 b.0 v.1": FOUR},
    ),
    "Gemm with a scalar as C": (
        GEMM + "<float[3,4] w, float b, float[4,2] v> { h = Gemm(x, w, b)  y = Gemm(h, v) }",
        {"w.1 v.0": FOUR},
    ),
    "Gemm with a matrix as C": (
        GEMM + "<float[3,4] w, float[5,4] b, float[4,2] v> { h = Gemm(x, w, b)  y = Gemm(h, v) }",
        {"w.1 b.1 v.0": FOUR},
    ),
    "Gemm of activations: a Gram matrix": (
        """g (float[5,3] x) => (float[] y) <float[3,4] w, float[4] b> {
            h = Gemm(x, w, b)
            y = Gemm <transB = 1> (h, h)
        }""",
        {"w.1 b.0": FOUR},
    ),
    "Einsum like MatMul": (
        """g (float[2,5,3] x) => (float[] y) <float[3,4] w, float[4,2] v> {
            h = Einsum <equation = "bij,jk->bik"> (x, w)
            y = Einsum <equation = "bij, jk -> bki"> (h, v)
        }""",
        {"w.1 v.0": FOUR},
    ),
    "Einsum of attention with its heads": (
        """g (float[2,5,3] x) => (float[] y) <float[3,2,4] q, float[3,2,4] k, float[3,2,4] v, float[2,4,2] o> {
            qs = Einsum <equation = "bti,ihd->bhtd"> (x, q)
            ks = Einsum <equation = "bti,ihd->bhtd"> (x, k)
            vs = Einsum <equation = "bti,ihd->bhtd"> (x, v)
            a = Einsum <equation = "bhqd,bhkd->bhqk"> (qs, ks)
            p = Softmax(a)
            c = Einsum <equation = "bhqk,bhkd->bqhd"> (p, vs)
            y = Einsum <equation = "bqhd,hdo->bqo"> (c, o)
        }""",
        {"q.1 k.1 v.1 o.0": [1, 2], "q.2 k.2": [3, 4, 5, 6], "v.2 o.1": [7, 8, 9, 10]},
    ),
    "Einsum over heads and their dimensions at once": (
        """g (float[2,5,3] x) => (float[] y) <float[3,4] q, float[3,4] k, int64[4] s = {2, 5, 2, 2}> {
            qf = MatMul(x, q)
            kf = MatMul(x, k)
            qs = Reshape(qf, s)
            ks = Reshape(kf, s)
            y = Einsum <equation = "bthd,bshd->bts"> (qs, ks)
        }""",
        {"q.1 k.1": [1, 2, 1, 2]},
    ),
    "Einsum that sums an activation over a letter of its own": (
        """g (float[2,3] x) => (float[] y) <float[3,4] w, float[4] b, float[2,5] v, float[5,2] o> {
            h = Gemm(x, w, b)
            d = Einsum <equation = "bj,bk->bk"> (h, v)
            y = MatMul(d, o)
        }""",
        {"w.1 b.0": FOUR, "v.1 o.0": [5, 6, 7, 8, 9]},
    ),
    "Einsum of one operand": (
        """g (float[2,3] x) => (float[] y) <float[3,4] w, float[4] b> {
            h = Gemm(x, w, b)
            y = Einsum <equation = "ij->i"> (h)
        }""",
        {"w.1 b.0": FOUR},
    ),
    "Einsum of three operands": (
        """g (float[5,3] x) => (float[] y) <float[3,4] w, float[4,6] u, float[6,2] v> {
            h = MatMul(x, w)
            y = Einsum <equation = "ij,jk,kl->il"> (h, u, v)
        }""",
        {"w.1 u.0": FOUR, "u.1 v.0": [5, 6, 7, 8, 9, 10]},
    ),
}

EINSUM = """g (float[2,5,3] x) => (float[] y) <float[3,5] w, float[5,2] v> {{
    h = MatMul(x, w)
    y = Einsum <equation = "{}"> (h{})
}}"""
SHAPE = "has an ellipsis, a repeated letter or no explicit result"
REFUSE = {
    "an operand that is an input": (
        """g (float[5,3] x, float[2,4] z) => (float[] y) <float[3,4] w> {
            h = MatMul(x, w)
            t = Transpose(h)
            y = MatMul(z, t)
        }""",
        {"w.1": "operands of a product lose the same positions, and not every operand can lose positions there"},
    ),
    "a Gemm that adds an input": (
        """g (float[5,3] x, float[4] z) => (float[] y) <float[3,4] w, float[4,2] v> {
            h = Gemm(x, w, z)
            y = Gemm(h, v)
        }""",
        {"w.1": "one bias per output, and not every operand can lose positions there"},
    ),
    "Einsum with an ellipsis": (EINSUM.format("...ij,jk->...ik", ", v"), {"w.1": SHAPE}),
    "Einsum without a result": (EINSUM.format("bij,jk", ", v"), {"w.1": SHAPE}),
    "Einsum of a diagonal": (EINSUM.format("bii->bi", ""), {"w.1": SHAPE}),
}


test_must_prune, test_stays_sound = prunes(PRUNE)
test_must_refuse = refuses(REFUSE)


def test_layers_and_their_cost():
    """Every product is a layer with its filters, inputs and multiply-accumulates; activations only have no weight."""
    text, _ = PRUNE["q k and attention v of one head"]
    analysis = analyse(text)
    layers = analysis.layers
    assert [(layer.op, layer.weight) for layer in layers] == [
        *[("MatMul", "q"), ("MatMul", "k"), ("MatMul", None), ("MatMul", "v"), ("MatMul", None), ("MatMul", "o")]
    ]
    kept = np.ones(analysis.classes + 1, bool)
    macs = [layer.macs.count(kept) for layer in layers]
    assert macs == [2 * 5 * 3 * 4, 2 * 5 * 3 * 4, 2 * 5 * 5 * 4, 2 * 5 * 3 * 4, 2 * 5 * 5 * 4, 2 * 5 * 4 * 2]
