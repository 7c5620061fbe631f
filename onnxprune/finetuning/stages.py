"""Deep cuts in several steps: each is repaired, and fine-tuned where there are training data, before the next."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import onnx

from onnxprune import api, normalize, pipeline
from onnxprune.allocate import WINDOW
from onnxprune.api import Result
from onnxprune.budget import Budget
from onnxprune.clock import Progress
from onnxprune.errors import UsageError
from onnxprune.finetuning.settings import TuneOptions
from onnxprune.origin import Origin
from onnxprune.pipeline import Begun, Source
from onnxprune.plan import Keep, Plan, kept_classes
from onnxprune.recover.agreement import Agreement
from onnxprune.recover.program import program
from onnxprune.recover.result import Recovery
from onnxprune.recovery import Known, Study
from onnxprune.settings import CompressOptions
from onnxprune.target import loose

if TYPE_CHECKING:
    from onnxprune.report.tuning import TuneReport

_NAMES = {"flops": "macs", "params": "params", "size": "bytes"}


@dataclass(frozen=True, slots=True)
class Staged:
    """A compressed model, and what fine-tuning did after each of the cuts."""

    result: Result
    tuned: tuple[TuneReport, ...]


def staged(
    model: Source, options: Mapping[str, Any], *, steps: int = 1, tuning: Mapping[str, Any] | None = None
) -> Staged:
    """Compress in several steps, each of which keeps the same share of what the one before left.

    options: of `compress`; its target is that of the last step, its time is that of all, and its floors are shares of
    the original. tuning: options of `finetune`, but for the teacher, which is the original in every step; None: no
    training; inputs that the result is compared on are not trained on. Every repair aims at the original (after
    training, at what was trained); the result is compared with the original, beside the whole cut, unrepaired. Its plan
    is in the coordinates of the original: `apply` replays the whole cut at once. Raises as both functions do.
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
    if steps == 1 and tuning is None:
        return Staged(api.compress(model, **options), ())
    whole = CompressOptions(**options)
    whole.check()
    whole.check_inputs_used()
    first = pipeline.begin(model, whole, Known())
    if first.study is None:
        first.budget.check()  # else it was, before inputs were looked at
    return _in_steps(model, whole, first, steps, tuning)


def _in_steps(
    model: Source, whole: CompressOptions, first: Begun, steps: int, tuning: Mapping[str, Any] | None
) -> Staged:
    """The steps, the first of which goes on from where `first` is."""
    original, digest = first.budget.analysis, first.budget.digest
    apart = first.study.held if first.study else ()
    results, reports, keep, untrained = list[Result](), list["TuneReport"](), Keep(), onnx.ModelProto()
    for step in Progress("step", steps).over(range(1, steps + 1)):
        options = _share(whole, results, step / steps, steps)
        if not results:
            result = pipeline.complete(first.within(options), options)
        else:
            left = kept_classes(Plan(digest, keep), original, digest)
            origin = Origin(original, left, trained=tuning is not None)
            begun = pipeline.begin(results[-1].model, options, Known(), origin, first.study)
            result = pipeline.complete(begun, options)
        untrained = result.model
        if tuning is not None:
            from onnxprune.finetuning.tune import tune

            tuned = tune(result.model, TuneOptions(teacher=model, **tuning), apart=apart)
            reports.append(_titled(tuned.report, step, steps))
            result = replace(result, model=tuned.model)
        results.append(result)
        keep = _composed((r.plan for r in results), original.model.constants().keys())
        if reports and (reports[-1].failed or reports[-1].interrupted):
            break
    if steps == 1:
        return Staged(_with_training(first, results[0]), tuple(reports))
    networks = {"repaired": untrained} | ({"trained": results[-1].model} if reports else {})
    plan = _planned(first, results, keep, steps)
    return Staged(_whole(model, first, results, plan, networks, steps), tuple(reports))


def _titled(report: TuneReport, step: int, steps: int) -> TuneReport:
    """The report of a network that is in no file yet, under the name of its original, which taught it."""
    return replace(report, model=f"{report.teacher}, cut" + (f" (step {step} of {steps})" if steps > 1 else ""))


def _share(whole: CompressOptions, results: list[Result], part: float, steps: int) -> CompressOptions:
    """Options of a step: its target, of the original, as a fraction of what it starts from, and its share of the time.

    part: of the whole way that is done after it.
    """
    kind, keep = (target := whole.target()).kind, target.keep**part
    if results:
        first, last = results[0].report.original, results[-1].report.compressed
        keep = min(keep * first.of(kind) / last.of(kind), 1.0)
    return replace(whole, time_budget=whole.time_budget / steps, **{kind: keep})


def _with_training(first: Begun, result: Result) -> Result:
    """The result of one cut, with what training brought beside what the repair did."""
    found = result.report.recovery
    if found is None or first.study is None:
        return result
    agreements, metric = _compared(first.study, {"trained": result.model})
    found = _trained(found, agreements["trained"], metric and {**(found.metric or {}), **metric})
    return replace(result, report=replace(result.report, recovery=found))


def _whole(
    model: Source, first: Begun, results: list[Result], plan: Plan, networks: Mapping[str, onnx.ModelProto], steps: int
) -> Result:
    """One result for all steps: the plan of the whole cut, replayed on the original, which verifies it.

    networks: after the last repair and, where there was training, after that; steps: that were asked for.
    """
    options, last = first.budget.options, results[-1]
    replayed = api.apply_plan(model, plan, seed=options.seed, input_shapes=options.input_shapes)
    _check_same(replayed.model, last.model)
    done = f"{len(results)} of {steps}" if len(results) < steps else str(steps)
    recovery, smaller = _recovery(first.study, results, {"cut": replayed.model, **networks}, done)
    seconds = {k: sum(r.report.seconds.get(k, 0.0) for r in results) for r in results for k in r.report.seconds}
    report = replace(
        replayed.report,
        compressed=(replayed if smaller is replayed.model else last).report.compressed,
        recovery=recovery,
        seconds=seconds,
        note=str(plan.predicted.get("note", "")),
        reachable=first.budget.lowest().smallest,
        tried=last.report.tried,
        caveats=tuple(dict.fromkeys(n for r in results for n in r.report.caveats)),
        settings=plan.settings,
    )
    return Result(smaller, plan, report)


def _recovery(
    study: Study | None, results: list[Result], networks: Mapping[str, onnx.ModelProto], done: str
) -> tuple[Recovery | None, onnx.ModelProto]:
    """What the repairs of all steps brought, beside the original and the whole cut, and the network that ships: the
    bare cut where it agrees better than what came of it without training.
    """
    final = list(networks.values())[-1]
    repairs = [r.report.recovery for r in results if r.report.recovery is not None]
    if not repairs:
        return None, final
    told = f"cut in {done} steps; 'cut' is the whole cut at once, without a repair"
    notes = tuple(dict.fromkeys([told, *(n for r in repairs for n in r.notes)]))
    found = replace(repairs[-1], layers=tuple({x.node: x for r in repairs for x in r.layers}.values()), notes=notes)
    if study is None:
        return found, final
    agreements, metric = _compared(study, networks)
    better = agreements["repaired"].divergence <= agreements["cut"].divergence
    shipped: Literal["repaired", "cut"] = "repaired" if better else "cut"
    pair = agreements["cut"], agreements["repaired"]
    found = replace(found, before=pair[0], after=pair[1], shipped=shipped, metric=metric)
    if "trained" in networks:
        return _trained(found, agreements["trained"], metric), final
    return found, final if better else networks["cut"]


def _trained(found: Recovery, agreement: Agreement, metric: dict[str, float] | None) -> Recovery:
    """The same where the network was fine-tuned after the repair."""
    told = ["training left these inputs out, where its data have them alike"]
    told += [] if found.shipped == "repaired" else ["the bare cut agreed no worse before training"]
    return replace(found, trained=agreement, metric=metric, shipped="trained", notes=(*found.notes, *told))


def _compared(
    study: Study, networks: Mapping[str, onnx.ModelProto]
) -> tuple[dict[str, Agreement], dict[str, float] | None]:
    return study.compared({n: program(normalize.normalize(m)) for n, m in networks.items()})


def _composed(plans: Iterable[Plan], known: Collection[str]) -> Keep:
    """What is kept of the original after cuts one after the other; known: the original's parameters."""
    keep: Keep = {}
    for plan in plans:
        for name in plan.keep.keys() & known:  # not a bias that a repair added
            before = keep.setdefault(name, {})
            for axis, indices in plan.keep[name].items():
                old = before.get(axis)
                before[axis] = indices if old is None else [old[i] for i in indices]
    return keep


def _planned(first: Begun, results: Sequence[Result], keep: Keep, steps: int) -> Plan:
    """The plan of the whole cut, in the coordinates of the original; steps: that were asked for."""
    whole, plans = first.budget.options, [r.plan for r in results]
    left = kept_classes(Plan(first.budget.digest, keep), first.budget.analysis, first.budget.digest)
    original, cost = results[0].report.original, first.budget.cost.evaluate(left)
    fraction = cost.fractions(original)[_NAMES[whole.target().kind]]
    note = _note(first.budget, fraction) if len(results) == steps else ""
    notes = list(dict.fromkeys(n for p in plans for n in p.predicted.get("notes", ())))
    predicted = pipeline.predicted(cost, original, note) | ({"notes": notes} if notes else {})
    return Plan(first.budget.digest, keep, whole.settings() | {"steps": len(results)}, predicted, plans[0].frozen)


def _note(budget: Budget, fraction: float) -> str:
    """What to know where the target is missed, or met loosely."""
    target = budget.target
    if fraction > target.keep:
        return budget.lowest().note or f"--{target.kind} {target.keep:g} was not reached: {fraction:.4g} is left"
    return loose(target, fraction, budget.options.align) if fraction <= (1 - WINDOW) * target.keep else ""


def _check_same(whole: onnx.ModelProto, stepwise: onnx.ModelProto) -> None:
    """The cut at once and the cuts one after the other must leave the same widths."""
    a, b = ({t.name: tuple(t.dims) for t in m.graph.initializer} for m in (whole, stepwise))
    apart = [n for n in a.keys() & b.keys() if a[n] != b[n]]
    if apart:
        raise AssertionError(f"the steps and their plan differ in the shape of {sorted(apart)[:3]}")
