"""Where a training stands, as a file: arrays in the safetensors format, the rest as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxprune import files
from onnxprune.errors import ModelError
from onnxprune.finetuning import safetensors
from onnxprune.graph import Array

_STATE = "onnxprune_training"
Groups = dict[str, dict[str, Array]]


def write(path: str | Path, groups: Mapping[str, Mapping[str, Array]], state: Mapping[str, Any]) -> None:
    """Write arrays by group and name, and a JSON-ready state; the file is replaced where it exists."""
    arrays = {f"{group}/{name}": array for group, held in groups.items() for name, array in held.items()}
    files.write_bytes(path, b"".join(safetensors.dumps(arrays, {_STATE: json.dumps(state)})), force=True)


def read(path: str | Path) -> tuple[Groups, dict[str, Any]]:
    """What `write` wrote. Raises FileError, ModelError for another file."""
    arrays, metadata = safetensors.loads(files.read_bytes(path), str(path))
    if _STATE not in metadata:
        raise ModelError(f"'{path}' is not a checkpoint of `onnxprune finetune`")
    groups: Groups = {}
    for name, array in arrays.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = array
    return groups, json.loads(metadata[_STATE])
