"""Where the external data of a model lie: looked for and checked before any of them are read."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from onnx import TensorProto

from onnxprune.errors import FileError, ModelError
from onnxprune.stored import kind_name, nbytes


def real_path(path: Path) -> Path:
    """The path behind all links. Raises FileError for what cannot be a path."""
    if "\0" in str(path):
        raise FileError(f"{str(path)!r} is not a name that a file can have")
    return Path(os.path.realpath(path))  # Path.resolve raises on a loop of links


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the bytes of a tensor are."""

    tensor: TensorProto
    file: Path
    offset: int
    length: int


def located(tensor: TensorProto, base: Path, folders: Sequence[Path]) -> Stored:
    """Find and check the external data of one tensor; the ModelError is the rest of a sentence about it."""
    entries = {e.key: e.value for e in tensor.external_data}
    file = _data_file(entries.get("location", ""), base, folders)
    size, want = file.stat().st_size, nbytes(tensor)
    offset = _natural(entries, "offset", 0)
    length = _natural(entries, "length", max(size - offset, 0))
    where = f"({length} bytes at {offset} of '{file.name}')"
    if offset + length > size:
        raise ModelError(f"{where} lies beyond the end of the file at {size}: the file is cut off or was exchanged")
    if length != want or tensor.data_type == TensorProto.STRING:
        raise ModelError(f"{where} does not fit its shape {list(tensor.dims)} of {kind_name(tensor)}: {want} bytes")
    return Stored(tensor, file, offset, length)


def _natural(entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"has the {key} {text!r}, which is no sensible number")
    return int(text)


def _data_file(location: str, base: Path, folders: Sequence[Path]) -> Path:
    """The regular file that a location means; it must lie in `base`, the folder of the model, links followed.

    folders: where to look; caches keep model and data under names of their own in one folder, and links to them,
    under their true names, in another.
    """
    parts = PureWindowsPath(location)  # knows both kinds of separators
    shown = repr(location[:200])
    if not location or parts.anchor or ".." in parts.parts:
        raise ModelError(f"has the location {shown}, which is not a path inside the model's folder")
    found = next((folder / location for folder in folders if os.path.lexists(folder / location)), None)
    file = None if found is None else real_path(found)
    if file is None or not file.exists():
        raise ModelError(f"is missing: there is no file {shown} beside the model; keep the files together")
    if not file.is_relative_to(base):
        raise ModelError(f"is a link that leaves the model's folder: {shown}; copy the file there")
    info = file.stat()
    if not stat.S_ISREG(info.st_mode):
        raise ModelError(f"is not in a regular file: {shown}")
    if info.st_nlink > 1:
        raise ModelError(f"is in a file with other hard links, maybe outside the folder: {shown}; make it a copy")
    return file
