"""Reading weights as criteria want them: as floats, with a following BatchNormalization folded in, reduced per axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Analysis, Axis
from onnxprune.graph import FLOATS, Array, Node, Tensor, values

Fold = tuple[int, NDArray[np.float64]]
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_BLOCK = 1 << 17  # elements per block: the squares of one block stay in the cache between the two products


def floats(param: Tensor) -> Array | None:
    """The real numbers that a parameter stands for; None for element types that must not be touched."""
    array = values(param)
    if array is None or array.dtype in FLOATS:
        return array
    reader = next((n for n in param.outputs if n.op == "DequantizeLinear" and n.inputs[0] is param), None)
    return array.astype(np.float32) if reader is None else _dequantised(reader, array)


def _dequantised(node: Node, array: Array) -> Array:
    """(array - zero point) * scale; with scales per block the integers as they are, which still rank within a block."""
    scale, zero = ([values(t) for t in node.inputs[1:]] + [np.zeros(1, np.float32)])[:2]
    real = array.astype(np.float32)
    if scale is None or zero is None or scale.ndim > 1:
        return real
    shape = [1] * array.ndim
    if scale.size > 1:
        shape[int(node.attrs.get("axis", 1))] = -1
    result: Array = (real - _along(zero, shape)) * _along(scale, shape)
    return result


def _along(vector: Array, shape: list[int]) -> Array:
    return vector.astype(np.float32).reshape(shape if vector.size > 1 else [1] * len(shape))


def batchnorm_folds(analysis: Analysis) -> dict[str, tuple[Fold, str]]:
    """Weights of layers that feed nothing but a BatchNormalization.

    Maps their name to ((axis, gamma / sqrt(var + eps) [dim]), name of gamma).
    """
    outs: dict[str, list[Axis]] = {}
    for axis in analysis.axes:
        if axis.role == "out":
            outs.setdefault(axis.param, []).append(axis)
    vectors = {a.param: a for a in analysis.axes if a.role == "with"}
    visible = {t.name for t in analysis.model.graph.outputs} | analysis.model.captured
    folds = {}
    for bn in analysis.model.graph.nodes:
        if bn.op != "BatchNormalization" or not _only_reader(bn, visible) or bn.inputs[1].name not in vectors:
            continue
        gamma, var = values(bn.inputs[1]), values(bn.inputs[4])
        if gamma is None or var is None:
            continue
        scale = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + bn.attrs.get("epsilon", 1e-5))
        for weight in bn.inputs[0].inputs[0].inputs:
            for axis in outs.get(weight.name, ()):
                same = np.array_equal(axis.classes, vectors[bn.inputs[1].name].classes)
                if same and len(weight.outputs) == 1:
                    folds[weight.name] = ((axis.axis, scale), bn.inputs[1].name)
    return folds


def _only_reader(bn: Node, visible: set[str] | frozenset[str]) -> bool:
    x = bn.inputs[0]
    return len(x.inputs) == 1 and x.inputs[0].op in LAYERS and len(x.outputs) == 1 and x.name not in visible


def axis_sums(analysis: Analysis, axes: Sequence[Axis], p: int) -> list[NDArray[np.float64]]:
    """Sum of abs(w)^p over all other axes, BatchNormalization folded in; one [dim] float64 per axis.

    The weights are read once for all their axes, in blocks; nothing as large as a weight is allocated. Sums are float32
    where the weights have 32 bits or fewer.
    """
    constants, folds = analysis.model.constants(), batchnorm_folds(analysis)
    wanted: dict[str, list[int]] = {}
    for i, axis in enumerate(axes):
        wanted.setdefault(axis.param, []).append(i)
    sums = [np.zeros(len(axis.classes)) for axis in axes]
    for name, indices in wanted.items():
        array = floats(constants[name])
        if array is None:
            continue
        fold = folds[name][0] if name in folds else None
        numbers = [axes[i].axis for i in indices]
        for i, result in zip(indices, _reduce(array, numbers, p, fold), strict=True):
            sums[i] = result
    return sums


def _reduce(array: Array, axes: Sequence[int], p: int, fold: Fold | None) -> list[NDArray[np.float64]]:
    """Sum of abs(scaled array)^p over all but one axis, for each of `axes`."""
    lead = next((i for i, d in enumerate(array.shape) if d > 1), 0)  # [1, 4h, i] of an LSTM: rows are on axis 1
    inner = array.shape[lead + 1 :]
    matrix = array.reshape(array.shape[lead], -1)
    kind = np.float64 if array.dtype == np.float64 else np.float32
    by_row, by_column = np.ones(len(matrix), kind), np.ones(inner, kind)
    if fold is not None:
        scale = np.abs(fold[1] ** p).astype(kind)
        if fold[0] == lead:
            by_row = scale
        elif fold[0] > lead:
            by_column = by_column * scale.reshape([-1 if i == fold[0] - lead - 1 else 1 for i in range(len(inner))])
    rows, columns = _powers(matrix, p, by_row, by_column.reshape(-1), only_rows=all(a <= lead for a in axes))
    whole = columns.astype(np.float64).reshape(inner)
    return [_one(rows, whole, a - lead) for a in axes]


def _one(rows: Array, columns: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    if axis < 0:  # an axis of length 1 in front of the rows
        return np.array([rows.sum(dtype=np.float64)])
    if axis == 0:
        return rows.astype(np.float64)
    result: NDArray[np.float64] = columns.sum(axis=tuple(i for i in range(columns.ndim) if i != axis - 1))
    return result


def _powers(matrix: Array, p: int, by_row: Array, by_column: Array, *, only_rows: bool) -> tuple[Array, Array]:
    """Row and column sums of abs(matrix)^p times the outer product of the two scales: [rows], [columns]."""
    step = max(1, _BLOCK // max(1, matrix.shape[1]))
    buffer = np.empty((min(step, len(matrix)), matrix.shape[1]), by_row.dtype)
    rows, columns = np.zeros(len(matrix), by_row.dtype), np.zeros(matrix.shape[1], by_row.dtype)
    for start in range(0, len(matrix), step):
        block = matrix[start : start + step]
        power = buffer[: len(block)]
        if block.dtype != power.dtype:
            np.copyto(power, block, casting="unsafe")
            block = power
        if p == 1:
            np.abs(block, out=power)
        else:
            np.square(block, out=power)
        rows[start : start + step] = power @ by_column
        if not only_rows:
            columns += by_row[start : start + step] @ power
    return rows * by_row, columns * by_column


def rows_by_class(rows: Array, place: NDArray[np.int64], classes: int) -> Array:
    """[positions, d] -> [classes, occurrences * d]: rows of one class side by side, zeros where it has fewer."""
    positions = np.flatnonzero(place >= 0)
    positions = positions[np.argsort(place[positions], kind="stable")]
    to = place[positions]
    occurrence = np.arange(len(to)) - np.searchsorted(to, to)
    result = np.zeros((classes, int(occurrence.max(initial=0)) + 1, rows.shape[1]), rows.dtype)
    result[to, occurrence] = rows[positions]
    return result.reshape(classes, -1)
