"""Folders of images, and the resizing and cropping of one image. Pillow is imported when an image is first touched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnxprune.data.columns import Column, Rows
from onnxprune.errors import DataError, FileError, UsageError
from onnxprune.graph import Array

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_CHANNELS: dict[str | None, int] = {"L": 1, "RGB": 3}
_DEEP = ("I", "F")  # modes of more than 8 bits, and I;16 and the like: Pillow would cut them off at 255


@dataclass(frozen=True, slots=True)
class Frame:
    """The shape that images are brought to.

    size: (height, width), or None to leave it. resize: pixels of the shorter side before a centre crop to the size.
    crop: share of the resized image that the centre crop takes, which gives `resize`; images of the right size are
    left alone. Without either, images are stretched. mode: Pillow's name for the channels, L or RGB; None: as they are.
    """

    size: tuple[int, int] | None
    resize: int | None = None
    crop: float | None = None
    mode: str | None = "RGB"


class Folder(NamedTuple):
    """The images of a folder in order of their names, and where it has sub-folders their classes."""

    paths: list[Path]
    labels: Array | None
    classes: tuple[str, ...]


def scan_folder(folder: Path) -> Folder:
    """List a folder of images, or of sub-folders with the images of one class each (label 0 is the first name).

    Raises FileError, and DataError where there are no images, or images beside sub-folders with images.
    """
    try:
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
        flat = [p for p in entries if _is_image(p)]
        groups = {p.name: _images(p) for p in entries if p.is_dir()}
    except OSError as error:
        raise FileError(f"cannot read '{folder}': {error.strerror or error}") from error
    if not flat and not any(groups.values()):
        raise DataError(f"the folder '{folder}' has no images ({', '.join(sorted(SUFFIXES))})")
    if not any(groups.values()):
        return Folder(flat, None, ())
    if flat:
        raise DataError(f"'{folder}' has both images ('{flat[0].name}') and sub-folders with images: keep one kind")
    if empty := [name for name, paths in groups.items() if not paths]:
        raise DataError(f"the class folders {empty} of '{folder}' have no images: remove them, or fill them")
    sizes = [len(paths) for paths in groups.values()]
    return Folder([p for paths in groups.values() for p in paths], np.arange(len(sizes)).repeat(sizes), tuple(groups))


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if _is_image(p))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def image_column(paths: Sequence[Path], frame: Frame) -> Column:
    """Column of image files, decoded group by group to uint8 [n, height, width, channels]."""

    def read(groups: Iterable[Rows]) -> Iterator[Array]:
        for rows in groups:
            yield _stack([_decode(paths[row], frame) for row in rows], [paths[row] for row in rows])

    return Column(len(paths), "images", read)


def _stack(images: list[Array], paths: list[Path]) -> Array:
    for image, path in zip(images, paths, strict=True):
        if image.shape != images[0].shape:
            sizes = f"'{paths[0]}' is {_size(images[0])}, '{path}' is {_size(image)}"
            raise DataError(f"images of different sizes: {sizes}; the model fixes none: give --preprocess size=...")
    return np.stack(images)


def _size(image: Array) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"


def _decode(path: Path, frame: Frame) -> Array:
    image_module = _pillow()
    try:
        with image_module.open(path) as image:
            return fit(image, frame)
    except DataError as error:
        raise DataError(f"the image '{path}' {error}") from error
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        raise DataError(f"the image '{path}' cannot be read ({error}): remove it, or save it again") from error


def fit(image: Image.Image, frame: Frame) -> Array:
    """One image as uint8 [height, width, channels] in the shape of the frame."""
    if image.mode.startswith(_DEEP):
        raise DataError(f"has more than 8 bits per channel (mode {image.mode}): convert it to 8 bits")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    image = _crop(image.convert(frame.mode) if frame.mode else image, frame)
    array: Array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def fit_arrays(arrays: Array, frame: Frame) -> Array:
    """uint8 [n, height, width, channels] in the shape of the frame; untouched where it has it already."""
    channels = _CHANNELS.get(frame.mode, arrays.shape[3])
    wanted = (*(frame.size or arrays.shape[1:3]), channels)
    if frame.resize is None and arrays.shape[1:] == wanted:
        return arrays
    if arrays.dtype != np.uint8 or arrays.shape[3] not in {1, 3, 4}:
        sizes = "x".join(map(str, arrays.shape[1:])), "x".join(map(str, wanted))
        raise DataError(f"to make {sizes[1]} of {sizes[0]}, images must be uint8 with 1, 3 or 4 channels")
    squeezed = arrays[..., 0] if arrays.shape[3] == 1 else arrays
    return np.stack([fit(_pillow().fromarray(image), frame) for image in squeezed])


def _crop(image: Image.Image, frame: Frame) -> Image.Image:
    """Resize, and crop at the centre: roundings as in torchvision and timm."""
    if frame.size is None:
        return image
    height, width = frame.size
    stretched = frame.crop is None and frame.resize is None
    if frame.resize is None and image.size == (width, height):
        return image
    bilinear = _pillow().Resampling.BILINEAR
    if stretched:
        return image.resize((width, height), bilinear)
    larger = _covering(image, frame)
    image = image.resize(larger, bilinear)
    left, top = round((larger[0] - width) / 2), round((larger[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _covering(image: Image.Image, frame: Frame) -> tuple[int, int]:
    """(width, height) that keeps the sides' ratio and covers the frame."""
    assert frame.size is not None
    (width, height), short = image.size, min(image.size)
    side = frame.resize
    if side is None:
        ratio = max(frame.size[0] / height, frame.size[1] / width)
        side = math.floor(ratio * short / (frame.crop or 1) + 1e-6)  # 224 / 0.875 is 256 whatever the rounding
    larger = (int(side * width / short), int(side * height / short))
    return max(larger[0], frame.size[1]), max(larger[1], frame.size[0])


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(
            'images are read with Pillow, which is not installed: pip install "onnxprune[images]"'
        ) from error
    return Image
