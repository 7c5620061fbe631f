"""Which layers of a program can be refitted, and their weights as numbers."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import each, proto
from recovering import outputs

from onnxprune.graph import from_proto
from onnxprune.recover.layers import sites
from onnxprune.recover.program import program

QUANTISED = """g (float[N,3] x) => (float[] y) <KIND[4,3] q, SCALE, ZERO> {
    w = DequantizeLinear AXIS (q, s, z)
    y = Gemm <transB = 1> (x, w)
}"""
FORMS = {
    "int8, per axis": ("int8", "float[4] scale", "int8[4] z", "<axis = 0>"),
    "int8, per column": ("int8", "float[3] scale", "int8[3] z", "<axis = 1>"),
    "int8, negative axis": ("int8", "float[4] scale", "int8[4] z", "<axis = -2>"),
    "int8, one scale": ("int8", "float scale", "int8 z = {5}", ""),
    "uint8, one scale": ("uint8", "float scale", "uint8 z = {128}", ""),
}


def quantised(kind, scale, zero, axis):
    text = QUANTISED.replace("KIND", kind).replace("SCALE", scale).replace("ZERO", zero).replace("AXIS", axis)
    return program(from_proto(proto(text.replace(", s, z)", ", scale, z)"))))


def dequantised(whole):
    """The weight as onnxruntime sees it."""
    x = np.eye(3, dtype=np.float32)
    return outputs(whole, [{"x": x}])[0]["y"].T


@each(FORMS, "kind, scale, zero, axis")
def test_reading_quantised_weights(kind, scale, zero, axis):
    """A quantised weight reads as the numbers that DequantizeLinear gives."""
    whole = quantised(kind, scale, zero, axis)
    (site,), skipped = sites(whole)
    assert not skipped
    assert site.weight == "q"
    np.testing.assert_allclose(site.read(whole), dequantised(whole), rtol=1e-6)


@each(FORMS, "kind, scale, zero, axis")
def test_writing_quantised_weights(kind, scale, zero, axis):
    """Numbers are stored to half a step of a scale that spends the whole range; types and zero points stay."""
    whole = quantised(kind, scale, zero, axis)
    (site,), _ = sites(whole)
    old = {n: (a.dtype, a.shape) for n, a in whole.weights.items()}
    wanted = np.random.default_rng(3).standard_normal((4, 3)).astype(np.float32)
    z = whole.weights["z"].copy()
    site.write(whole, wanted)
    assert {n: (a.dtype, a.shape) for n, a in whole.weights.items()} == old
    assert np.array_equal(whole.weights["z"], z)
    step = whole.weights["scale"]
    step = step.reshape(-1, 1) if step.size == 4 else step
    assert (np.abs(dequantised(whole) - wanted) <= 0.501 * step).all()
    info, held = np.iinfo(kind), whole.weights["q"]
    extreme = (held == info.max) | (held == info.min)
    axis = {4: 1, 3: 0, 1: None}[whole.weights["scale"].size]
    assert extreme.any(axis=axis).all()


@pytest.mark.parametrize("kind", ["float", "float16", "double"])
def test_floats(kind):
    """Floats keep their type."""
    whole = program(from_proto(proto(f"g ({kind}[N,3] x) => ({kind}[] y) <{kind}[3,4] w> {{ y = MatMul(x, w) }}")))
    (site,), _ = sites(whole)
    assert site.read(whole).dtype == np.float32
    dtype = whole.weights["w"].dtype
    site.write(whole, np.ones((3, 4), np.float32))
    assert whole.weights["w"].dtype == dtype
    assert (whole.weights["w"] == 1).all()


OTHERS = {
    "shared": (
        "float[3,3] w",
        "h = MatMul(x, w)\n y = MatMul(h, w)",
        dict.fromkeys("hy", "its weight is shared with another layer"),
    ),
    "computed": ("float[3,3] w", "t = Transpose(x)\n y = MatMul(x, t)", {"y": "both operands are computed"}),
    "integers": (
        "int8[3,3] w",
        "c = Cast <to = 6> (x)\n d = Cast <to = 6> (w)\n e = MatMul(c, d)\n y = Cast <to = 1> (e)",
        {"e": "both operands are computed"},
    ),
    "a shared scale": (
        "int8[3,3] w, int8[3,3] v, float scale",
        "a = DequantizeLinear(w, scale)\n b = DequantizeLinear(v, scale)\n h = MatMul(x, a)\n y = MatMul(h, b)",
        dict.fromkeys("hy", "several weights share one scale"),
    ),
    "a matrix as bias": (
        "float[3,3] w, float[5,3] c",
        "y = Gemm(x, w, c)",
        {"y": "its bias is no vector, or it is computed"},
    ),
    "a transposed input": ("float[5,3] w", "y = Gemm <transA = 1> (x, w)", {"y": "it reads its input transposed"}),
}


@each(OTHERS, "weights, body, reasons")
def test_layers_that_are_left_out(weights, body, reasons):
    """Layers without a weight of their own are named, with the reason."""
    whole = program(from_proto(proto(f"g (float[5,3] x) => (float[] y) <{weights}> {{ {body} }}")))
    assert sites(whole) == ([], reasons)
