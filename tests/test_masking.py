"""The masked original: what it silences, and how."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import analyse, between, proto

from onnxprune.masking import has_half, masked, widened
from onnxprune.runtime import session

KEPT = np.array([True, True, False, True, False])
GONE, STAY = [1, 3], [0, 2]


def tensors(model):
    return {n: c.values for n, c in model.constants().items()}


def test_readers_are_zeroed_and_nothing_else():
    """Columns that read a removed position are zero; filters, biases and everything at kept positions stay."""
    analysis = analyse(between("d = PRelu(h, s)", "float[4,1,1] s"))
    before, after = tensors(analysis.model), tensors(masked(analysis, KEPT))
    assert all(np.array_equal(after[n], before[n]) for n in ("w", "b", "s"))
    assert not after["v"][:, GONE].any()
    assert np.array_equal(after["v"][:, STAY], before["v"][:, STAY])


def test_the_original_is_not_touched():
    """Silencing edits a copy."""
    analysis = analyse(between("d = LRN <size = 3> (h)"))
    before = analysis.model.to_proto().SerializeToString()
    assert masked(analysis, KEPT).to_proto().SerializeToString() != before
    assert analysis.model.to_proto().SerializeToString() == before


def test_keeping_everything_silences_nothing():
    """Without anything to remove, the masked model is the original."""
    analysis = analyse(between("d = LRN <size = 3> (h)"))
    everything = masked(analysis, np.ones(5, bool)).to_proto()
    assert everything.SerializeToString() == analysis.model.to_proto().SerializeToString()


def test_a_weight_that_reads_and_is_read():
    """Where an axis is both, of two uses of one weight, it is zeroed too."""
    analysis = analyse(
        """g (float[5,3] x) => (float[] y) <float[3,4] w> {
            h = MatMul(x, w)
            t = Transpose(w)
            y = MatMul(h, t)
        }"""
    )
    w = tensors(masked(analysis, KEPT))["w"]
    assert not w[:, GONE].any()
    assert w[:, STAY].all()


def test_filters_of_zeros_would_divide_zero_by_zero():
    """Producers keep their values, so that the masked original is finite where the original is."""
    analysis = analyse(between("n = Relu(h)  m = Add(n, h)  d = Div(h, h)"))
    x = np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)
    assert np.isfinite(session(masked(analysis, KEPT).to_proto()).run({"x": x})["y"]).all()


@pytest.mark.parametrize(("weight", "zero"), [("int8", -3), ("uint8", 7)])
def test_quantised_columns_are_set_to_their_zero_point(weight, zero):
    """Which is what zero is after dequantisation, per tensor and per channel."""
    text = """g (float[5,3] x) => (float[] y) <float[3,4] w, {0}[4,2] v, float s = {{0.1}}, {0} z = {{{1}}}> {{
        h = MatMul(x, w)
        f = DequantizeLinear(v, s, z)
        y = MatMul(h, f)
    }}"""
    after = tensors(masked(analyse(text.format(weight, zero)), KEPT))["v"]
    assert (after[GONE] == zero).all()
    assert (after[STAY] != zero).any()


def test_zero_points_per_row():
    """The zero point of each column of a transposed weight is its own."""
    text = """g (float[5,3] x) => (float[] y) <float[3,4] w, uint8[4,2] v, float[4] scale, uint8[4] z = {1, 2, 3, 4}> {
        h = MatMul(x, w)
        f = DequantizeLinear <axis = 0> (v, scale, z)
        y = MatMul(h, f)
    }"""
    assert tensors(masked(analyse(text), KEPT))["v"][GONE].tolist() == [[2, 2], [4, 4]]


def test_sums_over_activations_get_a_mask():
    """q k without any weight between: one operand is multiplied by 0 where positions leave."""
    analysis = analyse(
        """g (float[2,5,3] x) => (float[] y) <float[3,4] q, float[3,4] k> {
            a = MatMul(x, q)
            b = MatMul(x, k)
            t = Transpose <perm = [0, 2, 1]> (b)
            y = MatMul(a, t)
        }"""
    )
    model = masked(analysis, KEPT)
    added = [n for n in model.graph.nodes if n.op == "Mul"]
    assert [n.inputs[1].values.reshape(-1).tolist() for n in added] == [[1, 0, 1, 0]]


def test_renormalised_axes_are_computed_on_what_is_kept():
    """A LayerNormalization is bracketed by Gather: only kept positions enter its statistics."""
    analysis = analyse(
        """g (float[2,5,3] x) => (float[] y) <float[3,4] w, float[4] g, float[4,2] v> {
            h = MatMul(x, w)
            d = LayerNormalization(h, g)
            y = MatMul(d, v)
        }"""
    )
    model = masked(analysis, KEPT)
    assert [n.op for n in model.graph.nodes] == ["MatMul", "Gather", "LayerNormalization", "Gather", "MatMul"]
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    w, g, v = (analysis.model.constants()[n].values for n in ("w", "g", "v"))
    h = (x @ w)[..., STAY]
    want = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5) * g[STAY] @ v[STAY]
    assert np.allclose(session(model.to_proto()).run({"x": x})["y"], want, atol=1e-5)


def test_two_sums_of_one_node():
    """Each summed axis is masked, whatever their number."""
    analysis = analyse(
        """g (float[1,3] x, float[1,3] z) => (float[] y) <float[3,4] q, float[3,4] k, float[3,5] p, float[3,5] r> {
            a = MatMul(x, q)
            b = MatMul(z, k)
            c = MatMul(x, p)
            d = MatMul(z, r)
            m = Einsum <equation = "ni,nj->nij"> (a, c)
            n = Einsum <equation = "ni,nj->nij"> (b, d)
            y = Einsum <equation = "nij,nij->n"> (m, n)
        }"""
    )
    assert analysis.classes == 9
    kept = np.ones(10, bool)
    kept[[2, 6]] = False
    model = masked(analysis, kept)
    assert sorted(n.inputs[1].values.size for n in model.graph.nodes if n.op == "Mul") == [4, 5]


def test_widening():
    """float16 and bfloat16 become float32 in weights, signature and attributes; other types and the original stay."""
    half = """g (float16[1,3] x) => (float16[1,2] y, float[1,3] z) <float16[3,4] w, float16[4,2] v> {
        h = MatMul(x, w)
        z = Cast <to = 1> (x)
        r = Cast <to = 10> (h)
        y = MatMul(r, v)
    }"""
    model = proto(half)
    before = model.SerializeToString()
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    wide, weights = widened(model, stored | {"i": np.arange(3), "b": np.ones(2, ml_dtypes.bfloat16)})
    assert has_half(model)
    assert not has_half(wide)
    assert model.SerializeToString() == before
    assert {n: a.dtype.name for n, a in weights.items()} == {
        **{"w": "float32", "v": "float32", "i": "int64", "b": "float32"}
    }
    assert [v.type.tensor_type.elem_type for v in (*wide.graph.input, *wide.graph.output)] == [1, 1, 1]
    assert [a.i for n in wide.graph.node for a in n.attribute] == [1, 1]
    found = session(wide).run({"x": np.ones((1, 3), np.float32)})["y"]
    assert np.allclose(found, np.ones((1, 3)) @ weights["w"] @ weights["v"], rtol=1e-3)


def test_nothing_to_widen():
    """A model without half precision is handed back as it is."""
    model = proto(between("d = Relu(h)"))
    assert widened(model, {})[0] is model
