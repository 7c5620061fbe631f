"""Dead leaves and 1/f noise: shape, scale, spectrum, edges, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.synthesize import patterns


def generator(seed=0):
    """A seeded generator."""
    return np.random.default_rng(seed)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (1, 49, 10), (2, 1, 7), (3, 1, 1)])
def test_images(shape):
    """Images of any size are finite float32 of the shape asked for."""
    made = patterns.images(generator(), 5, *shape)
    assert made.shape == (5, *shape)
    assert made.dtype == np.float32
    assert np.isfinite(made).all()


def test_images_have_the_scale_and_spread_of_normalised_photographs():
    """All images together have mean 0 and deviation 1; each has its own brightness and contrast."""
    made = patterns.images(generator(), 400, 3, 16, 16)
    means, deviations = made.mean(axis=(1, 2, 3)), made.std(axis=(1, 2, 3))
    assert abs(made.mean()) < 0.1
    assert abs(made.std() - 1) < 0.1
    assert 0.4 < means.std() < 0.6
    assert 0.2 < np.log(deviations).std() < 0.5


def test_the_colours_of_an_image_resemble_each_other():
    """Channels are correlated, as in photographs, but not equal."""
    red, green = (patterns.images(generator(), 50, 3, 16, 16)[:, c].ravel() for c in (0, 1))
    assert 0.6 < np.corrcoef(red, green)[0, 1] < 0.99


@pytest.mark.parametrize("make", [patterns.images, lambda rng, n, c, *size: patterns.signals(rng, n, c, size)])
def test_the_same_seed_gives_the_same(make):
    """Two generators of one seed make equal samples, another seed other ones."""
    first, again, other = (make(generator(seed), 3, 3, 8, 8) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_leaves_have_areas_of_one_colour_and_sharp_edges():
    """Most neighbouring pixels of dead leaves are nearly equal, some are far apart: noise has neither."""
    steps = np.abs(np.diff(patterns.dead_leaves(generator(), 20, 1, 64, 64), axis=3))
    assert np.median(steps) < 0.05
    assert (steps > 0.5).mean() > 0.02


def test_leaves_leave_no_image_without_edges():
    """Every image of a batch has many leaves."""
    owner = patterns._owners(generator(), 30, 32, 48)
    assert owner.shape == (30, 32, 48)
    assert all(len(np.unique(image)) > 20 for image in owner)


def test_a_leaf_covers_the_pixels_of_its_ellipse_or_rectangle():
    """Flat indices of the pixels under an ellipse and a turned rectangle equal those found pixel by pixel."""
    centres, radii, stretch = np.array([[5.0, 7.0], [2.0, 9.5]]), np.array([3.0, 4.0]), np.array([1.5, 0.7])
    angles, square = np.array([0.4, 1.1]), np.array([False, True])
    found = patterns._inside(centres, radii, stretch, angles, square, (11, 13))
    wanted = []
    for i in range(2):
        for y, x in np.ndindex(11, 13):
            dy, dx = y - centres[i, 0], x - centres[i, 1]
            u = (dx * np.cos(angles[i]) + dy * np.sin(angles[i])) / (radii[i] * stretch[i])
            v = (dy * np.cos(angles[i]) - dx * np.sin(angles[i])) / (radii[i] / stretch[i])
            if (max(abs(u), abs(v)) < 1) if square[i] else (u * u + v * v < 1):
                wanted.append((i * 11 + y) * 13 + x)
    assert found.tolist() == wanted


def test_noise_has_a_falling_spectrum():
    """Amplitudes fall with frequency by a power between those of the slopes drawn."""
    made = patterns.noise(generator(), 200, 1, (512,))
    amplitudes = np.sqrt((np.abs(np.fft.rfft(made[:, 0])) ** 2).mean(axis=0))[4:200]
    slope = np.polyfit(np.log(np.arange(4, 200)), np.log(amplitudes), 1)[0]
    assert -2 < slope < -0.5


@pytest.mark.parametrize("size", [(64,), (9, 7), (5, 6, 7), (1,), (1, 1)])
def test_noise_in_any_number_of_dimensions(size):
    """Signals, images and volumes: each sample has mean 0 and deviation 1, or is all 0 where it has one position."""
    made = patterns.noise(generator(), 4, 1, size)
    assert made.shape == (4, 1, *size)
    np.testing.assert_allclose(made.reshape(4, -1).mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(made.reshape(4, -1).std(axis=1), float(np.prod(size) > 1), atol=1e-4)
