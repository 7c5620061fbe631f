"""The options of the command line, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from onnxprune.errors import UsageError

DEFAULT_METHOD = "group_norm"
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


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What to remove: the options of `compress` and `plan`."""

    flops: Flops = None
    params: Params = None
    size: Size = None
    method: Method = DEFAULT_METHOD
    min_keep: MinKeep = 0.1
    align: Align = "auto"
    keep: Keep = None
    inexact: Inexact = False
    best_effort: BestEffort = False
    seed: Seed = 0
    input_shape: InputShape = None

    def arguments(self) -> dict[str, Any]:
        """The same as keyword arguments of the library's functions."""
        given = {name: getattr(self, name) for name in Selection.__dataclass_fields__ if name != "input_shape"}
        parsed = {"align": _align(self.align), "keep": self.keep or (), "input_shapes": shapes(self.input_shape)}
        return given | parsed


@dataclass(frozen=True, kw_only=True)
class Planning(Selection):
    """All options of `plan`."""

    output: Out = None
    force: Force = False
    as_json: AsJson = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class Compression(Planning):
    """All options of `compress`."""

    stamp: Stamp = False
    save_plan: SavePlan = None


def _align(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if text.isascii() and text.isdigit():
        return int(text)
    raise UsageError(f"--align {text!r}: give `auto` or a number from 1 on")


def shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    """The shapes that `--input-shape` gives, by input."""
    if not texts:
        return {}
    from onnxprune.shapes import parse_input_shape

    found = [parse_input_shape(text) for text in texts]
    names = [name for name, _ in found]
    repeated = next((n for n in names if names.count(n) > 1), None)
    if repeated is not None:
        raise UsageError(f"--input-shape is given more than once for {repeated!r}")
    return dict(found)
