"""Model inputs, arrays and images for the readers."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.runtime import InputSpec


def _spec(*dims, name="x", dtype="float32"):
    """One model input; symbols and None stand for open dims."""
    return InputSpec(name, np.dtype(dtype), dims)


@pytest.fixture
def spec():
    return _spec


@pytest.fixture
def model(spec):
    """Inputs of a small image classifier of any batch."""
    return [spec("N", 3, 4, 5)]


@pytest.fixture
def samples():
    """float32 [10, 3, 4, 5]; sample i holds i + 0.0 ... i + 0.59."""
    return (
        np.arange(10, dtype=np.float32).reshape(10, 1, 1, 1) + np.arange(60).reshape(3, 4, 5).astype(np.float32) / 100
    )


@pytest.fixture
def pixels():
    """uint8 [6, 4, 5, 3]: random images, channels last."""
    return np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3)).astype(np.uint8)


@pytest.fixture
def read():
    """All batches of opened data as one: inputs by name, labels."""

    def read(data, size=4, **choice):
        batches = list(data.batches(size, **choice))
        inputs = {n: np.concatenate([b.inputs[n] for b in batches]) for n in batches[0].inputs}
        return inputs, np.concatenate([b.labels for b in batches]) if data.labelled else None

    return read


@pytest.fixture
def refused():
    """Assert that a call raises an error whose message has all the words."""

    def refused(error, words, call):
        with pytest.raises(error) as found:
            call()
        assert type(found.value) is error
        assert [w for w in words if w not in str(found.value)] == [], str(found.value)

    return refused
