"""Training inputs and what the teacher says of them: in memory, or in temporary files where that is too little."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune import files, runtime
from onnxprune.data import Batch, Data
from onnxprune.errors import DataError, UnsupportedError
from onnxprune.finetuning.settings import TuneOptions
from onnxprune.finetuning.views import draw, seen
from onnxprune.graph import Array

Rows = NDArray[np.intp]
Arrays = dict[str, Array]
Feeds = Mapping[str, Array]
_READ = 256  # samples per read
_HELD, _MOST_HELD = 0.1, 1000  # share and most of the samples that no step sees
_FEWEST = 8


@dataclass
class Room:
    """Memory for large arrays: once it is used up, they lie in temporary files."""

    left: float

    def array(self, shape: Sequence[int], dtype: Any) -> Array:
        """An array to be filled."""
        size = prod(shape) * np.dtype(dtype).itemsize
        if size > self.left:
            return files.scratch(tuple(shape), np.dtype(dtype))
        self.left -= size
        return np.empty(shape, dtype)


@dataclass(frozen=True)
class Samples:
    """Inputs [n, ...] by name as the models take them, labels [n] or None, and their views [n, views, 3]."""

    name: str
    inputs: Arrays
    labels: Array | None
    train: Rows
    held: Rows
    moves: NDArray[np.int16]
    notes: tuple[str, ...] = ()

    def batch(self, rows: Rows, view: int | None) -> Arrays:
        """Inputs of some samples, as one of their views shows them (None: as they are)."""
        return {n: a[rows] if view is None else seen(a[rows], self.moves[rows, view]) for n, a in self.inputs.items()}


def load(data: Data, room: Room, options: TuneOptions, chunk: int, apart: Sequence[Feeds] = ()) -> Samples:
    """Read the data once, and set some of them aside.

    options: `limit`, `seed`, `labels`, `views`, `augment`. chunk: samples that a model takes at once: the numbers of
    samples are multiples of it. apart: inputs that are not to be trained on, in batches: those among the samples are
    the first that are set aside. Raises DataError for too few samples, or labels that are missing or unusable.
    """
    inputs, labels = _read(data, room, options.limit, options.seed)
    count = len(next(iter(inputs.values())))
    if count < max(_FEWEST, 2 * chunk):
        raise DataError(f"{data.name} gives {count} samples; fine-tuning needs {max(_FEWEST, 2 * chunk)} at least")
    if options.labels and labels is None:
        raise DataError(f"{data.name} has no labels: leave out --labels, or give an array 'labels' or class folders")
    order = np.random.default_rng([options.seed, 0]).permutation(count)
    known = _among(inputs, apart)[order]
    order = np.concatenate([order[known], order[~known]])
    held = max(-(-int(known.sum()) // chunk), int(min(_HELD * count, _MOST_HELD)) // chunk, 1) * chunk
    held = min(held, count // 2 // chunk * chunk)
    train = np.sort(order[held : held + (count - held) // chunk * chunk])
    moves = draw(inputs, options.views, options.augment, options.seed)
    return Samples(
        data.name, inputs, labels if options.labels else None, train, np.sort(order[:held]), moves, data.notes
    )


def _read(data: Data, room: Room, limit: int | None, seed: int) -> tuple[Arrays, Array | None]:
    batches = data.batches(_READ, limit=limit, seed=None if limit is None else seed)
    if data.count is None:
        return _joined(list(batches))
    first = next(batches)
    total = data.count if limit is None else min(limit, data.count)
    whole = {n: room.array((total, *a.shape[1:]), a.dtype) for n, a in first.inputs.items()}
    labels, done = [], 0
    for batch in chain([first], batches):
        for name, array in batch.inputs.items():
            whole[name][done : done + len(batch)] = array
        labels.append(batch.labels)
        done += len(batch)
    kept = [x for x in labels if x is not None]
    return {n: a[:done] for n, a in whole.items()}, np.concatenate(kept) if kept else None


def _among(inputs: Feeds, batches: Sequence[Feeds]) -> NDArray[np.bool_]:
    """[n] which of the samples are in the batches, to the bit."""
    found = np.zeros(len(next(iter(inputs.values()))), bool)
    if any(a.shape[1:] != inputs[n].shape[1:] or a.dtype != inputs[n].dtype for b in batches for n, a in b.items()):
        return found
    sums = [_digests(b) for b in batches]
    return np.isin(_digests(inputs), np.concatenate(sums)) if sums else found


def _digests(arrays: Feeds) -> NDArray[np.uint64]:
    """[n] a number per sample that depends on all of its bytes; computed some samples at a time."""
    total = np.zeros(len(next(iter(arrays.values()))), np.uint64)
    for number, name in enumerate(sorted(arrays)):
        array = arrays[name]
        size = array[:1].nbytes
        weights = np.random.default_rng(number).integers(1, 2**63, size, np.uint64)
        for start in range(0, len(array), _READ):
            part = np.ascontiguousarray(array[start : start + _READ])
            total[start : start + _READ] += part.reshape(len(part), -1).view(np.uint8).astype(np.uint64) @ weights
    return total


def _joined(batches: Sequence[Batch]) -> tuple[Arrays, Array | None]:
    inputs = {n: np.concatenate([b.inputs[n] for b in batches]) for n in batches[0].inputs}
    labels = [b.labels for b in batches if b.labels is not None]
    return inputs, np.concatenate(labels) if labels else None


@dataclass
class Teacher:
    """A model that answers; answers about training inputs are computed once per view, and kept.

    names: of the tensors asked for. seconds: spent so far is counted by the caller.
    """

    proto: onnx.ModelProto
    names: list[str]
    room: Room
    _kept: dict[int, Arrays] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {o.name for o in self.proto.graph.output}
        extra = [n for n in self.names if n not in known]
        self._session = runtime.session(self.proto, optimize=True, extra=extra)
        fixed = {s.dims[0] for s in runtime.input_specs(self.proto) if s.dims and isinstance(s.dims[0], int)}
        self.chunk = fixed.pop() if len(fixed) == 1 else None

    def answers(self, feeds: Arrays) -> Arrays:
        """Tensors [n, ...] by name. Raises UnsupportedError for one that does not have the samples along axis 0."""
        count = len(next(iter(feeds.values())))
        if self.chunk is None:
            found = self._session.run(feeds, self.names)
        else:
            parts = range(0, count, self.chunk)
            runs = [self._session.run({n: a[i : i + self.chunk] for n, a in feeds.items()}, self.names) for i in parts]
            found = {n: self._stacked([r[n] for r in runs], count) for n in self.names}
        for name, array in found.items():
            if not array.ndim or len(array) != count:
                raise UnsupportedError(
                    f"'{name}' is {list(array.shape)} for {count} samples: outputs must have them along axis 0"
                )
        return found

    def _stacked(self, arrays: Sequence[Array], count: int) -> Array:
        whole = bool(arrays[0].ndim) and len(arrays) * len(arrays[0]) == count
        return np.concatenate(arrays) if whole else np.stack(arrays)

    def know(self, samples: Samples, view: int, batch: int, step: Callable[[], None]) -> Arrays:
        """Answers about all training inputs in one view, in the order of `samples.train`; `step` hears of
        every batch that begins."""
        if view not in self._kept:
            self._kept[view] = self.all_answers(samples, samples.train, view, batch, step)
        return self._kept[view]

    def all_answers(
        self, samples: Samples, rows: Rows, view: int | None, batch: int, step: Callable[[], None] = lambda: None
    ) -> Arrays:
        """Answers about some inputs, which may be more than memory holds, in batches."""
        found: Arrays = {}
        for start in range(0, len(rows), batch):
            step()
            part = rows[start : start + batch]
            for name, array in self.answers(samples.batch(part, view)).items():
                if name not in found:
                    found[name] = self.room.array((len(rows), *array.shape[1:]), array.dtype)
                found[name][start : start + len(part)] = array
        return found
