"""`validate`: the whole comparison of two models, as data."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxprune import files
from onnxprune.data import open_data
from onnxprune.errors import DataError, UsageError
from onnxprune.graph import Array
from onnxprune.signature import taking
from onnxprune.validation import gate, metrics
from onnxprune.validation.accuracy import Comparison
from onnxprune.validation.agreement import Intervals, worst
from onnxprune.validation.gate import By, Doubt, Goal, Goals, Verdict
from onnxprune.validation.intervals import Interval
from onnxprune.validation.metrics import Metric, metric
from onnxprune.validation.run import Measured, Model, about, check_needs, compare, opened, shared_inputs
from onnxprune.validation.speed import Speed, check_cap, speed

Source = str | Path | ModelProto
AT_CHANCE = "the original answers the labels no better than chance"
_LOG = logging.getLogger("onnxprune")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateOptions(Goals):
    """What `validate` can be told; it says what each of them means."""

    data: Any = None
    preprocess: str | None = None
    metric: str | Callable[..., float] | None = None
    output_name: str | None = None
    samples: int | None = None
    verdict: By = "interval"
    inconclusive: Doubt = "fail"
    latency_seconds: float | None = None
    memory: float = 1e9
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError for what is wrong whatever the models and the data."""
        Goals.check(self)
        gate.check_choice(self.verdict, self.inconclusive)
        named = {"max_drop": self.max_drop, "min_agreement": self.min_agreement, "metric": self.metric}
        named |= {"output_name": self.output_name, "preprocess": self.preprocess, "samples": self.samples}
        check_needs(self.data, {gate.option(n): v is not None for n, v in named.items()})
        if self.samples is not None and self.samples < 2:
            raise UsageError(f"--samples {self.samples}: give at least 2")
        if self.latency_seconds is not None and not self.latency_seconds > 0:
            raise UsageError(f"--latency-seconds {self.latency_seconds:g}: give a number above 0")
        if not self.memory > 0:
            raise UsageError("--memory must be above 0")

    @property
    def looks_at_latency(self) -> bool:
        return self.timed or self.latency_seconds is not None


@dataclass(frozen=True, slots=True)
class Validation:
    """Two models beside each other.

    data, samples: where the inputs come from, and how many were run (None and 0 without data). metric: None without
    labels; agreement: each measure of the output where it is worst, or of the one that was named, empty without data;
    outputs: agreement of each; sizes: bytes of the files; speed: None unless measured.
    verdict: None without goals; doubt: what a gate makes of an inconclusive one. seconds: per stage.
    """

    original: str
    candidate: str
    data: str | None
    samples: int
    metric: Comparison | None
    agreement: Intervals
    sizes: tuple[int, int]
    speed: Speed | None
    goals: tuple[Goal, ...]
    verdict: Verdict | None
    doubt: Doubt
    notes: tuple[str, ...]
    seconds: dict[str, float]
    outputs: dict[str, Intervals] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether a gate lets the candidate through."""
        return self.verdict in {None, "pass"}

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with stable keys."""
        return {
            "original": self.original,
            "candidate": self.candidate,
            "data": self.data,
            "samples": self.samples,
            "verdict": self.verdict,
            "goals": [g.as_dict() for g in self.goals],
            "metric": self.metric and self.metric.as_dict(),
            "agreement": {n: i.as_dict() for n, i in self.agreement.items()},
            "outputs": {o: {n: i.as_dict() for n, i in found.items()} for o, found in self.outputs.items()},
            "size": {"original": self.sizes[0], "candidate": self.sizes[1]},
            "latency": self.speed and self.speed.as_dict(),
            "notes": list(self.notes),
            "seconds": {n: round(s, 3) for n, s in self.seconds.items()},
        }


@taking(ValidateOptions)
def validate(original: Source, candidate: Source, options: ValidateOptions) -> Validation:
    """Compare a candidate with the original on the same inputs, with 95 % intervals, and judge it by goals.

    original, candidate: paths or ModelProtos of the same signature. data: as `data.open_data` takes them; labels give
    the metric. preprocess: how raw images become inputs. metric: a name of `validation.metrics.NAMES`,
    `module:function` or a function (outputs, targets) -> float; top-1 accuracy where labels are classes. output_name:
    the one to read. samples: at most so many, evenly spread.
    max_drop: most that the metric may lose, in percentage points for rates; min_agreement: least share of equal
    answers, or cosine where there are no classes, of every output, or of `output_name`; min_speedup, max_latency
    (seconds), max_size (bytes). verdict: whether the "interval" must lie inside the goal, or the "point"; inconclusive:
    "pass" lets through what is in doubt.
    latency_seconds: measure latency, at most so long per pair; too short a time is a UsageError after the first batch
    (where only a goal asks for it 15, or what the minimum of rounds takes). memory: bytes for outputs that a metric
    needs at once. seed: of the bootstrap.
    Raises UsageError, ModelError (signatures, failing models), DataError (data, labels, metrics), FileError,
    ResourceError. A goal that is missed is no error: see `Validation.passed`.
    """
    options.check()
    seconds = dict[str, float]()
    chosen = None if options.metric is None else metric(options.metric)
    metrics.check_drop(options.max_drop, chosen)
    first, second = _model(original, "original"), _model(candidate, "candidate")
    start = _lap(seconds, "read", time.perf_counter())
    measured, name = _measured(first, second, chosen, options)
    start = _lap(seconds, "compare", start)
    timed = None
    if options.looks_at_latency:
        timed = speed(
            first.proto,
            second.proto,
            feeds=measured.feeds or None,
            seconds=options.latency_seconds,
            seed=options.seed,
        )
        _lap(seconds, "latency", start)
    sizes = (files.file_bytes(first.proto), files.file_bytes(second.proto))
    goals = tuple(_judged(options, measured, timed, sizes[1]))
    verdict = gate.overall(goals, options.inconclusive)
    return Validation(
        _name(original),
        _name(candidate),
        name,
        measured.samples,
        measured.comparison,
        worst(_chosen(options, measured)),
        sizes,
        timed,
        goals,
        verdict,
        options.inconclusive,
        (*measured.notes, *_chance(measured.comparison)),
        seconds,
        measured.outputs,
    )


def _chosen(options: ValidateOptions, found: Measured) -> dict[str, Intervals]:
    """The outputs that the agreement is about."""
    return {n: o for n, o in found.outputs.items() if options.output_name in {None, n}}


def _lap(seconds: dict[str, float], stage: str, start: float) -> float:
    now = time.perf_counter()
    seconds[stage] = now - start
    return now


def _name(model: Source) -> str:
    return model.graph.name if isinstance(model, ModelProto) else str(model)


def _model(source: Source, role: str) -> Model:
    name = f"the {role} '{_name(source)}'"
    if isinstance(source, ModelProto):
        model = Model(source, name)
        with about(model):
            files.check_model(source)
        return model
    if not isinstance(source, str | Path):
        raise UsageError(f"the {role} must be a path or a ModelProto, not {type(source).__name__}")
    _LOG.info("read %s", source)
    return Model(files.read_model(source), name)


def _measured(
    original: Model, candidate: Model, wanted: Metric | None, options: ValidateOptions
) -> tuple[Measured, str | None]:
    """One pass over the data; the signatures are compared even without data."""
    specs = shared_inputs(original, candidate)
    if options.data is None:
        return Measured(0, {}, None, {}, ()), None
    data = opened(
        open_data(options.data, specs, preprocess=options.preprocess, minimum=2),
        wanted is not None or (options.max_drop is not None),
    )
    _LOG.info("compare on %s", data.name)
    found = compare(
        original,
        candidate,
        data,
        wanted=wanted,
        output=options.output_name,
        samples=options.samples,
        memory=options.memory,
        seed=options.seed,
        check=partial(_check_cap, original.proto, candidate.proto, options),
    )
    if options.max_drop is not None and found.comparison is None:
        raise DataError(f"--max-drop needs a metric: {found.notes[-1]}")
    return found, data.name


def _check_cap(
    original: ModelProto, candidate: ModelProto, options: ValidateOptions, feeds: Mapping[str, Array]
) -> None:
    """Whether a limit that is named has room for the latency is known before all of the data are read."""
    if options.latency_seconds is not None:
        check_cap(original, candidate, feeds=feeds, seconds=options.latency_seconds, seed=options.seed)


def _chance(found: Comparison | None) -> Iterator[str]:
    """What to say of an original that is no better than chance."""
    if found is not None and found.at_chance:
        assert found.chance is not None
        what = f"which is right on {found.chance:.1%}"
        if found.metric in metrics.CHANCE:
            what = f"whose {found.metric} is {found.chance:g} (the original's is {found.original:.3g})"
        yield (
            f"{AT_CHANCE}, {what}: the labels are probably wrong, or in another order than the inputs; its drop says "
            "nothing"
        )


def _judged(options: ValidateOptions, found: Measured, timed: Speed | None, size: int) -> Iterator[Goal]:
    """The goals that are given, in the order of the class."""
    measurements = _measurements(found, timed, size) | {"min_agreement": list(_agreements(options, found))}
    for name, bound in options.given.items():
        made = gate.worst([gate.goal(name, bound, *m, options.verdict) for m in measurements[name]])
        at_chance = name == "max_drop" and found.comparison is not None and found.comparison.at_chance
        yield gate.doubted(made, AT_CHANCE) if at_chance else made


Measurement = tuple[Interval, str, str]  # its unit, its name


def _measurements(found: Measured, timed: Speed | None, size: int) -> dict[str, list[Measurement]]:
    """What each goal but that of agreement is compared with."""
    table: dict[str, list[Measurement]] = {"max_size": [(Interval(size, size, size), "B", "size")]}
    if found.comparison is not None:
        points = "points" if found.comparison.rate else ""
        table["max_drop"] = [(found.comparison.drop, points, f"drop of {found.comparison.metric}")]
    if timed is not None:
        table["min_speedup"] = [(timed.speedup, "x", "speed-up")]
        table["max_latency"] = [(timed.paired.median, "s", "median latency")]
    return table


def _agreements(options: ValidateOptions, found: Measured) -> Iterator[Measurement]:
    """Of every output that counts the same answers, or the cosine where it has none."""
    for name, measures in _chosen(options, found).items():
        measure = "top1" if "top1" in measures else "cosine"
        told = "same top-1 answer" if measure == "top1" else "cosine"
        single = "" if measure == "top1" else " of the outputs"
        yield measures[measure], "", told + (f" of '{name}'" if len(found.outputs) > 1 else single)
