"""The options of the command line, each declared once."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from onnxprune.errors import FileError, UsageError

# Named here: --help loads no criteria and no repairs.
METHODS = (
    *("activation", "bn_scale", "cluster", "diversity", "evolve", "geometric_median", "group_norm", "hybrid"),
    *("l1", "l2", "obs", "random"),
)
REPAIRS = ("auto", "none", "absorb", "merge", "fold", "moments", "ridge", "least-squares", "joint")
ALLOCATIONS = ("uniform", "global", "threshold", "greedy", "search", "pairs", "evolve")
PROXIES, OPTIMISERS = ("kl", "naswot", "none"), ("evolution", "annealing", "economics")
AUGMENTS = ("auto", "flip", "none")


def panel(title: str) -> Callable[..., Any]:
    """What makes the options under one heading of the help: (metavar, help, names) -> option; values: what a shell
    completes.
    """

    def made(metavar: str | None, text: str, *names: str, values: tuple[str, ...] = ()) -> Any:
        def matching(incomplete: str) -> list[str]:
            return [v for v in values if v.startswith(incomplete)]

        completed = matching if values else None
        return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=title, autocompletion=completed)

    return made


_choice = panel("What to remove")
_given = panel("Data and recovery")
_measure = panel("Measuring")
_result = panel("Result")


def beside(model: Path, suffix: str) -> Path:
    """Where a result goes that -o does not name."""
    if not model.name:
        raise FileError(f"{str(model)!r} is a folder, not a model")
    return model.with_suffix(suffix)


Source = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file; it is never changed.")]

Sources = Annotated[
    list[Path], typer.Argument(metavar="MODEL...", help="One or several .onnx files; the first is the baseline.")
]

Flops = Annotated[float | None, _choice("F", "Keep at most this fraction of the FLOPs (multiply-accumulates).")]
Params = Annotated[float | None, _choice("F", "Keep at most this fraction of the parameters.")]
Size = Annotated[float | None, _choice("F", "Keep at most this fraction of the bytes.")]
Latency = Annotated[float | None, _choice("F", "Keep this fraction of the latency, as measured here (within 3 %).")]
Threads = Annotated[int | None, _choice("N", "Threads of one operator when --latency is measured (1).", "--threads")]
Method = Annotated[
    str | None,
    _choice(
        "NAME", f"What goes first: {', '.join(METHODS)}. Default: obs with --data, else group_norm.", values=METHODS
    ),
]
Allocate = Annotated[
    str | None,
    _choice(
        "NAME",
        f"How groups share the cut: {', '.join(ALLOCATIONS)}. Some methods have one of their own. "
        "Default: greedy with --data, else global.",
        values=ALLOCATIONS,
    ),
]
MaxRate = Annotated[
    list[str] | None,
    _choice("[PATTERN=]P", "At most this share of a layer's filters leaves; also per node or parameter."),
]
Proxy = Annotated[
    str | None, _choice("NAME", f"What pairs of thresholds are ranked by: {', '.join(PROXIES)}.", values=PROXIES)
]
Optimiser = Annotated[
    str | None, _choice("NAME", f"What chooses among small filters: {', '.join(OPTIMISERS)}.", values=OPTIMISERS)
]
Candidates = Annotated[int | None, _choice("N", "Candidates that the optimiser tries per group (60).", "--budget")]
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
Measured = Annotated[
    str | None, _given("SOURCE", "Inputs to run on: .npz, .npy, a folder of images, module:function.", "--data")
]
Preprocess = Annotated[
    str | None, _given("HOW", "How raw images become inputs: imagenet, cifar10, unit, ... or size=224,scale=1/255,...")
]
Recover = Annotated[
    str, _given("NAME", f"Repair after the cut, without training: {', '.join(REPAIRS)}.", values=REPAIRS)
]
IntoInt8 = Annotated[bool, _given(None, "Then quantize on --data, where this processor gains by it.", "--int8")]
CalibrationSize = Annotated[int, _given("N", "How many calibration inputs are used.")]
Augment = Annotated[str, _given("HOW", "Mirrored copies of images for the fits: auto, flip, none.", values=AUGMENTS)]
InputRange = Annotated[
    str | None,
    _given("LOW,HIGH", "Without --data: range of the inputs that are made up, e.g. 0,1."),
]
Memory = Annotated[str, _given("SIZE", "Memory for activations, e.g. 4GB; beyond it, temporary files.")]
TimeBudget = Annotated[
    str, _given("TIME", "What selection and recovery should take, e.g. 90s, 10m, 1h: work is planned to fit.")
]

Counts = Annotated[
    str, _measure("N,...", "Threads of one operator; several are measured one after the other.", "--threads")
]
Batches = Annotated[
    str | None, _measure("N,...", "First dimension of the inputs where it is symbolic. Default: 1.", "--batch")
]
Provider = Annotated[str, _measure("NAME", "Execution provider of onnxruntime.")]
Precision = Annotated[str, _measure("P%", "Width of the speed-up's interval at which a measurement ends.")]
Seconds = Annotated[
    str | None, _measure("TIME", "Time cap of each measurement, e.g. 1m. Default: 15s, more for slow models.")
]
Profile = Annotated[bool, _measure(None, "Also time every layer, under its name in the original.", "--profile")]
ForInt8 = Annotated[int | None, _measure("N", "How many inputs --int8 is calibrated on (512).", "--calibration-size")]
WithInt8 = Annotated[bool, _measure(None, "Also every model in int8, calibrated on --data; and accuracy.", "--int8")]
PeakMemory = Annotated[bool, _measure(None, "Also measure peak memory.", "--memory/--no-memory")]

Out = Annotated[Path | None, _result("FILE", "The file to write.", "--output", "-o")]
Force = Annotated[bool, _result(None, "Replace an existing file.", "--force")]
Stamp = Annotated[bool, _result(None, "Write version, settings and digests into the metadata.", "--stamp")]
SavePlan = Annotated[Path | None, _result("FILE", "Write the plan, too.", "--save-plan")]
ReportPage = Annotated[Path | None, _result("FILE", "Write a page with charts: .html.", "--report")]
AsJson = Annotated[bool, _result(None, "Print one JSON object.", "--json")]
Redundancy = Annotated[
    bool, _result(None, "Show how far the filters of each layer resemble each other.", "--redundancy")
]
Quiet = Annotated[bool, _result(None, "No progress, and no report of what was written.", "--quiet", "-q")]
Silent = Annotated[bool, _result(None, "No progress, and nothing but errors and --json.", "--quiet", "-q")]


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

    def command(self, *, looking: bool) -> str:
        """The same as options of a command line, those that have their defaults left out; unless `looking`, without
        those that say what is looked at.
        """
        of_data = ("data", "preprocess", "calibration_size", "augment", "input_range")
        told = [f.name for f in fields(Inputs) if getattr(self, f.name) != f.default]
        lists = {n: getattr(self, n) if n == "input_shape" else [getattr(self, n)] for n in told}
        parts = [(n, x) for n in told if looking or n not in of_data for x in lists[n]]
        return "".join(f" --{n.replace('_', '-')} {shlex.quote(str(x))}" for n, x in parts)


@dataclass(frozen=True, kw_only=True)
class Target:
    """How much to remove, and by what method."""

    flops: Flops = None
    params: Params = None
    size: Size = None
    latency: Latency = None
    threads: Threads = None
    method: Method = None


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How what is removed is shared out."""

    allocate: Allocate = None
    max_rate: MaxRate = None
    proxy: Proxy = None
    optimiser: Optimiser = None
    budget: Candidates = None
    min_keep: MinKeep = 0.1
    align: Align = "auto"
    keep: Keep = None
    inexact: Inexact = False

    def shares(self) -> dict[str, Any]:
        """The same as keyword arguments of the library's functions."""
        given = {name: getattr(self, name) for name in Shares.__dataclass_fields__}
        return given | {"align": alignment(self.align), "keep": self.keep or (), "max_rate": self.max_rate or ()}


@dataclass(frozen=True, kw_only=True)
class Choice(Shares, Target):
    """What to remove."""

    best_effort: BestEffort = False


@dataclass(frozen=True, kw_only=True)
class Selection(Inputs, Choice):
    """What to remove, and the inputs to look at: the options of `compress` and `plan`."""

    def arguments(self) -> dict[str, Any]:
        """The same as keyword arguments of the library's functions."""
        given = {name: getattr(self, name) for name in (*Target.__dataclass_fields__, "best_effort")}
        return self.inputs() | given | self.shares()


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


MaxDrop = Annotated[
    float | None,
    _choice("D", "Find the smallest network whose metric drops by at most D points on labelled --data.", "--max-drop"),
]
DropMetric = Annotated[str | None, _choice("NAME", "The metric of --max-drop, as in validate.", "--metric")]


@dataclass(frozen=True, kw_only=True)
class Compression(Planning):
    """All options of `compress`."""

    max_drop: MaxDrop = None
    metric: DropMetric = None

    recover: Recover = "auto"
    int8: IntoInt8 = False
    stamp: Stamp = False
    save_plan: SavePlan = None
    report: ReportPage = None

    def arguments(self) -> dict[str, Any]:
        """The same as keyword arguments of `onnxprune.compress`."""
        return Selection.arguments(self) | {"recover": self.recover, "int8": self.int8}


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """All options of `bench`."""

    threads: Counts = "1"
    batch: Batches = None
    provider: Provider = "CPUExecutionProvider"
    precision: Precision = "2%"
    seconds: Seconds = None
    profile: Profile = False
    memory: PeakMemory = True
    int8: WithInt8 = False
    data: Measured = None
    preprocess: Preprocess = None
    calibration_size: ForInt8 = None
    input_shape: InputShape = None
    seed: Seed = 0
    report: ReportPage = None
    as_json: AsJson = False
    quiet: Silent = False

    def arguments(self) -> dict[str, Any]:
        """The same as keyword arguments of `onnxprune.benchmark`."""
        names = ("provider", "profile", "memory", "int8", "data", "preprocess", "calibration_size", "seed")
        parsed: dict[str, Any] = {
            "threads": _counts(self.threads, "--threads"),
            "batch": None if self.batch is None else _counts(self.batch, "--batch"),
            "precision": share(self.precision, "--precision"),
            "seconds": None if self.seconds is None else seconds(self.seconds, "--seconds"),
            "input_shapes": shapes(self.input_shape),
        }
        return {name: getattr(self, name) for name in names} | parsed


def _counts(text: str, option: str) -> list[int]:
    """Whole numbers from 1 on, with commas between; each counts once."""
    found = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) for part in found):
        raise UsageError(f"{option} {text!r}: give whole numbers from 1 on, such as 1,2")
    return list(dict.fromkeys(map(int, found)))


def share(text: str, option: str) -> float:
    """A share as `2%` or `0.02`. Raises UsageError."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*", text)
    value = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not 0 < value < 1:
        raise UsageError(f"{option} {text!r}: give a share between 0 and 100 %, such as 2% or 0.02")
    return value


def alignment(text: str) -> int | Literal["auto"]:
    """The value of --align. Raises UsageError."""
    if text == "auto":
        return "auto"
    if text.isascii() and text.isdigit():
        return int(text)
    raise UsageError(f"--align {text!r}: give `auto` or a number from 1 on")


def size(text: str, option: str = "--memory") -> float:
    """Bytes of `4GB`, `512MB` and the like. Raises UsageError."""
    return _measured(text, option, {"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30, "b": 1})


def seconds(text: str, option: str = "--time-budget") -> float:
    """Seconds of `90s`, `10m`, `1h`; a bare number is seconds. Raises UsageError."""
    return _measured(text, option, {"s": 1, "m": 60, "min": 60, "h": 3600, "": 1})


def latency(text: str) -> float:
    """Seconds of `5ms`, `250us`, `1s`. Raises UsageError."""
    return _measured(text, "--max-latency", {"ms": 1e-3, "us": 1e-6, "s": 1})


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
