"""Reading models and plans, and writing results so that a failure leaves everything as it was.

The only module that reads and writes files.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnxprune.check import check_model, is_sorted, not_onnx, raise_problems, sort_nodes
from onnxprune.errors import FileError, ModelError, ResourceError
from onnxprune.external import located, real_path
from onnxprune.stored import (
    PAGE,
    file_bytes,
    serialised,
    split_weights,
    stored_tensors,
    weights_bytes,
)

__all__ = [
    "MAX_BYTES",
    "PROTOBUF_LIMIT",
    "append_text",
    "check_model",
    "check_output",
    "digest",
    "file_bytes",
    "file_digest",
    "is_sorted",
    "locked",
    "read_bytes",
    "read_model",
    "read_text",
    "scratch",
    "sort_nodes",
    "split_weights",
    "weights_bytes",
    "write_bytes",
    "write_folder",
    "write_model",
    "write_text",
]

MAX_BYTES = 8 << 30
PROTOBUF_LIMIT = (2 << 30) - (64 << 20)  # protobuf stops at 2 GiB; the rest is for the graph itself


def read_model(path: str | Path, *, max_bytes: int = MAX_BYTES) -> ModelProto:
    """Read an ONNX file with all its weights into memory, check its structure and sort its nodes.

    path: links are followed; max_bytes: most bytes that the file and its external data may have together.
    Raises FileError (missing, unreadable), ModelError (not a sound model; all problems at once),
    ResourceError (over `max_bytes`).
    """
    with _reading(path):
        file = _regular_file(Path(path))
        _check_size(path, file.stat().st_size, max_bytes)
        proto = _parse(file, str(path))
        _load_external(proto, file, Path(path), max_bytes)
    check_model(proto, f"'{path}'")
    sort_nodes(proto)
    return proto


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read '{path}': {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _regular_file(path: Path) -> Path:
    """The file itself, behind all links."""
    file = real_path(path)
    if not file.exists():
        raise FileError(f"there is no file '{path}'")
    if file.is_dir():
        raise FileError(f"'{path}' is a folder; name a file in it")
    if not file.is_file():
        raise FileError(f"'{path}' is not a regular file")
    return file


def _check_size(path: str | Path, size: int, limit: int) -> None:
    if size > limit:
        raise ResourceError(f"'{path}' with its external data has {size:,} bytes, the limit is {limit:,}; raise it")


def _parse(file: Path, name: str) -> ModelProto:
    if file.stat().st_size >= 2 << 30:
        raise ModelError(f"'{name}' is over the 2 GiB that one ONNX file can have: export it with external data")
    with file.open("rb") as f:
        head = f.read(64)
    proto = ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise ModelError(f"'{name}' {not_onnx(head)}") from error
    if not proto.HasField("graph"):
        raise ModelError(f"'{name}' {not_onnx(head)}")
    return proto


def _load_external(proto: ModelProto, file: Path, given: Path, max_bytes: int) -> None:
    """Move external data into the model, after all of it was checked; `given` is the path before links."""
    external = [(n, t) for n, t in stored_tensors(proto) if t.data_location == TensorProto.EXTERNAL]
    stored, problems = [], []
    for name, tensor in external:
        try:
            stored.append(located(tensor, file.parent, [file.parent, given.parent]))
        except ModelError as error:
            problems.append(f"external data of tensor '{name}' {error}")
    raise_problems(f"'{given}'", problems)
    _check_size(given, file.stat().st_size + sum(s.length for s in stored), max_bytes)
    for s in stored:
        with s.file.open("rb") as f:
            f.seek(s.offset)
            s.tensor.raw_data = f.read(s.length)
        s.tensor.ClearField("data_location")
        s.tensor.ClearField("external_data")


def read_text(path: str | Path) -> str:
    """Read a text file (UTF-8); raises FileError."""
    with _reading(path):
        return _regular_file(Path(path)).read_text(encoding="utf-8")


def read_bytes(path: str | Path) -> bytes:
    """Read a whole file; raises FileError."""
    with _reading(path):
        return _regular_file(Path(path)).read_bytes()


def check_output(path: str | Path, source: str | Path | None = None, force: bool = False) -> None:
    """Raise FileError if `path` must not be written: to be called before any work is done.

    source: the model that was read, which is never overwritten, nor its external data, under whatever name;
    force: whether another existing file may be replaced.
    """
    try:
        final = real_path(Path(path))
        if not final.parent.is_dir():
            raise FileError(f"cannot write '{path}': there is no folder '{final.parent}'")
        if not os.access(final.parent, os.W_OK):
            raise FileError(f"cannot write '{path}': the folder '{final.parent}' is read-only")
        if final.exists():
            _check_replaced(path, final, None if source is None else Path(source), force)
    except OSError as error:
        raise FileError(f"cannot write '{path}': {_reason(error)}") from error


def _check_replaced(path: str | Path, final: Path, source: Path | None, force: bool) -> None:
    if not final.is_file():
        raise FileError(f"cannot write '{path}': it exists and is not a regular file")
    if source is not None and source.exists() and final.samefile(source):
        raise FileError(f"the output '{path}' is the input '{source}': name another file")
    if not force:
        raise FileError(f"'{path}' exists: use --force to replace it, or name another file")
    if source is not None and source.is_file() and any(final.samefile(f) for f in _data_files(source)):
        raise FileError(f"the output '{path}' holds weights of the input '{source}': name another file")


def _data_files(source: Path) -> set[Path]:
    """Existing files with external data of a model; none when it is not readable as a model."""
    file, proto = real_path(source), ModelProto()
    with suppress(DecodeError):
        proto.ParseFromString(file.read_bytes())
    names = {e.value for _, t in stored_tensors(proto) for e in t.external_data if e.key == "location"}
    paths = (folder / name for folder in (file.parent, source.parent) for name in names)
    return {p for p in paths if p.is_file()}


def write_model(
    proto: ModelProto,
    path: str | Path,
    *,
    source: str | Path | None = None,
    force: bool = False,
    limit: int = PROTOBUF_LIMIT,
) -> list[Path]:
    """Write a model, whole or not at all, and return the files written.

    proto: not changed; source, force: see `check_output`; limit: most bytes of weights in one file, above it they go to
    `NAME.data` beside the model. The same model gives the same bytes. Raises FileError.
    """
    check_output(path, source, force)
    final = real_path(Path(path))
    if weights_bytes(proto) <= limit:
        return _write_files(path, [(final, serialised(proto))])
    data = final.with_name(f"{final.name}.data")
    check_output(data, source, force)
    light, weights = split_weights(proto, data.name)
    return _write_files(path, [(data, _chunks(weights)), (final, [_serialise(light, path)])])[::-1]


def write_text(path: str | Path, text: str, *, source: str | Path | None = None, force: bool = False) -> None:
    """Write a text file (UTF-8), whole or not at all; raises FileError, see `check_output`."""
    write_bytes(path, text.encode(), source=source, force=force)


def append_text(path: str | Path, text: str) -> None:
    """Add to a file that belongs to another program, UTF-8, in place; it is made where it is missing. Raises FileError.

    An empty text shows whether it can be written.
    """
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise FileError(f"cannot write '{path}': {_reason(error)}") from error


def write_bytes(path: str | Path, content: bytes, *, source: str | Path | None = None, force: bool = False) -> None:
    """Write a file, whole or not at all; raises FileError, see `check_output`."""
    check_output(path, source, force)
    _write_files(path, [(real_path(Path(path)), [content])])


def write_folder(folder: Path, contents: Mapping[str, Iterable[bytes]], *, force: bool = False) -> None:
    """Write files into a folder, all or none; it is made if need be. Raises FileError, see `check_output`."""
    new = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot write the folder '{folder}': {_reason(error)}") from error
    try:
        for name in contents:
            check_output(folder / name, None, force)
        _write_files(folder, [(real_path(folder / name), content) for name, content in contents.items()])
    except BaseException:
        if new:
            folder.rmdir()
        raise


def _serialise(proto: ModelProto, path: str | Path) -> bytes:
    try:
        content: bytes = proto.SerializeToString(deterministic=True)
    except EncodeError as error:
        raise FileError(f"cannot write '{path}': all but its weights is over the 2 GiB of one file") from error
    return content


def _chunks(weights: Iterable[TensorProto]) -> Iterator[bytes]:
    """Content of the file that `split_weights` refers to."""
    for tensor in weights:
        raw = tensor.raw_data
        yield raw
        yield b"\0" * (-len(raw) % PAGE)


def _write_files(path: str | Path, files: Sequence[tuple[Path, Iterable[bytes]]]) -> list[Path]:
    """Write all files or none: first under other names in the same folder, then swapped in, the last one last."""
    finals = [final for final, _ in files]
    temporary = [_beside(final) for final in finals]
    try:
        for place, (_, chunks) in zip(temporary, files, strict=True):
            _write_through(place, chunks)
        _swap(temporary, finals)
    except OSError as error:
        raise FileError(f"cannot write '{path}': {_reason(error)}; nothing was changed") from error
    finally:
        _remove(temporary)
    return finals


def _beside(final: Path) -> Path:
    return final.with_name(f".onnxprune-{secrets.token_hex(8)}.tmp")


def _write_through(place: Path, chunks: Iterable[bytes]) -> None:
    with place.open("xb") as f:
        for chunk in chunks:
            f.write(chunk)
        f.flush()
        os.fsync(f.fileno())


def _swap(temporary: Sequence[Path], finals: Sequence[Path]) -> None:
    """Put the files in place; if that fails half-way, put back those that were there."""
    *leading, last = finals
    old = {final: _beside(final) for final in leading if final.exists()}
    try:
        for place, final in zip(temporary, leading, strict=False):
            if final in old:
                final.replace(old[final])
            place.replace(final)
        temporary[-1].replace(last)
    finally:
        if temporary[-1].exists():
            _restore(leading, old)
        _remove(old.values())


def _restore(finals: Iterable[Path], old: dict[Path, Path]) -> None:
    for final in finals:
        if final not in old:
            final.unlink(missing_ok=True)
        elif old[final].exists():
            old[final].replace(final)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):  # the error that led here matters more
            path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock that one process at a time can have; FileError, with `what` it is for, where another one has it.

    path: its file, which goes with it. A process that dies may leave the file, but not the lock: it is SQLite's, the
    one of the standard library that every system has and takes back by itself.
    """
    import sqlite3

    try:
        held = sqlite3.connect(path, timeout=0, isolation_level=None)
        mine = path.stat().st_ino
        held.executescript("PRAGMA journal_mode=OFF; BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        busy = f"{what} is in use by another run: wait until it has ended, or name another one"
        other = f"cannot lock '{path}': {error}"
        raise FileError(busy if error.sqlite_errorcode == sqlite3.SQLITE_BUSY else other) from error
    with closing(held):
        if not path.exists() or path.stat().st_ino != mine:
            raise FileError(f"{what} was in use by another run until now: try again")
        try:
            yield
        finally:
            _remove([path])  # while nobody else can have it
    if os.name == "nt":
        _remove([path])  # what is open cannot be removed there


def digest(proto: ModelProto, *, limit: int = PROTOBUF_LIMIT) -> str:
    """SHA-256 of a model, as hex: that of the bytes `write_model` writes, or, over `limit`, of graph and weights."""
    if weights_bytes(proto) <= limit:
        pieces = serialised(proto)
    else:
        light, weights = split_weights(proto, "")
        pieces = chain([_serialise(light, "the model")], _chunks(weights))
    state = hashlib.sha256()
    for piece in pieces:
        state.update(piece)
    return state.hexdigest()


def file_digest(path: str | Path) -> str | None:
    """SHA-256 of a file, as hex and as `sha256sum` gives it; None where there is no such file."""
    if not Path(path).is_file():
        return None
    with _reading(path), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mapped_copy(array: NDArray[Any]) -> np.memmap[Any, Any]:
    """A copy of an array in a nameless temporary file, which goes with the array; ResourceError if the disk is full."""
    try:
        with tempfile.TemporaryFile(prefix="onnxprune") as file:
            np.ascontiguousarray(array).tofile(file)
            return np.memmap(file, array.dtype, "r", shape=array.shape)
    except OSError as error:
        raise ResourceError(f"cannot keep {array.nbytes:,} bytes in a temporary file: {error.strerror}") from error


def scratch(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.memmap[Any, Any]:
    """An array to be filled, in a file as of `mapped_copy`."""
    size = prod(shape) * dtype.itemsize
    try:
        with tempfile.TemporaryFile(prefix="onnxprune") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows now, not as a crash on the first write
            return np.memmap(file, dtype, "w+", shape=shape)
    except OSError as error:
        raise ResourceError(f"cannot keep {size:,} bytes in a temporary file: {error.strerror}") from error
