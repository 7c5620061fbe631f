"""The stages of a compression: read -> normalise -> couple -> score -> allocate -> plan -> cut -> verify -> report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from onnxprune import files, normalize, recovery
from onnxprune.allocate import Allocation
from onnxprune.analysis import Analysis, Mask
from onnxprune.budget import Budget, overhead
from onnxprune.calibration import Calibration, calibration
from onnxprune.choose import choose
from onnxprune.clock import Clock
from onnxprune.cost import Cost, CostModel
from onnxprune.couple import couple
from onnxprune.cut import cut
from onnxprune.errors import UsageError
from onnxprune.graph import Model, values
from onnxprune.normalize.describe import export
from onnxprune.origin import Origin
from onnxprune.outcome import Result
from onnxprune.plan import Plan
from onnxprune.plan import make_plan as write_down
from onnxprune.recover.result import Recovery
from onnxprune.recovery import Known, Study
from onnxprune.report import Report
from onnxprune.report.changes import frozen_summary, group_changes, layer_changes
from onnxprune.settings import CompressOptions, Inputs, Options, Shapes, may_add_biases
from onnxprune.shapes import concrete_shapes
from onnxprune.validation.corners import corners
from onnxprune.verify import check, verify

Source = str | Path | onnx.ModelProto


@dataclass(frozen=True, slots=True)
class Begun:
    """A compression before anything is chosen: the budget, the original on inputs (None where nothing looks at any)."""

    budget: Budget
    study: Study | None
    clock: Clock
    name: str

    def within(self, options: CompressOptions) -> Begun:
        """The same, towards another target and in another time."""
        if self.study is not None:
            self.study.seconds = options.time_budget
        return replace(self, budget=Budget(self.budget.analysis, options))


def begin(
    model: Source,
    options: CompressOptions,
    known: Known,
    origin: Origin | None = None,
    before: Study | None = None,
) -> Begun:
    """The start of `compressed`. origin, before: where earlier cuts made the model. Raises as it does."""
    options.check()
    clock = Clock()
    analysis = analysed(model, options.input_shapes, clock)
    wanted = options.runs_inputs
    budget = budgeted(analysis, options, wanted, clock, origin)
    study = studied(analysis, options, wanted, clock, known, options.recover, options.new_biases, origin, before)
    return Begun(budget, study, clock, name_of(model))


def complete(begun: Begun, options: CompressOptions) -> Result:
    """The rest of `compressed`, but for int8."""
    budget, study, clock = begun.budget, begun.study, begun.clock
    choice, plan = chosen(budget, study, clock)
    given = (budget.analysis, choice.kept, plan, clock, begun.name, options.seed, choice.original, choice, study)
    return finish(*given, options.recover)


def compressed(model: Source, options: CompressOptions, known: Known) -> Result:
    """As `compress`; known: what earlier calls for the same model and inputs have found, to which this one adds."""
    begun = begin(model, options, known)
    result = complete(begun, options)
    if not options.int8:
        return result
    with begun.clock("int8"):
        best = corners(read(model), result.model, options.given, options.best_effort)
    report = result.report if best.refused else result.report.of_bytes(files.file_bytes(best.model))
    return replace(result, model=best.model, report=report, int8=best.found, refused=best.refused)


def read(model: Source) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        files.check_model(model)
        return model if files.is_sorted(model) else _sorted(model)
    if not isinstance(model, str | Path):
        raise UsageError(f"the model must be a path or a ModelProto, not {type(model).__name__}")
    return files.read_model(model)


def _sorted(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with its nodes in an order that runs: the caller's model is not touched."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    files.sort_nodes(copy)
    return copy


def name_of(model: Source) -> str:
    return model.graph.name if isinstance(model, onnx.ModelProto) else str(model)


def analysed(model: Source, input_shapes: Shapes | None, clock: Clock) -> Analysis:
    with clock("read"):
        proto = read(model)
    with clock("normalize"):
        cleaned = normalize.normalize(proto)
    with clock("shapes"):
        shapes = concrete_shapes(cleaned, input_shapes)
    with clock("couple"):
        return couple(cleaned, shapes)


def budgeted(analysis: Analysis, options: Options, study: bool, clock: Clock, origin: Origin | None = None) -> Budget:
    """The budget; a target out of reach is known before inputs are looked at."""
    with clock("select"):
        budget = Budget(analysis, options, origin)
        if study:
            budget.check()
        return budget


def studied(
    analysis: Analysis,
    options: Inputs,
    wanted: bool,
    clock: Clock,
    known: Known | None = None,
    shipped: str = "auto",
    new_biases: bool = True,
    origin: Origin | None = None,
    before: Study | None = None,
) -> Study | None:
    """The original on calibration inputs, where something looks at them; on those of `before` where that is given."""
    if not wanted:
        return None
    with clock("calibrate"):
        inputs = before.calibration if before else _calibration(analysis, options)
        return Study(
            analysis,
            inputs,
            options.seed,
            options.memory,
            options.time_budget,
            known=known or Known(),
            shipped=shipped,
            new_biases=new_biases,
            origin=origin,
            before=before,
        )


def _calibration(analysis: Analysis, options: Inputs) -> Calibration:
    return calibration(
        analysis,
        options.data,
        size=options.calibration_size,
        seed=options.seed,
        preprocess=options.preprocess,
        augment=options.augment,
        input_range=options.input_range,
        memory=options.memory,
        seconds=options.time_budget,
    )


def chosen(budget: Budget, study: Study | None, clock: Clock) -> tuple[Allocation, Plan]:
    choice = choose(budget, study, clock)
    with clock("plan"):
        looked = study if budget.options.looks_at_inputs and not choice.kept.all() else None
        told = _predicted(choice) | ({"notes": looked.caveats} if looked and looked.caveats else {})
        plan = write_down(budget.analysis, choice.kept, budget.digest, budget.options.settings(), told)
    return choice, plan


def _predicted(choice: Allocation) -> dict[str, Any]:
    ratio = {"latency": choice.latency["measured"]["ratio"]["point"]} if choice.latency else {}
    return predicted(choice.reached, choice.original, choice.note) | ratio


def predicted(cost: Cost, original: Cost, note: str) -> dict[str, Any]:
    """What a plan says of the cost that it leads to."""
    kept = {k: round(v, 6) for k, v in cost.fractions(original).items()}
    return asdict(cost) | {"kept": kept} | ({"note": note} if note else {})


def finish(
    analysis: Analysis,
    kept: Mask,
    plan: Plan,
    clock: Clock,
    name: str,
    seed: int,
    original: Cost,
    choice: Allocation | None = None,
    study: Study | None = None,
    recover: str = "none",
) -> Result:
    with clock("cut"):
        smaller = cut(analysis, kept)
    with clock("verify"):
        verification = verify(analysis, kept, smaller, seed=seed)
    recovered: Recovery | None = None
    if recover != "none" and not kept.all():
        with clock("recover"):
            grow = may_add_biases(plan.settings.keys())
            taken = (str(plan.settings.get("method", "")), int(plan.settings.get("seed", 0)))
            partners = recovery.partners(analysis, *taken) if recover == "merge" else None
            recovered = recovery.recover(analysis, kept, smaller, recover, study, new_biases=grow, partners=partners)
            check(smaller, analysis)
    with clock("export"):
        proto = export(smaller)
    report = Report(
        model=name,
        original=original,
        compressed=_cost(analysis, kept, smaller, proto),
        classes=analysis.classes,
        removed=int((~kept).sum()),
        frozen_positions=sum(f.positions for f in analysis.frozen),
        inexact=int(analysis.inexact.sum()),
        verification=verification,
        layers=tuple(layer_changes(analysis, kept)),
        frozen=frozen_summary(analysis),
        notes=tuple(analysis.notes),
        seconds=clock.seconds,
        plan=plan,
        note=choice.note if choice else "",
        reachable=choice.smallest if choice else None,
        settings=plan.settings,
        recovery=recovered,
        tried=choice.tried if choice else None,
        latency=choice.latency if choice else None,
        groups=tuple(group_changes(analysis, kept)),
        caveats=tuple(plan.predicted.get("notes", ())) if choice and not recovered else (),
    )
    return Result(proto, plan, report)


def _cost(analysis: Analysis, kept: Mask, smaller: Model, proto: onnx.ModelProto) -> Cost:
    """What the cut model costs, biases that recovery added included."""
    cost, known = CostModel(analysis, overhead(proto)).evaluate(kept), analysis.model.constants()
    new = [t for name, t in smaller.constants().items() if name not in known]
    arrays = [a for a in map(values, new) if a is not None]
    return Cost(cost.macs, cost.params + sum(a.size for a in arrays), cost.bytes + sum(a.nbytes for a in arrays))
