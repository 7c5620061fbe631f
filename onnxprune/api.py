"""The pipeline in a screenful: read -> normalise -> couple -> score -> allocate -> plan -> cut -> verify -> report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from onnxprune import difference, explanation, files, normalize, recovery, resemblance
from onnxprune.allocate import Allocation
from onnxprune.analysis import Analysis, Mask
from onnxprune.budget import Budget, overhead
from onnxprune.calibration import calibration
from onnxprune.choose import choose
from onnxprune.clock import Clock
from onnxprune.cost import Cost, CostModel
from onnxprune.couple import couple
from onnxprune.cut import cut
from onnxprune.difference import Difference
from onnxprune.errors import PlanError, UsageError
from onnxprune.explanation import Explanation
from onnxprune.graph import Model, values
from onnxprune.normalize.describe import export
from onnxprune.outcome import Result
from onnxprune.plan import Plan, kept_classes, loads
from onnxprune.plan import make_plan as write_down
from onnxprune.recovery import Known, Recovery, Study
from onnxprune.report import Report
from onnxprune.report.changes import frozen_summary, group_changes, layer_changes
from onnxprune.report.overview import Overview
from onnxprune.report.overview import overview as summarise
from onnxprune.resemblance import Redundancy
from onnxprune.settings import CompressOptions, Inputs, Options, ReplayOptions, Shapes, SparsifyOptions, may_add_biases
from onnxprune.shapes import concrete_shapes
from onnxprune.signature import taking
from onnxprune.sparse import sparsify as sparse
from onnxprune.sparse.result import Sparsified, Sparsity, gzip_bytes
from onnxprune.validation.bench import Benchmark, benchmark
from onnxprune.validation.corners import corners
from onnxprune.verify import check, verify

__all__ = [
    "Benchmark",
    "Cost",
    "Difference",
    "Explanation",
    "Options",
    "Overview",
    "Result",
    "analyze",
    "apply_plan",
    "benchmark",
    "clean",
    "cleaned",
    "compress",
    "diff",
    "explain",
    "make_plan",
    "overview",
    "read_plan",
    "redundancy",
    "sparsify",
]
Source = str | Path | onnx.ModelProto


@taking(CompressOptions)
def compress(model: Source, options: CompressOptions) -> Result:
    """Remove filters until the model keeps at most a fraction of its FLOPs, parameters, bytes or latency; verified.

    model: a path or a ModelProto (not modified). flops, params, size, latency: the fraction to keep, (0, 1], of the
    cleaned model; exactly one is given; latency is measured here, on random inputs, with `threads` per operator (1),
    and met within 3 %. method: a criterion of `onnxprune.criteria.NAMES`; allocate: how the groups share the
    cut, of `onnxprune.recovery.ALLOCATIONS`; the defaults are "obs" and "greedy" with data, else "group_norm" and
    "global". recover: the repair after the cut, of `onnxprune.recovery.METHODS`; data: unlabelled inputs that it, and
    the choice, may look at (as `data.open_data` takes them; made up where there are none), preprocess: how raw images
    become inputs; calibration_size: how many are used; augment: whether mirrored images are, too;
    input_range: lowest and highest value of inputs that are made up; memory: bytes for
    activations, beyond which temporary files are used; time_budget: seconds; candidates are thinned to keep to it.
    min_keep: least share of every group.
    align: widths stay multiples of it. keep: patterns of node or parameter names whose layers are left alone.
    inexact: also remove what LayerNorm and the like renormalise. best_effort: take the nearest reachable value.
    seed: of the criterion `random` and of the verification's inputs. input_shapes: concrete input sizes where symbolic.
    int8: quantize the result on the same data, where that makes it faster on this processor (`best_effort`: in any
    case). Raises UsageError, ModelError, TargetError (target out of reach), VerificationError (a bug of ours).
    """
    options.check()
    options.check_inputs_used()
    return compressed(model, options, Known())


def compressed(model: Source, options: CompressOptions, known: Known) -> Result:
    """As `compress`; known: what earlier calls for the same model and inputs have found, to which this one adds."""
    options.check()
    clock = Clock()
    analysis = _analysed(model, options.input_shapes, clock)
    wanted = options.runs_inputs
    budget = _budget(analysis, options, wanted, clock)
    study = _study(analysis, options, wanted, clock, known, options.recover, options.new_biases)
    choice, plan = _chosen(budget, study, clock)
    result = _finish(
        analysis, choice.kept, plan, clock, _name(model), options.seed, choice.original, choice, study, options.recover
    )
    if not options.int8:
        return result
    with clock("int8"):
        best = corners(read(model), result.model, options.given, options.best_effort)
    report = result.report if best.refused else result.report.of_bytes(files.file_bytes(best.model))
    return replace(result, model=best.model, report=report, int8=best.found, refused=best.refused)


@taking(Options)
def make_plan(model: Source, options: Options) -> Plan:
    """The plan that `compress` would apply with the same arguments and its default repair, without cutting. Raises as
    `compress` does.
    """
    options.check()
    options.check_inputs_used()
    clock = Clock()
    analysis = _analysed(model, options.input_shapes, clock)
    budget = _budget(analysis, options, options.looks_at_inputs, clock)
    study = _study(analysis, options, options.looks_at_inputs, clock, new_biases=options.new_biases)
    return _chosen(budget, study, clock)[1]


def read_plan(path: str | Path) -> Plan:
    """Read a plan file. Raises FileError where there is none, PlanError where it is something else."""
    try:
        return loads(files.read_bytes(path))
    except PlanError as error:
        raise PlanError(f"{str(path)!r} is not a plan of `onnxprune plan`: {error}") from error


@taking(ReplayOptions)
def apply_plan(model: Source, plan: Plan | str | Path, options: ReplayOptions) -> Result:
    """Replay a plan, or a plan file, on the original or the cleaned model: the same cut, byte for byte.

    recover: a repair after it, as in `compress`; the rest as there. Raises PlanError where the plan does not fit the
    model.
    """
    options.check()
    clock = Clock()
    plan = plan if isinstance(plan, Plan) else read_plan(plan)
    analysis = _analysed(model, options.input_shapes, clock)
    with clock("plan"):
        cleaned = export(analysis.model)
        kept = kept_classes(plan, analysis, files.digest(cleaned))
        original = CostModel(analysis, overhead(cleaned)).original
    study = _study(analysis, options, options.runs_inputs, clock)
    return _finish(analysis, kept, plan, clock, _name(model), options.seed, original, None, study, options.recover)


@taking(SparsifyOptions)
def sparsify(model: Source, options: SparsifyOptions) -> Sparsified:
    """Set single weights to zero; shapes, names and interface stay. It gains nothing in onnxruntime: only a compressed
    file is smaller.

    model: as in `compress`. sparsity: share of each layer's weights that goes, (0, 1); scope: "global" for a share of
    all together. pattern: instead of it, such as "2:4": of every 4 consecutive inputs of an output, 2 stay. method:
    "magnitude": the smallest go; "evolve": beside the largest those of the small ones stay that keep the outputs of
    each layer closest to the original's, as an optimiser finds among `budget` candidates per layer. optimiser: of
    `searching.OPTIMISERS`. The masks by magnitude are always compared, and written where the network with them is
    closer to the original on inputs held out. keep: patterns of node or weight names that are left alone;
    the rest as in `compress`. Raises UsageError, ModelError, DataError.
    """
    settings, clock = options.checked(), Clock()
    analysis = _analysed(model, options.input_shapes, clock)
    study = _study(analysis, options, options.looks_at_inputs, clock)
    before, result = gzip_bytes(export(analysis.model)), analysis.model.copy()
    with clock("sparsify"):
        masked = sparse.sparsify(result, study, settings)
        check(result, analysis)
    proto = export(result)
    data = None if study is None else study.calibration.as_dict()
    sizes = (before, gzip_bytes(proto))
    return Sparsified(proto, Sparsity(_name(model), options.settings(), masked, sizes, data, clock.seconds))


def analyze(model: Source, *, input_shapes: Shapes | None = None) -> Analysis:
    """Couple the positions of a model: its layers, cost, classes, what is frozen and why."""
    return _analysed(model, input_shapes, Clock())


def clean(model: Source) -> onnx.ModelProto:
    """The normalised original, nothing pruned: what plans refer to, and the fair baseline. Idempotent to the byte."""
    return cleaned(model)[0]


def cleaned(model: Source) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The normalised original as `clean` gives it, and what was changed in words."""
    result = normalize.normalize(read(model))
    return export(result), tuple(result.notes)


def overview(model: Source | Analysis, *, input_shapes: Shapes | None = None, name: str = "") -> Overview:
    """What `analyze` finds, in numbers: layers and their cost, classes, which layers share a fate, what is frozen.

    model: an analysis saves repeating it; name: what the model is called there.
    """
    analysis = model if isinstance(model, Analysis) else analyze(model, input_shapes=input_shapes)
    cost = CostModel(analysis, overhead(export(analysis.model))).original
    called = name if isinstance(model, Analysis) else _name(model)
    return summarise(analysis, cost, frozen_summary(analysis), called)


def redundancy(model: Source | Analysis, *, input_shapes: Shapes | None = None) -> Redundancy:
    """How far the filters of each layer resemble each other: cosines, clusters at several distances, effective rank.

    model: an analysis saves repeating it.
    """
    analysis = model if isinstance(model, Analysis) else analyze(model, input_shapes=input_shapes)
    return resemblance.redundancy(analysis)


def explain(model: Source | Analysis, name: str, *, input_shapes: Shapes | None = None) -> Explanation:
    """What goes with the positions of a node or tensor, and the path of ties that freezes what cannot go.

    model: an analysis saves repeating it. Raises UsageError, with the nearest names, for an unknown name.
    """
    analysis = model if isinstance(model, Analysis) else analyze(model, input_shapes=input_shapes)
    return explanation.explain(analysis, name)


def diff(before: Source, after: Source) -> Difference:
    """What changed between two models: widths, parameters, attributes, nodes, signature, versions, metadata, size."""
    return difference.diff(read(before), read(after))


# ---- stages ----------------------------------------------------------------------------------------------------------


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


def _name(model: Source) -> str:
    return model.graph.name if isinstance(model, onnx.ModelProto) else str(model)


def _analysed(model: Source, input_shapes: Shapes | None, clock: Clock) -> Analysis:
    with clock("read"):
        proto = read(model)
    with clock("normalize"):
        cleaned = normalize.normalize(proto)
    with clock("shapes"):
        shapes = concrete_shapes(cleaned, input_shapes)
    with clock("couple"):
        return couple(cleaned, shapes)


def _budget(analysis: Analysis, options: Options, study: bool, clock: Clock) -> Budget:
    """The budget; a target out of reach is known before inputs are looked at."""
    with clock("select"):
        budget = Budget(analysis, options)
        if study:
            budget.check()
        return budget


def _study(
    analysis: Analysis,
    options: Inputs,
    wanted: bool,
    clock: Clock,
    known: Known | None = None,
    shipped: str = "auto",
    new_biases: bool = True,
) -> Study | None:
    """The original on calibration inputs, where something looks at them."""
    if not wanted:
        return None
    with clock("calibrate"):
        inputs = calibration(
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
        given = (options.seed, options.memory, options.time_budget)
        return Study(analysis, inputs, *given, known=known or Known(), shipped=shipped, new_biases=new_biases)


def _chosen(budget: Budget, study: Study | None, clock: Clock) -> tuple[Allocation, Plan]:
    choice = choose(budget, study, clock)
    with clock("plan"):
        looked = study if budget.options.looks_at_inputs and not choice.kept.all() else None
        predicted = _predicted(choice) | ({"notes": looked.caveats} if looked and looked.caveats else {})
        plan = write_down(budget.analysis, choice.kept, budget.digest, budget.options.settings(), predicted)
    return choice, plan


def _predicted(choice: Allocation) -> dict[str, Any]:
    cost, fractions = choice.reached, choice.reached.fractions(choice.original)
    predicted = {
        "macs": cost.macs,
        "params": cost.params,
        "bytes": cost.bytes,
        "kept": {k: round(v, 6) for k, v in fractions.items()},
    }
    predicted |= {"latency": choice.latency["measured"]["ratio"]["point"]} if choice.latency else {}
    return predicted | {"note": choice.note} if choice.note else predicted


def _finish(
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
