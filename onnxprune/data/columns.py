"""Columns: one value per sample, read by sample numbers, from memory, from files, out of compressed archives.

Nothing is loaded whole but what is small and compressed.
"""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import DataError, FileError, OnnxpruneError
from onnxprune.graph import FLOATS, Array

Rows = NDArray[np.intp]
Opened = AbstractContextManager[BufferedIOBase]
SMALL = 256 << 20  # bytes: up to here compressed arrays are loaded, and floats are looked at before any work
_LOCAL = struct.Struct("<4s22xHH")  # a zip member's own header: signature, lengths of its name and of its extra field
_ENCRYPTED = 0x1
_DAMAGED = (EOFError, NotImplementedError, RuntimeError, ValueError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class Column:
    """One array of a source, axis 0 = samples.

    read: gives the rows of each group of sample numbers, in turn; where `ordered`, the numbers must ascend.
    text: element type and shape, for messages. scan: floats, few enough to be checked before any work.
    """

    count: int
    text: str
    read: Callable[[Iterable[Rows]], Iterator[Array]]
    ordered: bool = False
    scan: bool = False


class _Header(NamedTuple):
    """What a .npy file says of its array; start: bytes before the values."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put a place before the message of our own errors."""
    try:
        yield
    except OnnxpruneError as error:
        raise type(error)(f"{where}: {error}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Translate what reading a file raises."""
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot read '{path}': {error.strerror or error}") from error
    except _DAMAGED as error:
        raise DataError(f"'{path}' is damaged, or not what its name says: {error or type(error).__name__}") from error


def describe(shape: Sequence[int | str], dtype: np.dtype[Any]) -> str:
    """Element type and shape as messages show them: `float32 [8,3,32,32]`."""
    return f"{dtype} [{','.join(map(str, shape))}]"


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether an element type is floating point, bfloat16 included."""
    return dtype.kind == "f" or dtype in FLOATS


def array_column(array: Array) -> Column:
    """Column of an array in memory or mapped. Raises DataError for objects and for arrays without samples."""
    _refuse(array.shape, array.dtype)

    def read(groups: Iterable[Rows]) -> Iterator[Array]:
        return (array[rows] for rows in groups)

    scan = is_float(array.dtype) and array.nbytes <= SMALL
    return Column(len(array), describe(array.shape, array.dtype), read, scan=scan)


def _refuse(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise DataError(
            "it holds Python objects (a pickle), which are not read: store numbers, all samples of one shape"
        )
    if dtype.names is not None:
        raise DataError("it has named fields: store each field as an array of its own")
    if not shape:
        raise DataError(f"it is a single {dtype}, not an array with the samples along axis 0")
    if not math.prod(shape):
        raise DataError(f"it is empty: {describe(shape, dtype)}")


def npy_column(path: Path) -> Column:
    """Column of a .npy file. Raises FileError, DataError."""
    with reading(path):
        return _stored(path, 0, path.stat().st_size)


def npz_columns(path: Path) -> dict[str, Column]:
    """Columns of a .npz file by name; only what is small and compressed is loaded. Raises FileError, DataError."""
    with reading(path), zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        if not members:
            raise DataError(f"'{path}' is an archive without arrays (.npy); unpack it if it holds images")
        return {m.filename.removesuffix(".npy"): _member(path, archive, m) for m in members}


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Column:
    with located(f"'{path}': array '{member.filename.removesuffix('.npy')}'"):
        if member.flag_bits & _ENCRYPTED:
            raise DataError("it is encrypted")
        if member.compress_type == zipfile.ZIP_STORED:
            return _stored(path, _start(path, member), member.file_size)
        with archive.open(member) as file:
            header = _header(file, member.file_size)
        if header.nbytes <= SMALL:
            with archive.open(member) as file:
                return array_column(np.lib.format.read_array(file, allow_pickle=False))
        if header.fortran:
            raise DataError(
                "it is compressed in Fortran order, sample by sample unreadable: store np.ascontiguousarray(...)"
            )
        return _file_column(header, path, lambda: _member_file(path, member.filename), ordered=True)


@contextmanager
def _member_file(path: Path, name: str) -> Iterator[BufferedIOBase]:
    with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        assert isinstance(file, BufferedIOBase)
        yield file


def _start(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the content of a stored member begins in the archive."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        signature, name, extra = _LOCAL.unpack(file.read(_LOCAL.size).ljust(_LOCAL.size))
    if signature != b"PK\x03\x04":
        raise DataError("it is not where the archive says: the file is damaged")
    return member.header_offset + _LOCAL.size + int(name) + int(extra)


def _header(file: IO[bytes], size: int) -> _Header:
    """Read the header of a .npy file or member of `size` bytes, and check it."""
    start = file.tell()
    version = np.lib.format.read_magic(file)
    if version not in {(1, 0), (2, 0)}:
        raise DataError(f"its format {version[0]}.{version[1]} is for named fields, which are not read")
    one = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if one else np.lib.format.read_array_header_2_0
    header = _Header(*read(file), file.tell() - start)
    _refuse(header.shape, header.dtype)
    if header.start + header.nbytes > size:
        raise DataError(f"it is cut off: {describe(header.shape, header.dtype)} takes {header.nbytes:,} bytes")
    return header


def _stored(path: Path, start: int, size: int) -> Column:
    """Column of an array that lies in a file as it is."""
    with path.open("rb") as file:
        file.seek(start)
        header = _header(file, size)
    header = header._replace(start=start + header.start)
    if header.fortran:
        return array_column(np.asarray(np.memmap(path, header.dtype, "r", header.start, header.shape, "F")))
    return _file_column(header, path, lambda: path.open("rb"), ordered=False)


def _file_column(header: _Header, path: Path, opened: Callable[[], Opened], ordered: bool) -> Column:
    def read(groups: Iterable[Rows]) -> Iterator[Array]:
        with reading(path), opened() as file:
            for rows in groups:
                yield _read_rows(file, rows, header)

    scan = not ordered and is_float(header.dtype) and header.nbytes <= SMALL
    return Column(header.shape[0], describe(header.shape, header.dtype), read, ordered, scan)


def _read_rows(file: BufferedIOBase, rows: Rows, header: _Header) -> Array:
    """Rows of an array in a file; not mapped, which would count as memory and need address space."""
    size = header.nbytes // header.shape[0]
    content = np.empty(len(rows) * size, np.uint8)
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    for start, stop in pairwise([*starts.tolist(), len(rows)]):  # runs of rows that follow each other
        file.seek(header.start + int(rows[start]) * size)
        if file.readinto(content[start * size : stop * size].data) < (stop - start) * size:
            raise EOFError("it ends too early")
    return content.view(header.dtype).reshape(len(rows), *header.shape[1:])
