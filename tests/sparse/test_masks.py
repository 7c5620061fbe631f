"""Masks by magnitude and by pattern, and the bands around them, on small matrices."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import UsageError
from onnxprune.sparse.masks import Pattern, band, by_magnitude, by_pattern, parse_pattern, pattern_band, removed

WEIGHT = np.array([[5, -4, 3], [-1, 2, -6]], np.float32)[None]  # one group, two inputs, three outputs
RANDOM = np.random.default_rng(0).standard_normal((2, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "sparsity", "gone"), [(10, 0.9, 9), (10, 0.91, 9), (10, 0.85, 9), (100, 0.9, 90), (3, 0.5, 2), (1, 0.9, 0)]
)
def test_at_least_the_share_goes(size, sparsity, gone):
    """The count is rounded up, in spite of binary fractions, and one weight always stays."""
    assert removed(size, sparsity) == gone


def test_the_smallest_go():
    """By magnitude the weights of the smallest absolute value go, ties from the end."""
    (kept,) = by_magnitude([WEIGHT], 0.5, together=False)
    assert kept.tolist() == [[[True, True, False], [False, False, True]]]
    (equal,) = by_magnitude([np.ones((1, 2, 2), np.float32)], 0.5, together=False)
    assert equal.reshape(-1).tolist() == [True, True, False, False]


def test_one_threshold_for_all_tensors():
    """Together, tensors of small weights lose more; none is emptied."""
    large, small = 10 * WEIGHT, WEIGHT / 100
    kept = by_magnitude([large, small], 0.5, together=True)
    assert [int(k.sum()) for k in kept] == [6, 1]
    assert [int(k.sum()) for k in by_magnitude([large, small], 0.5, together=False)] == [3, 3]


def test_pattern():
    """Of every m consecutive inputs of an output the n largest stay, tap by tap."""
    column = np.array([1, -3, 2, 0, 9, 8, 7, 6], np.float32).reshape(1, 8, 1)
    assert by_pattern(column, Pattern(2, 4), 8)[0, :, 0].astype(int).tolist() == [0, 1, 1, 0, 1, 1, 0, 0]
    assert by_pattern(column, Pattern(1, 2), 4)[0, :, 0].astype(int).tolist() == [0, 1, 1, 0, 1, 0, 1, 0]


def test_band_holds_the_weights_near_the_threshold():
    """The smallest of what stays and the largest of what goes are in the band; blocks are the outputs."""
    (kept,) = by_magnitude([RANDOM], 0.75, together=False)
    found = band(RANDOM, kept, 0.5)
    inside, size = kept.reshape(-1)[found.place], np.abs(RANDOM).reshape(-1)
    assert (int(inside.sum()), int((~inside).sum())) == (6, 12)
    rest = np.setdiff1d(np.arange(RANDOM.size), found.place)
    assert size[rest][kept.reshape(-1)[rest]].min() >= size[found.place].max() or size[rest].size
    assert size[rest][~kept.reshape(-1)[rest]].max() <= size[found.place][~inside].min()
    output = found.place // 24 * 3 + found.place % 3
    assert np.array_equal(found.unit[found.block], output)


def test_pattern_band_is_every_weight():
    """With a pattern every weight may be exchanged within its run of m inputs; units are the outputs."""
    found = pattern_band(RANDOM, Pattern(2, 4))
    assert found.place.tolist() == list(range(RANDOM.size))
    assert np.bincount(found.block).tolist() == [4] * 12
    group, row, column = np.unravel_index(found.place, RANDOM.shape)
    assert np.array_equal(found.unit[found.block], group * 3 + column)
    assert len({(b, g, r // 4, c) for b, g, r, c in zip(found.block, group, row, column, strict=True)}) == 12


@pytest.mark.parametrize("text", ["", "2", "4:2", "0:4", "2:2", "a:b", "2:4:8", "-1:4", "2:"])
def test_bad_patterns_are_told(text):
    """What is no N:M with N below M is an error that shows one."""
    with pytest.raises(UsageError, match="2:4"):
        parse_pattern(text)
    assert parse_pattern("2:4") == Pattern(2, 4)
