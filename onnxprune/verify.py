"""The check that runs on every model written: the cut model must equal the masked original, and be a valid model.

Source of the method: a structured cut is correct iff it computes what the original computes with the removed slices
silenced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from onnxprune import runtime
from onnxprune.analysis import Analysis, Mask
from onnxprune.errors import ModelError, VerificationError
from onnxprune.factors import Shape
from onnxprune.graph import Array, Model, dtype_of
from onnxprune.masking import HALF, masked, widened
from onnxprune.normalize.identity import drops_nothing
from onnxprune.shapes import skeleton

TOLERANCE = 1e-4
OURS = "Nothing was written; this is a bug of onnxprune, please report it"
_OPS_WITH_INDICES = frozenset({"ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "NonZero", "Unique", "Multinomial"})
_OF_SIZES = frozenset({"Shape", "Size"})  # sizes change; rules see to it that only those are read that do not
_OPS_AT_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


@dataclass(frozen=True, slots=True)
class Verification:
    """Outcome of the masking oracle.

    relative_error: largest difference between the cut model and the masked original, relative to the largest magnitude
    of that output. masked_differs: whether silencing changed the outputs at all (if not, the check says little).
    checker: "passed". compared: names of the tensors compared. precision: what both ran in.
    """

    relative_error: float
    masked_differs: bool
    checker: str
    compared: tuple[str, ...]
    precision: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"compared": list(self.compared)}


def verify(
    analysis: Analysis, kept: Mask, cut_model: Model, *, seed: int = 0, tolerance: float = TOLERANCE
) -> Verification:
    """Compare the cut model with the masked original on seeded random inputs, and check that it is valid.

    Raises VerificationError, naming the first node that differs, where it is not: that is a bug of a rule.
    """
    check(cut_model, analysis)
    names = comparable(cut_model, analysis)
    feeds = _inputs(analysis, seed)
    shrunk = _run(cut_model, feeds, names)
    if kept.all():
        return Verification(0.0, False, "passed", names, _precision(analysis.model))
    original = _run(analysis.model, feeds, names)
    silenced = _run(masked(analysis, kept), feeds, names)
    error, worst = _error(silenced, shrunk, original)
    if not error <= tolerance:
        _fail(analysis, kept, cut_model, feeds, worst, error)
    differs = any(not np.array_equal(original[n], silenced[n], equal_nan=True) for n in names)
    return Verification(error, differs, "passed", names, _precision(analysis.model))


def _inputs(analysis: Analysis, seed: int) -> dict[str, Array]:
    """Random inputs for the widened model, of the shapes that the analysis assumed."""
    header, _ = widened(analysis.model.header, {})
    return runtime.random_inputs(header, analysis.shapes, seed)


def _precision(model: Model) -> str:
    halves = any(dtype_of(c) in HALF for c in model.constants().values())
    return "float32, widened from half precision" if halves else "as stored"


def _run(model: Model, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
    """Outputs `names` (graph outputs or tapped tensors) of one run; the session is gone afterwards."""
    light, weights = widened(*model.split())
    known = {o.name for o in light.graph.output}
    extra = [n for n in names if n not in known]
    found = runtime.session(light, weights=weights, extra=extra).run(feeds, list(names))
    del light, weights
    runtime.trim()
    return found


def comparable(model: Model, analysis: Analysis) -> tuple[str, ...]:
    """Graph outputs that do not depend on an index or a random number, and every tensor of unchanged shape that is
    computed from prunable ones: there a fault shows on its own scale, before a Softmax or a Concat can hide it.

    Float noise can flip an ArgMax: what it read is compared in its place.
    """
    whole = {t.name: _is_whole(analysis, t.name) for n in model.graph.nodes for t in (*n.inputs, *n.outputs)}
    tainted: set[str] = set()
    noisy: set[str] = set()
    taps: list[str] = []
    for node in model.graph.nodes:
        ins = [i.name for i in node.inputs if i.name]
        if node.op in _OPS_WITH_INDICES and not tainted.intersection(ins):
            taps += [i for i in ins[:1] if whole[i]]
        random = node.op in _OPS_AT_RANDOM or (node.op == "Dropout" and not drops_nothing(node, model.opset))
        if random or noisy.intersection(ins):
            noisy.update(o.name for o in node.outputs)
        if random or node.op in _OPS_WITH_INDICES or tainted.intersection(ins):
            tainted.update(o.name for o in node.outputs)
        elif node.op not in _OF_SIZES and not all(whole[i] for i in ins):
            taps += [o.name for o in node.outputs if o.name and whole[o.name]]
    outputs = [o.name for o in model.graph.outputs]
    names = list(dict.fromkeys([o for o in outputs if o not in tainted] + taps))
    names = names or [o for o in outputs if o not in noisy]
    if not names:
        raise ModelError("Everything that the model computes is random, so a cut cannot be verified")
    return tuple(names)


def _is_whole(analysis: Analysis, name: str) -> bool:
    """Whether no plan can remove a position of the tensor, so that it has the same shape in every cut model."""
    return not any(analysis.trace.classes[f].any() for f in analysis.trace.trace.views.get(name, ()))


def _error(
    reference: Mapping[str, Array], other: Mapping[str, Array], original: Mapping[str, Array]
) -> tuple[float, str]:
    """Largest relative difference over all tensors, and where it is. Raises ModelError where nothing is finite."""
    errors = {n: relative_error(reference[n], other[n], original[n]) for n in reference}
    errors = {n: e for n, e in errors.items() if not np.isnan(e)}
    if not errors:
        raise ModelError(
            "Nothing that the model computes from random inputs is finite, so a cut cannot be verified: another --seed "
            "may help, or the model needs inputs of a range that random numbers do not have"
        )
    worst = max(errors, key=lambda n: errors[n])
    return errors[worst], worst


def relative_error(reference: Array, other: Array, original: Array | None = None) -> float:
    """max |a - b| / max |a| where the reference is finite; infinite where shapes differ, or only the other is not.

    NaN where no entry of the reference is finite: a removed NaN times 0 is still one, so that says nothing.
    original: the same tensor of the unmasked model, whose magnitude counts too: what is left of it may be only noise.
    """
    if reference.shape != other.shape:
        return float("inf")
    if reference.size == 0:
        return 0.0
    a, b = reference.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(a)
    if not np.isfinite(b[finite]).all():
        return float("inf")
    if not finite.any():
        return float("nan")
    scale = np.abs(a[finite]).max()
    if original is not None and original.size:
        scale = max(scale, np.abs(original.astype(np.float64)).max(initial=0.0, where=np.isfinite(original)))
    difference = float(np.abs(a[finite] - b[finite]).max())
    return difference / float(scale) if scale > 0 else difference


def _fail(
    analysis: Analysis, kept: Mask, cut_model: Model, feeds: Mapping[str, Array], worst: str, error: float
) -> None:
    """Name the first node whose output differs, then raise."""
    outputs = (o.name for n in analysis.model.graph.nodes for o in n.outputs if o.name)
    names = tuple(n for n in outputs if _is_whole(analysis, n))
    culprit = worst
    try:
        reference = _run(masked(analysis, kept), feeds, names)
        other = _run(cut_model, feeds, names)
        culprit = next((n for n in names if relative_error(reference[n], other[n]) > error / 10), worst)
    except ModelError:  # a tensor that cannot be an output: the graph output names the fault well enough
        pass
    node = next((n for n in analysis.model.graph.nodes if any(o.name == culprit for o in n.outputs)), None)
    where = f"node {node.name!r} ({node.op})" if node is not None else "the graph"
    raise VerificationError(
        f"The cut model differs from the masked original by {error:.2g} relative at tensor {culprit!r}, "
        f"output of {where}. {OURS} with the model. --keep can protect the layer meanwhile."
    )


def check(cut_model: Model, analysis: Analysis) -> None:
    """Full checker with strict shape inference, and an unchanged signature; raises VerificationError."""
    original = analysis.model
    problem = _problem(cut_model, analysis.shapes)
    if problem and not _problem(original, analysis.shapes):
        raise VerificationError(f"The cut model is not valid: {problem}. {OURS}")
    header, graph = original.header.graph, cut_model.header.graph
    for kind, before, after in (("input", header.input, graph.input), ("output", header.output, graph.output)):
        if list(before) != list(after):
            raise VerificationError(f"The graph {kind}s of the cut model changed. {OURS}")


def _problem(model: Model, shapes: Mapping[str, Shape]) -> str:
    """What the checker says, "" for nothing. Weights are shown to it by their shapes alone: there may be gigabytes of
    them.
    """
    proto = skeleton(model)
    proto.graph.ClearField("output")
    proto.graph.output.extend(model.header.graph.output)
    for value in proto.graph.output:  # onnxruntime takes outputs of unknown rank, the checker does not
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.dim.extend(
                [onnx.TensorShapeProto.Dimension()] * len(shapes.get(value.name, ()))
            )
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        return next(line for line in str(e).splitlines() if line.strip())
    return ""
