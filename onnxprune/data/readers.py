"""Opening data of every kind, and reading them in batches that a model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.columns import Column, array_column, is_float, located, npy_column, npz_columns, reading
from onnxprune.data.images import Folder, image_column, scan_folder
from onnxprune.data.inputs import PIXELS, Filler, fillers, fitting, match, text
from onnxprune.data.preprocess import Preprocess, parse_preprocess
from onnxprune.data.sources import Piece, Stream, Table
from onnxprune.data.streams import (
    CalibrationReader,
    calling,
    foreign,
    is_reader,
    is_whole,
    load_function,
    named,
    names_function,
    replayable,
)
from onnxprune.errors import DataError, FileError, UsageError
from onnxprune.graph import Array
from onnxprune.runtime import InputSpec

Feeds = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples as a model takes them, [n, ...] by input name, and their labels [n, ...] where there are any."""

    inputs: Feeds
    labels: Array | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def part(self, start: int, stop: int) -> Batch:
        """Samples start..stop."""
        labels = None if self.labels is None else self.labels[start:stop]
        return Batch({n: a[start:stop] for n, a in self.inputs.items()}, labels)


@dataclass(frozen=True, slots=True)
class Data:
    """An opened source, which can be read any number of times; see `open_data`.

    name: for reports. count: samples, None where only reading tells. labelled: whether there are labels.
    classes: names of the labels 0, 1, ..., where sub-folders give them. notes: what reports should say of the data.
    """

    name: str
    count: int | None
    labelled: bool
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    _source: Table | Stream = field(repr=False)
    _fillers: dict[str, Filler] = field(repr=False)

    def batches(self, size: int, limit: int | None = None, seed: int | None = None) -> Iterator[Batch]:
        """Read from the start, `size` samples at a time: fewer in the last batch, and the model's own number where
        its batch is fixed (then an incomplete last batch is left out; see `fitting`).

        limit: at most so many samples: evenly spread over the source where they are counted, else the first.
        seed: a random choice in random order instead; in the order of the file from large compressed archives, of no
        effect on what is not counted. Raises DataError, with the sample's number, for what does not fit the model.
        """
        size, whole = self.batching(size)
        if size < 1 or (limit is not None and limit < (size if whole else 1)):
            given = f"{limit} samples in batches" if limit is not None else "batches"
            raise UsageError(f"{self.name}: {given} of {size} cannot be read")
        return self._batches(size, limit, seed, whole)

    def batching(self, size: int) -> tuple[int, bool]:
        """The batch size for a wanted one, and whether only whole batches are given."""
        specs = [f.spec for f in self._fillers.values()]
        return fitting(size, specs), fitting(1, specs) > 1

    def number(self, size: int, limit: int | None = None) -> int | None:
        """How many batches that gives; None where the samples are not counted."""
        if self.count is None:
            return None
        count = self.count if limit is None else min(limit, self.count)
        size, whole = self.batching(size)
        return count // size if whole else -(-count // size)

    def _batches(self, size: int, limit: int | None, seed: int | None, whole: bool) -> Iterator[Batch]:
        filled = (self._fill(piece) for piece in self._pieces(size, limit, seed))
        empty = True
        for batch in _regroup(filled, size, limit):
            if len(batch) == size or not whole:
                empty = False
                yield batch
        if empty:
            what = f"less than one batch of {size}" if whole else "no samples"
            raise DataError(f"{self.name} gave {what} in this pass; a function must start anew whenever it is called")

    def _pieces(self, size: int, limit: int | None, seed: int | None) -> Iterator[Piece]:
        with located(self.name):
            yield from self._source.pieces(size, limit, seed)

    def _fill(self, piece: Piece) -> Batch:
        feeds = {}
        for name, filler in self._fillers.items():
            array = piece.inputs[name]
            try:
                feeds[name] = filler.fill(array, piece.rows)
            except DataError as error:
                got = self._source.text(name, array)
                where = f"{self.name}: input '{name}' takes {text(filler.spec)}, got {got}"
                raise DataError(f"{where}: {error}") from error
        return Batch(feeds, piece.labels)


def _regroup(pieces: Iterator[Batch], size: int, limit: int | None) -> Iterator[Batch]:
    """Batches of exactly `size`, but for the last, from pieces of any number of samples."""
    held: list[Batch] = []
    left = limit
    for piece in pieces:
        held.append(piece if left is None else piece.part(0, left))
        left = None if left is None else left - len(held[-1])
        if sum(map(len, held)) >= size:
            joined = _join(held)
            whole = len(joined) // size * size
            yield from (joined.part(start, start + size) for start in range(0, whole, size))
            held = [joined.part(whole, len(joined))] if whole < len(joined) else []
        if left == 0:
            break
    if held:
        yield _join(held)


def _join(parts: list[Batch]) -> Batch:
    """One batch of several; samples of different sizes, which some models take, cannot share one."""
    if len(parts) == 1:
        return parts[0]
    try:
        inputs = {n: np.concatenate([p.inputs[n] for p in parts]) for n in parts[0].inputs}
        labels = [p.labels for p in parts if p.labels is not None]
        return Batch(inputs, np.concatenate(labels) if labels else None)
    except ValueError as error:
        raise DataError(f"samples of different sizes go into batches of 1 only: {error}") from error


def open_data(
    source: str | Path | Mapping[str, Array] | Array | Callable[[], Any] | CalibrationReader | Iterable[Any] | Data,
    inputs: Sequence[InputSpec],
    *,
    preprocess: str | Preprocess | None = None,
    minimum: int = 1,
) -> Data:
    """Open data for a model, and check them as far as is possible before any work.

    source: a .npz file (arrays by input name, and `labels`; one array of any name for a model of one input), a .npy
    file, a folder of images or of one sub-folder per class, `module:function`; arrays in memory or a pair (inputs,
    labels); a function, a generator or a loader that gives such arrays, batch by batch; a reader with get_next().
    inputs: of the model (`runtime.input_specs`). preprocess: see `parse_preprocess`. minimum: samples that are needed.
    Raises DataError, FileError, UsageError (preprocess, Pillow missing), UnsupportedError (inputs).
    """
    if isinstance(source, Data):
        return source
    steps = parse_preprocess(preprocess) if isinstance(preprocess, str) else preprocess
    step = fitting(1, inputs)
    opened: Table | Stream
    name, path = _name(source), _path(source)
    folder = path is not None and path.is_dir()
    with located(name):
        images = scan_folder(path) if path is not None and folder else None
    filled = fillers(inputs, steps or (_raw_pixels(name, inputs) if folder else None))
    classes: tuple[str, ...] = ()
    with located(name):
        if path is None:
            opened = _open_object(source, inputs)
        elif images is not None:
            opened, classes = _open_folder(path, images, filled)
        else:
            opened = _open_file(path, inputs)
    count = opened.count if isinstance(opened, Table) else None
    data = Data(name, count, False, classes, _notes(opened, step), opened, filled)
    return replace(data, labelled=_check(data, max(minimum, step)))


def _name(source: object) -> str:
    if isinstance(source, str | Path):
        function = isinstance(source, str) and names_function(source) and not Path(source).exists()
        return str(source) if function else Path(source).name or str(Path(source).resolve())
    if is_whole(source):
        return "the arrays"
    return str(getattr(source, "__qualname__", None) or type(source).__name__)


def _path(source: object) -> Path | None:
    """The file or folder that a source names; None for Python objects and module:function."""
    if not isinstance(source, str | Path):
        return None
    if Path(source).exists():
        return Path(source)
    if isinstance(source, str) and names_function(source):
        return None
    raise FileError(f"there is no file or folder '{source}', and it is not module:function either")


def _notes(source: Table | Stream, step: int) -> tuple[str, ...]:
    notes = []
    if step > 1:
        notes.append(f"the model takes batches of {step}: samples that do not fill the last one are left out")
    if isinstance(source, Stream):
        notes.append("the samples are not counted: they are taken from the beginning, in their order")
    return tuple(notes)


def _raw_pixels(name: str, inputs: Sequence[InputSpec]) -> Preprocess:
    """Images may go as they are into a model that takes integers."""
    if any(is_float(s.dtype) for s in inputs):
        raise UsageError(f"{name}: {PIXELS}")
    return Preprocess()


def _open_folder(path: Path, folder: Folder, filled: Mapping[str, Filler]) -> tuple[Table, tuple[str, ...]]:
    (name, filler), *others = filled.items()
    recipe = filler.recipe
    if others or recipe is None or recipe.frame is None:
        table = ", ".join(f"'{n}' {text(f.spec)}" for n, f in filled.items())
        raise DataError(f"the folder '{path}' fills one image input, which has 4 dims; the model's are {table}")
    labels = None if folder.labels is None else array_column(folder.labels)
    return Table({name: image_column(folder.paths, recipe.frame)}, labels), folder.classes


def _open_file(path: Path, inputs: Sequence[InputSpec]) -> Table:
    with reading(path), path.open("rb") as file:
        head = file.read(6)
    if head.startswith(b"PK"):
        columns = npz_columns(path)
    elif head.startswith(b"\x93NUMPY"):
        columns = {path.stem: npy_column(path)}
    else:
        what = "is neither a .npz nor a .npy file" if head else "is empty"
        raise DataError(f"'{path}' {what}; data are these, a folder of images, or module:function")
    return Table(*match(columns, inputs))


def _open_object(source: object, inputs: Sequence[InputSpec]) -> Table | Stream:
    if isinstance(source, str):
        source = load_function(source)
    start = None
    if callable(source) and not is_reader(source) and not is_whole(source):
        source, start = calling(source)
    if is_whole(source):
        with foreign():
            arrays, labels = named(source, inputs)
        columns = {n: _column(n, a) for n, a in arrays.items()}
        return Table(columns, None if labels is None else _column("labels", labels))
    return Stream(start or replayable(source), inputs)


def _column(name: str, array: Array) -> Column:
    with located(f"array '{name}'"):
        return array_column(array)


def _check(data: Data, minimum: int) -> bool:
    """Look at what can be seen before any work; whether there are labels."""
    source, step = data._source, data.batching(1)[0]
    if isinstance(source, Table):
        with located(data.name):
            source.check_counts()
        _check_count(data.name, source.count, minimum)
    needed = step if isinstance(source, Table) else -(-minimum // step) * step
    seen, labelled = 0, False
    for batch in data.batches(1, needed):
        seen, labelled = seen + len(batch), batch.labels is not None
    _check_count(data.name, seen, min(needed, minimum))
    if isinstance(source, Table):
        with located(data.name):
            source.check_values()
    return labelled


def _check_count(name: str, count: int, minimum: int) -> None:
    if count < minimum:
        raise DataError(f"{name} has {count} samples, at least {minimum} are needed: give more, or ask for fewer")


class Reader:
    """A CalibrationDataReader of onnxruntime.quantization over opened data; see `as_reader`."""

    def __init__(self, data: Data, size: int, limit: int | None, seed: int | None) -> None:
        self._data, self._size, self._limit, self._seed = data, size, limit, seed
        self._batches: Iterator[Batch] | None = None

    def get_next(self) -> Feeds | None:
        """The next batch, None after the last."""
        self._batches = self._batches or self._data.batches(self._size, self._limit, self._seed)
        batch = next(self._batches, None)
        return None if batch is None else batch.inputs

    def rewind(self) -> None:
        """Start anew."""
        self._batches = None

    def set_range(self, start_index: int, end_index: int) -> None:
        """Give the batches start_index..end_index next."""
        self._batches = islice(self._data.batches(self._size, self._limit, self._seed), start_index, end_index)

    def __iter__(self) -> Iterator[Feeds]:
        while (feeds := self.get_next()) is not None:
            yield feeds

    def __len__(self) -> int:
        """Number of batches. Raises TypeError where the samples are not counted."""
        if self._data.count is None:
            raise TypeError(f"{self._data.name} does not know its number of samples")
        found = self._data.number(self._size, self._limit)
        assert found is not None
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Reader:
        """Onnxruntime copies readers to read them twice; the data are shared, not copied."""
        return Reader(self._data, self._size, self._limit, self._seed)


def as_reader(data: Data, size: int = 1, limit: int | None = None, seed: int | None = None) -> Reader:
    """Hand opened data to onnxruntime.quantization, as the CalibrationDataReader that it asks for.

    size, limit, seed: as in `Data.batches`.
    """
    return Reader(data, size, limit, seed)
