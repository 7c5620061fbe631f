"""The safetensors format, written and read."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnxprune.errors import ModelError
from onnxprune.finetuning import safetensors

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(2.5, np.float64),
    "q": np.array([-128, 127], np.int8),
    "half": np.ones((1, 2), np.float16),
    "b": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "empty": np.zeros((0, 3), np.int64),
    "transposed": np.arange(6, dtype=np.int32).reshape(2, 3).T,
}


def test_round_trip():
    """Names, values, shapes, types and metadata come back."""
    arrays, metadata = safetensors.loads(b"".join(safetensors.dumps(ARRAYS, {"k": "v"})), "w")
    assert metadata == {"k": "v"}
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_the_package_agrees():
    """The package of that name reads what we write, and we read what it writes."""
    package = pytest.importorskip("safetensors.numpy")
    plain = {n: np.ascontiguousarray(a) for n, a in ARRAYS.items() if n not in ("b", "scalar")}
    theirs = package.load(b"".join(safetensors.dumps(plain, {})))
    ours = safetensors.loads(package.save(plain), "w")[0]
    for name, array in plain.items():
        np.testing.assert_array_equal(theirs[name], array)
        np.testing.assert_array_equal(ours[name], array)


CONTENT = b"".join(safetensors.dumps(ARRAYS, {}))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a zip",
        CONTENT[:20],
        CONTENT[:-1],
        (9).to_bytes(8, "little") + b'{"a": 3 }',
        (2).to_bytes(8, "little") + b"[]",
    ],
    ids=["empty", "zip", "cut in the header", "cut in the data", "no tensors", "a list"],
)
def test_other_files(content):
    """Anything else is an error with the file's name."""
    with pytest.raises(ModelError, match=r"'w\.bin' is not a safetensors file, or is damaged"):
        safetensors.loads(content, "w.bin")
