"""What `compress` and `apply_plan` return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from onnxprune import plots
from onnxprune.plan import Plan
from onnxprune.report import Report, notebook
from onnxprune.validation.bench import Benchmark

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Result:
    """A compressed model (ONNX, in memory), the plan that leads to it, and the report.

    int8: with that option, the original and the pruned model, each in floats and in int8, beside each other; None where
    that failed.
    refused: why `model` stayed in floats all the same.
    """

    model: onnx.ModelProto
    plan: Plan
    report: Report
    int8: Benchmark | None = None
    refused: str = ""

    def __repr__(self) -> str:
        kept = self.report.compressed.fractions(self.report.original)
        return f"Result({self.report.model!r}, kept {', '.join(f'{k} {v:.3f}' for k, v in kept.items())})"

    def _repr_html_(self) -> str:
        return notebook.result(self.report)

    def plot_widths(self) -> Figure:
        """Filters of every layer before and after, as a figure of matplotlib. Raises UsageError without matplotlib."""
        found = [plots.Width(x.node, *x.outputs, x.frozen > 0) for x in self.report.layers if x.outputs]
        return plots.widths(found, self.report.model)
