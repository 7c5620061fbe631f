"""Multiply-accumulates, parameters and bytes of a model in which only some classes are kept.

Every count is a sum of products of axis lengths (`Product`). The lengths are linear in the kept classes, so one sparse
matrix of multiplicities gives them all, and the sums are exact in int64 for any choice of classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from onnxprune.analysis import Analysis, Labels, Mask, Product

Kind = Literal["flops", "params", "size", "latency"]
Counts = NDArray[np.int64]
Sparse = Any  # scipy.sparse array; the stubs are an optional development dependency


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs: multiply-accumulates of its layers, elements of its parameters, bytes of its file."""

    macs: int
    params: int
    bytes: int

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.macs - other.macs, self.params - other.params, self.bytes - other.bytes)

    def of(self, kind: Kind) -> int:
        """The number that a budget of this kind bounds."""
        return {"flops": self.macs, "params": self.params, "size": self.bytes}[kind]

    def fractions(self, whole: Cost) -> dict[str, float]:
        """Share of `whole` per count, 0..1; 1 where the whole has none."""
        names = ("macs", "params", "bytes")
        pairs = ((name, getattr(self, name), getattr(whole, name)) for name in names)
        return {name: part / total if total else 1.0 for name, part, total in pairs}


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds of a node as a function of its widths, interpolated linearly along both.

    inputs, outputs: the classes along both axes; at_inputs [n], at_outputs [m]: increasing widths; seconds [n, m];
    block: widths above it count as the next multiple of it, and all outputs do.
    """

    inputs: Labels
    outputs: Labels
    at_inputs: NDArray[np.int64]
    at_outputs: NDArray[np.int64]
    seconds: NDArray[np.float64]
    block: int

    def scaled(self, factor: float) -> Duration:
        """The same, so many times as long."""
        return replace(self, seconds=self.seconds * factor)

    def at(self, widths: Counts) -> NDArray[np.float64]:
        """Seconds at the widths [k, 2], [k]; beyond the ends those at the ends."""
        whole = -(-widths // self.block) * self.block
        narrow = np.where(widths < self.block, widths, whole)
        (i, x), (o, y) = _between(self.at_inputs, narrow[:, 0]), _between(self.at_outputs, whole[:, 1])
        rows, columns = np.minimum(i + 1, len(self.at_inputs) - 1), np.minimum(o + 1, len(self.at_outputs) - 1)
        near = self.seconds[i, o] * (1 - y) + self.seconds[i, columns] * y
        far = self.seconds[rows, o] * (1 - y) + self.seconds[rows, columns] * y
        result: NDArray[np.float64] = near * (1 - x) + far * x
        return result


def _between(grid: NDArray[np.int64], widths: Counts) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The grid point below each width, and how far it is on the way to the next, 0..1."""
    place = np.interp(widths, grid, np.arange(len(grid)))
    below = np.floor(place).astype(np.intp)
    return below, place - below


class CostModel:
    """Exact costs for any choice of classes.

    analysis: the coupled model; overhead_bytes: what the file holds beside the parameters; durations: of all nodes,
    whose sum is the latency as predicted, in picoseconds.
    """

    def __init__(self, analysis: Analysis, overhead_bytes: int = 0, durations: Sequence[Duration] = ()) -> None:
        axes, elements = Distinct(), analysis.elements
        self._sums: dict[Kind, _Sum | _Durations] = {
            "flops": _Sum(((layer.macs, 1) for layer in analysis.layers), axes),
            "params": _Sum(((e.elements, 1) for e in elements), axes),
            "size": _Sum(((e.elements, e.itemsize) for e in elements), axes, overhead_bytes),
            "latency": _Durations(durations, axes),
        }
        self.scarce: Kind = "latency" if durations else "flops"  # what a choice is to save
        self._axes = multiplicities(axes.labels, analysis.classes)  # [axes, classes + 1]
        self._full = self._lengths(np.ones(analysis.classes + 1, np.bool_))
        self.original = self.evaluate(np.ones(analysis.classes + 1, np.bool_))

    def evaluate(self, kept: Mask) -> Cost:
        """Cost with only these classes, `kept` [classes + 1] bool with `kept[0]` true."""
        lengths = self._lengths(kept)
        return Cost(*(self._sums[kind].total(lengths) for kind in ("flops", "params", "size")))

    def value(self, kept: Mask, kind: Kind) -> int:
        """One of the three numbers of `evaluate`."""
        return self._sums[kind].total(self._lengths(kept))

    def after(self, kept: Mask, moves: Sparse, kind: Kind) -> Counts:
        """Cost after each of many alternative moves, [moves] int64, exact.

        kept: [classes + 1] bool; moves: sparse int [classes + 1, moves], 1 where a kept class leaves and -1 where a
        removed one comes back.
        """
        return self._sums[kind].after(self._lengths(kept), (self._axes @ moves).tocsr())

    def whole(self, kind: Kind) -> int:
        """The cost with all classes."""
        return self._sums[kind].total(self._full)

    def saved(self, kept: Mask, removals: Sequence[NDArray[Any]]) -> Counts:
        """MACs, or latency where durations are known, that each of many alternative removals saves, [removals] int64; a
        removal is an array of kept class ids.
        """
        ids = np.concatenate([np.zeros(0, np.int64), *removals])
        starts = np.cumsum([0, *(len(r) for r in removals)])
        after = self.after(kept, removal_matrix(ids, starts, len(kept)), self.scarce)
        saved: Counts = self.value(kept, self.scarce) - after
        return saved

    def _lengths(self, kept: Mask) -> Counts:
        """[axes] kept positions."""
        result: Counts = self._axes @ kept.astype(np.int64)
        return result


def removal_matrix(ids: NDArray[Any], starts: NDArray[Any], rows: int) -> Sparse:
    """Sparse int64 [rows, removals] with ones at the class ids `ids[starts[i] : starts[i + 1]]` of removal i."""
    return sparse.csc_array((np.ones(len(ids), np.int64), ids, starts), shape=(rows, len(starts) - 1))


def multiplicities(labels: Sequence[Labels], classes: int) -> Sparse:
    """How many positions of each axis belong to each class, sparse int64 [axes, classes + 1]."""
    columns = np.concatenate([np.zeros(0, np.int32), *labels])
    starts = np.cumsum([0, *(len(x) for x in labels)])
    matrix = sparse.csr_array((np.ones(len(columns), np.int64), columns, starts), shape=(len(labels), classes + 1))
    matrix.sum_duplicates()
    return matrix


class Distinct:
    """Label arrays without repetition: `add` returns the index of an equal array in `labels`.

    free: whether any position of it is of a class that can leave.
    """

    def __init__(self) -> None:
        self.labels: list[Labels] = []
        self.free: list[bool] = []
        self._seen: dict[bytes, int] = {}
        self._known: dict[int, tuple[int, Labels]] = {}  # by identity, which is cheaper to look up

    def add(self, labels: Labels) -> int:
        """Index of this array; it joins `labels` at its first appearance."""
        known = self._known.get(id(labels))
        if known is not None:
            return known[0]
        flat = np.ascontiguousarray(labels, np.int32)
        index = self._seen.setdefault(flat.tobytes(), len(self.labels))
        if index == len(self.labels):
            self.labels.append(flat)
            self.free.append(bool(flat.any()))
        self._known[id(labels)] = index, labels
        return index


class _Sum:
    """constant + sum over terms of factor * (product of the kept lengths of its axes)."""

    def __init__(self, products: Iterable[tuple[Product, int]], axes: Distinct, constant: int = 0) -> None:
        terms = dict[tuple[int, ...], int]()
        one = axes.add(np.zeros(1, np.int32))  # a frozen axis of length 1: pads terms to the same rank
        for product, weight in products:
            factor = weight * product.factor
            live = []
            for dim in product.dims:
                index = axes.add(dim)
                if axes.free[index]:
                    live.append(index)
                else:
                    factor *= len(dim)
            key = tuple(sorted(live))
            terms[key] = terms.get(key, 0) + factor
        rank = max(map(len, terms), default=0)
        index_of = list(chain.from_iterable((*key, *[one] * (rank - len(key))) for key in terms))
        self._constant = constant
        self._index = np.array(index_of, np.int64).reshape(len(terms), rank)  # [terms, rank] -> axes
        self._factor = np.array(list(terms.values()), np.int64)  # [terms]

    def total(self, lengths: Counts) -> int:
        return self._constant + int(self._factor @ lengths[self._index].prod(axis=1))

    def after(self, lengths: Counts, change: Sparse) -> Counts:
        """change: [axes, moves], by how much each move shortens each axis."""
        term, move, old, new = _changed(self._index, lengths, change)
        result = np.full(change.shape[1], self.total(lengths), np.int64)
        np.add.at(result, move, self._factor[term] * (new.prod(axis=1) - old.prod(axis=1)))
        return result


class _Durations:
    """Sum of the durations of nodes, in picoseconds, so that it is exact in integers."""

    def __init__(self, durations: Sequence[Duration], axes: Distinct) -> None:
        self._durations = durations
        self._index = np.array([[axes.add(d.inputs), axes.add(d.outputs)] for d in durations], np.int64).reshape(-1, 2)

    def total(self, lengths: Counts) -> int:
        return int(self._values(np.arange(len(self._durations)), lengths[self._index]).sum())

    def after(self, lengths: Counts, change: Sparse) -> Counts:
        """change: [axes, moves], by how much each move shortens each axis."""
        term, move, old, new = _changed(self._index, lengths, change)
        result = np.full(change.shape[1], self.total(lengths), np.int64)
        np.add.at(result, move, self._values(term, new) - self._values(term, old))
        return result

    def _values(self, term: Counts, lengths: Counts) -> Counts:
        """Picoseconds of these terms at these lengths [k, 2], [k]."""
        result = np.zeros(len(term), np.int64)
        for i in np.unique(term).tolist():
            mine = term == i
            result[mine] = np.round(self._durations[i].at(lengths[mine]) * 1e12)
        return result


def _changed(index: Counts, lengths: Counts, change: Sparse) -> tuple[Counts, Counts, Counts, Counts]:
    """(term, move, lengths before, after [pairs, rank]) wherever a move changes an axis of a term.

    index: [terms, rank] -> axes.
    """
    term, slot, move, less = _touched(index, change)
    pair, where = np.unique(term * change.shape[1] + move, return_inverse=True)
    term, move = np.divmod(pair, change.shape[1])
    old = lengths[index[term]]  # [pairs, rank]
    new = old.copy()
    new[where, slot] -= less
    return term, move, old, new


def _touched(index: Counts, change: Sparse) -> tuple[Counts, Counts, Counts, Counts]:
    """(term, slot, move, change of the length) wherever a move changes an axis of a term."""
    parts = [change[index[:, slot]].tocoo() for slot in range(index.shape[1])]
    none = np.zeros(0, np.int64)
    slots = [np.full(part.nnz, slot) for slot, part in enumerate(parts)]
    columns = ([p.row for p in parts], slots, [p.col for p in parts], [p.data for p in parts])
    term, slot, move, delta = (np.concatenate([none, *c]).astype(np.int64) for c in columns)
    return term, slot, move, delta
