"""Synthetic inputs: what is made for which input, how it is scaled and chosen, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import between, each, proto

from onnxprune import runtime, synthesize
from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.graph import from_proto
from onnxprune.shapes import concrete_shapes
from onnxprune.synthesize.inputs import sources
from onnxprune.synthesize.statistics import Network, convolutions, normalizations

FIXTURES = Path(__file__).parents[2] / "fixtures"


def opened(source, **options):
    """A model (as text, or a fixture's name) and the shapes of its tensors."""
    model = from_proto(proto(source) if "{" in source else onnx.load(FIXTURES / f"{source}.onnx"))
    return model, concrete_shapes(model, options)


def made(source, count=8, *, seed=0, span=None, **options):
    """Synthetic inputs of a model."""
    return synthesize.synthesize(*opened(source, **options), count, seed=seed, input_range=span)


def reading(kind, op, weights=""):
    """A graph whose input x of this type goes through one op."""
    return f"g ({kind} x) => (float[] y) {weights and f'<{weights}>'} {{ y = {op} }}"


# ---- kinds of input ---------------------------------------------------------------------------------------------

KINDS = {
    "images": (reading("float[n,3,8,8]", "Conv(x, w)", "float[2,3,3,3] w"), (8, 3, 8, 8), "images"),
    "images, channels last": (reading("float[n,8,9,3]", "Relu(x)"), (8, 8, 9, 3), "images"),
    "grey images, channels last": (reading("float[n,8,9,1]", "Relu(x)"), (8, 8, 9, 1), "images"),
    "narrow images": (reading("float[n,3,8,3]", "Relu(x)"), (8, 3, 8, 3), "images"),
    "half precision": (reading("float16[n,3,8,8]", "Cast <to = 1> (x)"), (8, 3, 8, 8), "images"),
    "bytes": (reading("uint8[n,3,8,8]", "Cast <to = 1> (x)"), (8, 3, 8, 8), "images"),
    "volumes": (reading("float[n,2,4,5,6]", "Relu(x)"), (8, 2, 4, 5, 6), "signals"),
    "1-D signals": (reading("float[n,2,30]", "Conv(x, w)", "float[2,2,3] w"), (8, 2, 30), "signals"),
    "sequences": (reading("float[n,30,5]", "MatMul(x, w)", "float[5,2] w"), (8, 30, 5), "signals"),
    "vectors": (reading("float[n,5]", "MatMul(x, w)", "float[5,2] w"), (8, 5), "vectors"),
    "ids": (reading("int64[n,6]", "Gather(t, x)", "float[7,4] t"), (8, 6), "ids"),
    "booleans": (reading("bool[n,6]", "Cast <to = 1> (x)"), (8, 6), "ones"),
    "integers that index nothing": (reading("int32[n,6]", "Cast <to = 1> (x)"), (8, 6), "ones"),
}


@each(KINDS, "source, shape, kind")
def test_kinds(source, shape, kind):
    """Every input is recognised and gets finite samples of its own shape and element type, on which the model runs."""
    model, shapes = opened(source)
    spec = runtime.input_specs(model.header)[0]
    found = synthesize.synthesize(model, shapes, 8, seed=0).inputs["x"]
    assert sources(model, shapes)[0].kind == kind
    assert (found.shape, found.dtype) == (shape, spec.dtype)
    assert np.isfinite(found.astype(np.float64)).all()
    assert runtime.session(model.to_proto()).run({"x": found})


def test_ids_stay_below_the_rows_of_the_table():
    """Ids are spread over all rows of the smallest table that they index, through a Cast, and never beyond."""
    text = """g (int32[n,40] x) => (float[] y) <float[9,4] t, float[5,4] s> {
        i = Cast <to = 7> (x)
        a = Gather(t, i)
        b = Gather(s, i)
        y = Add(a, b)
    }"""
    assert set(made(text).inputs["x"].ravel()) == set(range(5))


def test_ids_along_another_axis():
    """The rows of a table that is read along its second axis are counted there."""
    text = reading("int64[n,40]", "Gather <axis = 1> (t, x)", "float[9,3] t")
    assert made(text).inputs["x"].max() == 2


def test_masks_are_ones():
    """An input named as a mask is all ones, whatever its element type."""
    text = "g (float[n,6] attention_mask) => (float[] y) { y = Relu(attention_mask) }"
    assert (made(text).inputs["attention_mask"] == 1).all()


def test_several_inputs_have_one_count():
    """Every input gets as many samples."""
    text = "g (float[n,6] a, int64[n,3] b) => (float[] y, float[] z) <float[5,2] t> { y = Relu(a)\nz = Gather(t, b) }"
    assert {name: a.shape for name, a in made(text, 5).inputs.items()} == {"a": (5, 6), "b": (5, 3)}


def test_channels_last_is_the_same_picture_as_channels_first():
    """What differs between the layouts is the order of the axes alone."""
    last = made(reading("float[n,8,8,3]", "Relu(x)")).inputs["x"]
    first = made(reading("float[n,3,8,8]", "Relu(x)")).inputs["x"]
    np.testing.assert_array_equal(np.moveaxis(last, 3, 1), first)


@pytest.mark.parametrize(("batch", "count", "samples"), [("n", 7, 7), ("1", 7, 7), ("4", 7, 8), ("4", 8, 8)])
def test_a_fixed_batch_size_divides_the_count(batch, count, samples):
    """The count is rounded up to whole batches where the model fixes them."""
    source = between(
        "d = BatchNormalization(h, scale, o, m, var)", "float[4] scale, float[4] o, float[4] m, float[4] var"
    )
    assert len(made(source.replace("[1,3", f"[{batch},3"), count).inputs["x"]) == samples


# ---- range ------------------------------------------------------------------------------------------------------


def scaled(factor):
    """Two layers whose outputs are normal where inputs, divided by `factor`, have mean 0 and deviation 1."""
    model = proto(
        """g (float[n,3,16,16] x) => (float[] y) <float[8,3,3,3] w, float[8,8,3,3] v> {
            h = Conv(x, w)
            d = Relu(h)
            y = Conv(d, v)
        }"""
    )
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = {"w": weights["w"] / (5 * factor), "v": weights["v"] / 6}
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name].astype(np.float32), tensor.name))
    model = from_proto(model)
    return model, concrete_shapes(model)


@pytest.mark.parametrize(("factor", "low", "high"), [(1, -9, 9), (0.25, 0, 1), (64, 0, 255)])
def test_the_range_that_the_network_answers_to_normally(factor, low, high):
    """Networks made for pixels of deviation 1, 1/4 and 64 get the range that such pixels come in."""
    found = synthesize.synthesize(*scaled(factor), 32, seed=0)
    x = found.inputs["x"]
    assert low <= x.min() < x.max() <= high
    assert x.std() == pytest.approx(factor, rel=0.2)
    assert "guessed from the activations" in found.description


def test_a_given_range_is_kept():
    """Values fill the range given, and it is named."""
    found = synthesize.synthesize(*scaled(1), 32, seed=0, input_range=(-3.0, 5.0))
    x = found.inputs["x"]
    assert (x.min(), x.max()) == (-3, 5)
    assert x.mean() == pytest.approx(1, abs=0.2)
    assert "in [-3, 5]" in found.description
    assert "guessed" not in found.description


def test_bytes_fill_their_type():
    """Images of an 8-bit type are whole numbers over the whole range of the type."""
    x = made(reading("uint8[n,3,16,16]", "Cast <to = 1> (x)"), 32).inputs["x"]
    assert (x.min(), x.max()) == (0, 255)
    assert len(np.unique(x)) > 200


# ---- choice -----------------------------------------------------------------------------------------------------


def mismatch(source, inputs):
    """Mean over BatchNormalizations of the mean squared deviation of a channel's mean and variance from the running
    statistics, in units of the running deviation.
    """
    model, shapes = opened(source)
    sites = normalizations(model)
    batch = runtime.input_specs(model.header)[0].dims[0]
    moments, _ = Network(model, shapes, sites, batch if isinstance(batch, int) else 0).look(inputs)
    return np.mean([np.sum(m.deviations(s).mean(axis=0) ** 2) for m, s in zip(moments, sites, strict=True)])


@pytest.mark.parametrize("source", ["resnet_bn_legacy", "dense_legacy", "dense_dynamo"])
def test_running_statistics_are_met(source, monkeypatch):
    """The chosen inputs are at least eight times closer to the running statistics than as many of the same kind that
    are not chosen, and than normal noise.
    """
    found = made(source, 128)
    model, shapes = opened(source)
    noise = {"input": np.random.default_rng(0).standard_normal((128, 1, 8, 8), dtype=np.float32)}
    monkeypatch.setattr(synthesize, "_MACS", 0)
    unchosen = synthesize.synthesize(model, shapes, 128, seed=0)
    assert "chosen" not in unchosen.description
    assert "by the statistics of" in found.description
    assert mismatch(source, found.inputs) < mismatch(source, unchosen.inputs) / 8
    assert mismatch(source, found.inputs) < mismatch(source, noise) / 8


def test_predicted_classes_are_even(monkeypatch):
    """Without BatchNormalization, the classes that the network predicts for the inputs are as even as can be."""
    model, shapes = opened("resnet_folded_dynamo")
    counts = {}
    for limit in (0, 2e11):
        monkeypatch.setattr(synthesize, "_MACS", limit)
        inputs = synthesize.synthesize(model, shapes, 100, seed=0).inputs
        logits = runtime.session(model.to_proto()).run(inputs)["logits"]
        counts[limit] = np.bincount(logits.argmax(axis=1), minlength=10)
    assert counts[0].max() >= 25
    assert counts[2e11].max() <= 12


def test_the_same_seed_gives_the_same_bytes():
    """Inputs depend on the seed alone, choice and guesses included."""
    first, again, other = (made("resnet_bn_legacy", 32, seed=seed).inputs["input"] for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_moments_equal_those_of_numpy():
    """Means and mean squares of a layer's output, relative to its statistics, sample by sample."""
    source = between(
        "d = BatchNormalization(h, scale, o, m, var)", "float[4] scale, float[4] o, float[4] m, float[4] var"
    )
    model, shapes = opened(source.replace("[1,3", "[n,3"))
    (site,) = normalizations(model)
    x = np.random.default_rng(0).standard_normal((5, 3, 6, 6), dtype=np.float32)
    (found,), classes = Network(model, shapes, [site], 0).look({"x": x})
    h = runtime.session(model.to_proto(), extra=["h"]).run({"x": x}, ["h"])["h"].astype(np.float64)
    u = (h - site.mean[:, None, None]) / site.deviation[:, None, None]
    np.testing.assert_allclose(found.mean, u.mean(axis=(2, 3)), atol=1e-5)
    np.testing.assert_allclose(found.square, (u**2).mean(axis=(2, 3)), rtol=1e-4)
    assert classes is None


def test_the_divergence_of_a_normal_distribution():
    """KL(N(m, v) || N(0, 1)) = (v + m^2 - 1 - log v) / 2, the median over channels; dead channels do not count."""
    model, shapes = opened(between("d = Relu(h)").replace("[1,3", "[n,3"))
    x = np.random.default_rng(0).standard_normal((6, 3, 6, 6), dtype=np.float32)
    sites = convolutions(model, shapes)
    assert [s.tensor for s in sites] == ["h", "y"]
    found = Network(model, shapes, sites[:1], 0).look({"x": x})[0][0].divergence()
    h = runtime.session(model.to_proto(), extra=["h"]).run({"x": x}, ["h"])["h"].astype(np.float64)
    mean, variance = h.mean(axis=(0, 2, 3)), h.var(axis=(0, 2, 3))
    assert found == pytest.approx(np.median((variance + mean**2 - 1 - np.log(variance)) / 2), rel=1e-4)


def test_candidates_that_overflow_are_left_out(monkeypatch):
    """Where the brightest candidates make a layer infinite, others are chosen, and nothing warns."""
    model, shapes = opened("""g (float[n,3,6,6] x) => (float[] y)
        <float[1] limit = {3.8}, float[1] huge = {1e38}, float[4,3,1,1] w, float[4] scale, float[4] o, float[4] m, float[4] var> {
        b = Greater(x, limit)
        i = Mul(huge, huge)
        a = Where(b, i, x)
        h = Conv(a, w)
        y = BatchNormalization(h, scale, o, m, var)
    }""")
    inputs = {}
    for limit in (0, 2e11):
        monkeypatch.setattr(synthesize, "_MACS", limit)
        inputs[limit] = synthesize.synthesize(model, shapes, 64, seed=0, input_range=(-4.0, 4.0)).inputs["x"]
    assert inputs[2e11].max() <= 3.8 < inputs[0].max()


# ---- what is said, and errors -----------------------------------------------------------------------------------


def test_description():
    """One sentence names the number, the kinds of all inputs, the scale and the way of choosing."""
    text = made("resnet_bn_legacy", 16).description
    assert text.startswith("16 synthetic inputs (dead leaves under 1/f noise; ")
    assert "the statistics of 12 BatchNormalizations" in text
    assert "classes predicted are as even as can be" in text
    assert made(KINDS["ids"][0]).description == "8 synthetic inputs (random ids)"
    assert made(KINDS["vectors"][0]).description.startswith("8 synthetic inputs (normal noise; mean 0 and deviation 1)")


WRONG = {
    "a count of 0": ({"count": 0}, UsageError, "at least 1"),
    "an empty range": ({"span": (1.0, 1.0)}, UsageError, "lower to a higher"),
    "an infinite range": ({"span": (0.0, np.inf)}, UsageError, "finite"),
}


@each(WRONG, "options, error, message")
def test_bad_arguments(options, error, message):
    """A count below 1 and a range that is none are refused."""
    with pytest.raises(error, match=message):
        made(KINDS["vectors"][0], **options)


@pytest.mark.parametrize("kind", ["string[n,3]", "complex64[n,3]", "float"])
def test_inputs_for_which_no_values_are_known(kind):
    """Strings, complex numbers and single numbers need real data, and the message names the input."""
    model, shapes = opened(f"g ({kind} x) => ({kind} y) {{ y = Identity(x) }}")
    with pytest.raises(UnsupportedError, match="'x'"):
        synthesize.synthesize(model, shapes, 4, seed=0)


def test_a_shape_must_be_known():
    """An input without a known shape is named."""
    model, _ = opened(KINDS["vectors"][0])
    with pytest.raises(UsageError, match=r"'x'.*--input-shape"):
        synthesize.synthesize(model, {}, 4, seed=0)
