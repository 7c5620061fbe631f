"""Deep cuts in several steps: each is repaired, and fine-tuned where there are training data, before the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import onnx

from onnxprune import api
from onnxprune.api import Result, Source
from onnxprune.clock import Progress
from onnxprune.errors import UsageError
from onnxprune.plan import Keep, Plan

if TYPE_CHECKING:
    from onnxprune.report.tuning import TuneReport

_TARGETS = {"flops": "macs", "params": "params", "size": "bytes"}


@dataclass(frozen=True, slots=True)
class Staged:
    """A compressed model, and what fine-tuning did after each of the cuts."""

    result: Result
    tuned: tuple[TuneReport, ...]


def staged(
    model: Source, options: Mapping[str, Any], *, steps: int = 1, tuning: Mapping[str, Any] | None = None
) -> Staged:
    """Compress in several steps, each of which keeps the same share of what the one before left.

    options: of `compress`; its target is that of the last step. tuning: options of `finetune`, but for the teacher,
    which is the original in every step; None: no training. The plan of the result is in the coordinates of the
    original: `apply` replays the whole cut at once. Raises as both functions do.
    """
    if steps < 1:
        raise UsageError(f"--steps {steps}: give at least 1")
    if options.get("int8") and (steps > 1 or tuning is not None):
        raise UsageError("--int8 cannot be had with --finetune or --steps: what is trained is not quantized yet")
    if steps > 1 and options.get("latency") is not None:
        raise UsageError("--latency is found by measuring whole cuts: leave out --steps")
    if tuning is not None:
        from onnxprune.finetuning.tune import require_torch

        require_torch()
    results, reports = list[Result](), list["TuneReport"]()
    current: Source = model
    for step in Progress("step", steps).over(range(1, steps + 1)):
        result = api.compress(current, **_share(options, results, step / steps))
        if tuning is not None:
            from onnxprune.finetuning.tune import finetune

            tuned = finetune(result.model, teacher=model, **tuning)
            reports.append(_titled(tuned.report, step, steps))
            result = replace(result, model=tuned.model)
        results.append(result)
        current = result.model
        if reports and (reports[-1].failed or reports[-1].interrupted):
            break
    return Staged(_whole(model, results, options), tuple(reports))


def _titled(report: TuneReport, step: int, steps: int) -> TuneReport:
    """The report of a network that is in no file yet, under the name of its original, which taught it."""
    return replace(report, model=f"{report.teacher}, cut" + (f" (step {step} of {steps})" if steps > 1 else ""))


def _share(options: Mapping[str, Any], results: list[Result], part: float) -> dict[str, Any]:
    """Options of a step: its target, of the original, as a fraction of what it starts from."""
    if not results:
        target = {k: options[k] ** part for k in _TARGETS if options.get(k) is not None}
        return {**options, **target}
    first, last = results[0].report.original, results[-1].report.compressed
    target = {
        k: min(options[k] ** part * getattr(first, cost) / getattr(last, cost), 1.0)
        for k, cost in _TARGETS.items()
        if options.get(k) is not None
    }
    return {**options, **target}


def _whole(model: Source, results: list[Result], options: Mapping[str, Any]) -> Result:
    """One result for all steps: the plan of the whole cut, replayed on the original, which verifies it."""
    last = results[-1]
    if len(results) == 1:
        return last
    plan = _composed([r.plan for r in results], {t.name for t in api.clean(model).graph.initializer})
    shapes = options.get("input_shapes")
    replayed = api.apply_plan(model, plan, seed=options.get("seed", 0), input_shapes=shapes)
    _check_same(replayed.model, last.model)
    seconds = {k: sum(r.report.seconds.get(k, 0.0) for r in results) for r in results for k in r.report.seconds}
    report = replace(
        replayed.report,
        compressed=last.report.compressed,
        recovery=last.report.recovery,
        seconds=seconds,
        note=last.report.note,
        caveats=tuple(dict.fromkeys([*(n for r in results for n in r.report.caveats), *_beside(last)])),
        settings=plan.settings,
    )
    return Result(last.model, plan, report)


def _beside(last: Result) -> list[str]:
    """What has to be said of a repair that looked at the network of the step before."""
    told = "The repair of the last step is compared with the network of the step before it, not with the original."
    return [told] if last.report.recovery is not None else []


def _composed(plans: list[Plan], known: set[str]) -> Plan:
    """What is kept of the original after all of the cuts; known: the original's parameters."""
    keep: Keep = {n: dict(axes) for n, axes in plans[0].keep.items()}
    for plan in plans[1:]:
        for name, axes in plan.keep.items():
            if name not in known:
                continue  # a bias that a repair added
            before = keep.setdefault(name, {})
            for axis, indices in axes.items():
                old = before.get(axis)
                before[axis] = indices if old is None else [old[i] for i in indices]
    settings = {**plans[-1].settings, "steps": len(plans)}
    return Plan(plans[0].model, keep, settings, plans[-1].predicted, plans[0].frozen)


def _check_same(whole: onnx.ModelProto, stepwise: onnx.ModelProto) -> None:
    """The cut at once and the cuts one after the other must leave the same widths."""
    a, b = ({t.name: tuple(t.dims) for t in m.graph.initializer} for m in (whole, stepwise))
    apart = [n for n in a.keys() & b.keys() if a[n] != b[n]]
    if apart:
        raise AssertionError(f"the steps and their plan differ in the shape of {sorted(apart)[:3]}")
