"""Weights set to zero one by one: the masks of all layers, beside magnitude alone, and the better network.

Source: pruning as optimisation; large weights stay, and those of the small ones that an optimiser selects. What it
minimises is the change of each layer's outputs on its inputs, as layer-wise pruning does (Dong et al., 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, get_args

import numpy as np

from onnxprune.analysis import Mask
from onnxprune.calibration import RATE
from onnxprune.clock import Progress
from onnxprune.criteria import InputStatistics
from onnxprune.errors import ModelError, UsageError
from onnxprune.graph import Array, Model
from onnxprune.parallel import each
from onnxprune.recover.accuracy import accuracy, unused
from onnxprune.recover.agreement import agreement
from onnxprune.recover.layers import COMPUTED, Site, sites
from onnxprune.recover.program import Program, program, write_back
from onnxprune.recover.view import View
from onnxprune.recovery import Study
from onnxprune.searching import optimisers
from onnxprune.sparse import masks
from onnxprune.sparse.choice import LayerError, chosen
from onnxprune.sparse.masks import Pattern
from onnxprune.sparse.refit import refit
from onnxprune.sparse.result import Choice, Masked, TensorSparsity

Method = Literal["evolve", "magnitude"]
Scope = Literal["tensor", "global"]
RECOVER = ("auto", "none", "least-squares")
_SHARE = 0.5  # of the time that the search of masks may take
_FEWEST = 3  # candidates: by magnitude, and by the merits of single weights
_NOISE = 3e-4  # variance as a share of the mean square below which it may be rounding of sums in float32
_LEAST = 1e-11  # variance (or mean square) that stands out from what `InputStatistics.centred` adds
_NETWORKS = ("original", "magnitude", "evolved")
_SORTS = 200.0  # multiply-adds that making and sorting a candidate is worth, per member of the band


@dataclass(frozen=True)
class Settings:
    """How weights are chosen.

    sparsity: share that goes at least; pattern: instead of it; scope: whether each tensor loses that share or all do
    together; recover: of RECOVER; keep: patterns of node or weight names that are left alone; seconds: of which the
    search of masks may take half.
    """

    sparsity: float
    method: Method
    pattern: Pattern | None
    scope: Scope
    optimiser: str
    budget: int
    recover: str
    keep: tuple[str, ...]
    seed: int
    seconds: float


@dataclass(frozen=True)
class _Weight:
    """A weight that may lose elements, as a matrix, and how its layer's outputs change, or why that is not known."""

    site: Site
    matrix: Array
    error: LayerError | None
    unknown: str


def check(settings: Settings) -> None:
    """Raise UsageError for what is wrong whatever the model."""
    for option, value, known in (
        ("method", settings.method, get_args(Method)),
        ("scope", settings.scope, get_args(Scope)),
        ("recover", settings.recover, RECOVER),
    ):
        if value not in known:
            raise UsageError(f"--{option} {value!r} is not known; choose one of: {', '.join(known)}")
    if not 0 < settings.sparsity < 1:
        raise UsageError(f"--sparsity {settings.sparsity:g}: give the share of zeros, above 0 and below 1")
    optimisers.check(settings.optimiser, settings.budget)


def sparsify(model: Model, study: Study | None, settings: Settings) -> Masked:
    """Set weights of a cleaned model to zero, in place.

    study: the model on calibration inputs; only "magnitude" can do without. Raises UsageError for a `keep` that names
    nothing, ModelError where no weight can be treated.
    """
    whole = program(model) if study is None else study.program
    found, others = sites(whole)
    skipped = {node: why for node, why in others.items() if why != COMPUTED}
    reasons = _left_alone(found, settings)
    treated = _weights(whole, [s for s in found if s.weight not in reasons], study, settings.recover)
    if not treated:
        raise _nothing_to_do(skipped | {s.layer.node: reasons[s.weight] for s in found})
    plain = _by_magnitude(treated, settings)
    notes = list[str]()
    if study is None:
        write_back(_network(whole, treated, plain), model)
        rows = _rows(whole, found, treated, [plain], plain, reasons)
        return Masked(rows, None, None, "magnitude", None, 0, skipped, ())
    tried, budget = plain, 0
    if settings.method == "evolve":
        budget = _affordable(treated, plain, settings, notes)
        tried = _evolved(treated, plain, settings, budget)
    both = [plain, tried] if budget else [plain]
    networks = [_network(whole, treated, m) for m in both]
    if settings.recover != "none":
        pairs = zip(networks, both, strict=True)
        for network, kept in Progress("refit of network", len(both)).over(pairs):
            by_name = {w.site.weight: m for w, m in zip(treated, kept, strict=True)}
            refit(network, by_name, study.reference, study.store)
    outputs = [study.outputs(n) for n in networks]
    compared = [agreement(study.original(), o) for o in outputs]
    shipped: Choice = "evolved" if budget and compared[-1].divergence < compared[0].divergence else "magnitude"
    labels = study.calibration.labels
    metric = accuracy(labels, dict(zip(_NETWORKS, (study.original(), *outputs), strict=False)))
    final = tried if shipped == "evolved" else plain
    write_back(networks[-1 if shipped == "evolved" else 0], model)
    return Masked(
        _rows(whole, found, treated, both, final, reasons),
        compared[0],
        compared[1] if budget else None,
        shipped,
        metric,
        budget,
        skipped,
        (*notes, *study.notes, *unused(labels, metric)),
    )


# ---- what is treated -------------------------------------------------------------------------------------------------


def _left_alone(found: Sequence[Site], settings: Settings) -> dict[str, str]:
    """Weights that keep all their elements, with the reason."""
    reasons, unknown = dict[str, str](), list[str]()
    for name in settings.keep:
        hit = [s for s in found if any(fnmatchcase(n, name) for n in (s.layer.node, s.weight))]
        unknown += [] if hit else [repr(name)]
        reasons |= dict.fromkeys((s.weight for s in hit), f"--keep {name}")
    if unknown:
        raise UsageError(f"--keep {', '.join(unknown)} names no layer and no weight of the model")
    if (pattern := settings.pattern) is not None:
        for s in found:
            inputs = s.layer.inputs // s.layer.groups
            if inputs % pattern.m:
                reasons.setdefault(s.weight, f"its {inputs} inputs are no multiple of {pattern.m}")
    return reasons


def _nothing_to_do(reasons: Mapping[str, str]) -> ModelError | UsageError:
    """What to raise where no weight is treated; reasons: by node."""
    nodes = dict[str, list[str]]()
    for node, why in reasons.items():
        nodes.setdefault(why, []).append(node)
    told = [f"{n[0] if len(n) == 1 else f'{len(n)} layers'}: {why}" for why, n in nodes.items()]
    why = "; ".join(told) or "it has no Conv, Gemm or MatMul with a weight"
    if any(name.startswith("--keep ") for name in nodes):
        return UsageError(f"--keep leaves nothing to set to zero ({why})")
    return ModelError(f"no weight can be set to zero ({why})")


def _weights(whole: Program, treated: Sequence[Site], study: Study | None, recover: str) -> list[_Weight]:
    known = {} if study is None else {r.site.weight: r.inputs for r in study.readers_of_original()}
    found = []
    for site in treated:
        matrix, inputs = site.layer.matrix(site.read(whole)), known.get(site.weight)
        if inputs is None:
            found.append(_Weight(site, matrix, None, "what it reads was not looked at"))
            continue
        refitted = recover != "none"
        centred = refitted and View(whole, site, np.arange(site.layer.channels), new_biases=False).intercept
        error = _layer_error(inputs, matrix, refitted, centred)
        found.append(_Weight(site, matrix, error, "" if error else "nothing that it computes varies on these inputs"))
    return found


def _layer_error(inputs: InputStatistics, matrix: Array, refitted: bool, centred: bool) -> LayerError | None:
    """None where the layer's outputs have no variance (if they are not `centred`: no square)."""
    gram, mean = inputs.gram, inputs.mean.astype(np.float64)
    variance = np.einsum("gdd->gd", gram).astype(np.float64)
    if centred:
        steady = variance - mean**2 <= _NOISE * variance
        variance = np.where(steady, 0, variance - mean**2)
        if steady.any():  # what rounding leaves there is no variance
            either = steady[:, :, None] | steady[:, None, :]
            gram = np.where(either, mean[:, :, None] * mean[:, None, :], gram)
    if not ((variance > _LEAST) & matrix.any(2)).any():
        return None
    if refitted:
        gram = replace(inputs, gram=gram).centred(bias=centred)
    return LayerError(gram, matrix, refitted)


# ---- masks -----------------------------------------------------------------------------------------------------------


def _by_magnitude(treated: Sequence[_Weight], settings: Settings) -> list[Mask]:
    if settings.pattern is None:
        matrices = [w.matrix for w in treated]
        return masks.by_magnitude(matrices, settings.sparsity, together=settings.scope == "global")
    layers = [w.site.layer for w in treated]
    return [
        masks.by_pattern(w.matrix, settings.pattern, x.inputs // x.groups) for w, x in zip(treated, layers, strict=True)
    ]


def _affordable(treated: Sequence[_Weight], plain: Sequence[Mask], settings: Settings, notes: list[str]) -> int:
    """Candidates per layer that fit into the time."""
    known = [(w, w.error, m) for w, m in zip(treated, plain, strict=True) if w.error is not None]
    each_candidate = sum(error.work(kept) + _SORTS * w.matrix.size for w, error, kept in known)
    most = max(_FEWEST, int(_SHARE * settings.seconds * RATE / max(each_candidate, 1.0)))
    if most < settings.budget:
        notes.append(f"to keep to the time, {most} candidates per layer are tried, not {settings.budget}")
    return min(most, settings.budget)


def _evolved(treated: Sequence[_Weight], plain: Sequence[Mask], settings: Settings, budget: int) -> list[Mask]:
    """The masks after the search; by magnitude where the inputs of a layer are not known."""

    progress = Progress("masks: layer", len(treated))

    def search(index: int) -> Mask:
        progress.step()
        weight, kept, pattern = treated[index], plain[index], settings.pattern
        if (error := weight.error) is None:
            return kept
        band = masks.band(weight.matrix, kept) if pattern is None else masks.pattern_band(weight.matrix, pattern)
        return chosen(error, kept, band, settings.optimiser, budget, settings.seed + index)

    return each(search, range(len(treated)))


# ---- networks --------------------------------------------------------------------------------------------------------


def _stored(whole: Program, weight: _Weight, kept: Mask) -> Array:
    """The stored tensor with zeros; of integers behind a DequantizeLinear, with zero points."""
    site, held = weight.site, whole.weights[weight.site.weight]
    zero = np.zeros((), held.dtype)
    if site.zero:
        zero = whole.weights[site.zero]
        shape = [1] * held.ndim
        shape[site.axis] = -1
        zero = zero.reshape(shape) if zero.size > 1 else zero.reshape(())
    stored: Array = np.where(site.layer.from_matrix(kept), held, zero.astype(held.dtype))
    return stored


def _network(whole: Program, treated: Sequence[_Weight], kept: Sequence[Mask]) -> Program:
    return whole.replaced({w.site.weight: _stored(whole, w, k) for w, k in zip(treated, kept, strict=True)})


# ---- what is told ----------------------------------------------------------------------------------------------------


def _rows(
    whole: Program,
    found: Sequence[Site],
    treated: Sequence[_Weight],
    tried: Sequence[Sequence[Mask]],
    final: Sequence[Mask],
    reasons: Mapping[str, str],
) -> tuple[TensorSparsity, ...]:
    """One row per weight; tried: masks by magnitude, and as evolved; final: as written."""
    place = {w.site.weight: i for i, w in enumerate(treated)}
    rows = []
    for site in found:
        layer, index = site.layer, place.get(site.weight)
        known, errors = reasons.get(site.weight, ""), _errors(None)
        if index is None:
            zeros = int((site.read(whole) == 0).sum())
        else:
            weight = treated[index]
            zeros = int(weight.matrix.size - np.count_nonzero(weight.matrix * final[index]))
            errors = _errors(weight.error, *(m[index] for m in tried))
            known = f"by magnitude: {weight.unknown}" if weight.unknown and len(tried) > 1 else ""
        rows.append(TensorSparsity(site.weight, layer.node, layer.op, int(np.prod(layer.shape)), zeros, *errors, known))
    return tuple(rows)


def _errors(error: LayerError | None, *kept: Mask) -> tuple[float | None, float | None]:
    if error is None:
        return None, None
    found = error(kept).sum(1) / float(error.energy.sum())
    return float(found[0]), float(found[1]) if len(kept) > 1 else None
