"""Pictures and signals that no camera took: dead leaves and noise with the spectrum of natural images.

Dead leaves (G. Matheron's model: discs that fall on each other, radii of a power law) have the edges and occlusions of
photographs, noise with a 1/f^a spectrum their correlations. The constants were chosen on real training images by how
well networks were refitted; nothing depends on them finely.
"""

from __future__ import annotations

from math import prod

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Floats = NDArray[np.float32]
LEAVES = 100  # per image
_RADII = (0.03, 0.6)  # of the longer side; the density falls with the third power, as in photographs
_STRETCH = 0.7  # largest logarithm of a leaf's aspect ratio, halved
_SLOPES = (0.5, 2.0)  # of the amplitude spectra
_CHROMA = 0.5  # how much colours differ from grey
_SHADE, _GRAIN = 0.7, 0.4  # gradients across a leaf; noise laid over the leaves
_BRIGHTNESS, _CONTRAST = 0.5, 0.35  # deviation of the images' means; of the logarithm of their deviations
_OBJECTS = 0.7  # share of images with a large leaf in the middle, on top


def images(rng: np.random.Generator, count: int, channels: int, height: int, width: int) -> Floats:
    """Dead leaves under a little noise, [count, channels, height, width], overall about mean 0 and deviation 1."""
    leaves = dead_leaves(rng, count, channels, height, width)
    grain = _GRAIN * rng.gamma(2, 0.5, (count, 1, 1, 1)).astype(np.float32)
    leaves += grain * noise(rng, count, channels, (height, width))
    return _varied(rng, standardized(leaves))


def signals(rng: np.random.Generator, count: int, channels: int, size: tuple[int, ...]) -> Floats:
    """Noise of random spectral slope, [count, channels, *size], overall about mean 0 and deviation 1."""
    return _varied(rng, noise(rng, count, channels, size))


def noise(rng: np.random.Generator, count: int, channels: int, size: tuple[int, ...]) -> Floats:
    """Noise whose amplitudes fall as 1/f^a, a drawn for each sample, with channels that resemble each other.

    [count, channels, *size], every sample of mean 0 and deviation 1.
    """
    shape = (count, channels + (channels > 1), *size)
    axes = tuple(range(2, len(shape)))
    slopes = rng.uniform(*_SLOPES, (count, *[1] * (len(shape) - 1))).astype(np.float32)
    spectrum = scipy.fft.rfftn(rng.standard_normal(shape, dtype=np.float32), axes=axes)
    spectrum *= np.exp(-slopes * np.log(_frequencies(size)))
    made = standardized(np.asarray(scipy.fft.irfftn(spectrum, size, axes=axes), np.float32))
    if channels == 1:
        return made
    chroma = _CHROMA * rng.gamma(2, 0.5, slopes.shape).astype(np.float32)
    return standardized(made[:, :1] + chroma * made[:, 1:])


def _frequencies(size: tuple[int, ...]) -> Floats:
    """Magnitudes of the frequencies of a real transform, [*size[:-1], size[-1] // 2 + 1]; the constant's is not 0."""
    axes = [np.fft.fftfreq(s) for s in size[:-1]] + [np.fft.rfftfreq(size[-1])]
    squares = sum(np.square(f) for f in np.meshgrid(*axes, indexing="ij"))
    return np.asarray(np.sqrt(np.maximum(squares, 1 / max(size) ** 2)), np.float32)


def dead_leaves(rng: np.random.Generator, count: int, channels: int, height: int, width: int) -> Floats:
    """Overlapping ellipses and rectangles, [count, channels, height, width]; every image of mean 0, deviation 1."""
    owner = _owners(rng, count, height, width).reshape(count, -1)
    grey = rng.standard_normal((count, LEAVES + 1, 1), dtype=np.float32)
    chroma = _CHROMA * rng.gamma(2, 0.5, (count, 1, 1)).astype(np.float32)
    colours = grey + chroma * rng.standard_normal((count, LEAVES + 1, channels), dtype=np.float32)
    slopes = _SHADE * rng.standard_normal((2, count, LEAVES + 1), dtype=np.float32)
    y, x = (np.linspace(-1, 1, s, dtype=np.float32) for s in (height, width))
    down, right = np.repeat(y, width), np.tile(x, height)
    shade = np.take_along_axis(slopes[0], owner, 1) * down + np.take_along_axis(slopes[1], owner, 1) * right
    painted = np.stack([np.take_along_axis(c, owner, 1) for c in np.moveaxis(colours, 2, 0)], 1) + shade[:, None]
    return standardized(np.asarray(painted.reshape(count, channels, height, width), np.float32))


def _owners(rng: np.random.Generator, count: int, height: int, width: int) -> NDArray[np.intp]:
    """Which leaf is on top at each pixel, [count, height, width], 0 for the ground.

    The leaves that fall at the same time have about the same size in all images, so that one small window serves all.
    """
    low, high = (r ** (1 - 3.0) for r in _RADII)
    sizes = rng.permutation(low + (np.arange(LEAVES) + 0.5) / LEAVES * (high - low)) ** (1 / (1 - 3.0))
    radii = max(height, width) * sizes * np.exp(rng.uniform(-0.2, 0.2, (count, LEAVES)))
    centres = rng.uniform(0, (height, width), (count, LEAVES, 2))
    middle = rng.random(count) < _OBJECTS
    radii[middle, -1] = max(height, width) * rng.uniform(0.15, 0.35, middle.sum())
    centres[middle, -1] = rng.uniform(0.35, 0.65, (middle.sum(), 2)) * (height, width)
    stretch = np.exp(rng.uniform(-_STRETCH, _STRETCH, (count, LEAVES)))
    angles = rng.uniform(0, np.pi, (count, LEAVES))
    square = rng.random((count, LEAVES)) < 0.4
    owner = np.zeros(count * height * width, np.intp)
    for j in range(LEAVES):
        inside = _inside(centres[:, j], radii[:, j], stretch[:, j], angles[:, j], square[:, j], (height, width))
        owner[inside] = j + 1
    return owner.reshape(count, height, width)


def _inside(
    centres: NDArray[np.float64],
    radii: NDArray[np.float64],
    stretch: NDArray[np.float64],
    angles: NDArray[np.float64],
    square: NDArray[np.bool_],
    size: tuple[int, int],
) -> NDArray[np.intp]:
    """Flat indices into [images, height, width] of the pixels under one leaf of each image."""
    reach = radii * np.maximum(stretch, 1 / stretch) * np.where(square, 2**0.5, 1)
    windows = [min(s, int(2 * reach.max()) + 2) for s in size]
    starts = [np.clip(np.round(c - w / 2), 0, s - w) for c, w, s in zip(centres.T, windows, size, strict=True)]
    y, x = (start.astype(np.intp)[:, None] + np.arange(w) for start, w in zip(starts, windows, strict=True))
    dy, dx = (y - centres[:, :1])[:, :, None], (x - centres[:, 1:])[:, None, :]  # [images, window, 1], [.., 1, window]
    cos, sin, long, short = (
        a[:, None, None] for a in (np.cos(angles), np.sin(angles), radii * stretch, radii / stretch)
    )
    along = np.square((dx * cos / long).astype(np.float32) + (dy * sin / long).astype(np.float32))
    across = np.square((dy * cos / short).astype(np.float32) - (dx * sin / short).astype(np.float32))
    under = np.where(square[:, None, None], np.maximum(along, across), along + across) < 1
    rows = np.arange(len(y))[:, None] * prod(size) + y * size[1]
    indices: NDArray[np.intp] = (rows[:, :, None] + x[:, None, :])[under]
    return indices


def standardized(samples: Floats) -> Floats:
    """Every sample to mean 0 and deviation 1 over all its elements; constant ones to 0."""
    flat = samples.reshape(len(samples), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    flat /= flat.std(axis=1, keepdims=True) + np.float32(1e-6)
    same: Floats = flat.reshape(samples.shape)
    return same


def _varied(rng: np.random.Generator, samples: Floats) -> Floats:
    """Give every sample its own brightness and contrast; mean and deviation of all stay about 0 and 1."""
    each = (len(samples), *[1] * (samples.ndim - 1))
    contrast = np.exp(_CONTRAST * rng.standard_normal(each) - _CONTRAST**2)
    brightness = _BRIGHTNESS * rng.standard_normal(each)
    contrast *= np.sqrt(1 - _BRIGHTNESS**2)
    return np.asarray(samples * contrast.astype(np.float32) + brightness.astype(np.float32), np.float32)
