"""The pruning of onnxsim on an ONNX file. Prints one line of JSON.

Usage (in its own environment): python onnxsim_zoo.py FILE KEEP OUT WHOLE
Simplified first, as its documentation expects (normalisations folded), then `apply_structured_pruning` (L2) and
`apply_attention_head_pruning` with one sparsity, found by bisection. Where that cannot reach KEEP, the sparsity becomes
one for all layers together, and then the file is made static and raised to opset 20, so that it has one node per GELU.
WHOLE gets the simplified file that was pruned.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import onnxsim
from nearest import WITHIN, Search, peak_mb, search
from onnxsim_step import macs

FIRST, MOST = 0.5, 0.95


@dataclass
class Form:
    """A simplified model, the settings of its pruning, the CPU seconds of simplifying."""

    model: onnx.ModelProto
    settings: dict[str, Any]
    seconds: float


def forms(model: onnx.ModelProto) -> Iterator[Form]:
    """The plainest first."""
    start = time.process_time()
    plain, _ = onnxsim.simplify(model)
    seconds = time.process_time() - start
    for together in (False, True):
        yield Form(plain, {"form": "simplified", "global_sparsity": together}, seconds)
    shapes = {i.name: [d.dim_value or 1 for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    start = time.process_time()
    static, _ = onnxsim.simplify(model, target_opset_version=20, overwrite_input_shapes=shapes)
    seconds = time.process_time() - start
    yield Form(static, {"form": "simplified, static, opset 20", "global_sparsity": False}, seconds)


def prune(model: onnx.ModelProto, sparsity: float, together: bool) -> onnx.ModelProto:
    """The model without this share of the channels, and of the heads, that it finds."""
    smaller = onnxsim.apply_structured_pruning(model, sparsity, "l2", together)
    return onnxsim.apply_attention_head_pruning(smaller, sparsity)


def nearest(form: Form, keep: float) -> Search:
    """The pruned model nearest to KEEP in one form."""
    whole = macs(form.model)

    def step(sparsity: float) -> tuple[onnx.ModelProto, float]:
        smaller = prune(form.model, sparsity, form.settings["global_sparsity"])
        return smaller, macs(smaller) / whole

    return search(step, keep, FIRST, MOST)


def main(path: str, keep: str, out: str, whole: str) -> None:
    """Search the forms, write and print."""
    target, found = float(keep), []
    for form in forms(onnx.load(path)):
        found.append((nearest(form, target), form))
        if abs(found[-1][0].kept - target) <= WITHIN:
            break
    best, form = min(found, key=lambda x: abs(x[0].kept - target))
    start = time.process_time()
    onnx.save(best.model, out)
    written, peak = time.process_time() - start, peak_mb()
    onnx.save(form.model, whole)
    every = sum(sum(s.seconds) for s, _ in found) + sum({id(f.model): f.seconds for _, f in found}.values())
    once = best.best + form.seconds
    told = {"ratio": best.ratio, "kept_own": best.kept, "tries": sum(len(s.tries) for s, _ in found)}
    told |= {"version": f"onnxsim {onnxsim.__version__.lstrip('v')}", "settings": form.settings, "peak_mb": peak}
    print(json.dumps(told | {"seconds": {"prune": once, "search": every - once, "export": written}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
