"""The choice of what leaves: by the method's scores within a budget, or until a latency is met that is measured."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from onnx import ModelProto

from onnxprune import criteria, recovery, searching
from onnxprune.allocate import Allocation
from onnxprune.budget import Budget
from onnxprune.clock import Clock
from onnxprune.cut import cut
from onnxprune.errors import TargetError
from onnxprune.graph import Array
from onnxprune.normalize.describe import export
from onnxprune.reach import TOLERANCE, Measured, Reached, reach
from onnxprune.recovery import Study
from onnxprune.runtime import CPU
from onnxprune.settings import Options
from onnxprune.validation import latency
from onnxprune.validation.environment import environment
from onnxprune.validation.feeds import made_up
from onnxprune.validation.intervals import Interval
from onnxprune.validation.layer_times import durations


def choose(budget: Budget, study: Study | None, clock: Clock) -> Allocation:
    """What leaves. Raises TargetError for a target out of reach, unless `best_effort`."""
    if budget.target.kind != "latency":
        with clock("select"):
            return select(budget, study, budget.target.keep)
    return _in_time(budget, study, clock)


def select(budget: Budget, study: Study | None, keep: float) -> Allocation:
    """The choice that keeps at most a fraction of what the budget counts."""
    analysis, options = budget.analysis, budget.options
    decide = partial(budget.decide, keep=keep)
    if options.allocation in searching.ALLOCATIONS:
        return searching.select(
            options.allocation, options.criterion, analysis, study, budget.free, decide, options.search
        )
    if study is None:
        scores = criteria.score(options.criterion, analysis, seed=options.seed)
        return recovery.by_ranking(analysis, scores, options.allocation, decide)
    return study.select(options.criterion, options.allocation, keep, budget.cost, budget.free, budget.decide)


# ---- a latency ---------------------------------------------------------------------------------------------------


def _in_time(budget: Budget, study: Study | None, clock: Clock) -> Allocation:
    """The choice whose latency, measured beside the cleaned original's, is the wanted share of it."""
    options, wanted = budget.options, budget.target.keep
    cleaned = export(budget.analysis.model)
    feeds = made_up(cleaned, None, options.input_shapes, options.seed)

    with clock("measure"):
        timed = budget.in_time(durations(budget.analysis, feeds, options.threads or 1))

    def chosen(keep: float) -> Allocation:
        with clock("select"):
            return select(timed, study, keep)

    def ratio(choice: Allocation) -> Measured:
        with clock("measure"):
            return _measured(budget, cleaned, choice, feeds)

    found = reach(wanted, chosen, ratio)
    if found.ratio > wanted and not (found.met or options.best_effort):
        raise TargetError(_missed(found, options))
    note = _unsure(found) if found.met else _missed(found, options)
    told = found.as_dict() | {"environment": environment(options.threads or 1, CPU)}
    return replace(found.choice, note=note, latency=told)


def _measured(budget: Budget, cleaned: ModelProto, choice: Allocation, feeds: dict[str, Array]) -> Measured:
    """The latency of a choice beside the cleaned original's; weights are not repaired, which changes no shape."""
    options = budget.options
    smaller = export(cut(budget.analysis, choice.kept))
    found = latency.pair(cleaned, smaller, feeds=feeds, threads=options.threads or 1, seed=options.seed)
    ratio = Interval(1 / found.speedup.point, 1 / found.speedup.high, 1 / found.speedup.low)
    return Measured(ratio, found.noise, found.baseline.p50, found.candidate.p50)


def _unsure(found: Reached) -> str:
    """What to know of a measurement whose interval is wider than what counts as met."""
    at = found.best.measured.ratio
    if at.high - at.low <= 2 * TOLERANCE * found.wanted:
        return ""
    return (
        f"the measured latency is only known to lie between {at.low:.3g} and {at.high:.3g} of the original's: the "
        "machine was busy; measure again with `onnxprune bench`"
    )


def _missed(found: Reached, options: Options) -> str:
    """Why no network has the latency that was asked for, and what could help."""
    finer = "" if options.align == 1 else "; --align 1 has finer steps, but its widths are slow ones on a CPU"
    if found.floor:
        lower = "; a smaller --min-keep may allow less" if options.min_keep > 0 else ""
        return (
            f"--latency {found.wanted:g} cannot be reached: with everything gone that may go, {found.ratio:.3g} of the "
            f"latency was measured{lower}. What is not cut, and what each operator costs whatever its width, stays"
        )
    return (
        f"--latency {found.wanted:g} was not met within {TOLERANCE:.0%} by any of {len(found.trials)} networks that "
        f"were measured; the nearest took {found.ratio:.3g} of the latency: the steps in which layers can leave are "
        f"too coarse, or the machine too busy to measure{finer}"
    )
