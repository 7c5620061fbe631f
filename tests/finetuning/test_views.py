"""Augmented views: fixed, seeded, and the same image whatever the layout."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import UsageError
from onnxprune.finetuning.views import draw, seen

IMAGES = np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype(np.float32)


def moved(image, mirrored, down, right):
    """One image [c, h, w], mirrored and then moved, its edge repeated."""
    image = image[..., ::-1] if mirrored else image
    padded = np.pad(image, ((0, 0), (8, 8), (8, 8)), mode="edge")
    return padded[:, 8 - down : 40 - down, 8 - right : 40 - right]


def test_views_by_hand():
    """A view mirrors or not, and moves; what comes in is the edge."""
    moves = np.array([[0, 0, 0], [1, 0, 0], [0, 4, 0], [0, 0, -3], [1, -2, 4]], np.int16)
    found = seen(IMAGES, moves)
    for image, view, (mirrored, down, right) in zip(IMAGES, found, moves, strict=True):
        np.testing.assert_array_equal(view, moved(image, mirrored, down, right))


def test_layouts_agree():
    """Channels first and channels last give the same views."""
    moves = draw({"x": IMAGES}, 1, "both", 3)[:, 0]
    last = seen(np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1)), moves)
    np.testing.assert_array_equal(last, seen(IMAGES, moves).transpose(0, 2, 3, 1))


def test_draw():
    """Views differ between images, are the same for the same seed, and stay within an eighth of the image."""
    moves = draw({"x": IMAGES}, 8, "auto", 0)
    assert moves.shape == (5, 8, 3)
    assert np.abs(moves[..., 1:]).max() <= 4
    assert len(np.unique(moves.reshape(-1, 3), axis=0)) > 20
    np.testing.assert_array_equal(moves, draw({"x": IMAGES}, 8, "auto", 0))
    assert (moves != draw({"x": IMAGES}, 8, "auto", 1)).any()


@pytest.mark.parametrize(
    ("inputs", "augment"),
    [
        ({"x": IMAGES}, "none"),
        ({"x": IMAGES[:, :1]}, "auto"),
        ({"x": IMAGES[:, :, :8, :8]}, "auto"),
        ({"x": IMAGES[:, 0]}, "auto"),
        ({"x": IMAGES, "z": IMAGES}, "auto"),
    ],
    ids=["none", "gray", "small", "no image", "two images"],
)
def test_what_is_left_alone(inputs, augment):
    """By default only colour images from 16 pixels on are augmented, and never inputs that are no single image."""
    assert not draw(inputs, 4, augment, 0).any()


@pytest.mark.parametrize("inputs", [{"x": IMAGES[:, 0]}, {"x": IMAGES, "z": IMAGES}], ids=["no image", "two images"])
def test_views_that_cannot_be_had(inputs):
    """Where views are asked for, and the inputs are no single image, that is an error."""
    with pytest.raises(UsageError, match=r"--augment flip needs .* one .* of images"):
        draw(inputs, 4, "flip", 0)


def test_parts():
    """`flip` only mirrors, `shift` only moves."""
    assert not draw({"x": IMAGES}, 8, "flip", 0)[..., 1:].any()
    assert not draw({"x": IMAGES}, 8, "shift", 0)[..., 0].any()
    assert draw({"x": IMAGES}, 8, "flip", 0)[..., 0].any()
    assert draw({"x": IMAGES}, 8, "shift", 0)[..., 1:].any()
