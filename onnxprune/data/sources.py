"""The two kinds of opened sources: tables, whose samples are counted and can be picked, and streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from onnxprune.data.columns import Column, Rows, describe, located
from onnxprune.data.inputs import check_finite
from onnxprune.data.streams import foreign, named
from onnxprune.errors import DataError
from onnxprune.graph import Array
from onnxprune.runtime import InputSpec

_PARTS = 16  # that columns are looked at in, to need little memory


class Piece(NamedTuple):
    """Some samples as the source holds them; rows: their numbers."""

    rows: Rows
    inputs: dict[str, Array]
    labels: Array | None


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of the same number of samples, by input name."""

    columns: dict[str, Column]
    labels: Column | None

    @property
    def count(self) -> int:
        return next(iter(self.columns.values())).count

    def text(self, name: str, _: Array) -> str:
        """What the source holds for an input."""
        return self.columns[name].text

    def check_counts(self) -> None:
        """Raise DataError where the columns differ in their number of samples."""
        counts = {n: c.count for n, c in self.columns.items()} | ({"labels": self.labels.count} if self.labels else {})
        if len(set(counts.values())) > 1:
            table = ", ".join(f"{count} of '{name}'" for name, count in counts.items())
            raise DataError(f"the numbers of samples (axis 0) differ: {table}")

    def check_values(self) -> None:
        """Raise DataError, with the sample's number, where floats of a size that allows it are not finite."""
        for name, column in ((n, c) for n, c in self.columns.items() if c.scan):
            groups = np.array_split(np.arange(column.count), min(column.count, _PARTS))
            for rows, values in zip(groups, column.read(groups), strict=True):
                with located(f"input '{name}' ({column.text})"):
                    check_finite(values, rows)

    def pieces(self, size: int, limit: int | None, seed: int | None) -> Iterator[Piece]:
        """The samples chosen, `size` at a time."""
        rows = self._choose(self.count if limit is None else min(limit, self.count), seed)
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        streams = {n: c.read(groups) for n, c in self.columns.items()}
        labels = self.labels.read(groups) if self.labels else None
        for group in groups:
            yield Piece(group, {n: next(s) for n, s in streams.items()}, None if labels is None else next(labels))

    def _choose(self, wanted: int, seed: int | None) -> Rows:
        """An even spread, or a random choice in random order, which is sorted where reading only goes forward."""
        if seed is None:
            return np.arange(wanted) * self.count // wanted
        chosen = np.random.default_rng(seed).permutation(self.count)[:wanted]
        parts = [*self.columns.values(), *([self.labels] if self.labels else [])]
        return np.sort(chosen) if any(c.ordered for c in parts) else chosen


@dataclass(frozen=True, slots=True)
class Stream:
    """Items that code gives, of any number of samples each; `start` begins anew."""

    start: Callable[[], Iterator[object]]
    inputs: Sequence[InputSpec]

    def text(self, _: str, array: Array) -> str:
        """What the source gave for an input."""
        return describe(array.shape, array.dtype)

    def pieces(self, size: int, limit: int | None, seed: int | None) -> Iterator[Piece]:  # noqa: ARG002 as they come
        """The samples in the order of the source, as many at a time as it gives; neither picked nor shuffled."""
        seen, labelled = 0, None
        for item in self.start():
            with foreign():
                arrays, labels = named(item, self.inputs)
            held = {n: a.copy() for n, a in arrays.items()}  # generators may fill the same array again
            count = _count(held, labels)
            if labelled not in {None, labels is not None}:
                raise DataError(f"labels come with some samples only; sample {seen} is the first that differs")
            labelled = labels is not None
            yield Piece(np.arange(seen, seen + count), held, None if labels is None else labels.copy())
            seen += count


def _count(inputs: dict[str, Array], labels: Array | None) -> int:
    arrays = inputs | ({} if labels is None else {"labels": labels})
    for name, array in arrays.items():
        if array.dtype.hasobject or not array.size or not array.ndim:
            raise DataError(
                f"'{name}' is {describe(array.shape, array.dtype)}: expected numbers, with samples along axis 0"
            )
    if len({len(a) for a in arrays.values()}) > 1:
        table = ", ".join(f"{len(a)} of '{n}'" for n, a in arrays.items())
        raise DataError(f"the numbers of samples (axis 0) differ in one item: {table}")
    return len(next(iter(arrays.values())))
