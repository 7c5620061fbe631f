"""Every linear layer is the product of its rows and its matrix, position by position: against onnxruntime and numpy."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from graphs import each, proto
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from onnx import numpy_helper

from onnxprune import runtime
from onnxprune.recover.linear import Positions, linear


def conv(attributes="", x="2,6,9", w="4,6,3"):
    """A Conv with a bias as text."""
    return f"g (float[{x}] x) => (float[] y) <float[{w}] w, float[{w.split(',')[0]}] b> {{ y = Conv{attributes}(x, w, b) }}"


def turned(attributes="", x="2,6,5", w="6,4,3", channels=4):
    """A ConvTranspose with a bias as text."""
    return f"g (float[{x}] x) => (float[] y) <float[{w}] w, float[{channels}] b> {{ y = ConvTranspose{attributes}(x, w, b) }}"


def gemm(attributes="", w="5,4", bias="4"):
    """A Gemm with a bias as text."""
    return f"g (float[6,5] x) => (float[] y) <float[{w}] w, float[{bias}] b> {{ y = Gemm{attributes}(x, w, b) }}"


def product(x, w="5,4", operands="x, w"):
    """A MatMul as text."""
    return f"g (float[{x}] x) => (float[] y) <float[{w}] w> {{ y = MatMul({operands}) }}"


PLANE, KERNEL, UPWARDS = "2,6,9,8", "4,6,3,2", "6,4,3,2"
SPACE, CUBE = "2,4,5,4,6", "6,4,2,3,2"
# name -> graph
LAYERS = {
    "conv, 1 axis": conv(),
    "conv, 1 axis, strides, dilations, pads": conv("<strides=[2], dilations=[3], pads=[1,4]>"),
    "conv, 1 axis, pads beyond the kernel": conv("<pads=[5,0]>"),
    "conv, 2 axes": conv("", PLANE, KERNEL),
    "conv, 2 axes, pointwise": conv("", PLANE, "4,6,1,1"),
    "conv, 2 axes, strides": conv("<strides=[2,3]>", PLANE, KERNEL),
    "conv, 2 axes, dilations": conv("<dilations=[2,3]>", PLANE, KERNEL),
    "conv, 2 axes, pads": conv("<pads=[0,1,2,3]>", PLANE, KERNEL),
    "conv, 2 axes, all of it": conv("<strides=[3,2], dilations=[2,3], pads=[3,0,1,2]>", PLANE, KERNEL),
    "conv, SAME_UPPER, odd": conv('<auto_pad="SAME_UPPER", strides=[2,1]>', PLANE, "4,6,4,2"),
    "conv, SAME_LOWER, odd": conv('<auto_pad="SAME_LOWER", strides=[2,1]>', PLANE, "4,6,4,2"),
    "conv, SAME_UPPER, strides beyond the kernel": conv('<auto_pad="SAME_UPPER", strides=[4,3]>', PLANE, "4,6,1,2"),
    "conv, VALID": conv('<auto_pad="VALID", strides=[2,1]>', PLANE, KERNEL),
    "conv, 3 axes": conv("<strides=[1,2,3], dilations=[2,1,1], pads=[0,1,2,2,0,1]>", SPACE, CUBE),
    "conv, 2 groups": conv("<group=2, pads=[1,1,1,0]>", PLANE, "4,3,3,2"),
    "conv, 2 groups, 3 axes": conv("<group=2>", SPACE, "6,2,2,3,2"),
    "conv, depthwise": conv("<group=6, strides=[2,1], pads=[1,1,1,0]>", PLANE, "6,1,3,2"),
    "conv, depthwise, multiplier 2": conv("<group=6, dilations=[1,2], pads=[1,1,1,0]>", PLANE, "12,1,3,2"),
    "conv, 1 channel": conv("", "3,1,7,7", "4,1,3,3"),
    "conv, no strides": conv("<kernel_shape=[3]>"),
    "transpose, 1 axis": turned(),
    "transpose, 1 axis, strides beyond the kernel": turned("<strides=[5]>"),
    "transpose, 1 axis, pads beyond the kernel": turned("<strides=[2], pads=[4,3]>"),
    "transpose, 2 axes": turned("", "2,6,5,4", UPWARDS),
    "transpose, 2 axes, strides": turned("<strides=[2,3]>", "2,6,5,4", UPWARDS),
    "transpose, 2 axes, dilations": turned("<strides=[2,3], dilations=[3,2]>", "2,6,5,4", UPWARDS),
    "transpose, 2 axes, pads": turned("<strides=[2,3], pads=[1,0,2,3]>", "2,6,5,4", UPWARDS),
    "transpose, output padding": turned("<strides=[2,3], pads=[1,0,2,0], output_padding=[1,2]>", "2,6,5,4", UPWARDS),
    "transpose, 3 axes": turned(
        "<strides=[1,2,3], dilations=[2,1,1], pads=[0,1,0,1,0,1]>", "2,4,3,2,3", "4,6,2,3,2", channels=6
    ),
    "transpose, SAME_UPPER, odd": turned('<auto_pad="SAME_UPPER", strides=[2,1]>', "2,6,5,4", UPWARDS),
    "transpose, SAME_LOWER, odd": turned('<auto_pad="SAME_LOWER", strides=[2,1]>', "2,6,5,4", UPWARDS),
    "transpose, SAME_UPPER, strides beyond the kernel": turned('<auto_pad="SAME_UPPER", strides=[5]>'),
    "transpose, SAME_UPPER, output padding": turned('<auto_pad="SAME_UPPER", strides=[3], output_padding=[2]>'),
    "transpose, VALID": turned('<auto_pad="VALID", strides=[2,1]>', "2,6,5,4", UPWARDS),
    "transpose, output shape": turned("<strides=[2], output_shape=[8]>"),
    "transpose, output shape, SAME_UPPER": turned('<auto_pad="SAME_UPPER", strides=[2], output_shape=[8]>'),
    "transpose, output shape, VALID": turned('<auto_pad="VALID", strides=[2], output_shape=[8]>'),
    "transpose, output shape beyond the kernel": turned("<strides=[3,2], output_shape=[17,8]>", "2,6,5,4", UPWARDS),
    "transpose, output shape and padding": turned("<strides=[2], output_shape=[9], output_padding=[1]>"),
    "transpose, 2 groups": turned("<group=2, strides=[2,1]>", "2,6,5,4", "6,2,3,2"),
    "transpose, depthwise": turned("<group=6, strides=[2,2]>", "2,6,5,4", "6,1,4,4", channels=6),
    "transpose, depthwise, multiplier 2": turned("<group=6, strides=[2,2]>", "2,6,5,4", "6,2,4,4", channels=12),
    "gemm": gemm(),
    "gemm, transB": gemm("<transB=1>", "4,5"),
    "gemm, alpha, beta": gemm("<alpha=0.3, beta=0.7>"),
    "gemm, alpha, beta, transB": gemm("<alpha=0.3, beta=0.7, transB=1>", "4,5"),
    "gemm, one bias": gemm("<beta=2.0>", bias="1"),
    "matmul": product("7,5"),
    "matmul, tokens": product("3,7,5"),
    "matmul, windows": product("3,2,7,5"),
    "matmul, no samples": product("5"),
    "matmul, weight first": product("3,5,7", "4,5", "w, x"),
    "matmul, weight first, windows": product("3,2,5,7", "4,5", "w, x"),
    "matmul, weight first, no samples": product("5,7", "4,5", "w, x"),
}
each_layer = each(LAYERS, "text")


class Run:
    """A model of one node, run by onnxruntime."""

    def __init__(self, text, seed=0):
        model = proto(text)
        arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.w, self.b = arrays["w"], arrays.get("b", np.zeros(1, np.float32))
        (spec,) = runtime.input_specs(model)
        self.x = np.random.default_rng(seed).standard_normal(spec.dims).astype(spec.dtype)
        self.y = runtime.session(model, threads=1).run({"x": self.x})["y"]
        self.layer = linear(model.graph.node[0], self.w.shape, "w")

    def everywhere(self):
        """All positions of the output."""
        n, places = self.layer.samples(self.y.shape), self.layer.places(self.y.shape)
        return Positions(np.repeat(np.arange(n), places), np.tile(np.arange(places), n))

    def somewhere(self, count, seed=0):
        """Random positions, in random order, some of them twice."""
        n, places = self.layer.samples(self.y.shape), self.layer.places(self.y.shape)
        rng = np.random.default_rng(seed)
        return Positions(rng.integers(0, n, count), rng.integers(0, places, count))

    def predicted(self, at):
        """[n, channels]: rows times matrix, and the bias."""
        grouped = self.layer.rows(self.x, at) @ self.layer.matrix(self.w)  # [g, n, channels/g]
        return np.concatenate(list(grouped), axis=1) + self.layer.beta * self.b

    def assert_equal(self, at, tolerance=1e-5):
        """onnxruntime gives what rows and matrix give."""
        given = self.layer.outputs(self.y, at)
        assert given.shape == (len(at.place), self.layer.channels)
        np.testing.assert_allclose(self.predicted(at), given, rtol=tolerance, atol=tolerance * np.abs(self.y).max())


@each_layer
def test_rows_times_matrix(text):
    """At every position of the output, rows @ matrix + bias is what onnxruntime gives."""
    run = Run(text)
    at = run.everywhere()
    assert len(at.place) * run.layer.channels == run.y.size
    run.assert_equal(at)


@each_layer
@pytest.mark.parametrize("count", [1, 3, 500])
def test_some_positions(text, count):
    """Few positions and many, in any order, have the rows and outputs that they have among all."""
    run = Run(text)
    at = run.somewhere(count)
    where = at.sample * run.layer.places(run.y.shape) + at.place
    everywhere = run.everywhere()
    assert np.array_equal(run.layer.rows(run.x, at), run.layer.rows(run.x, everywhere)[:, where])
    assert np.array_equal(run.layer.outputs(run.y, at), run.layer.outputs(run.y, everywhere)[where])
    run.assert_equal(at)


@each({name: text for name, text in LAYERS.items() if name.startswith("conv")}, "text")
def test_windows_of_a_convolution(text):
    """`windows` are the rows of all positions, in their order."""
    run = Run(text)
    rows = run.layer.rows(run.x, run.everywhere())
    assert np.array_equal(run.layer.windows(run.x).reshape(rows.shape), rows)


@each_layer
def test_outputs_by_definition(text):
    """`outputs` at all positions: samples first, then the other axes in their order, channels last."""
    run = Run(text)
    expected = np.moveaxis(run.y, run.layer.axis, -1).reshape(-1, run.layer.channels)
    assert np.array_equal(run.layer.outputs(run.y, run.everywhere()), expected)


@each_layer
def test_shapes(text):
    """Channels, inputs, unknowns, samples and places are those of the arrays."""
    run = Run(text)
    layer, axis = run.layer, run.layer.axis
    g, unknowns, channels = layer.matrix(run.w).shape
    assert (g, unknowns, g * channels) == (layer.groups, layer.unknowns, layer.channels)
    assert (layer.inputs, layer.channels) == (run.x.shape[axis], run.y.shape[axis])
    assert layer.rows(run.x, run.somewhere(3)).shape == (g, 3, unknowns)
    assert layer.samples(run.y.shape) * layer.places(run.y.shape) * layer.channels == run.y.size


@each_layer
def test_weight_and_back(text):
    """`from_matrix` undoes `matrix` exactly, also for float64."""
    run = Run(text)
    matrix = run.layer.matrix(run.w)
    assert matrix.dtype == np.float32
    assert np.array_equal(run.layer.from_matrix(matrix), run.w)
    assert np.array_equal(run.layer.from_matrix(matrix.astype(np.float64)), run.w)
    assert run.layer.from_matrix(matrix.astype(np.float64)).dtype == np.float64


def test_no_positions():
    """No positions: no rows, no outputs."""
    for name in ("conv, 2 axes", "matmul, weight first"):
        run = Run(LAYERS[name])
        none = run.somewhere(0)
        assert run.layer.rows(run.x, none).shape == (1, 0, run.layer.unknowns)
        assert run.layer.outputs(run.y, none).shape == (0, run.layer.channels)


def test_an_axis_turned():
    """Arrays in another order in memory, as a transposition leaves them, give the same."""
    run = Run(LAYERS["conv, 2 axes"])
    x, y = (np.asfortranarray(a) for a in (run.x, run.y))
    for at in (run.everywhere(), run.somewhere(3)):
        assert np.array_equal(run.layer.rows(x, at), run.layer.rows(run.x, at))
        assert np.array_equal(run.layer.outputs(y, at), run.layer.outputs(run.y, at))


def test_rows_of_a_conv_in_numpy():
    """Rows are windows of the padded input, taps varying slowest."""
    run = Run(conv("<strides=[2,1], dilations=[1,3], pads=[1,2,0,1]>", PLANE, KERNEL))
    padded = np.pad(run.x, [(0, 0), (0, 0), (1, 0), (2, 1)])
    windows = sliding_window_view(padded, (3, 4), axis=(2, 3))[:, :, ::2, :, :, ::3]  # [n, c, h, w, 3, 2]
    expected = windows.transpose(0, 2, 3, 4, 5, 1).reshape(-1, 6 * 6)
    assert np.array_equal(run.layer.rows(run.x, run.everywhere())[0], expected)


def test_rows_of_a_grouped_conv_in_numpy():
    """Each group has the windows of its own channels."""
    run = Run(conv("<group=3>", PLANE, "6,2,3,2"))
    windows = sliding_window_view(run.x.reshape(2, 3, 2, 9, 8), (3, 2), axis=(3, 4))  # [n, g, c, h, w, 3, 2]
    expected = windows.transpose(1, 0, 3, 4, 5, 6, 2).reshape(3, -1, 6 * 2)
    assert np.array_equal(run.layer.rows(run.x, run.everywhere()), expected)


def test_rows_of_a_transposed_conv_in_numpy():
    """Tap k of output o reads input (o + pad - k * dilation) / stride, where there is one."""
    run = Run(turned("<strides=[3], dilations=[2], pads=[2,1]>"))
    rows = run.layer.rows(run.x, run.everywhere()).reshape(2, -1, 3, 6)
    for o, k in np.ndindex(rows.shape[1:3]):
        source, rest = divmod(o + 2 - 2 * k, 3)
        expected = run.x[:, :, source] if rest == 0 and 0 <= source < 5 else np.zeros((2, 6))
        assert np.array_equal(rows[:, o, k], expected)


HALF = ("conv, 2 axes, pads", "conv, depthwise", "transpose, 2 axes, strides", "gemm, alpha, beta", "matmul, tokens")


@pytest.mark.parametrize("name", HALF)
def test_half_precision(name):
    """Rows and matrix of float16 are the float32 ones of the same values; outputs keep their type."""
    run = Run(LAYERS[name].replace("float[", "float16["))
    assert run.x.dtype == run.w.dtype == run.y.dtype == np.float16
    for at in (run.everywhere(), run.somewhere(3)):
        rows = run.layer.rows(run.x, at)
        assert rows.dtype == run.layer.matrix(run.w).dtype == np.float32
        assert np.array_equal(rows, run.layer.rows(run.x.astype(np.float32), at))
        assert run.layer.outputs(run.y, at).dtype == np.float16
        run.assert_equal(at, tolerance=2e-3)
    assert np.array_equal(run.layer.from_matrix(run.layer.matrix(run.w)), run.w)


def test_names():
    """A layer knows its node, tensors and bias; a MatMul has none."""
    layer = linear(proto(gemm("<beta=0.5>")).graph.node[0], (5, 4), "w")
    assert (layer.node, layer.x, layer.y, layer.weight, layer.bias, layer.beta) == ("y", "x", "y", "w", "b", 0.5)
    layer = linear(proto(product("3,5,7", "4,5", "w, x")).graph.node[0], (4, 5), "w")
    assert (layer.x, layer.weight, layer.bias, layer.left) == ("x", "w", "", True)


OTHERS = {
    "a weight with a batch": ("y = MatMul(x, w)", (2, 5, 4), "its weight is not a matrix"),
    "a vector": ("y = MatMul(x, w)", (5,), "its weight is not a matrix"),
    "transA": ("y = Gemm<transA=1>(x, w)", (5, 4), "it reads its input transposed"),
    "a weight as Gemm's input": ("y = Gemm(w, x)", (5, 4), "its weight is where its input should be"),
    "a weight as Conv's input": ("y = Conv(w, x)", (5, 4, 1), "its weight is where its input should be"),
    "another op": ("y = Mul(x, w)", (5, 4), "Mul is not a linear layer"),
    "another domain": ("y = com.acme.Gemm(x, w)", (5, 4), "Gemm is not a linear layer"),
}


@each(OTHERS, "node, shape, reason")
def test_no_such_form(node, shape, reason):
    """What is no such layer gets a reason."""
    text = f"g (float[5,5] x) => (float[5,5] y) <float[{','.join(map(str, shape))}] w> {{ {node} }}"
    model = proto(text, domains=', "com.acme" : 1')
    assert linear(model.graph.node[0], shape, "w") == reason


def text_of(values):
    """Attributes as ONNX text."""
    shown = (f'{k}="{v}"' if isinstance(v, str) else f"{k}={v}" for k, v in values.items())
    return f"<{', '.join(shown)}>"


@st.composite
def convolutions(draw):
    """Any Conv or ConvTranspose that onnxruntime runs, as text."""
    rank = draw(st.integers(1, 3))
    per_axis = lambda low, high: draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))  # noqa: E731
    transposed, groups = draw(st.booleans()), draw(st.integers(1, 3))
    into, out = (draw(st.integers(1, 2)) for _ in "io")  # channels of a group
    kernel, strides, dilations = per_axis(1, 3), per_axis(1, 3), per_axis(1, 3)
    padding = draw(st.sampled_from(("pads", "SAME_UPPER", "SAME_LOWER", "VALID", "output_shape")[: 4 + transposed]))
    if padding.startswith("SAME") and not transposed:
        dilations = [1] * rank  # more, onnxruntime does not take
    attributes = {"group": groups, "strides": strides, "dilations": dilations}
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    if transposed:
        size = per_axis(1, 5)
        full = [(d - 1) * s + r for d, s, r in zip(size, strides, reach, strict=True)]
        if padding == "output_shape":
            attributes["output_shape"] = [draw(st.integers(1, f + s - 1)) for f, s in zip(full, strides, strict=True)]
            attributes |= draw(st.sampled_from([{}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "VALID"}]))
        else:
            attributes["output_padding"] = [draw(st.integers(0, s - 1)) for s in strides]
        if padding == "pads":
            begins = [draw(st.integers(0, f - 1)) for f in full]
            ends = [draw(st.integers(0, f - 1 - b)) for f, b in zip(full, begins, strict=True)]
            attributes["pads"] = begins + ends
    else:
        pads = per_axis(0, 3) + per_axis(0, 3)
        attributes |= {"pads": pads} if padding == "pads" else {}
        size = [r + more for r, more in zip(reach, per_axis(0, 5), strict=True)]
    attributes |= {} if padding in ("pads", "output_shape") else {"auto_pad": padding}
    w = [groups * into, out] if transposed else [groups * out, into]
    x = [draw(st.integers(1, 3)), groups * into, *size]
    return (
        f"g (float{x} x) => (float[] y) <float{w + kernel} w, float[{groups * out}] b>"
        f"{{ y = {'ConvTranspose' if transposed else 'Conv'}{text_of(attributes)}(x, w, b) }}"
    )


@settings(max_examples=300)
@given(convolutions(), st.integers(0, 40))
def test_any_convolution(text, count):
    """Whatever the attributes: rows times matrix is what onnxruntime gives, at all positions and at some."""
    run = Run(text)
    assert run.y.size == prod(run.y.shape[:2]) * run.layer.places(run.y.shape)
    run.assert_equal(run.everywhere())
    run.assert_equal(run.somewhere(count))
    assert np.array_equal(run.layer.from_matrix(run.layer.matrix(run.w)), run.w)
