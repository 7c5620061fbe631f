"""The rules, one file per op family; importing this package registers them all."""

from onnxprune.ops import (
    attention,
    convolution,
    elementwise,
    matmul,
    movement,
    normalization,
    padding,
    quantization,
    recurrent,
    reduction,
    select,
)

__all__ = [
    "attention",
    "convolution",
    "elementwise",
    "matmul",
    "movement",
    "normalization",
    "padding",
    "quantization",
    "recurrent",
    "reduction",
    "select",
]
