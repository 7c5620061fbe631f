"""The pipeline in a screenful: read -> normalise -> couple -> score -> allocate -> plan -> cut -> verify -> report."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from onnxprune import criteria, difference, explanation, files, normalize
from onnxprune.allocate import Allocation, Target, allocate
from onnxprune.analysis import Analysis, Mask
from onnxprune.cost import Cost, CostModel, Kind
from onnxprune.couple import couple
from onnxprune.cut import cut
from onnxprune.difference import Difference
from onnxprune.errors import PlanError, UsageError
from onnxprune.explanation import Explanation
from onnxprune.normalize.describe import export
from onnxprune.plan import Plan, kept_classes, loads
from onnxprune.plan import make_plan as write_down
from onnxprune.report import LayerChange, Report
from onnxprune.report.overview import Overview
from onnxprune.report.overview import overview as summarise
from onnxprune.shapes import concrete_shapes
from onnxprune.signature import taking
from onnxprune.verify import verify

__all__ = [
    "Cost",
    "Difference",
    "Explanation",
    "Options",
    "Overview",
    "Result",
    "analyze",
    "apply_plan",
    "clean",
    "cleaned",
    "compress",
    "diff",
    "explain",
    "make_plan",
    "overview",
    "read_plan",
]
Source = str | Path | onnx.ModelProto
Shapes = Mapping[str, tuple[int, ...]]
DEFAULT_METHOD = "group_norm"
_LOG = logging.getLogger("onnxprune")  # the stages, for a progress display


@dataclass(frozen=True, slots=True)
class Result:
    """A compressed model (ONNX, in memory), the plan that leads to it, and the report."""

    model: onnx.ModelProto
    plan: Plan
    report: Report

    def __repr__(self) -> str:
        kept = self.report.compressed.fractions(self.report.original)
        return f"Result({self.report.model!r}, kept {', '.join(f'{k} {v:.3f}' for k, v in kept.items())})"


@dataclass
class Clock:
    """Seconds per stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        _LOG.info(stage)
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `compress` and `make_plan` can be told; `compress` says what each of them means."""

    flops: float | None = None
    params: float | None = None
    size: float | None = None
    method: str = DEFAULT_METHOD
    min_keep: float = 0.1
    align: int | Literal["auto"] = "auto"
    keep: Sequence[str] = ()
    inexact: bool = False
    best_effort: bool = False
    seed: int = 0
    input_shapes: Shapes | None = None

    @property
    def patterns(self) -> tuple[str, ...]:
        """`keep`, which may be a single pattern."""
        return (self.keep,) if isinstance(self.keep, str) else tuple(self.keep)

    def target(self) -> Target:
        """The budget. Raises UsageError unless exactly one is given, within (0, 1]."""
        kinds: tuple[Kind, ...] = ("flops", "params", "size")
        given = [(kind, getattr(self, kind)) for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise UsageError(f"give exactly one of --flops, --params and --size, not {len(given)} of them")
        return Target(*given[0])

    def check(self) -> None:
        """Raise UsageError for what is wrong whatever the model."""
        self.target()
        if self.method not in criteria.NAMES:
            near = get_close_matches(self.method, criteria.NAMES, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise UsageError(f"--method {self.method!r} is not known{hint} Methods: {', '.join(criteria.NAMES)}")

    def settings(self) -> dict[str, Any]:
        """What a plan records of them."""
        chosen = asdict(self) | {"keep": list(self.patterns), "best_effort": None, "input_shapes": None}
        return {k: v for k, v in chosen.items() if v is not None}


@taking(Options)
def compress(model: Source, options: Options) -> Result:
    """Remove filters until the model keeps at most a fraction of its FLOPs, parameters or bytes; verified.

    model: a path or a ModelProto (not modified). flops, params, size: the fraction to keep, (0, 1], of the cleaned
    model; exactly one is given. method: a criterion of `onnxprune.criteria.NAMES`. min_keep: least share of every
    group.
    align: widths stay multiples of it. keep: patterns of node or parameter names whose layers are left alone.
    inexact: also remove what LayerNorm and the like renormalise. best_effort: take the nearest reachable value.
    seed: of the criterion `random` and of the verification's inputs. input_shapes: concrete input sizes where symbolic.
    Raises UsageError, ModelError, TargetError (target out of reach), VerificationError (a bug of ours).
    """
    options.check()
    clock = Clock()
    analysis = _analysed(model, options.input_shapes, clock)
    choice, plan = _chosen(analysis, options, clock)
    return _finish(analysis, choice.kept, plan, clock, _name(model), options.seed, choice.original, choice)


@taking(Options)
def make_plan(model: Source, options: Options) -> Plan:
    """The plan that `compress` would apply with the same arguments, without cutting. Raises as `compress` does."""
    options.check()
    clock = Clock()
    return _chosen(_analysed(model, options.input_shapes, clock), options, clock)[1]


def read_plan(path: str | Path) -> Plan:
    """Read a plan file. Raises FileError where there is none, PlanError where it is something else."""
    try:
        return loads(files.read_bytes(path))
    except PlanError as error:
        raise PlanError(f"{str(path)!r} is not a plan of `onnxprune plan`: {error}") from error


def apply_plan(model: Source, plan: Plan | str | Path, *, seed: int = 0, input_shapes: Shapes | None = None) -> Result:
    """Replay a plan, or a plan file, on the original or the cleaned model: the same cut, byte for byte.

    Raises PlanError where the plan does not fit the model.
    """
    clock = Clock()
    plan = plan if isinstance(plan, Plan) else read_plan(plan)
    analysis = _analysed(model, input_shapes, clock)
    with clock("plan"):
        cleaned = export(analysis.model)
        kept = kept_classes(plan, analysis, files.digest(cleaned))
        original = CostModel(analysis, overhead(cleaned)).original
    return _finish(analysis, kept, plan, clock, _name(model), seed, original)


def analyze(model: Source, *, input_shapes: Shapes | None = None) -> Analysis:
    """Couple the positions of a model: its layers, cost, classes, what is frozen and why."""
    return _analysed(model, input_shapes, Clock())


def clean(model: Source) -> onnx.ModelProto:
    """The normalised original, nothing pruned: what plans refer to, and the fair baseline. Idempotent to the byte."""
    return cleaned(model)[0]


def cleaned(model: Source) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The normalised original as `clean` gives it, and what was changed in words."""
    result = normalize.normalize(_read(model))
    return export(result), tuple(result.notes)


def overview(model: Source, *, input_shapes: Shapes | None = None) -> Overview:
    """What `analyze` finds, in numbers: layers and their cost, classes, which layers share a fate, what is frozen."""
    analysis = analyze(model, input_shapes=input_shapes)
    cost = CostModel(analysis, overhead(export(analysis.model))).original
    return summarise(analysis, cost, frozen_summary(analysis), _name(model))


def explain(model: Source | Analysis, name: str, *, input_shapes: Shapes | None = None) -> Explanation:
    """What goes with the positions of a node or tensor, and the path of ties that freezes what cannot go.

    model: an analysis saves repeating it. Raises UsageError, with the nearest names, for an unknown name.
    """
    analysis = model if isinstance(model, Analysis) else analyze(model, input_shapes=input_shapes)
    return explanation.explain(analysis, name)


def diff(before: Source, after: Source) -> Difference:
    """What changed between two models: widths, parameters, attributes, nodes, signature, versions, metadata, size."""
    return difference.diff(_read(before), _read(after))


# ---- stages ----------------------------------------------------------------------------------------------------------


def _read(model: Source) -> onnx.ModelProto:
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
        proto = _read(model)
    with clock("normalize"):
        cleaned = normalize.normalize(proto)
    with clock("shapes"):
        shapes = concrete_shapes(cleaned, input_shapes)
    with clock("couple"):
        return couple(cleaned, shapes)


def _chosen(analysis: Analysis, options: Options, clock: Clock) -> tuple[Allocation, Plan]:
    with clock("score"):
        scores = criteria.score(options.method, analysis, seed=options.seed)
    with clock("allocate"):
        cleaned = export(analysis.model)  # what `clean` writes: its digest and its bytes are what a plan refers to
        choice = allocate(
            analysis,
            scores,
            CostModel(analysis, overhead(cleaned)),
            target=options.target(),
            min_keep=options.min_keep,
            align=options.align,
            protect=protected(analysis, options.patterns),
            inexact=options.inexact,
            best_effort=options.best_effort,
        )
    with clock("plan"):
        plan = write_down(analysis, choice.kept, files.digest(cleaned), options.settings(), _predicted(choice))
    return choice, plan


def protected(analysis: Analysis, patterns: Sequence[str]) -> Mask:
    """[classes + 1] bool: the classes of layers that `--keep` names. Raises UsageError for a pattern that names
    nothing.
    """
    mask = np.zeros(analysis.classes + 1, bool)
    params = analysis.trace.trace.params
    layers = [
        (n.name or n.outputs[0].name, {params[t.name] for t in n.inputs if t.name in params})
        for n in analysis.model.graph.nodes
    ]
    for pattern in patterns:
        named = [held for label, held in layers if label and fnmatchcase(label, pattern)]
        hit = set().union(*named, {c for c in analysis.model.constants() if fnmatchcase(c, pattern)})
        if not hit:
            raise UsageError(
                f"--keep {pattern!r} names no layer and no parameter of the model; `onnxprune analyze` lists the layers"
            )
        for axis in analysis.axes:
            if axis.param in hit:
                mask[axis.classes] = True
    mask[0] = False
    return mask


def overhead(proto: onnx.ModelProto) -> int:
    """Bytes of the file beside the data of its weights."""
    return files.file_bytes(proto) - files.weights_bytes(proto)


def _predicted(choice: Allocation) -> dict[str, Any]:
    cost, fractions = choice.reached, choice.reached.fractions(choice.original)
    predicted = {
        "macs": cost.macs,
        "params": cost.params,
        "bytes": cost.bytes,
        "kept": {k: round(v, 6) for k, v in fractions.items()},
    }
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
) -> Result:
    with clock("cut"):
        smaller = cut(analysis, kept)
    with clock("verify"):
        verification = verify(analysis, kept, smaller, seed=seed)
    with clock("export"):
        proto = export(smaller)
    report = Report(
        model=name,
        original=original,
        compressed=CostModel(analysis, overhead(proto)).evaluate(kept),
        classes=analysis.classes,
        removed=int((~kept).sum()),
        frozen_positions=sum(f.positions for f in analysis.frozen),
        inexact=int(analysis.inexact.sum()),
        verification=verification,
        layers=tuple(layer_changes(analysis, kept)),
        frozen=frozen_summary(analysis),
        notes=analysis.notes,
        seconds=clock.seconds,
        plan=plan,
        note=choice.note if choice else "",
        reachable=choice.smallest if choice else None,
        settings=plan.settings,
    )
    return Result(proto, plan, report)


def layer_changes(analysis: Analysis, kept: Mask) -> Iterator[LayerChange]:
    """Widths and MACs of every layer before and after."""
    whole = np.ones_like(kept)
    for layer in analysis.layers:
        widths = [(x.size, int(kept[x].sum())) if layer.weight else None for x in (layer.inputs, layer.outputs)]
        yield LayerChange(layer.node, layer.op, widths[0], widths[1], (layer.macs.count(whole), layer.macs.count(kept)))


def frozen_summary(analysis: Analysis) -> tuple[tuple[int, str], ...]:
    """(frozen filters, reason), the most frequent first; node names are left out so that equal reasons add up."""
    counts: Counter[str] = Counter()
    for f in analysis.frozen:
        counts[f"{f.op}: {f.reason.rsplit(' (', 1)[0]}" if f.op else f.reason] += f.positions
    return tuple((n, reason) for reason, n in counts.most_common())
