"""Preprocessing: what the options mean, what is derived from the model, and what contradicts it."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.data import PRESETS, Preprocess, open_data, parse_preprocess
from onnxprune.errors import DataError, UsageError

IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture
def prepared(read):
    """What the one input of a model gets from an array."""

    def prepared(array, spec, text):
        return read(open_data(array, [spec], preprocess=text), 64)[0][spec.name]

    return prepared


def close(found, expected):
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("imagenet", *IMAGENET),
        ("cifar10", np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])),
        ("mobilenet", 0.5, 0.5),
        ("tf", 0.5, 0.5),
        ("unit", 0, 1),
        ("imagenet,mean=0.5,std=0.25", 0.5, 0.25),
        ("scale=1/255,mean=0.1:0.2:0.3", np.array([0.1, 0.2, 0.3]), 1),
        ("mean=127.5,std=127.5", 127.5 / 255, 127.5 / 255),
        (" Unit , std=2".lower(), 0, 2),
    ],
)
def test_values(spec, pixels, prepared, text, mean, std):
    """Pixels become (x / 255 - mean) / std, in the model's layout."""
    expected = (pixels / 255 - mean) / std
    close(prepared(pixels, spec("N", 4, 5, 3), text), expected)
    close(prepared(pixels, spec("N", 3, 4, 5), text), expected.transpose(0, 3, 1, 2))


def test_every_preset_is_tested():
    """The presets are those of the table above."""
    assert set(PRESETS) == {"imagenet", "cifar10", "mobilenet", "tf", "unit"}


@pytest.mark.parametrize(
    ("dims", "order"),
    [
        (("N", 3, 4, 5), (0, 3, 1, 2)),
        ((None, 3, None, None), (0, 3, 1, 2)),
        ((None, None, None, None), (0, 3, 1, 2)),
        (("N", 4, 5, 3), (0, 1, 2, 3)),
        ((1, "h", "w", 3), (0, 1, 2, 3)),
    ],
)
def test_layout_comes_from_the_model(spec, pixels, prepared, dims, order):
    """Channels go last where the model's last dim is 1 or 3 and its second is not, else second."""
    for array in (pixels, pixels.transpose(0, 3, 1, 2)):  # that of the array is seen, too
        close(prepared(array, spec(*dims), "unit"), pixels.transpose(order) / 255)


def test_layout_can_be_given(spec, pixels, prepared):
    """A layout on its own transposes, floats too, and changes no value."""
    floats = pixels.astype(np.float32)
    found = prepared(floats, spec("N", None, None, None), "layout=nhwc")
    np.testing.assert_array_equal(found, floats)
    np.testing.assert_array_equal(prepared(floats, spec("N", 3, 4, 5), "layout=nchw"), floats.transpose(0, 3, 1, 2))


def test_unknown_rank(pixels, prepared, spec):
    """A model that says nothing of its input is taken for one of NCHW images."""
    unknown = spec()._replace(dims=None)
    close(prepared(pixels, unknown, "unit"), pixels.transpose(0, 3, 1, 2) / 255)


def test_grey_images(spec, pixels, prepared):
    """[n, height, width] is one channel; colours become one where the model takes one, and one becomes three."""
    grey = pixels[..., 0]
    close(prepared(grey, spec("N", 1, 4, 5), "unit"), grey[:, None] / 255)
    close(prepared(grey, spec("N", 3, 4, 5), "unit"), np.repeat(grey[:, None], 3, 1) / 255)
    colours = np.repeat(grey[..., None], 3, 3)
    close(prepared(colours, spec("N", 1, 4, 5), "unit"), grey[:, None] / 255)
    close(prepared(colours, spec("N", "c", 4, 5), "unit,channels=gray"), grey[:, None] / 255)


def test_bgr(spec, pixels, prepared):
    """BGR reverses the channels; a preset's numbers go with them, given numbers are in the model's order."""
    model, bgr = spec("N", 3, 4, 5), pixels[..., ::-1].transpose(0, 3, 1, 2) / 255
    numbers = [n[::-1].reshape(3, 1, 1) for n in IMAGENET]
    close(prepared(pixels, model, "imagenet,channels=bgr"), (bgr - numbers[0]) / numbers[1])
    close(prepared(pixels, model, "unit,channels=bgr,mean=1:2:3"), bgr - np.array([1, 2, 3]).reshape(3, 1, 1))


def test_alpha_is_dropped(spec, pixels, prepared):
    """Four channels are red, green, blue and alpha."""
    rgba = np.concatenate([pixels, np.full((6, 4, 5, 1), 255, np.uint8)], 3)
    close(prepared(rgba, spec("N", 4, 5, 3), "unit"), pixels / 255)


@pytest.mark.parametrize(
    ("dims", "text", "size"),
    [
        (("N", 3, 32, 32), "imagenet", (32, 32)),  # the model's size goes before the preset's
        (("N", 3, "h", "w"), "imagenet", (224, 224)),
        (("N", 3, "h", "w"), "cifar10", (32, 32)),
        (("N", 3, "h", "w"), "tf,size=96x160", (96, 160)),
        (("N", 3, "h", "w"), "size=24,resize=30", (24, 24)),
        (("N", 3, "h", "w"), "unit", (4, 5)),
        (("N", 3, 8, 6), "size=8x6", (8, 6)),
    ],
)
def test_sizes(spec, pixels, prepared, dims, text, size):
    """The model's size, else the given one, else the preset's, else the image's own."""
    assert prepared(pixels, spec(*dims), text).shape == (6, 3, *size)


def test_presets_leave_small_images_alone(spec, prepared):
    """`imagenet` on images of the model's size crops nothing away."""
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    expected = ((images / 255 - IMAGENET[0]) / IMAGENET[1]).transpose(0, 3, 1, 2)
    close(prepared(images, spec("N", 3, 32, 32), "imagenet"), expected)


def test_inputs_that_are_no_images(spec, prepared):
    """Scale, mean and deviation work on any rank, signed integers too; so do presets on bytes."""
    frames = np.random.default_rng(0).integers(-128, 128, (7, 49)).astype(np.int8)
    close(prepared(frames, spec("N", 49), "scale=0.5,mean=3,std=2"), (frames * 0.5 - 3) / 2)
    close(prepared(frames.view(np.uint8), spec("N", 49), "mobilenet"), frames.view(np.uint8) / 127.5 - 1)
    spectra = frames.reshape(7, 7, 7, 1)
    close(prepared(spectra, spec("N", 7, 7, 1), "scale=0.5"), spectra * 0.5)
    channels = np.random.default_rng(0).integers(-9, 9, (4, 16, 5, 6)).astype(np.int16)
    close(prepared(channels, spec("N", 16, 5, 6), "scale=0.5"), channels * 0.5)


def test_half_precision(spec, pixels, read):
    """The result has the model's element type, half precision and double too."""
    for dtype in ("float16", "float64"):
        found = read(open_data(pixels, [spec("N", 4, 5, 3, dtype=dtype)], preprocess="unit"))[0]["x"]
        assert found.dtype == dtype
        np.testing.assert_allclose(found, pixels / 255, atol=1e-3)


def test_models_of_integers(spec, pixels, read, refused):
    """Pixels stay whole numbers where nothing scales them; scaling is refused for such a model."""
    model = [spec("N", 8, 10, 3, dtype="uint8")]
    assert read(open_data(pixels, model, preprocess="size=8x10"))[0]["x"].dtype == np.uint8
    refused(DataError, ["float32 are not uint8", "whole numbers"], lambda: open_data(pixels, model, preprocess="unit"))


def test_several_inputs(spec, pixels, read, refused):
    """Where there are several inputs, those of four dims are the images."""
    model = [spec("N", 3, 4, 5, name="image"), spec("N", 2, name="place")]
    arrays = {"image": pixels, "place": np.ones((6, 2), np.float32)}
    found, _ = read(open_data(arrays, model, preprocess="unit"))
    close(found["image"], pixels.transpose(0, 3, 1, 2) / 255)
    close(found["place"], np.ones((6, 2)))
    flat = [spec("N", 2, name="a"), spec("N", 2, name="b")]
    refused(UsageError, ["none of the inputs is an image", "'a'"], lambda: open_data(arrays, flat, preprocess="unit"))


def test_presets_refuse_what_is_scaled(spec, pixels, refused):
    """A preset is not applied to floats, which may have been scaled already."""
    model = [spec("N", 3, 4, 5)]
    words = ["'imagenet'", "uint8 0..255", "got float32 [6,4,5,3]"]
    refused(DataError, words, lambda: open_data(pixels.astype(np.float32), model, preprocess="imagenet"))
    refused(DataError, ["'unit'"], lambda: open_data(pixels.astype(np.int64), model, preprocess="unit"))


def test_single_images(spec, pixels, refused):
    """One image without a batch axis is refused with what to do."""
    model = [spec("N", 3, 4, 5)]
    refused(DataError, ["uint8 [4,5,3]", "array[None]"], lambda: open_data(pixels[0], model, preprocess="unit"))


def test_what_cannot_be_resized(spec, pixels, refused):
    """Floats, and numbers of channels that images do not have, are not resized."""
    refused(
        DataError,
        ["8x8x3 of 4x5x3", "uint8"],
        lambda: open_data(pixels.astype("f4"), [spec("N", 3, 8, 8)], preprocess="mean=0.5"),
    )
    refused(
        DataError,
        ["8x8x2 of 4x5x2", "channels"],
        lambda: open_data(pixels[..., :2], [spec("N", 8, 8, 2)], preprocess="layout=nhwc"),
    )


def test_numbers_and_channels(spec, pixels, refused):
    """Three means for one channel are refused."""
    refused(
        DataError,
        ["3 numbers for 1 channel", "mean="],
        lambda: open_data(pixels, [spec("N", 1, 4, 5)], preprocess="imagenet"),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["give one preset", "imagenet"]),
        ("imagenet,unit", ["give one preset"]),
        ("imagnet", ["'imagnet'", "did you mean 'imagenet'"]),
        ("resnet", ["'resnet'", "there are imagenet"]),
        ("sise=3", ["did you mean 'size'"]),
        ("size=3,size=4", ["size twice"]),
        ("size=large", ["size=large", "224x320"]),
        ("size=0", ["size=0"]),
        ("size=3x", ["size=3x"]),
        ("resize=-1", ["resize=-1", "pixels"]),
        ("crop=2", ["crop=2", "(0, 1]"]),
        ("crop=nan", ["crop=nan", "(0, 1]"]),
        ("crop=x", ["crop=x", "share"]),
        ("crop=0.5,resize=300", ["two ways"]),
        ("size=224,resize=200", ["smaller"]),
        ("layout=chw", ["nchw or nhwc"]),
        ("channels=rbg", ["rgb, bgr or gray"]),
        ("scale=1/0", ["scale=1/0", "1/255"]),
        ("scale=inf", ["scale=inf"]),
        ("mean=0.1;0.2", ["mean=0.1;0.2", "0.485:0.456:0.406"]),
        ("std=0", ["std is not 0"]),
        ("std=1:0:1", ["std is not 0"]),
    ],
)
def test_options_that_are_wrong(text, words, refused):
    """Each wrong option is a usage error that says what is expected."""
    refused(UsageError, words, lambda: parse_preprocess(text))


@pytest.mark.parametrize(
    ("dims", "text", "words"),
    [
        (("N", 3, 32, 32), "size=224", ["size=224x224", "[N,3,32,32]"]),
        (("N", 32, 32, 3), "imagenet,size=32x33", ["size=32x33"]),
        (("N", 3, "h", "w"), "resize=9", ["need size=", "'x'"]),
        (("N", 49), "size=3,layout=nchw", ["size, layout", "no image", "[N,49]"]),
    ],
)
def test_options_that_contradict_the_model(spec, pixels, dims, text, words, refused):
    """What the model fixes cannot be changed."""
    refused(UsageError, words, lambda: open_data(pixels, [spec(*dims)], preprocess=text))


def test_the_class_and_the_text_agree(spec, pixels, read):
    """A Preprocess given as an object does what its text does."""
    made = Preprocess(size=(8, 6), crop=0.9, scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(2.0,))
    text = "size=8x6,crop=0.9,scale=1/255,mean=0.1:0.2:0.3,std=2"
    assert parse_preprocess(text) == made
    model = [spec("N", 3, "h", "w")]
    found = [read(open_data(pixels, model, preprocess=p))[0]["x"] for p in (made, text)]
    np.testing.assert_array_equal(*found)


def test_a_preset_changes_its_crop():
    """`resize` in pixels takes the place of the preset's crop."""
    changed = parse_preprocess("imagenet,resize=232")
    assert (changed.resize, changed.crop, changed.mean) == (232, None, PRESETS["imagenet"].mean)
