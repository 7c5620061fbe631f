"""Folders of images: what is found, how it is decoded and cropped, and what is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from onnxprune.data import open_data
from onnxprune.data.images import Frame, fit, scan_folder
from onnxprune.errors import DataError, FileError, UsageError


@pytest.fixture
def folder(tmp_path):
    """Write images (or bytes) by path; returns the folder."""

    def folder(**files):
        for name, content in files.items():
            path = tmp_path / "photos" / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                (content if isinstance(content, Image.Image) else Image.fromarray(content)).save(path)
        return tmp_path / "photos"

    return folder


def grey(value, height=4, width=5):
    return np.full((height, width, 3), value, np.uint8)


def test_classes_are_the_sub_folders(folder, model, read):
    """Sub-folders are classes, labelled in order of their names; other files and hidden ones are not read."""
    where = folder(
        cat__b_png=grey(1), cat__a_png=grey(0), ape__z_PNG=grey(2), ape__notes_txt=b"text", readme_md=b"text",
        dog__deep__er__x_bmp=grey(3), dog__deep___y_png=b"hidden", _git__x_png=b"hidden",
    )  # fmt: skip
    data = open_data(where, model, preprocess="scale=1")
    assert (data.name, data.count, data.labelled, data.classes) == ("photos", 4, True, ("ape", "cat", "dog"))
    inputs, labels = read(data)
    assert inputs["x"].shape == (4, 3, 4, 5)
    assert inputs["x"][:, 0, 0, 0].tolist() == [2, 0, 1, 3]
    assert labels.tolist() == [0, 1, 1, 2]


def test_flat_folder(folder, model, read):
    """Images beside each other have no labels, and come in order of their names."""
    data = open_data(str(folder(b_png=grey(9), a_png=grey(8))), model, preprocess="scale=1")
    assert (data.count, data.labelled, data.classes) == (2, False, ())
    assert read(data)[0]["x"][:, 0, 0, 0].tolist() == [8, 9]


def test_a_folder_without_images_is_not_asked_how(folder, model):
    """That a folder has no image is said before it is asked how its pixels become inputs."""
    with pytest.raises(DataError, match="has no images"):
        open_data(folder(a_txt=b"text"), model)
    with pytest.raises(UsageError, match="give --preprocess"):
        open_data(folder(a_png=grey(1)), model)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_a_limit_takes_from_all_classes(folder, model, read, seed):
    """A part of a folder that is sorted by class has images of each; the same seed gives the same ones."""
    where = folder(**{f"{c}__{i}_png": grey(i) for c in "abcd" for i in range(20)})
    data = open_data(where, model, preprocess="unit")
    inputs, labels = read(data, limit=24, seed=seed)
    assert len(labels) == 24
    assert set(labels) == {0, 1, 2, 3}
    assert (list(labels) == sorted(labels)) == (seed is None)
    again, _ = read(open_data(where, model, preprocess="unit"), limit=24, seed=seed)
    np.testing.assert_array_equal(inputs["x"], again["x"])


def test_images_are_decoded_batch_by_batch(folder, model, monkeypatch):
    """Only the images of the batches that are asked for are decoded."""
    data = open_data(folder(**{f"{i}_png": grey(i) for i in range(20)}), model, preprocess="unit")
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path.name) or real(path))
    batches = data.batches(3)
    next(batches)
    assert len(opened) == 3
    next(batches)
    assert len(opened) == 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes(folder, spec, read, mode):
    """Images of every 8-bit mode become what the model takes: three channels, or one."""
    image = Image.fromarray(grey(255)).convert(mode)
    where = folder(**{f"a_{'tif' if mode == 'CMYK' else 'png'}": image})
    for channels in (1, 3):
        inputs, _ = read(open_data(where, [spec(None, channels, 4, 5)], preprocess="unit"))
        np.testing.assert_array_equal(inputs["x"], np.ones((1, channels, 4, 5), np.float32))


def test_transparent_palette(folder, model, read):
    """A palette with transparency is read without a warning."""
    image = Image.fromarray(grey(255)).convert("P")
    image.info["transparency"] = b"\0\x80"
    assert read(open_data(folder(a_png=image), model, preprocess="unit"))[0]["x"].shape == (1, 3, 4, 5)


def gradient(height, width):
    """Red grows along the height, green along the width."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows, columns, rows * 0], -1).astype(np.uint8))


def test_crop_at_the_centre():
    """Resizing the shorter side and cutting out the centre: the pixels are Pillow's, the window torchvision's."""
    image = gradient(100, 150)
    found = fit(image, Frame((56, 56), crop=0.875))
    resized = np.asarray(image.resize((96, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found, resized[4:60, 20:76])
    np.testing.assert_array_equal(found, fit(image, Frame((56, 56), resize=64)))


@pytest.mark.parametrize("size", [(8, 8), (8, 24), (24, 8), (224, 224), (3, 7)])
@pytest.mark.parametrize("shape", [(10, 30), (30, 10), (7, 7), (1, 50), (333, 500)])
@pytest.mark.parametrize("how", [{"crop": 0.875}, {"crop": 1.0}, {"resize": 8}, {}])
def test_every_image_gets_the_size(size, shape, how):
    """Whatever the shape of the image, the result has the size asked for and no border."""
    found = fit(Image.fromarray(np.full((*shape, 3), 200, np.uint8)), Frame(size, **how))
    assert found.shape == (*size, 3)
    assert (found == 200).all()


def test_images_of_the_size_are_left_alone():
    """`crop` does not enlarge what has the size already; `resize`, which names pixels, does."""
    image = gradient(32, 32)
    np.testing.assert_array_equal(fit(image, Frame((32, 32), crop=0.875)), np.asarray(image))
    assert (fit(image, Frame((32, 32), resize=37)) != np.asarray(image)).any()


def test_sizes_that_nothing_fixes(folder, spec, refused):
    """A model of open size takes images as they are, if they agree."""
    where = folder(a_png=grey(0), b_png=grey(0), c_png=grey(0, 6, 7))
    data = open_data(where, [spec("N", 3, "h", "w")], preprocess="unit")
    assert [b.inputs["x"].shape for b in data.batches(1)] == [(1, 3, 4, 5), (1, 3, 4, 5), (1, 3, 6, 7)]
    refused(DataError, ["a.png' is 4x5", "c.png' is 6x7", "size="], lambda: list(data.batches(3)))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)], ids=["empty", "text", "png"])
def test_unreadable_images(folder, model, refused, content):
    """An image that cannot be decoded is named."""
    where = folder(a_png=content)
    refused(DataError, ["photos", "a.png", "cannot be read"], lambda: open_data(where, model, preprocess="unit"))


def test_truncated_image(folder, model, refused, read):
    """A damaged image in the middle is an error when it is met, with its path."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    where = folder(a_jpg=noise, b_jpg=noise)
    (where / "b.jpg").write_bytes((where / "b.jpg").read_bytes()[:2000])
    data = open_data(where, model, preprocess="unit")
    refused(DataError, ["b.jpg", "cannot be read", "truncated"], lambda: read(data))


def test_deep_images(folder, model, refused):
    """16-bit images are refused, not clipped."""
    where = folder(a_png=Image.fromarray(np.full((4, 5), 60000, np.uint16)))
    refused(DataError, ["a.png", "more than 8 bits"], lambda: open_data(where, model, preprocess="unit"))


def test_huge_images(folder, model, refused, monkeypatch):
    """What Pillow takes for a decompression bomb is refused, with the path."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    where = folder(a_png=grey(0))
    refused(DataError, ["a.png", "cannot be read"], lambda: open_data(where, model, preprocess="unit"))


def test_folders_without_images(folder, model, tmp_path, refused):
    """Nothing there, one class without images, and both kinds at once, are refused."""
    (tmp_path / "empty").mkdir()
    refused(DataError, ["empty", "no images", ".png"], lambda: open_data(tmp_path / "empty", model, preprocess="unit"))
    where = folder(cat__a_png=grey(0), dog__a_txt=b"")
    refused(DataError, ["['dog']", "no images"], lambda: open_data(where, model, preprocess="unit"))
    (where / "dog" / "a.txt").rename(where / "b.png")
    (where / "dog").rmdir()
    refused(DataError, ["b.png", "both"], lambda: open_data(where, model, preprocess="unit"))


def test_a_flat_folder_may_hold_other_folders(folder):
    """Sub-folders without images are no classes where the images lie beside them."""
    found = scan_folder(folder(a_png=grey(0), notes__a_txt=b""))
    assert ([p.name for p in found.paths], found.labels, found.classes) == (["a.png"], None, ())


def test_unreadable_folder(folder, model, refused, monkeypatch):
    """A folder that may not be listed is a file error."""
    where = folder(a_png=grey(0))

    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", denied)
    refused(FileError, ["photos", "Permission denied"], lambda: open_data(where, model, preprocess="unit"))


def test_pixels_need_preprocessing(folder, spec, model, refused, read):
    """Without --preprocess images go into a model of integers as they are, and are refused for floats."""
    where = folder(a_png=grey(7))
    refused(UsageError, ["photos", "--preprocess", "imagenet"], lambda: open_data(where, model))
    inputs, _ = read(open_data(where, [spec(1, 8, 10, 3, dtype="uint8")]))
    np.testing.assert_array_equal(inputs["x"], np.full((1, 8, 10, 3), 7, np.uint8))


def test_models_that_take_no_image(folder, spec, refused):
    """A folder feeds one image input, and no other."""
    where = folder(a_png=grey(0))
    two = [spec("N", 3, 4, 5, name="a"), spec("N", 3, 4, 5, name="b")]
    refused(DataError, ["one image input", "'a'", "'b'"], lambda: open_data(where, two, preprocess="unit"))
    refused(DataError, ["one image input", "[N,60]"], lambda: open_data(where, [spec("N", 60)], preprocess="unit"))
    six = [spec("N", 6, 4, 5)]
    refused(DataError, ["3 instead of 6 along axis 1"], lambda: open_data(where, six, preprocess="unit"))


def test_pillow_is_missing(folder, model, refused, monkeypatch):
    """Without Pillow the message has the command that installs it."""
    where = folder(a_png=grey(0))
    monkeypatch.setitem(sys.modules, "PIL", None)
    words = ['pip install "onnxprune[images]"']
    refused(UsageError, words, lambda: open_data(where, model, preprocess="unit"))
