"""The smallest network within a drop of the accuracy: a bisection over the kept FLOPs, measured on labelled inputs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from onnxprune.clock import Progress
from onnxprune.data import Data, open_data
from onnxprune.errors import DataError, TargetError, UsageError
from onnxprune.graph import Array
from onnxprune.outcome import Result
from onnxprune.pipeline import Source, compressed, read
from onnxprune.recovery import Known
from onnxprune.runtime import input_specs
from onnxprune.settings import CompressOptions
from onnxprune.signature import taking
from onnxprune.validation.accuracy import Comparison
from onnxprune.validation.intervals import Interval
from onnxprune.validation.metrics import check_drop, metric
from onnxprune.validation.result import validate

_STEPS = 7  # compressions, beside the last
_START = 0.5
_CLOSE = 1.05  # ratio of two targets that are not worth another compression
_SHARE = 0.4  # of the inputs that calibration takes, at most; halves of the rest choose and tell
_BATCH = 64
_FEWEST = 48  # labelled inputs in all
_SURE = 1.96  # standard errors in half a 95 % interval
_LOG = logging.getLogger("onnxprune")
Part = dict[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class WithinOptions(CompressOptions):
    """What `compress_within` can be told; it says what each of them means."""

    max_drop: float
    metric: str | Callable[..., float] | None = None

    def check(self) -> None:
        """Raise UsageError for what is wrong whatever the model and the data."""
        if any(x is not None for x in (self.flops, self.params, self.size, self.latency)):
            raise UsageError("--max-drop finds the target: leave out --flops, --params, --size and --latency")
        if not 0 <= self.max_drop < np.inf:
            raise UsageError(f"--max-drop {self.max_drop:g}: give a number from 0 on, in percentage points for rates")
        check_drop(self.max_drop, None if self.metric is None else metric(self.metric))
        if self.data is None:
            raise UsageError("--max-drop is measured: give --data with labels")
        self.at(1.0, None).check()

    def at(self, flops: float, data: Part | None) -> CompressOptions:
        """Options of one compression; `data`, if given, are its calibration inputs."""
        same = {f.name: getattr(self, f.name) for f in fields(CompressOptions)} | {"flops": flops}
        return CompressOptions(**same if data is None else same | {"data": data, "preprocess": None})


@dataclass(frozen=True, slots=True)
class Trial:
    """One compression: what it keeps, the drop on the inputs that choose, and whether that is within the limit; None
    and why it failed for a target out of reach.
    """

    flops: float
    kept: float | None
    drop: Interval | None
    within: bool
    seconds: float
    failed: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Within:
    """The smallest network found.

    result: as of `compress`; limit: the drop that was allowed; trials: what was tried; final: the metric on inputs that
    nothing was chosen on; samples: inputs for calibration, for choosing and for the final figure.
    """

    result: Result
    limit: float
    trials: tuple[Trial, ...]
    final: Comparison
    samples: tuple[int, int, int]

    @property
    def held(self) -> bool:
        """Whether the final drop is within the limit, too."""
        return self.final.drop.point <= self.limit

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        told = {"limit": self.limit, "held": self.held, "final": self.final.as_dict()}
        samples = dict(zip(("calibration", "choosing", "final"), self.samples, strict=True))
        return told | {"samples": samples, "trials": [t.as_dict() for t in self.trials]}


@taking(WithinOptions)
def compress_within(model: Source, options: WithinOptions) -> Within:
    """Compress a model as far as a metric stays within a drop.

    max_drop: in percentage points for rates, else in units of the metric. metric: as in `validate`; top-1 for a
    classifier. data: inputs with labels, which are parted at random (`seed`): for calibration, whose labels are not
    looked at, for choosing, and for the final figure. A network is within the drop where its drop on the inputs for
    choosing is, one standard error included. The rest as in `compress`. Raises UsageError, DataError for data without
    labels or too few, TargetError where not even the least cut is within the drop.
    """
    options.check()
    proto = read(model)
    calibration, choosing, final = _parts(proto, options)
    found, trials = _bisected(model, options, calibration, choosing)
    if found is None:
        raise TargetError(_nothing(options.max_drop, trials))
    _LOG.info("the final figure")
    measured = validate(proto, found.model, data=final, metric=options.metric, seed=options.seed).metric
    assert measured is not None, "there are labels"
    sizes = (_count(calibration), _count(choosing), _count(final))
    return Within(found, options.max_drop, tuple(trials), measured, sizes)


def _bisected(
    model: Source, options: WithinOptions, calibration: Part, choosing: Part
) -> tuple[Result | None, list[Trial]]:
    """The smallest network within the drop, and all that were tried; halves the ratio between what is within and what
    is not.
    """
    best, trials, known = None, list[Trial](), Known()
    low, high, target = 0.0, 1.0, _START
    for _ in Progress("compression", _STEPS, most=True).over(range(_STEPS)):
        trial, result = _tried(model, options, target, calibration, choosing, known)
        trials.append(trial)
        if trial.within:
            best, high = result, min(target, trial.kept or target)
        else:
            low = target
        if high / max(low, 1e-9) < _CLOSE:
            break
        target = (low * high) ** 0.5 if low else high / 2
    return best, trials


def _nothing(limit: float, trials: list[Trial]) -> str:
    """Why there is no result."""
    measured = [t for t in trials if t.drop is not None and t.kept is not None]
    near = min(measured, key=lambda t: t.drop.point if t.drop else np.inf, default=None)
    if near is None or near.drop is None or near.kept is None:
        return f"no network is within a drop of {limit:g}: {trials[0].failed}"
    return (
        f"no network is within a drop of {limit:g}, one standard error included: the nearest of {len(measured)} drops "
        f"by {near.drop.point:.2f} ({near.drop.low:.2f} to {near.drop.high:.2f}) at {near.kept:.1%} of the FLOPs; "
        "allow a larger --max-drop, or give more labelled inputs"
    )


def _tried(
    model: Source, options: WithinOptions, flops: float, calibration: Part, choosing: Part, known: Known
) -> tuple[Trial, Result | None]:
    start = time.perf_counter()
    try:
        result = compressed(model, options.at(flops, calibration), known)
    except TargetError as error:  # below what the floors allow
        return Trial(flops, None, None, False, time.perf_counter() - start, str(error)), None
    found = validate(model, result.model, data=choosing, metric=options.metric, seed=options.seed).metric
    if found is None:
        raise DataError("the labels are no class numbers for an output with scores: name a --metric to use them")
    standard_error = (found.drop.high - found.drop.low) / 2 / _SURE
    kept = result.report.compressed.macs / result.report.original.macs
    result.plan.settings.update(data=options.source, calibration_size=_count(calibration))  # not "arrays"
    within = found.drop.point + standard_error <= options.max_drop
    return Trial(flops, kept, found.drop, within, time.perf_counter() - start), result


# ---- inputs --------------------------------------------------------------------------------------------------------


def _parts(proto: Any, options: WithinOptions) -> tuple[Part, Part, Part]:
    """The inputs, with their labels, in three parts; at most half of the memory is used for them."""
    data = open_data(options.data, input_specs(proto), preprocess=options.preprocess)
    if not data.labelled:
        raise DataError(f"{data.name} has no labels, which --max-drop needs: store them as 'labels' in the .npz")
    rows = _joined(data, options)
    count = _count(rows)
    if count < _FEWEST:
        raise DataError(f"{data.name} gives {count} labelled inputs; --max-drop needs {_FEWEST}, and many more to tell")
    order = np.random.default_rng(options.seed).permutation(count)
    first = min(options.calibration_size, int(_SHARE * count))
    cuts = (first, first + (count - first) // 2)
    found = [{n: a[part] for n, a in rows.items()} for part in np.split(order, cuts)]
    return {n: a for n, a in found[0].items() if n != "labels"}, found[1], found[2]


def _joined(data: Data, options: WithinOptions) -> Part:
    """All samples, or the first of them that fit."""
    held, size = list[Part](), 0
    for batch in Progress("reading: batch", data.number(_BATCH)).over(data.batches(_BATCH, seed=options.seed)):
        assert batch.labels is not None
        held.append({**batch.inputs, "labels": batch.labels})
        size += sum(a.nbytes for a in held[-1].values())
        if size > options.memory / 2:
            break
    return {n: np.concatenate([h[n] for h in held]) for n in held[0]}


def _count(part: Part) -> int:
    return len(next(iter(part.values())))
