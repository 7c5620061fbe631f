"""The options of the command line, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

METHODS = ("bn_scale", "geometric_median", "group_norm", "l1", "l2", "random")  # named here: --help loads no criteria


def _choice(metavar: str | None, text: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel="What to remove")


def _result(metavar: str | None, text: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel="Result")


Source = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file; it is never changed.")]

Flops = Annotated[float | None, _choice("F", "Keep at most this fraction of the FLOPs (multiply-accumulates).")]
Params = Annotated[float | None, _choice("F", "Keep at most this fraction of the parameters.")]
Size = Annotated[float | None, _choice("F", "Keep at most this fraction of the bytes.")]
Method = Annotated[str, _choice("NAME", f"Criterion: {', '.join(METHODS)}.")]
MinKeep = Annotated[float, _choice("F", "Least fraction of every group that stays.")]
Align = Annotated[str, _choice("N", "Widths stay multiples of N; auto: of 8, or of 4 where narrow; 1: any.")]
Keep = Annotated[list[str] | None, _choice("PATTERN", "Leave alone the layers whose node or parameter matches.")]
Inexact = Annotated[bool, _choice(None, "Also remove what LayerNorm and the like renormalise.", "--inexact")]
BestEffort = Annotated[bool, _choice(None, "If the target is out of reach, take the nearest value.", "--best-effort")]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Of the method random and of the check's inputs.")]
InputShape = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME:1,3,224,224", help="Sizes of an input where the model has symbolic ones."),
]

Out = Annotated[Path | None, _result("FILE", "The file to write.", "--output", "-o")]
Force = Annotated[bool, _result(None, "Replace an existing file.", "--force")]
Stamp = Annotated[bool, _result(None, "Write version, settings and digests into the metadata.", "--stamp")]
SavePlan = Annotated[Path | None, _result("FILE", "Write the plan, too.", "--save-plan")]
AsJson = Annotated[bool, _result(None, "Print one JSON object.", "--json")]
Quiet = Annotated[bool, _result(None, "No progress, and no report of what was written.", "--quiet", "-q")]
