"""Linear layers as matrices: what a Conv, ConvTranspose, Gemm or MatMul multiplies, row by row.

A layer is y = x W + b for each *position*: a pixel of its output, a token, an image. `Linear.rows` gathers what the
positions read (im2col), `Linear.outputs` what they give, `Linear.matrix` the weight that connects the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import NodeProto, helper

from onnxprune.graph import Array

Reals = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Positions:
    """Chosen positions of a layer's output, [n]: sample (axis 0), flat index over the other axes but the channels."""

    sample: Indices
    place: Indices


@dataclass(frozen=True)
class Linear:
    """One linear layer.

    node: its name or first output, for messages; x, y, weight: tensors; bias: what its own bias input reads, "" without
    one; shape: of the weight; groups: independent systems; kernel, strides, dilations, pads: of a convolution, spatial
    axes only, pads with all begins first; transposed: the weight is [channels, inputs]; left: it multiplies from the
    left, W @ x.
    """

    node: str
    op: str
    x: str
    y: str
    weight: str
    bias: str
    shape: tuple[int, ...]
    groups: int = 1
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"
    output_padding: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    transposed: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    left: bool = False

    @property
    def convolves(self) -> bool:
        """Whether it is a convolution (else a matrix product)."""
        return self.op in ("Conv", "ConvTranspose")

    @property
    def axis(self) -> int:
        """The axis of the channels, in the input and in the output."""
        return 1 if self.convolves else -2 if self.left else -1

    @cached_property
    def kernel(self) -> tuple[int, ...]:
        """Spatial size of the kernel; () for a matrix."""
        return self.shape[2:] if self.convolves else ()

    @property
    def taps(self) -> int:
        """Elements of the kernel per channel."""
        return prod(self.kernel)

    @property
    def inputs(self) -> int:
        """Channels that the layer reads."""
        if self.op == "Conv":
            return self.shape[1] * self.groups
        return self.shape[1] if self.transposed else self.shape[0]

    @property
    def channels(self) -> int:
        """Channels that the layer gives."""
        if self.op == "ConvTranspose":
            return self.shape[1] * self.groups
        if self.op == "Conv":
            return self.shape[0]
        return self.shape[0] if self.transposed else self.shape[1]

    @property
    def unknowns(self) -> int:
        """Weights per output channel: the order of one system."""
        return self.inputs // self.groups * self.taps

    def matrix(self, weight: Array) -> Reals:
        """[groups, taps * inputs/group, channels/group] of a weight, taps varying slowest."""
        w = np.asarray(weight, np.float32)
        if not self.convolves:
            return (w.T if self.transposed else w)[None]
        w = w.reshape(self.groups, w.shape[0] // self.groups, w.shape[1], self.taps)
        # Conv [g, out/g, in/g, k], ConvTranspose [g, in/g, out/g, k] -> [g, k, in/g, out/g]
        w = w.transpose(0, 3, 2, 1) if self.op == "Conv" else w.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(w).reshape(self.groups, -1, w.shape[3])

    def from_matrix(self, matrix: Array) -> Array:
        """The weight of a matrix: the inverse of `matrix`."""
        if not self.convolves:
            return np.ascontiguousarray(matrix[0].T if self.transposed else matrix[0])
        w = matrix.reshape(self.groups, self.taps, -1, matrix.shape[2])
        w = w.transpose(0, 3, 2, 1) if self.op == "Conv" else w.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(w).reshape(self.shape)

    def samples(self, y_shape: Sequence[int]) -> int:
        """Samples in an output of this shape: its first axis, or 1 where that holds the channels."""
        return y_shape[0] if self.axis % len(y_shape) else 1

    def places(self, y_shape: Sequence[int]) -> int:
        """Positions per sample of an output of this shape."""
        axis = self.axis % len(y_shape)
        return prod(y_shape[1:axis]) * prod(y_shape[axis + 1 :])

    def outputs(self, y: Array, at: Positions) -> Array:
        """[n, channels] of an output (or of anything of its shape)."""
        return self._read(y, at)

    def rows(self, x: Array, at: Positions) -> Reals:
        """[groups, n, taps * inputs/group]: what these positions read of an input, times alpha."""
        if self.convolves:
            index = self._index(at.place, x.shape[2:])
            taps = _gather(x.reshape(*x.shape[:2], -1), at.sample, index, self.groups)
            found = taps.reshape(*taps.shape[:2], taps.shape[2] * taps.shape[3])
        else:
            found = self._read(x, at)[None]
        rows = found.astype(np.float32, copy=False)
        return rows if self.alpha == 1 else rows * np.float32(self.alpha)

    def windows(self, x: Array) -> Reals:
        """[groups, samples, *grid, *kernel, inputs/group]: what all positions of a Conv read; a view of its input."""
        rank, pads = len(self.kernel), self.padding(x.shape[2:])
        around = list(zip(pads[:rank], pads[rank:], strict=True))
        size = [begin + d + end for d, (begin, end) in zip(x.shape[2:], around, strict=True)]
        padded = np.zeros((self.groups, len(x), *size, self.inputs // self.groups), np.float32)
        inner = tuple(slice(begin, length - end) for length, (begin, end) in zip(size, around, strict=True))
        padded[:, :, *inner] = np.moveaxis(x.reshape(len(x), self.groups, -1, *x.shape[2:]), (1, 2), (0, -1))
        seen = sliding_window_view(padded, self.reach, tuple(range(2, 2 + rank)))  # the channels before the kernel
        strides, dilations = ([slice(None, None, s) for s in steps] for steps in (self.strides, self.dilations))
        return np.moveaxis(seen[:, :, *strides, :, *dilations], 2 + rank, -1)

    def padding(self, size: Sequence[int]) -> list[int]:
        """Pads of an input of this spatial size, begins first; `output_shape` may leave other ends than these."""
        if not self.output_shape and not self.auto_pad.startswith("SAME"):
            return list(self.pads)  # none with VALID
        if self.op == "Conv":
            axes = zip(size, self.strides, self.reach, strict=True)
            total = [max(0, (-(-d // s) - 1) * s + r - d) for d, s, r in axes]
        else:
            wanted = self.output_shape or [d * s for d, s in zip(size, self.strides, strict=True)]
            total = [max(0, full - w) for full, w in zip(self._full(size), wanted, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        # Conv's SAME_LOWER and every ConvTranspose but SAME_UPPER put the odd one in front
        in_front = self.auto_pad == "SAME_LOWER" or (self.op == "ConvTranspose" and self.auto_pad != "SAME_UPPER")
        return large + small if in_front else small + large

    @cached_property
    def reach(self) -> list[int]:
        """Extent of the dilated kernel."""
        return [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]

    def _full(self, size: Sequence[int]) -> list[int]:
        """Spatial size of a ConvTranspose's output before its pads are cut off."""
        axes = zip(size, self.strides, self.reach, self.output_padding, strict=True)
        return [(d - 1) * s + r + extra for d, s, r, extra in axes]

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial size of the output for an input of this one."""
        pads = self.padding(size)
        around = [begin + end for begin, end in zip(pads[: len(size)], pads[len(size) :], strict=True)]
        if self.op == "Conv":
            axes = zip(size, around, self.reach, self.strides, strict=True)
            return tuple((d + p - r) // s + 1 for d, p, r, s in axes)
        return self.output_shape or tuple(full - p for full, p in zip(self._full(size), around, strict=True))

    def _index(self, place: Indices, size: Sequence[int]) -> Indices:
        """What each tap of these places reads: flat index over the spatial axes, [n, taps]; negative for a zero."""
        pads = self.padding(size)
        grid = self.grid(size)
        if len(place) > prod(grid):  # places recur
            return self._index(np.arange(prod(grid)), size).take(place, axis=0)
        flat: Indices = np.zeros((len(place), 1), np.int64)
        for i, corner in enumerate(np.unravel_index(place, grid)):
            taps = np.arange(self.kernel[i]) * self.dilations[i]
            out, pad, stride = np.arange(grid[i])[:, None], pads[i], self.strides[i]
            # a ConvTranspose reads what reaches this output; its stride leaves zeros between
            at, step = (out * stride - pad + taps, 1) if self.op == "Conv" else (out + pad - taps, stride)
            inside = (at >= 0) & (at < step * size[i]) & (at % step == 0)
            # one zero among the axes makes the sum negative
            table = np.where(inside, at // step * prod(size[i + 1 :]), -prod(size))  # [output, k]
            flat = (flat[:, :, None] + table[corner][:, None, :]).reshape(len(place), flat.shape[1] * len(taps))
        return flat

    def _read(self, t: Array, at: Positions) -> Array:
        """[n, channels] of an input or output at the positions themselves."""
        axis = self.axis % t.ndim
        before, behind = prod(t.shape[1:axis]), prod(t.shape[axis + 1 :])
        columns = t.reshape(self.samples(t.shape) * before, t.shape[axis], behind)
        outer, inner = np.divmod(at.place, behind)
        sample = at.sample * before + outer
        if behind == 1:
            return columns[:, :, 0].take(sample, axis=0)
        return _gather(columns, sample, inner[:, None])[0, :, 0]


def _gather(x: Array, sample: Indices, index: Indices, groups: int = 1) -> Array:
    """x [samples, channels, places] at index [n, taps], zero where that is negative -> [g, n, taps, channels/g]."""
    n, channels, size = x.shape
    split, outside = x.reshape(n, groups, channels // groups, size), index < 0
    if index.size <= n * size:  # few of many: do not turn the whole array round
        found = split[sample[:, None], :, :, np.where(outside, 0, index)]  # [n, taps, g, channels/g]
        found[outside] = 0
        return np.ascontiguousarray(found.transpose(2, 0, 1, 3))
    last = np.zeros((groups, n * size + 1, channels // groups), x.dtype)  # with a row of zeros at the end
    last[:, :-1].reshape(groups, n, size, -1)[...] = split.transpose(1, 0, 3, 2)
    taken: Array = last.take(np.where(outside, n * size, sample[:, None] * size + index), axis=1)
    return taken


def product(a: Array, b: Array) -> Array:
    """a' b per group, [groups, n, d] and [groups, n, m] -> [groups, d, m]; where b is a, BLAS makes one half only."""
    made: Array = (a[0].T @ b[0])[None] if len(a) == 1 else a.transpose(0, 2, 1) @ b
    return made


def linear(node: NodeProto, shape: tuple[int, ...], weight: str) -> Linear | str:
    """The layer of a node whose weight is the initializer `weight` of this shape; a reason where there is none."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
        return f"{node.op_type} is not a linear layer"
    left = node.input[0] == weight
    if left and node.op_type != "MatMul":
        return "its weight is where its input should be"
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    bias = node.input[2] if len(node.input) > 2 else ""
    base = (node.name or node.output[0], node.op_type, node.input[int(left)], node.output[0], weight, bias, shape)
    if node.op_type in ("Conv", "ConvTranspose"):
        return _convolution(base, attrs)
    if len(shape) != 2:
        return "its weight is not a matrix"
    if attrs.get("transA"):
        return "it reads its input transposed"
    return Linear(
        *base,
        transposed=left or bool(attrs.get("transB")),
        alpha=float(attrs.get("alpha", 1.0)),
        beta=float(attrs.get("beta", 1.0)),
        left=left,
    )


def _convolution(base: tuple[str, str, str, str, str, str, tuple[int, ...]], attrs: dict[str, Any]) -> Linear:
    n = len(base[-1]) - 2
    return Linear(
        *base,
        groups=int(attrs.get("group", 1)),
        strides=tuple(attrs.get("strides") or (1,) * n),
        dilations=tuple(attrs.get("dilations") or (1,) * n),
        pads=tuple(attrs.get("pads") or (0,) * (2 * n)),
        auto_pad=attrs.get("auto_pad", b"NOTSET").decode(),
        output_padding=tuple(attrs.get("output_padding") or (0,) * n),
        output_shape=tuple(attrs.get("output_shape") or ())[-n:],
    )
