"""The safetensors format, which training code of all kinds reads and writes: a JSON header, then the bytes of tensors.

https://huggingface.co/docs/safetensors; forty lines of our own, so that taking weights back needs no other package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from onnxprune.errors import ModelError
from onnxprune.graph import Array

_NAMES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
_NAMES |= {"U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "?"}
TYPES = {name: np.dtype(code) for name, code in _NAMES.items()} | {"BF16": np.dtype(ml_dtypes.bfloat16)}
_OF = {dtype: name for name, dtype in TYPES.items()}
_MOST = 100 << 20  # bytes of a header
_METADATA = "__metadata__"


def dumps(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> list[bytes]:
    """The pieces of a file with these arrays; names are kept in order."""
    header: dict[str, object] = {_METADATA: dict(metadata)}
    pieces, place = [], 0
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        entry = {"dtype": _OF[array.dtype], "shape": list(array.shape), "data_offsets": [place, place + len(raw)]}
        header[name] = entry
        pieces.append(raw)
        place += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *pieces]


def loads(content: bytes, name: str) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays and metadata of a file. Raises ModelError, with the file's name, where it is none or is cut off."""
    try:
        size = int.from_bytes(content[:8], "little")
        if len(content) < 8 or size > min(_MOST, len(content) - 8):
            raise ValueError("its header is longer than the file")
        header = json.loads(content[8 : 8 + size])
        metadata = header.pop(_METADATA, {})
        body = memoryview(content)[8 + size :]
        arrays = {key: _array(entry, body) for key, entry in header.items()}
        return arrays, {str(k): str(v) for k, v in metadata.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"'{name}' is not a safetensors file, or is damaged: {error}") from error


def _array(entry: dict[str, Any], body: memoryview) -> Array:
    start, end = entry["data_offsets"]
    if not 0 <= start <= end <= len(body):
        raise ValueError("it is cut off")
    return np.frombuffer(body[start:end], TYPES[entry["dtype"]]).reshape(entry["shape"])
