"""Repair layer by layer: exact where the cut loses nothing, never worse where it does."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import analyse, each, proto, random_plan
from recovering import Case, duplicates, far, outputs

from onnxprune.recover.layers import sites
from onnxprune.recover.program import program
from onnxprune.recover.reference import reference

PLANE = "float[N,3,8,8] x"
# name -> graph in which classes 2 and 5 become copies of 4 and 1
EXACT = {
    "Conv, 1 axis": """g (float[N,3,30] x) => (float[] y) <float[5,3,3] w, float[5] b, float[2,5,3] v, float[2] c> {
        h = Conv <strides = [2]> (x, w, b)
        r = Relu(h)
        y = Conv <dilations = [2], pads = [3, 1]> (r, v, c)
    }""",
    "Conv, 2 axes": f"""g ({PLANE}) => (float[] y) <float[5,3,3,3] w, float[5] b, float[2,5,3,2] v> {{
        h = Conv(x, w, b)
        r = Relu(h)
        y = Conv <strides = [1, 2], dilations = [2, 1], pads = [1, 0, 2, 1]> (r, v)
    }}""",
    "Conv, 3 axes": """g (float[N,2,4,5,6] x) => (float[] y) <float[5,2,1,2,1] w, float[5] b, float[2,5,2,1,2] v> {
        h = Conv(x, w, b)
        r = Relu(h)
        y = Conv <strides = [1, 1, 2], dilations = [2, 1, 1], pads = [1, 0, 1, 0, 0, 1]> (r, v)
    }""",
    "Conv, 2 groups": f"""g ({PLANE}) => (float[] y) <float[10,3,1,1] w, float[10] b, float[4,5,3,3] v> {{
        h = Conv(x, w, b)
        r = Relu(h)
        y = Conv <group = 2> (r, v)
    }}""",
    "Conv, groups that leave whole": f"""g ({PLANE}) => (float[] y) <float[10,3,1,1] w, float[10] b, float[15,2,3,3] k,
      float[15] c, float[2,15,1,1] v> {{
        h = Conv(x, w, b)
        r = Relu(h)
        e = Conv <group = 5> (r, k, c)
        d = Relu(e)
        y = Conv(d, v)
    }}""",
    "Conv, depthwise": f"""g ({PLANE}) => (float[] y) <float[5,3,1,1] w, float[5] b, float[5,1,3,3] k, float[5] c,
      float[2,5,1,1] v> {{
        h = Conv(x, w, b)
        r = Relu(h)
        e = Conv <group = 5, pads = [1, 1, 1, 1]> (r, k, c)
        d = Clip(e, low, high)
        y = Conv(d, v)
    }}""".replace("float[2,5,1,1] v", "float low = {0}, float high = {6}, float[2,5,1,1] v"),
    "ConvTranspose": f"""g ({PLANE}) => (float[] y) <float[3,5,2,2] w, float[5] b, float[5,2,3,2] v> {{
        h = ConvTranspose <strides = [2, 2]> (x, w, b)
        r = Relu(h)
        y = ConvTranspose <strides = [2, 1], pads = [1, 0, 0, 1], output_padding = [1, 0]> (r, v)
    }}""",
    "Gemm": """g (float[N,7] x) => (float[] y) <float[5,7] w, float[5] b, float[3,5] v, float[3] c> {
        h = Gemm <transB = 1> (x, w, b)
        r = Relu(h)
        y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (r, v, c)
    }""",
    "Gemm behind Flatten": """g (float[N,3,3,2] x) => (float[] y) <float[5,3,1,1] w, float[5] b, float[30,3] v, float[3] c> {
        h = Conv(x, w, b)
        r = Relu(h)
        f = Flatten(r)
        y = Gemm(f, v, c)
    }""",
    "MatMul and Add": """g (float[N,9,3] x) => (float[] y) <float[3,5] w, float[5] b, float[5,4] v, float[4] c> {
        h = MatMul(x, w)
        a = Add(b, h)
        r = Relu(a)
        k = MatMul(r, v)
        y = Add(k, c)
    }""",
    "BatchNormalization": f"""g ({PLANE}) => (float[] y) <float[5,3,3,3] w, float[5] s, float[5] o, float[5] m, float[5] var,
      float[4,5,3,3] v, float[4] s1, float[4] o1, float[4] m1, float[4] var1, float[2,4,1,1] u> {{
        h = Conv(x, w)
        n = BatchNormalization(h, s, o, m, var)
        r = Relu(n)
        k = Conv(r, v)
        n1 = BatchNormalization(k, s1, o1, m1, var1)
        r1 = Relu(n1)
        y = Conv(r1, u)
    }}""",
    "a residual stream": f"""g ({PLANE}) => (float[] y) <float[5,3,3,3] w, float[5] b, float[5,5,1,1] u, float[5] c,
      float[4,5,1,1] k, float[4] j, float[5,4,1,1] l, float[5] m, float[2,5] v> {{
        h = Conv(x, w, b)
        s = Relu(h)
        h1 = Conv(s, u, c)
        a = Add(s, h1)
        s1 = Relu(a)
        i = Conv(s1, k, j)
        r = Relu(i)
        h2 = Conv(r, l, m)
        a1 = Add(h2, s1)
        s2 = Relu(a1)
        p = GlobalAveragePool(s2)
        f = Flatten(p)
        y = Gemm <transB = 1> (f, v)
    }}""",
    "Concat": f"""g ({PLANE}) => (float[] y) <float[5,3,1,1] w, float[5] b, float[4,3,1,1] u, float[2,9,1,1] v> {{
        h = Conv(x, w, b)
        k = Conv(x, u)
        c = Concat <axis = 1> (k, h)
        r = Relu(c)
        y = Conv(r, v)
    }}""",
    "a gate": f"""g ({PLANE}) => (float[] y) <float[5,3,1,1] w, float[5] b, float[2,5,1,1] k, float[5,2,1,1] l,
      float[2,5,1,1] v> {{
        h = Conv(x, w, b)
        r = Relu(h)
        p = GlobalAveragePool(r)
        q = Conv(p, k)
        e = Conv(q, l)
        s = Sigmoid(e)
        d = Mul(r, s)
        y = Conv(d, v)
    }}""",
    "NHWC": """g (float[N,8,8,3] x) => (float[] y) <float[5,3,3,3] w, float[5] b, float[4,5,1,1] v, float[4] c> {
        t = Transpose <perm = [0, 3, 1, 2]> (x)
        h = Conv(t, w, b)
        i = Transpose <perm = [0, 2, 3, 1]> (h)
        r = Relu(i)
        j = Transpose <perm = [0, 3, 1, 2]> (r)
        k = Conv(j, v)
        l = Transpose <perm = [0, 2, 3, 1]> (k)
        y = Add(l, c)
    }""",
}
NO_FUNCTION_BETWEEN = {
    "Conv": f"""g ({PLANE}) => (float[] y) <float[5,3,3,3] w, float[5] b, float[2,5,3,3] v> {{
        h = Conv(x, w, b)
        y = Conv(h, v)
    }}""",
    "Gemm": """g (float[N,7] x) => (float[] y) <float[5,7] w, float[5] b, float[3,5] v, float[3] c> {
        h = Gemm <transB = 1> (x, w, b)
        y = Gemm <transB = 1> (h, v, c)
    }""",
}


@each(EXACT, "text")
def test_copies_are_lost_without_loss(text):
    """Without a ridge, what reads a filter and its copy makes up for the copy: the network's outputs stay."""
    case = duplicates(text)
    assert case.before > 0.05
    done = case.repaired(ridge=0.0)
    assert case.after(done) < 2e-5


@each(EXACT, "text")
def test_copies_at_the_default_ridge(text):
    """At the default ridge, one copy among five filters costs at most a hundredth."""
    case = duplicates(text, pairs=((2, 4),))
    assert case.before > 0.05
    assert case.after(case.repaired()) < 1e-2


@each(NO_FUNCTION_BETWEEN, "text")
def test_sums_of_filters(text):
    """Where no function intervenes, a filter that is a sum of others is no loss either."""
    analysis = analyse(text)
    constants = analysis.model.constants()
    for name in "wb":
        array = np.array(constants[name].values)
        array[3] = 0.5 * array[0] - 2 * array[1] + array[4]
        constants[name].values = array
    kept = np.ones(analysis.classes + 1, bool)
    kept[4] = False
    case = Case(analysis, kept)
    assert case.before > 0.05
    assert case.after(case.repaired(ridge=0.0)) < 2e-5


QUANTISED = f"""g ({PLANE}) => (float[] y) <float[5,3,3,3] w, float[5] b, int8[4,5,1,1] q, float[4] s, int8[4] zero, float[4] c> {{
    h = Conv(x, w, b)
    r = Relu(h)
    v = DequantizeLinear <axis = 0> (q, s, zero)
    y = Conv(r, v, c)
}}"""


@pytest.mark.parametrize(
    ("scale", "zero"), [("float[4] s", "int8[4] zero"), ("float s = {0.02}", "int8 zero = {3}")], ids=["axis", "whole"]
)
def test_quantised_weights(scale, zero):
    """A quantised weight is refitted and quantised anew: exact up to that."""
    case = duplicates(QUANTISED.replace("float[4] s", scale).replace("int8[4] zero", zero))
    done = case.repaired(ridge=0.0)
    assert case.before > 0.2
    assert case.after(done) < 2e-2
    assert done.program.weights["q"].dtype == np.int8


def test_rounding_is_part_of_the_repair():
    """Where quantising anew costs more than the refit brings, the layer stays as it was cut, and that is told."""
    analysis = analyse(QUANTISED)
    constants = analysis.model.constants()
    for name in "wb":
        array = np.array(constants[name].values)
        array[2] *= 1e-4  # hardly missed
        constants[name].values = array
    kept = np.ones(analysis.classes + 1, bool)
    kept[3] = False
    case = Case(analysis, kept)
    done = case.repaired()
    (found,) = done.layers
    assert (found.method, found.reason) == ("none", "no better in the type that stores its weight")
    assert found.after == found.before > 0
    assert case.after(done) == pytest.approx(case.before, rel=1e-3)
    old = program(case.smaller).weights
    assert all(np.array_equal(a, old[n]) for n, a in done.program.weights.items())


PARALLEL = f"""g ({PLANE}) => (float[] y, float[] z) <float[5,3,3,3] w, float[5] b, float[2,5,1,1] v, float[5,3,3,3] w1, float[5] b1,
  float[2,5,1,1] v1> {{
    h = Conv(x, w, b)
    r = Relu(h)
    y = Conv(r, v)
    h1 = Conv(x, w1, b1)
    r1 = Relu(h1)
    z = Conv(r1, v1)
}}"""


def test_branches_beside_each_other():
    """Every branch that was cut is repaired, not only what follows the first cut."""
    case = duplicates(PARALLEL, pairs=((2, 4), (7, 9)))
    assert case.after(case.repaired(ridge=0.0)) < 2e-5


SPREAD = f"""g ({PLANE}) => (float[] y) <float[5,3,1,1] w, float[5] b, float[4,5,1,1] k, float[4,5,3,3] v, float[4] c> {{
    h = Conv(x, w, b)
    r = Relu(h)
    p = GlobalAveragePool(r)
    q = Conv(p, k)
    e = Conv(r, v, c)
    y = Add(e, q)
}}"""


def test_a_sum_that_spreads():
    """An Add whose other operand is spread over the positions is no target; both layers are still repaired."""
    case = duplicates(SPREAD)
    assert case.after(case.repaired(ridge=0.0)) < 2e-5


GEMM = """g (float[N,7] x) => (float[] y) <float[7,5] w, float[5] b, float[5,3] v> {
    h = Gemm(x, w, b)
    r = Relu(h)
    NODES
}"""
ODD = {
    "Transpose without an order": "k = MatMul(r, v)\n y = Transpose(k)",
    "a bias that does not count": "y = Gemm <beta = 0.0> (r, v)",
}


@each({name: (nodes,) for name, nodes in ODD.items()}, ["nodes"])
def test_odd_layers(nodes):
    """Rare forms of nodes around a layer leave it repairable and its bias finite."""
    case = duplicates(GEMM.replace("NODES", nodes))
    done = case.repaired(ridge=0.0)
    assert case.after(done) < 2e-5
    assert all(np.isfinite(w).all() for w in done.program.weights.values())


def test_an_empty_bias():
    """A new bias takes the place of one that is omitted by an empty name."""
    model = proto(GEMM.replace("NODES", "y = Gemm(r, v)"))
    model.graph.node[2].input.append("")
    case = duplicates(model)
    done = case.repaired(ridge=0.0)
    assert list(done.program.nodes[2].input) == ["r", "v", "y_bias"]
    assert case.after(done) < 2e-5


def test_one_batch():
    """Where all inputs are one batch, fits are checked on what they have seen rather than not made."""
    case = duplicates(EXACT["Conv, 2 axes"], batches=1, held=0)
    assert case.after(case.repaired(ridge=0.0)) < 2e-5


@each(EXACT, "text")
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_never_worse_on_inputs_not_seen(text, share):
    """No layer's error rises on held inputs, and the error told is that of the weights written."""
    analysis = analyse(text)
    case = Case(analysis, random_plan(analysis, share, 0), held=2, samples=24)
    done = case.repaired()
    fitted = [x for x in done.layers if x.before is not None]
    assert fitted
    assert all(x.after <= x.before for x in fitted)
    assert all(x.after < x.before for x in fitted if x.method == "least-squares")
    assert case.after(done) == pytest.approx(far(done.outputs, case.reference.outputs), rel=1e-3, abs=1e-6)
    assert case.after(done) < 1.001 * case.before


def test_rejected():
    """A fit that fails on held inputs is not made, and said so: here they are of another kind than those it saw."""
    analysis = analyse(EXACT["Conv, 2 axes"])
    kept = random_plan(analysis, 0.3, 0)
    case = Case(analysis, kept)
    case.batches[-1]["x"][:] = 5 + 20 * case.batches[-1]["x"]
    for batch in case.batches[:-1]:
        batch["x"][:] = 0.01 * np.sign(batch["x"])
    case.reference = reference(case.whole, sites(case.whole)[0], case.batches, 1)
    done = case.repaired()
    assert [(x.method, x.reason) for x in done.layers] == [("none", "no better on held-out inputs")]
    old = program(case.smaller).weights
    assert all(np.array_equal(a, old[n]) for n, a in done.program.weights.items())


def test_few_positions():
    """With fewer than two positions per unknown only the bias is fitted."""
    case = duplicates(EXACT["Gemm behind Flatten"], batches=3, samples=10)
    done = case.repaired()
    assert [x.method for x in done.layers] == ["bias"]
    assert done.layers[0].reason == "20 positions for 18 unknowns"
    assert np.array_equal(done.program.weights["v"], program(case.smaller).weights["v"])
    assert done.layers[0].after < done.layers[0].before


@pytest.mark.parametrize(("method", "samples"), [("moments", 32), ("joint", 2)])
def test_errors_behind_an_activation(method, samples):
    """What is told of a layer, and decides on its repair, are its errors behind the activation, whatever the fit."""
    text = """g (float[N,7] x) => (float[] y) <float[9,7] w, float[9] b, float[3,9] v, float[3] c> {
        h = Gemm <transB = 1> (x, w, b)
        r = Relu(h)
        z = Gemm <transB = 1> (r, v, c)
        y = Relu(z)
    }"""
    analysis = analyse(text)
    analysis.model.constants()["c"].values = np.array([-1.0, -0.5, -0.2], np.float32)
    case = Case(analysis, random_plan(analysis, 0.3, 0), batches=6, held=3, samples=samples)
    (told,) = case.repaired(method=method).layers
    assert told.method == {"moments": "moments", "joint": "bias"}[method]
    plain = outputs(program(case.smaller), case.batches)
    for error, made in ((told.before, plain), (told.after, case.repaired(method=method).outputs)):
        wanted, found = (np.concatenate([b["y"] for b in x[3:]]) for x in (case.reference.outputs, made))
        share = np.square(found - wanted).sum() / np.square(wanted - wanted.mean(0)).sum()
        assert error == pytest.approx(share, rel=1e-3)


def test_moments_of_outputs():
    """The repair "moments" gives every channel the mean and deviation that it has in the original."""
    case = duplicates(EXACT["Conv, 2 axes"], pairs=((5, 1),))
    done = case.repaired(method="moments")
    made, wanted = (
        np.concatenate([b["y"].transpose(0, 2, 3, 1).reshape(-1, 2) for b in batches[:4]])
        for batches in (done.outputs, case.reference.outputs)
    )
    plain = program(case.smaller).weights["v"]
    factor = (done.program.weights["v"] / plain).reshape(2, -1)
    np.testing.assert_allclose(factor, factor[:, :1] * np.ones_like(factor), rtol=1e-5)
    assert ((factor > 0.5) & (factor < 2)).all()
    np.testing.assert_allclose(made.mean(0), wanted.mean(0), atol=1e-4)
    np.testing.assert_allclose(made.std(0), wanted.std(0), rtol=1e-4)


def test_nothing_to_repair():
    """Without a cut nothing is touched; a producer whose filters merely leave is not either."""
    analysis = analyse(EXACT["Conv, 2 axes"])
    case = Case(analysis, np.ones(analysis.classes + 1, bool))
    done = case.repaired()
    assert done.layers == ()
    assert case.after(done) == 0


def test_layers_that_cannot_be_refitted():
    """What reads damaged inputs and has no weight of its own is told, with the reason."""
    text = f"""g ({PLANE}) => (float[] y, float[] z) <float[5,3,1,1] w, float[5] b, float[2,5,1,1] v> {{
        h = Conv(x, w, b)
        r = Relu(h)
        y = Conv(r, v)
        p = MaxPool <kernel_shape = [2, 2]> (r)
        z = Conv(p, v)
    }}"""
    case = duplicates(text)
    assert {(x.node, x.op, x.method, x.reason) for x in case.repaired().layers} == {
        (n, "Conv", "none", "its weight is shared with another layer") for n in "yz"
    }


@pytest.mark.parametrize("method", ["moments", "least-squares", "joint"])
def test_activations_that_overflow(method):
    """Where a half-precision activation is infinite, what reads it is left as it was cut, and the rest is repaired."""
    text = f"""g ({PLANE}) => (float[] y) <float[5,3,3,3] w, float[5] b, float[4,5,1,1] v, float[4] c, float[2,4,1,1] u> {{
        h = Conv(x, w, b)
        r = Relu(h)
        k = Conv(r, v, c)
        s = Sigmoid(k)
        y = Conv(s, u)
    }}""".replace("float[", "float16[")
    analysis = analyse(text)
    bias = analysis.model.constants()["b"]
    bias.values = np.array([0, 6e4, 0, 0, 0], np.float16)
    scale = analysis.model.constants()["w"]
    scale.values = np.where(np.arange(5)[:, None, None, None] == 1, 2e4, scale.values).astype(np.float16)
    kept = np.ones(analysis.classes + 1, bool)
    kept[[1, 7]] = False
    case = Case(analysis, kept)
    done = case.repaired(method=method)
    found = {x.node: x for x in done.layers}
    (broken,) = (x for x in found.values() if "not finite" in x.reason)
    assert broken.method == "none"
    assert all(np.isfinite(a).all() for a in done.program.weights.values())
