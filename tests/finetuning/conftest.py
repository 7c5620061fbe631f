"""Some of these tests need torch, which is an extra."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxprune

TEACHER = Path(__file__).parents[2] / "fixtures" / "senet_dynamo.onnx"


@pytest.fixture(scope="module")
def torch():
    """Torch, with one thread: these networks are tiny."""
    module = pytest.importorskip("torch")
    before = module.get_num_threads()
    module.set_num_threads(1)
    yield module
    module.set_num_threads(before)


@pytest.fixture(scope="module")
def cut():
    """A network cut to a fifth and not repaired."""
    return onnxprune.compress(TEACHER, flops=0.2, recover="none", align=1).model
