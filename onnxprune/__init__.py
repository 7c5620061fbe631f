"""Structured pruning of exported ONNX models: a smaller, faster model that does the same job, from the graph alone.

    import onnxprune
    result = onnxprune.compress("model.onnx", flops=0.5)
    onnx.save(result.model, "model.pruned.onnx")

The names are loaded on first use: importing the package alone is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxprune import errors
    from onnxprune.analysis import Analysis
    from onnxprune.api import (
        Benchmark,
        Result,
        analyze,
        apply_plan,
        benchmark,
        clean,
        compress,
        diff,
        explain,
        make_plan,
        redundancy,
        sparsify,
    )
    from onnxprune.criteria import criterion
    from onnxprune.finetuning.bundle import absorb, handoff
    from onnxprune.finetuning.tune import finetune
    from onnxprune.frontier import search
    from onnxprune.plan import Plan
    from onnxprune.points import Frontier
    from onnxprune.report import Report
    from onnxprune.rules import rule
    from onnxprune.validation.result import Validation, validate
    from onnxprune.within import compress_within

__version__ = "0.1.0"
__all__ = [
    "Analysis",
    "Benchmark",
    "Frontier",
    "Plan",
    "Report",
    "Result",
    "Validation",
    "__version__",
    "absorb",
    "analyze",
    "apply_plan",
    "benchmark",
    "clean",
    "compress",
    "compress_within",
    "criterion",
    "diff",
    "errors",
    "explain",
    "finetune",
    "handoff",
    "make_plan",
    "redundancy",
    "rule",
    "search",
    "sparsify",
    "validate",
]
_API = (
    "Benchmark",
    "Result",
    "analyze",
    "apply_plan",
    "benchmark",
    "clean",
    "compress",
    "diff",
    "explain",
    "make_plan",
    "redundancy",
    "sparsify",
)
# No module of the package may have one of these names: importing it would hide the function.
_HOME = dict.fromkeys(_API, "api") | {
    "search": "frontier",
    "compress_within": "within",
    "Analysis": "analysis",
    "Plan": "plan",
    "Report": "report",
    "absorb": "finetuning.bundle",
    "Frontier": "points",
    "criterion": "criteria",
    "Validation": "validation.result",
    "finetune": "finetuning.tune",
    "handoff": "finetuning.bundle",
    "rule": "rules",
    "validate": "validation.result",
}


def __getattr__(name: str) -> object:
    if name == "errors":
        return import_module("onnxprune.errors")
    if name not in _HOME:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    if name == "rule":
        import_module("onnxprune.ops")  # the latest rule of an op wins: ours must be there before a user's
    value: object = getattr(import_module(f"onnxprune.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
