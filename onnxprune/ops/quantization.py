"""Quantised weights: scale and zero point are vectors along one axis of the tensor."""

from __future__ import annotations

from onnxprune.factors import View
from onnxprune.rules import Arg, Refuse, Tracer, rule


@rule("DequantizeLinear", "QuantizeLinear")
def quantize(
    t: Tracer, x: Arg, scale: Arg, zero_point: Arg | None = None, *, axis: int = 1, block_size: int = 0
) -> View:
    """y = (x - zero_point) * scale, or its inverse; both per tensor or per index of `axis`."""
    if block_size:
        raise Refuse("blocked quantisation")
    for p in (scale, zero_point):
        if p is not None and p.rank == 1 and p.shape[0] > 1:
            t.tie(t.atoms(x, axis), t.atoms(p, 0), "one scale per channel")
    return x.view
