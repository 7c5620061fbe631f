"""What describes the filters of a group, for criteria that compare them with each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Analysis, Axis
from onnxprune.criteria.weights import Fold, batchnorm_folds, floats, rows_by_class
from onnxprune.graph import Array

Places = NDArray[np.int64]
Group = tuple[Places, list[tuple[Axis, Places]]]  # class ids [n]; axes with the place of each position in them, or -1


def groups_of(analysis: Analysis, roles: Iterable[str]) -> list[Group]:
    """The classes of every group, and the axes of these roles that they lie on."""
    wanted, found = set(roles), list[Group]()
    order = np.argsort(analysis.group, kind="stable")
    starts = np.searchsorted(analysis.group[order], np.arange(len(analysis.groups) + 2))
    axes: dict[int, list[Axis]] = {}
    for axis in (a for a in analysis.axes if a.role in wanted):
        for group in np.unique(analysis.group[axis.classes]):
            axes.setdefault(int(group), []).append(axis)
    for group in range(1, len(analysis.groups) + 1):
        ids = order[starts[group] : starts[group + 1]]
        place = np.full(analysis.classes + 1, -1)
        place[ids] = np.arange(len(ids))
        found.append((ids, [(a, place[a.classes]) for a in axes.get(group, ())]))
    return found


class Folded:
    """The weights as floats, a following BatchNormalization folded in."""

    def __init__(self, analysis: Analysis) -> None:
        self._constants = analysis.model.constants()
        self._folds: dict[str, Fold] = {name: fold for name, (fold, _) in batchnorm_folds(analysis).items()}
        users = {t.name: n.op for n in analysis.model.graph.nodes for t in n.inputs}
        self._convolves = {name for name, op in users.items() if op in ("Conv", "ConvTranspose")}

    def rows(self, axis: Axis) -> Array | None:
        """[positions, d] float32 or float64: what lies at each position of an axis; None where it cannot be read."""
        array = self._array(axis.param)
        if array is None:
            return None
        rows: Array = np.moveaxis(array, axis.axis, 0).reshape(array.shape[axis.axis], -1)
        return rows

    def kernel_norms(self, axis: Axis) -> Array | None:
        """[positions, filters or channels]: the norm of each kernel at each position (one weight, where no layer
        convolves).
        """
        array = self._array(axis.param)
        if array is None:
            return None
        rows = np.moveaxis(array, axis.axis, 0)
        if axis.param not in self._convolves:
            each: Array = np.abs(rows.reshape(len(rows), -1))
            return each
        norms: Array = np.sqrt(np.square(rows.reshape(*rows.shape[:2], -1)).sum(2))
        return norms

    def _array(self, name: str) -> Array | None:
        array = floats(self._constants[name])
        if array is None:
            return None
        array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
        if name not in self._folds:
            return array
        axis, scale = self._folds[name]
        folded: Array = array * scale.astype(array.dtype).reshape([-1 if i == axis else 1 for i in range(array.ndim)])
        return folded


def side_by_side(parts: Sequence[tuple[Places, Array]], count: int) -> Array:
    """[count, d]: the rows of each of `count` classes from several layers, [positions, d] each, in units of the layer's
    mean norm, so that no layer outvotes the others; divided by the root of the number of layers.
    """
    matrices = [rows_by_class(rows, place, count) for place, rows in parts]
    if not matrices:
        return np.zeros((count, 1), np.float32)
    scaled = []
    for matrix in matrices:
        mean = float(np.sqrt(np.einsum("nd,nd->n", matrix, matrix)).mean())
        scaled.append(matrix / np.asarray((mean or 1.0) * len(matrices) ** 0.5, matrix.dtype))
    return np.concatenate(scaled, axis=1)
