"""Comparisons that would say nothing, or hide something: what is refused, put in doubt, or told."""

from __future__ import annotations

import numpy as np
import pytest
from validation.models import inputs, labels, linear

import onnxprune
from onnxprune.errors import DataError

validate = onnxprune.validate


@pytest.fixture(scope="module")
def pair():
    """A model, a worse one, inputs, and labels."""
    good = linear()
    x = inputs()
    return good, linear(noise=0.5), x, labels(good, x)


@pytest.mark.parametrize("name", ["top4", "top5"])
def test_all_classes_are_not_the_best(pair, name):
    """Among as many answers as there are classes the right one always is: topK of them is refused."""
    good, bad, x, y = pair
    with pytest.raises(DataError, match=f"--metric {name}: .* 4 classes: .* top1 to top3"):
        validate(good, bad, data=(x, y), metric=name, max_drop=1.0)
    assert validate(good, bad, data=(x, y), metric="top3").metric.candidate < 1


def test_class_numbers_have_no_second_answer(pair):
    """A model that gives class numbers, or one score for two classes, has a top1 only."""
    _, _, x, _ = pair
    single = linear(outputs="float[N,1] y", shape="6,1")
    with pytest.raises(DataError, match="--metric top2: .* only top1"):
        validate(single, single, data=(x, np.arange(200) % 2), metric="top2")
    assert validate(single, single, data=(x, np.arange(200) % 2), metric="top1").metric
