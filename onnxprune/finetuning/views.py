"""Augmented views of images: a few fixed ones of each, so that what the teacher says of them is computed once.

A view mirrors an image or not, and moves it by some pixels; its edge is repeated where it moves away from (the same as
a random crop of the padded image).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError
from onnxprune.graph import Array

Augment = Literal["auto", "both", "flip", "shift", "none"]
Moves = NDArray[np.int16]  # [n, 3]: mirrored, pixels down, pixels right
_SHIFT = 8  # the largest shift is this part of the image (4 of 32 pixels)
_AUTO = 16  # pixels from which on images are augmented unless told otherwise


def spatial_axes(array: Array) -> tuple[int, int] | None:
    """Axes of height and width of images [n, c, h, w] or [n, h, w, c] with 1 or 3 channels; None for other inputs."""
    if array.ndim != 4 or not np.issubdtype(array.dtype, np.floating):
        return None
    for channels in (1, 3):
        if array.shape[channels] in (1, 3):
            return (2, 3) if channels == 1 else (1, 2)
    return None


def draw(inputs: Mapping[str, Array], views: int, augment: Augment, seed: int) -> Moves:
    """What is done to every image in every view: [n, views, 3]; all zero where nothing is.

    Raises UsageError where views are asked for, and the inputs are not one input of images.
    """
    images = [(a, axes) for a in inputs.values() if (axes := spatial_axes(a)) is not None]
    count = len(next(iter(inputs.values())))
    moves = np.zeros((count, views, 3), np.int16)
    if augment not in ("auto", "none") and len(images) != 1:
        raise UsageError(
            f"--augment {augment} needs exactly one input of images with 1 or 3 channels; the model takes {len(images)}"
        )
    if augment == "none" or len(images) != 1:
        return moves
    array, (top, left) = images[0]
    size = min(array.shape[top], array.shape[left])
    if augment == "auto" and (size < _AUTO or 3 not in (array.shape[1], array.shape[3])):
        return moves
    rng, far = np.random.default_rng([seed, 1]), max(1, size // _SHIFT)
    if augment in ("auto", "both", "flip"):
        moves[..., 0] = rng.integers(0, 2, (count, views))
    if augment in ("auto", "both", "shift"):
        moves[..., 1:] = rng.integers(-far, far + 1, (count, views, 2))
    return moves


def seen(array: Array, moves: Moves) -> Array:
    """Images as their views show them: array [n, ...], moves [n, 3]; other inputs as they are."""
    axes = spatial_axes(array)
    if axes is None or not moves.any():
        return array
    height, width = (array.shape[a] for a in axes)
    rows = np.clip(np.arange(height) - moves[:, 1:2], 0, height - 1)  # [n, h]
    columns = np.clip(np.arange(width) - moves[:, 2:3], 0, width - 1)  # [n, w]
    columns = np.where(moves[:, :1] != 0, width - 1 - columns, columns)
    each, down, across = np.arange(len(array))[:, None, None], rows[:, :, None], columns[:, None, :]
    if axes == (1, 2):
        found: Array = array[each, down, across]
    else:
        found = array.transpose(0, 2, 3, 1)[each, down, across].transpose(0, 3, 1, 2)  # channels last in memory
    return found
