"""Operators that work on each element, with broadcasting."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nn

from onnxprune.errors import UnsupportedError
from onnxprune.student.table import OPS, op

_TYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
_PLAIN: dict[str, Any] = {  # the same function under the same inputs, without attributes
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Add": torch.add,
    "And": torch.logical_and,
    "Atan": torch.atan,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "Mish": nn.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": nn.softplus,
    "Softsign": nn.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "Where": torch.where,
    "Xor": torch.logical_xor,
}
OPS.update({("", name): function for name, function in _PLAIN.items()})


@op("Div")
def div(a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero."""
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc") if whole else torch.div(a, b)


@op("Mod")
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """The sign is the divisor's, or with fmod the dividend's."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def _variadic(combine: Any, *x: Tensor) -> Tensor:
    total = x[0]
    for other in x[1:]:
        total = combine(total, other)
    return total


OPS["", "Max"] = partial(_variadic, torch.maximum)
OPS["", "Min"] = partial(_variadic, torch.minimum)
OPS["", "Sum"] = partial(_variadic, torch.add)


@op("Mean")
def mean(*x: Tensor) -> Tensor:
    """Mean of the inputs."""
    return _variadic(torch.add, *x) / len(x)


@op("Clip")
def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Either bound may be missing."""
    return x if low is None and high is None else torch.clamp(x, _number(low), _number(high))


def _number(x: Tensor | None) -> Any:
    return None if x is None else x.item()


@op("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """X or alpha * x."""
    return nn.leaky_relu(x, alpha)


@op("PRelu")
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """X or slope * x, broadcast towards x."""
    return torch.where(x < 0, slope * x, x)


@op("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Exponential below zero."""
    return nn.elu(x, alpha)


@op("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Exponential of x / alpha below zero."""
    return nn.celu(x, alpha)


@op("Selu")
def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    """gamma * elu(x)."""
    return gamma * nn.elu(x, alpha)


@op("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """A line between 0 and 1."""
    return torch.clamp(alpha * x + beta, 0, 1)


@op("HardSwish")
def hard_swish(x: Tensor) -> Tensor:
    """X * clip(x / 6 + 1/2, 0, 1)."""
    return nn.hardswish(x)


@op("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X * sigmoid(alpha x)."""
    return nn.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@op("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X where it is above alpha."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


@op("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Exact, or by tanh."""
    return nn.gelu(x, approximate=approximate)


@op("Dropout")
def dropout(x: Tensor, *_: Tensor, **__: Any) -> Tensor:
    """Nothing: the graph is one of inference."""
    return x


@op("Cast")
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """To another element type."""
    if to not in _TYPES:
        raise UnsupportedError(f"Cast to the element type {to} of ONNX is not known here")
    return x.to(_TYPES[to])


@op("CastLike")
def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """To the element type of another tensor."""
    return x.to(like.dtype)


@op("Softmax")
def softmax(x: Tensor, *, axis: int = -1, flatten: bool = False) -> Tensor:
    """Over one axis; over all from `axis` on before operator set 13."""
    return _flattened(torch.softmax, x, axis) if flatten else torch.softmax(x, axis)


@op("LogSoftmax")
def log_softmax(x: Tensor, *, axis: int = -1, flatten: bool = False) -> Tensor:
    """Logarithm of softmax."""
    return _flattened(torch.log_softmax, x, axis) if flatten else torch.log_softmax(x, axis)


def _flattened(function: Any, x: Tensor, axis: int) -> Tensor:
    result: Tensor = function(x.flatten(axis), -1).reshape(x.shape)
    return result
