"""From pixels to what a model takes: named presets, options as text, and their application to arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, Literal, TypeVar

import numpy as np

from onnxprune.data.columns import describe
from onnxprune.data.images import Frame, fit_arrays
from onnxprune.errors import DataError, UsageError
from onnxprune.graph import Array
from onnxprune.runtime import InputSpec

T = TypeVar("T")
Layout = Literal["nchw", "nhwc"]
Channels = Literal["rgb", "bgr", "gray"]
Dim = int | str | None
_COLOURS = frozenset({1, 3, 4})  # channels that images have


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How images become a model's input: resized, scaled, normalised, as `(x * scale - mean) / std`.

    size: (height, width); None: the model's, or `assumed` where the model leaves it open. resize: pixels of the
    shorter side before a centre crop to the size. crop: the same as the share that the crop takes (224 of 256:
    0.875); images that have the size already are left alone. Without either, images are stretched. layout, channels:
    None: the model's. mean, std: one number, or one per channel in the model's order. preset: where the values come
    from; presets take uint8 only.
    """

    size: tuple[int, int] | None = None
    resize: int | None = None
    crop: float | None = None
    layout: Layout | None = None
    channels: Channels | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    preset: str | None = None
    assumed: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.resize is not None and self.crop is not None:
            raise UsageError("--preprocess resize= and crop= say the same in two ways: give one")
        if self.resize is not None and self.size is not None and self.resize < min(self.size):
            raise UsageError(f"--preprocess resize={self.resize} is smaller than the size {self.size} to cut out")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise UsageError(f"--preprocess crop={self.crop:g} is not a share in (0, 1]")
        if 0.0 in self.std or not np.isfinite([self.scale, *self.mean, *self.std]).all():
            raise UsageError("--preprocess scale, mean and std are finite numbers, and std is not 0")

    @property
    def plain(self) -> bool:
        """Whether values stay as they are."""
        return (self.scale, set(self.mean), set(self.std)) == (1.0, {0.0}, {1.0})


def _preset(name: str, side: int | None, mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocess:
    assumed = None if side is None else (side, side)
    return Preprocess(
        crop=0.875 if side == 224 else None, scale=1 / 255, mean=mean, std=std, preset=name, assumed=assumed
    )


_TABLE: dict[str, tuple[int | None, tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": (224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": (32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "mobilenet": (224, (0.5,), (0.5,)),
    "tf": (224, (0.5,), (0.5,)),
    "unit": (None, (0.0,), (1.0,)),
}
PRESETS = {name: _preset(name, *values) for name, values in _TABLE.items()}


def parse_preprocess(text: str) -> Preprocess:
    """Read `preset,key=value,...`: a preset, changes to it, or the steps alone.

    size=224 or 224x320 (height x width), resize=256, crop=0.875, layout=nchw|nhwc, channels=rgb|bgr|gray,
    scale=1/255, mean=0.5 or 0.485:0.456:0.406, std likewise. Raises UsageError.
    """
    items = [item.strip() for item in text.split(",") if item.strip()]
    names = [item for item in items if "=" not in item]
    if not items or len(names) > 1:
        raise UsageError(f"--preprocess {text!r}: give one preset ({', '.join(PRESETS)}), or key=value, or both")
    start = _known(names[0], PRESETS) if names else Preprocess()
    given: dict[str, Any] = {}
    for key, _, value in (item.partition("=") for item in items if "=" in item):
        if key in given:
            raise UsageError(f"--preprocess gives {key} twice")
        given[key] = _value(key, value)
    if {"resize", "crop"} & set(given):
        given = {"resize": None, "crop": None} | given
    if given.get("channels") == "bgr":  # the presets' are those of red, green, blue
        given = {"mean": start.mean[::-1], "std": start.std[::-1]} | given
    return replace(start, **given)


def _known(name: str, table: dict[str, T]) -> T:
    if name in table:
        return table[name]
    near = get_close_matches(name, list(table), 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(table)}"
    raise UsageError(f"--preprocess does not know {name!r}; {hint}")


def _value(key: str, text: str) -> Any:
    read, form = _known(key, _KEYS)
    try:
        return read(text.strip().lower())
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"--preprocess {key}={text}: expected {form}") from error


def _sides(text: str) -> tuple[int, int]:
    height, width = (text if "x" in text else f"{text}x{text}").split("x")
    return _positive(height), _positive(width)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(Fraction(part)) for part in text.split(":"))


def _one_of(*names: str) -> Callable[[str], str]:
    return lambda text: names[names.index(text)]


_KEYS: dict[str, tuple[Callable[[str], Any], str]] = {
    "size": (_sides, "224, or height x width as 224x320"),
    "resize": (_positive, "a number of pixels"),
    "crop": (float, "a share in (0, 1]"),
    "layout": (_one_of("nchw", "nhwc"), "nchw or nhwc"),
    "channels": (_one_of("rgb", "bgr", "gray"), "rgb, bgr or gray"),
    "scale": (lambda text: float(Fraction(text)), "a number or a fraction, as 1/255"),
    "mean": (_numbers, "a number, or one per channel as 0.485:0.456:0.406"),
    "std": (_numbers, "a number, or one per channel as 0.229:0.224:0.225"),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A Preprocess with all that was open settled by a model's input. frame: None where the input is no image."""

    steps: Preprocess
    layout: Layout
    sample: tuple[int, ...] | None
    frame: Frame | None

    def apply(self, array: Array) -> Array:
        """Samples as the model takes them, float32 unless the values stay as they are.

        array: images [n, height, width, channels], [n, channels, height, width] or [n, height, width], in the order
        red, green, blue; anything of one element type where the input is no image. Raises DataError.
        """
        if self.steps.preset is not None and array.dtype != np.uint8:
            raise DataError(
                f"the preset {self.steps.preset!r} is for pixels, uint8 0..255: give the steps that are still to be "
                "done, as --preprocess scale=...,mean=...,std=..., or none"
            )
        if self.frame is None:
            return self._normalised(array)
        images = fit_arrays(self._channels_last(array), self.frame)
        images = self._normalised(images[..., ::-1] if self.steps.channels == "bgr" else images)
        return images if self.layout == "nhwc" else np.moveaxis(images, -1, 1)

    def _normalised(self, array: Array) -> Array:
        steps = self.steps
        if steps.plain:
            return array
        channels = 1 if self.frame is None else array.shape[-1]
        if excess := {len(steps.mean), len(steps.std)} - {1, channels}:
            raise DataError(
                f"mean or std has {max(excess)} numbers for {channels} channel(s): give --preprocess mean=,std="
            )
        scaled: Array = array.astype(np.float32)
        scaled *= np.float32(steps.scale)
        scaled -= np.array(steps.mean, np.float32)
        scaled /= np.array(steps.std, np.float32)
        return scaled

    def _channels_last(self, array: Array) -> Array:
        """What has neither or both looks of a layout is in the model's."""
        if array.ndim == 3 and array.shape[-1] not in _COLOURS:
            return array[..., None]
        if array.ndim != 4:
            raise DataError("images are [n,height,width,channels]: store a single one as array[None]")
        last, first = array.shape[-1] in _COLOURS, array.shape[1] in {1, 3}
        model_like = array.shape[1:] == self.sample or last == first
        layout = self.layout if model_like else "nhwc" if last else "nchw"
        return array if layout == "nhwc" else np.moveaxis(array, 1, -1)


def resolve(steps: Preprocess, spec: InputSpec) -> Recipe:
    """Settle layout, size and channels by a model's input. Raises UsageError where they contradict each other."""
    dims = spec.dims or (None,) * 4
    sizes = tuple(d for d in dims[1:] if isinstance(d, int))
    sample = sizes if len(sizes) == len(dims) - 1 else None
    if len(dims) != 4:
        _check_plain(steps, spec)
        return Recipe(steps, "nhwc", sample, None)
    layout = steps.layout or _layout(dims)
    height, width, channels = dims[1:] if layout == "nhwc" else (*dims[2:], dims[1])
    frame = Frame(_size(steps, spec, (height, width)), steps.resize, steps.crop, _mode(steps, channels))
    if frame.size is None and (steps.resize or steps.crop):
        raise UsageError(f"--preprocess resize and crop need size=..., which input '{spec.name}' leaves open")
    return Recipe(steps, layout, sample, frame)


def _check_plain(steps: Preprocess, spec: InputSpec) -> None:
    given = {"size": steps.size, "resize": steps.resize, "layout": steps.layout, "channels": steps.channels}
    if keys := [key for key, value in given.items() if value is not None]:
        dims = describe(tuple(d or "?" for d in spec.dims or ()), spec.dtype)
        raise UsageError(f"--preprocess {', '.join(keys)}: input '{spec.name}' ({dims}) is no image, which has 4 dims")


def _layout(dims: Sequence[Dim]) -> Layout:
    return "nhwc" if dims[3] in {1, 3} and dims[1] not in {1, 3} else "nchw"


def _mode(steps: Preprocess, channels: Dim) -> str | None:
    """Pillow's name for the channels; None where the model takes another number than images have."""
    if steps.channels is not None:
        return "L" if steps.channels == "gray" else "RGB"
    return {1: "L", 3: "RGB"}.get(channels) if isinstance(channels, int) else "RGB"


def _size(steps: Preprocess, spec: InputSpec, sides: tuple[Dim, Dim]) -> tuple[int, int] | None:
    """The model's size where it is fixed, else what was given, else what the preset assumes."""
    height, width = steps.size or (None, None)
    if any(isinstance(d, int) and g not in {None, d} for d, g in zip(sides, (height, width), strict=True)):
        dims = describe(tuple(d or "?" for d in spec.dims or ()), spec.dtype)
        raise UsageError(f"--preprocess size={height}x{width} does not fit input '{spec.name}': {dims}")
    if isinstance(sides[0], int) and isinstance(sides[1], int):
        return sides[0], sides[1]
    return steps.size or steps.assumed
