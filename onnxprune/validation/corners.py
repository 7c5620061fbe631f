"""Original and pruned, in floats and in int8: what a pruned model gains by quantization, and whether it is worth it."""

from __future__ import annotations

from typing import NamedTuple

from onnx import ModelProto

from onnxprune.errors import OnnxpruneError
from onnxprune.validation.bench import Benchmark, Given, measured
from onnxprune.validation.latency import How


class Corners(NamedTuple):
    """The model to ship, all four beside each other (None where that failed), and why the model stayed in floats (""
    where it did not).
    """

    model: ModelProto
    found: Benchmark | None
    refused: str


def corners(original: ModelProto, pruned: ModelProto, given: Given, forced: bool) -> Corners:
    """Quantize both on the given data and measure all four; int8 is chosen where it is faster, or `forced`.

    Where that fails, the pruned model, which cost much more to make, is still there.
    """
    try:
        found = measured({"original": original, "pruned": pruned}, given, [How(seed=given.seed)], int8=True)
    except (OnnxpruneError, MemoryError, OSError) as error:
        told = str(error) or "there is not enough memory"
        return Corners(pruned, None, f"int8 failed, so the pruned model stays in floats: {told}")
    _, gain = found.int8
    if gain.pays or forced:
        return Corners(gain.model, found, "")
    told = f"int8 gains nothing here: the pruned model becomes {gain.speedup.point:.2f} times as fast"
    return Corners(pruned, found, f"{told}; it stays in floats. --best-effort quantizes it all the same")
