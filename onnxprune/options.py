"""The options of the command line, each declared once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from onnxprune.errors import FileError, UsageError

# Named here: --help loads no criteria and no repairs.
METHODS = ("activation", "bn_scale", "geometric_median", "group_norm", "l1", "l2", "obs", "random")
REPAIRS = ("auto", "none", "absorb", "merge", "fold", "moments", "ridge", "least-squares", "joint")
ALLOCATIONS = ("uniform", "global", "greedy", "search")


def _choice(metavar: str | None, text: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel="What to remove")


def _given(metavar: str | None, text: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel="Data and recovery")


def _result(metavar: str | None, text: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel="Result")


def beside(model: Path, suffix: str) -> Path:
    """Where a result goes that -o does not name."""
    if not model.name:
        raise FileError(f"{str(model)!r} is a folder, not a model")
    return model.with_suffix(suffix)


Source = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file; it is never changed.")]

Flops = Annotated[float | None, _choice("F", "Keep at most this fraction of the FLOPs (multiply-accumulates).")]
Params = Annotated[float | None, _choice("F", "Keep at most this fraction of the parameters.")]
Size = Annotated[float | None, _choice("F", "Keep at most this fraction of the bytes.")]
Method = Annotated[
    str | None,
    _choice("NAME", f"Criterion: {', '.join(METHODS)}. Default: obs with --data, else group_norm."),
]
Allocate = Annotated[
    str | None,
    _choice("NAME", f"How groups share the cut: {', '.join(ALLOCATIONS)}. Default: greedy with --data, else global."),
]
MinKeep = Annotated[float, _choice("F", "Least fraction of every group that stays.")]
Align = Annotated[str, _choice("N", "Widths stay multiples of N; auto: of 8, or of 4 where narrow; 1: any.")]
Keep = Annotated[list[str] | None, _choice("PATTERN", "Leave alone the layers whose node or parameter matches.")]
Inexact = Annotated[bool, _choice(None, "Also remove what LayerNorm and the like renormalise.", "--inexact")]
BestEffort = Annotated[bool, _choice(None, "If the target is out of reach, take the nearest value.", "--best-effort")]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Of everything that is random.")]
InputShape = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME:1,3,224,224", help="Sizes of an input where the model has symbolic ones."),
]

DataFrom = Annotated[
    str | None,
    _given("SOURCE", "Calibration inputs, without labels: .npz, .npy, a folder of images, module:function.", "--data"),
]
Preprocess = Annotated[
    str | None, _given("HOW", "How raw images become inputs: imagenet, cifar10, unit, ... or size=224,scale=1/255,...")
]
Recover = Annotated[str, _given("NAME", f"Repair after the cut, without training: {', '.join(REPAIRS)}.")]
CalibrationSize = Annotated[int, _given("N", "How many calibration inputs are used.")]
Augment = Annotated[str, _given("HOW", "Mirrored copies of images for the fits: auto, flip, none.")]
InputRange = Annotated[
    str | None,
    _given("LOW,HIGH", "Without --data: range of the inputs that are made up, e.g. 0,1."),
]
Memory = Annotated[str, _given("SIZE", "Memory for activations, e.g. 4GB; beyond it, temporary files.")]
TimeBudget = Annotated[
    str, _given("TIME", "What selection and recovery should take, e.g. 90s, 10m, 1h: work is planned to fit.")
]

Out = Annotated[Path | None, _result("FILE", "The file to write.", "--output", "-o")]
Force = Annotated[bool, _result(None, "Replace an existing file.", "--force")]
Stamp = Annotated[bool, _result(None, "Write version, settings and digests into the metadata.", "--stamp")]
SavePlan = Annotated[Path | None, _result("FILE", "Write the plan, too.", "--save-plan")]
AsJson = Annotated[bool, _result(None, "Print one JSON object.", "--json")]
Quiet = Annotated[bool, _result(None, "No progress, and no report of what was written.", "--quiet", "-q")]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs that selection and recovery look at: options of every command that has one of the two."""

    seed: Seed = 0
    input_shape: InputShape = None
    data: DataFrom = None
    preprocess: Preprocess = None
    calibration_size: CalibrationSize = 512
    augment: Augment = "auto"
    input_range: InputRange = None
    memory: Memory = "4GB"
    time_budget: TimeBudget = "10m"

    def inputs(self) -> dict[str, Any]:
        """The same as keyword arguments of the library's functions."""
        given = {name: getattr(self, name) for name in Inputs.__dataclass_fields__ if name != "input_shape"}
        parsed: dict[str, Any] = {"memory": size(self.memory), "time_budget": seconds(self.time_budget)}
        parsed["input_range"] = None if self.input_range is None else span(self.input_range)
        return given | parsed | {"input_shapes": shapes(self.input_shape)}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to remove."""

    flops: Flops = None
    params: Params = None
    size: Size = None
    method: Method = None
    allocate: Allocate = None
    min_keep: MinKeep = 0.1
    align: Align = "auto"
    keep: Keep = None
    inexact: Inexact = False
    best_effort: BestEffort = False


@dataclass(frozen=True, kw_only=True)
class Selection(Inputs, Choice):
    """What to remove, and the inputs to look at: the options of `compress` and `plan`."""

    def arguments(self) -> dict[str, Any]:
        """The same as keyword arguments of the library's functions."""
        given = {name: getattr(self, name) for name in Choice.__dataclass_fields__}
        return self.inputs() | given | {"align": _align(self.align), "keep": self.keep or ()}


@dataclass(frozen=True, kw_only=True)
class Written:
    """Where a result goes, and what is told of it."""

    output: Out = None
    force: Force = False
    as_json: AsJson = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class Planning(Written, Selection):
    """All options of `plan`."""


@dataclass(frozen=True, kw_only=True)
class Replay(Written, Inputs):
    """All options of `apply`."""

    recover: Recover = "none"
    stamp: Stamp = False


@dataclass(frozen=True, kw_only=True)
class Compression(Planning):
    """All options of `compress`."""

    recover: Recover = "auto"
    stamp: Stamp = False
    save_plan: SavePlan = None

    def arguments(self) -> dict[str, Any]:
        """The same as keyword arguments of `onnxprune.compress`."""
        return Selection.arguments(self) | {"recover": self.recover}


def _align(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if text.isascii() and text.isdigit():
        return int(text)
    raise UsageError(f"--align {text!r}: give `auto` or a number from 1 on")


def size(text: str) -> float:
    """Bytes of `4GB`, `512MB` and the like. Raises UsageError."""
    return _measured(
        text, "--memory", {"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30, "b": 1}
    )


def seconds(text: str) -> float:
    """Seconds of `90s`, `10m`, `1h`; a bare number is seconds. Raises UsageError."""
    return _measured(text, "--time-budget", {"s": 1, "m": 60, "min": 60, "h": 3600, "": 1})


def span(text: str) -> tuple[float, float]:
    """Lowest and highest value of `0,1` and the like. Raises UsageError."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise UsageError(f"--input-range {text!r}: give two numbers, such as 0,1") from None
    return low, high


def _measured(text: str, option: str, units: Mapping[str, float]) -> float:
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in units or not float(found[1]):
        raise UsageError(
            f"{option} {text!r}: give a number above 0 with one of the units {', '.join(filter(None, units))}"
        )
    return float(found[1]) * units[found[2]]


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
