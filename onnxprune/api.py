"""The functions of the library; `pipeline` has the stages that they share."""

from __future__ import annotations

from pathlib import Path

import onnx

from onnxprune import difference, explanation, files, normalize, resemblance
from onnxprune.analysis import Analysis
from onnxprune.budget import overhead
from onnxprune.clock import Clock
from onnxprune.cost import Cost, CostModel
from onnxprune.difference import Difference
from onnxprune.errors import PlanError
from onnxprune.explanation import Explanation
from onnxprune.normalize.describe import export
from onnxprune.outcome import Result
from onnxprune.pipeline import Source, analysed, budgeted, chosen, compressed, finish, name_of, read, studied
from onnxprune.plan import Plan, kept_classes, loads
from onnxprune.recovery import Known
from onnxprune.report.changes import frozen_summary
from onnxprune.report.overview import Overview
from onnxprune.report.overview import overview as summarise
from onnxprune.resemblance import Redundancy
from onnxprune.settings import CompressOptions, Options, ReplayOptions, Shapes, SparsifyOptions
from onnxprune.signature import taking
from onnxprune.sparse import sparsify as sparse
from onnxprune.sparse.result import Sparsified, Sparsity, gzip_bytes
from onnxprune.validation.bench import Benchmark, benchmark
from onnxprune.verify import check

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


@taking(Options)
def make_plan(model: Source, options: Options) -> Plan:
    """The plan that `compress` would apply with the same arguments and its default repair, without cutting. Raises as
    `compress` does.
    """
    options.check()
    options.check_inputs_used()
    clock = Clock()
    analysis = analysed(model, options.input_shapes, clock)
    budget = budgeted(analysis, options, options.looks_at_inputs, clock)
    study = studied(analysis, options, options.looks_at_inputs, clock, new_biases=options.new_biases)
    return chosen(budget, study, clock)[1]


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
    analysis = analysed(model, options.input_shapes, clock)
    with clock("plan"):
        cleaned = export(analysis.model)
        kept = kept_classes(plan, analysis, files.digest(cleaned))
        original = CostModel(analysis, overhead(cleaned)).original
    study = studied(analysis, options, options.runs_inputs, clock)
    return finish(analysis, kept, plan, clock, name_of(model), options.seed, original, None, study, options.recover)


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
    analysis = analysed(model, options.input_shapes, clock)
    study = studied(analysis, options, options.looks_at_inputs, clock)
    before, result = gzip_bytes(export(analysis.model)), analysis.model.copy()
    with clock("sparsify"):
        masked = sparse.sparsify(result, study, settings)
        check(result, analysis)
    proto = export(result)
    data = None if study is None else study.calibration.as_dict()
    sizes = (before, gzip_bytes(proto))
    return Sparsified(proto, Sparsity(name_of(model), options.settings(), masked, sizes, data, clock.seconds))


def analyze(model: Source, *, input_shapes: Shapes | None = None) -> Analysis:
    """Couple the positions of a model: its layers, cost, classes, what is frozen and why."""
    return analysed(model, input_shapes, Clock())


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
    called = name if isinstance(model, Analysis) else name_of(model)
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
