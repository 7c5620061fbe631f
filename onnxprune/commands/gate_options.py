"""The options of `validate`, each declared once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxprune.errors import UsageError
from onnxprune.options import AsJson, Silent, latency, panel, size

_goal = panel("Goals")
_result = panel("Result")
_measure = panel("What is compared")


@dataclass(frozen=True, kw_only=True)
class Validating:
    """All options of `validate`; None where a file of settings may say it, or else the default holds."""

    max_drop: Annotated[
        float | None, _goal("X", "Most that the metric may lose: percentage points for rates, else its units.")
    ] = None
    min_agreement: Annotated[
        float | None,
        _goal("F", "Least share of the same top-1 answers; without classes, least cosine; of every output."),
    ] = None
    min_speedup: Annotated[float | None, _goal("X", "Least latency of the original by the candidate's.")] = None
    max_latency: Annotated[str | None, _goal("TIME", "Most median latency of the candidate, e.g. 5ms.")] = None
    max_size: Annotated[str | None, _goal("SIZE", "Most bytes of the candidate, e.g. 2MB.")] = None
    verdict: Annotated[str | None, _goal("HOW", "interval: all of it must meet the goal (default); or point.")] = None
    inconclusive: Annotated[str | None, _goal("HOW", "What an inconclusive goal does: fail (default), or pass.")] = None
    config: Annotated[
        Path | None, _goal("FILE", "TOML with the table tool.onnxprune.validate; default: that of ./pyproject.toml.")
    ] = None
    data: Annotated[
        str | None, _measure("SOURCE", "Inputs, best with labels: .npz, .npy, a folder of images, module:function.")
    ] = None
    preprocess: Annotated[str | None, _measure("HOW", "How raw images become inputs, as for compress.")] = None
    metric: Annotated[
        str | None, _measure("NAME", "By scikit-learn's name, top5, or module:function. Default: top-1 accuracy.")
    ] = None
    output_name: Annotated[str | None, _measure("NAME", "The output that the metric reads, and that must agree.")] = (
        None
    )
    samples: Annotated[int | None, _measure("N", "At most so many samples, evenly spread.")] = None
    latency_seconds: Annotated[
        float | None,
        _measure("S", "Measure latency, for at most so long. Default: 15 where a goal asks, or what 30 runs take."),
    ] = None
    memory: Annotated[
        str | None, _measure("SIZE", "Memory for outputs that a metric needs all at once. Default: 1GB.")
    ] = None
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Of the bootstrap.")] = None
    junit: Annotated[Path | None, _result("FILE", "Write JUnit XML: one case per goal.")] = None
    markdown: Annotated[Path | None, _result("FILE", "Write Markdown; added to $GITHUB_STEP_SUMMARY anyway.")] = None
    report: Annotated[Path | None, _result("FILE", "Write the whole result: .json, or a page with charts: .html.")] = (
        None
    )
    as_json: AsJson = False
    quiet: Silent = False

    def arguments(self, configured: Mapping[str, Any]) -> dict[str, Any]:
        """The same as keyword arguments of `onnxprune.validate`, over what a file of settings gives."""
        rest = {"config", "junit", "markdown", "report", "as_json", "quiet"}
        own = {n: getattr(self, n) for n in self.__dataclass_fields__ if n not in rest}
        given = dict(configured) | {n: v for n, v in own.items() if v is not None}
        if "max_latency" in given:
            given["max_latency"] = latency(given["max_latency"])
        if "max_size" in given:
            given["max_size"] = size(given["max_size"], "--max-size")
        return given | {"memory": size(given.get("memory", "1GB"))}

    def files(self) -> dict[str, Path]:
        """The files to write, by option. Raises UsageError for a kind of report that there is not."""
        if self.report is not None and self.report.suffix not in {".json", ".html"}:
            raise UsageError(f"--report {str(self.report)!r}: give a name that ends in .json or .html")
        named = {"--junit": self.junit, "--markdown": self.markdown, "--report": self.report}
        return {n: p for n, p in named.items() if p is not None}
