"""Operators with weights, and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nn

from onnxprune.errors import UnsupportedError
from onnxprune.student.table import op

_CONV = {1: nn.conv1d, 2: nn.conv2d, 3: nn.conv3d}
_TRANSPOSED = {1: nn.conv_transpose1d, 2: nn.conv_transpose2d, 3: nn.conv_transpose3d}
_AVERAGE: dict[int, Any] = {1: nn.avg_pool1d, 2: nn.avg_pool2d, 3: nn.avg_pool3d}
_MAX: dict[int, Any] = {1: nn.max_pool1d, 2: nn.max_pool2d, 3: nn.max_pool3d}
Sizes = Sequence[int]


def _padding(
    x: Tensor, kernel: Sizes, strides: Sizes, dilations: Sizes, pads: Sizes | None, auto_pad: str
) -> tuple[list[int], list[int]]:
    """Elements before and after each spatial axis."""
    rank = len(kernel)
    if auto_pad in ("NOTSET", ""):
        given = list(pads or [0] * 2 * rank)
        return given[:rank], given[rank:]
    if auto_pad == "VALID":
        return [0] * rank, [0] * rank
    before, after = [], []
    for size, k, s, d in zip(x.shape[-rank:], kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small = total // 2
        before.append(small if auto_pad == "SAME_UPPER" else total - small)
        after.append(total - before[-1])
    return before, after


def _padded(x: Tensor, before: Sizes, after: Sizes, value: float = 0.0) -> Tensor:
    widths = [w for pair in zip(reversed(before), reversed(after), strict=True) for w in pair]
    return nn.pad(x, widths, value=value) if any(widths) else x


@op("Conv")
def conv(
    X: Tensor,
    W: Tensor,
    B: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """Convolution over 1 to 3 axes."""
    kernel = list(kernel_shape or W.shape[2:])
    rank = len(kernel)
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    before, after = _padding(X, kernel, strides, dilations, pads, auto_pad)
    if before != after:
        X, before = _padded(X, before, after), [0] * rank
    return _CONV[rank](X, W, B, strides, before, dilations, group)


@op("ConvTranspose")
def conv_transpose(
    X: Tensor,
    W: Tensor,
    B: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    output_padding: Sizes | None = None,
    output_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """The full result, of which the padding is cut off."""
    kernel = list(kernel_shape or W.shape[2:])
    rank = len(kernel)
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    extra = list(output_padding or [0] * rank)
    full = _TRANSPOSED[rank](X, W, B, strides, 0, extra, group, dilations)
    if auto_pad.startswith("SAME") and output_shape is None:
        output_shape = [size * s for size, s in zip(X.shape[2:], strides, strict=True)]
    if output_shape is None:
        before, after = (list(pads or [0] * 2 * rank)[i : i + rank] for i in (0, rank))
    else:
        totals = [max(f - o, 0) for f, o in zip(full.shape[2:], list(output_shape)[-rank:], strict=True)]
        upper = auto_pad == "SAME_UPPER"
        before = [t // 2 if upper else t - t // 2 for t in totals]
        after = [t - b for t, b in zip(totals, before, strict=True)]
    return _padded(full, [-b for b in before], [-a for a in after])


@op("Gemm")
def gemm(
    A: Tensor,
    B: Tensor,
    C: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """alpha A B + beta C."""
    A, B = A.t() if transA else A, B.t() if transB else B
    if C is not None and C.ndim == 1 and alpha == beta == 1:
        return torch.addmm(C, A, B)
    product = A @ B if alpha == 1 else alpha * (A @ B)
    return product if C is None else product + (C if beta == 1 else beta * C)


@op("MatMul")
def matmul(A: Tensor, B: Tensor) -> Tensor:
    """Products of the last two axes."""
    return torch.matmul(A, B)


@op("Einsum")
def einsum(*x: Tensor, equation: str) -> Tensor:
    """As its equation says."""
    return torch.einsum(equation, *x)


@op("BatchNormalization")
def batch_normalization(
    X: Tensor,
    scale: Tensor,
    B: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
    is_test: int = 1,
) -> Tensor:
    """With the statistics that are stored, which stay as they are."""
    if training_mode or not spatial:
        raise UnsupportedError("BatchNormalization in training mode or over single elements is not known here")
    return nn.batch_norm(X, mean, var, scale, B, False, 0.0, epsilon)


@op("LayerNormalization")
def layer_normalization(
    X: Tensor,
    Scale: Tensor,
    B: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """Over all axes from `axis` on."""
    shape = X.shape[axis % X.ndim :]
    weight = Scale.expand(shape)
    return nn.layer_norm(X, shape, weight, None if B is None else B.expand(shape), epsilon)


@op("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(
    X: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Without the mean."""
    return nn.rms_norm(X, X.shape[axis % X.ndim :], scale, epsilon)


@op("InstanceNormalization")
def instance_normalization(X: Tensor, scale: Tensor, B: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Over the spatial axes of every channel."""
    return nn.instance_norm(X, weight=scale, bias=B, eps=epsilon)


@op("GroupNormalization")
def group_normalization(
    X: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """Over groups of channels; before operator set 21 scale and bias are per group."""
    each = X.shape[1] // scale.numel()
    scale, bias = (p.repeat_interleave(each) if each > 1 else p for p in (scale, bias))
    return nn.group_norm(X, num_groups, scale, bias, epsilon)


@op("LpNormalization")
def lp_normalization(X: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Divided by the norm along one axis."""
    return X / torch.linalg.vector_norm(X, p, axis, keepdim=True)


@op("LRN")
def lrn(X: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """Local response normalisation over channels."""
    return nn.local_response_norm(X, size, alpha, beta, bias)


# ---- pooling ---------------------------------------------------------------------------------------------------------


@op("GlobalAveragePool")
def global_average_pool(X: Tensor) -> Tensor:
    """Mean over the spatial axes."""
    return X.mean(tuple(range(2, X.ndim)), keepdim=True)


@op("GlobalMaxPool")
def global_max_pool(X: Tensor) -> Tensor:
    """Largest value over the spatial axes."""
    return X.amax(tuple(range(2, X.ndim)), keepdim=True)


@op("AveragePool")
def average_pool(
    X: Tensor,
    *,
    kernel_shape: Sizes,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """Mean over windows."""
    rank = len(kernel_shape)
    kernel, strides = list(kernel_shape), list(strides or [1] * rank)
    if any(d != 1 for d in dilations or ()):
        raise UnsupportedError("AveragePool with dilations is not known here")
    before, after = _padding(X, kernel, strides, [1] * rank, pads, auto_pad)
    pool = _AVERAGE[rank]
    even = before == after and all(2 * b <= k for b, k in zip(before, kernel, strict=True))
    if even:
        result: Tensor = pool(X, kernel, strides, before, bool(ceil_mode), bool(count_include_pad))
        return result
    summed: Tensor = pool(_padded(X, before, after), kernel, strides, 0, bool(ceil_mode))
    if count_include_pad:
        return summed
    ones = X.new_ones(X.shape[-rank:])[None, None]
    return summed / pool(_padded(ones, before, after), kernel, strides, 0, bool(ceil_mode))


@op("MaxPool")
def max_pool(
    X: Tensor,
    *,
    kernel_shape: Sizes,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sizes | None = None,
    pads: Sizes | None = None,
    storage_order: int = 0,
    strides: Sizes | None = None,
) -> Tensor:
    """Largest value in windows."""
    rank = len(kernel_shape)
    kernel, strides, dilations = list(kernel_shape), list(strides or [1] * rank), list(dilations or [1] * rank)
    before, after = _padding(X, kernel, strides, dilations, pads, auto_pad)
    if before != after or any(2 * b > k for b, k in zip(before, kernel, strict=True)):
        X, before = _padded(X, before, after, -torch.inf), [0] * rank
    result: Tensor = _MAX[rank](X, kernel, strides, before, dilations, bool(ceil_mode))
    return result


# ---- quantisation ----------------------------------------------------------------------------------------------------


def along(x: Tensor, rank: int, axis: int) -> Tensor:
    """One value per position of an axis, to be broadcast; scalars as they are."""
    return x.reshape([-1 if a == axis % rank else 1 for a in range(rank)]) if x.numel() > 1 and rank else x.reshape(())


def rounded(x: Tensor, low: int, high: int) -> Tensor:
    """Rounded and clipped, with the gradient of the clipped (straight-through, Bengio 2013)."""
    inside = torch.clamp(x, low, high)
    return inside + (torch.round(inside) - inside).detach()


def fake_quantise(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int, low: int, high: int) -> Tensor:
    """What is left of floats when they are stored as integers."""
    scale = along(scale, x.ndim, axis)
    shift = scale.new_zeros(()) if zero is None else along(zero.to(scale.dtype), x.ndim, axis)
    return (rounded(x / scale + shift, low, high) - shift) * scale


@op("QuantizeLinear")
def quantize_linear(
    x: Tensor, y_scale: Tensor, y_zero_point: Tensor | None = None, *, axis: int = 1, block_size: int = 0, **_: Any
) -> Tensor:
    """Whole numbers, held as floats so that gradients pass."""
    if block_size:
        raise UnsupportedError("blocked quantisation is not known here")
    limits = torch.iinfo(torch.uint8 if y_zero_point is None else y_zero_point.dtype)
    scale = along(y_scale, x.ndim, axis)
    shift = scale.new_zeros(()) if y_zero_point is None else along(y_zero_point.to(x.dtype), x.ndim, axis)
    return rounded(x / scale + shift, int(limits.min), int(limits.max))


@op("DequantizeLinear")
def dequantize_linear(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None = None, *, axis: int = 1, block_size: int = 0, **_: Any
) -> Tensor:
    """(x - zero point) * scale."""
    if block_size:
        raise UnsupportedError("blocked quantisation is not known here")
    scale = along(x_scale, x.ndim, axis)
    shift = 0 if x_zero_point is None else along(x_zero_point.to(scale.dtype), x.ndim, axis)
    return (x.to(scale.dtype) - shift) * scale
