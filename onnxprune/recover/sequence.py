"""Sequential repair: layer by layer in the order of the graph, each on what its inputs have become by then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError

from onnxprune.analysis import Analysis, Mask
from onnxprune.clock import Progress
from onnxprune.graph import Array
from onnxprune.parallel import each
from onnxprune.recover import least_squares, moments
from onnxprune.recover.joint import Joint
from onnxprune.recover.layers import Site, sites
from onnxprune.recover.least_squares import Fit, Sample
from onnxprune.recover.program import Feeds, Program, Store, Walk
from onnxprune.recover.reference import Layer, Reference
from onnxprune.recover.together import Together
from onnxprune.recover.view import Indices, View
from onnxprune.recover.windows import Window, affordable, windows
from onnxprune.runtime import trim

_EXACT = 1e-9  # error below which there is nothing to repair
_CONSTANT = "what is wanted does not vary on these inputs"  # only its mean is known, and no share of its variance
_NOT_FINITE = "what it reads, or what is wanted, is not finite"
_ROUNDS = 2  # of least squares for layers that are refitted together afterwards: more make no difference there
_FEW = 2  # positions per unknown below which only the bias is fitted
Repair = Callable[..., Fit]


@dataclass(frozen=True, slots=True)
class LayerRecovery:
    """What became of one layer: its error on held-out inputs (a share of the variance wanted; None where that is none
    or was not measured), and how.
    """

    node: str
    op: str
    before: float | None
    after: float | None
    method: str
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Repaired:
    """A program whose layers were refitted, what became of each, the network's outputs per batch, what was left out."""

    program: Program
    layers: tuple[LayerRecovery, ...]
    outputs: list[dict[str, Array]]
    notes: tuple[str, ...] = ()


def repair(
    analysis: Analysis,
    kept: Mask,
    program: Program,
    reference: Reference,
    *,
    method: str = "least-squares",
    ridge: float = least_squares.RIDGE,
    store: Store | None = None,
    new_biases: bool = True,
    memory: float = 4e9,
    work: float = float("inf"),
    left: Mapping[str, Indices] | None = None,
) -> Repaired:
    """Repair the layers of a cut model, a program that is changed in place; the reference is of the whole model.

    kept: [classes + 1] bool, what the cut kept. method: "moments", "least-squares", or "joint", which is least squares
    and then, at the end of each window of convolutions, a refit of all of its layers. new_biases: whether layers
    without a place for a bias may get one. memory, work: bytes and multiply-adds that "joint" may take. The cut model
    runs once on all batches; "joint" runs the original beside it, on those that it fits and checks windows with. A
    repair that does not lower a layer's error on the held-out batches, as stored, is not made ("moments" is). left:
    where earlier cuts came between the reference and the analysis, what they left of the outputs of each weight, as
    indices in the reference.
    """
    outs = {x.weight: np.flatnonzero(kept[x.outputs]) for x in analysis.layers if x.weight is not None}
    if left is not None:
        outs = {name: left[name][indices] for name, indices in outs.items()}
    candidates, skipped = sites(program)
    damaged, known = _damaged(program, analysis, kept), list[Site]()
    for site in candidates:
        if site.layer.y in reference.layers and site.weight in outs:
            known.append(site)
        else:
            skipped[site.layer.node] = "its place in the original is not known"
    todo = [s for s in known if damaged.intersection(program.reads[s.index])]
    view = partial(_view, program, outs, new_biases)
    joint = method == "joint" and _of_one_size(reference.batches)
    found = windows(program, known, reference, memory / 8) if joint else {}
    biased = {i for i, w in found.items() if all(view(s).intercept for s in w.sites)}
    found = {s.index: found[s.index] for s in todo if s.index in biased}
    planned = affordable(found, work)
    joined = {s.index for w in planned.values() for s in w.sites}
    done, progress = dict[str, LayerRecovery](), Progress("recover: layer", len(todo))
    with (
        closing(Walk(program, reference.batches, store, [w.start for w in planned.values()])) as walk,
        closing(Together(reference, walk, planned, store)) as together,
    ):
        for site in todo:
            progress.step()
            walk.advance(site.index)
            layer = reference.layers[site.layer.y]
            rounds = _ROUNDS if site.index in joined else least_squares.ROUNDS
            made = repair_layer(view(site), walk, reference, layer, method, ridge, rounds=rounds)
            done[site.layer.node] = made
            if site.index in planned:
                window, usable = planned[site.index], made.reason not in (_CONSTANT, _NOT_FINITE)
                _with_window(done, window, together.refit(window, [view(s) for s in window.sites] if usable else []))
            trim()
        walk.advance(len(program.nodes))
        outputs = [{n: walk.tensor(b, n) for n in program.outputs} for b in range(len(reference.batches))]
    notes = ("to keep to the time, layers are refitted one at a time",) if found and not planned else ()
    return Repaired(program, (*done.values(), *_untouched(program, skipped, damaged)), outputs, notes)


def _of_one_size(batches: Sequence[Feeds]) -> bool:
    """Whether all inputs have one shape."""
    return len({tuple((name, a.shape[1:]) for name, a in sorted(b.items())) for b in batches}) == 1


def _view(program: Program, outs: Mapping[str, Indices], new_biases: bool, site: Site) -> View:
    return View(program, site, outs[site.weight], new_biases)


def _untouched(program: Program, skipped: Mapping[str, str], damaged: set[str]) -> list[LayerRecovery]:
    """Layers that cannot be refitted though what they read has changed, and why."""
    touched = {
        n.name or n.output[0]: n.op_type
        for n, names in zip(program.nodes, program.reads, strict=True)
        if damaged.intersection(names)
    }
    return [LayerRecovery(n, touched[n], None, None, "none", why) for n, why in skipped.items() if n in touched]


def _damaged(program: Program, analysis: Analysis, kept: Mask) -> set[str]:
    """Tensors that the cut changes beyond leaving channels out, and the layers' inputs that lost channels."""
    sliced = {a.param for a in analysis.axes if not kept[a.classes].all()}
    damaged = set[str]()
    for node, names in zip(program.nodes, program.reads, strict=True):
        if not names.isdisjoint(sliced | damaged):
            damaged.update(node.output)
    return damaged - {""}


def repair_layer(
    view: View,
    walk: Walk,
    reference: Reference,
    layer: Layer,
    method: str,
    ridge: float = least_squares.RIDGE,
    mask: Mask | None = None,
    rounds: int = least_squares.ROUNDS,
) -> LayerRecovery:
    """Repair one layer of a program that has been walked up to it.

    method: "moments", else least squares; mask: [groups, d, out/group], the elements that are fitted; rounds: as
    of `least_squares.fit`.
    """
    site = view.site
    samples = each(lambda b: _sample(walk, b, site, layer, view.chosen), range(len(reference.batches)))
    train = samples[: reference.train]
    held = [samples[b] for b in reference.checks]
    low, high = layer.chain.low, layer.chain.high
    name, told = "moments" if method == "moments" else "least-squares", (site.layer.node, site.layer.op)
    if not all(each(_is_finite, samples)):
        return LayerRecovery(*told, None, None, "none", _NOT_FINITE)
    count = sum(s.rows.shape[1] for s in train)
    single = layer.positions[0].sample.size == np.unique(layer.positions[0].sample).size
    unknowns = site.layer.unknowns if mask is None else int(mask.sum(1).max())
    if not least_squares.varies(train) or (name == "least-squares" and count < _FEW * unknowns):
        name = "bias"
    fits: Mapping[str, Repair] = {
        "least-squares": partial(
            least_squares.fit,
            ridge=max(ridge, 1e-2) if single and ridge else ridge,
            mask=mask,
            rounds=rounds,
        ),
        "moments": moments.fit,
        "bias": partial(moments.fit, scale=False),
    }
    try:
        fit = fits[name](train, held, view.weight, view.bias, intercept=view.intercept, low=low, high=high)
    except LinAlgError:
        return LayerRecovery(*told, None, None, "none", "its Gram matrix is singular")
    varies = least_squares.varies(held, low, high)
    before = fit.before if varies else None
    if fit.before < _EXACT or (name != "moments" and not fit.after < fit.before):
        why = "nothing to repair" if fit.before < _EXACT else "no better on held-out inputs"
        return LayerRecovery(*told, before, before, "none", why if varies else _CONSTANT)
    old = view.saved()
    view.write(fit.weight, fit.bias)
    written = view.anew()
    after = least_squares.error(held, written.weight, written.bias, low, high)
    if name != "moments" and not after < fit.before:
        view.restore(old)
        return LayerRecovery(*told, before, before, "none", "no better in the type that stores its weight")
    why = f"{count:,} positions for {unknowns:,} unknowns" if name == "bias" else ""
    return LayerRecovery(*told, before, after if varies else None, name, why if varies else _CONSTANT)


def _with_window(done: dict[str, LayerRecovery], window: Window, found: Joint | None) -> None:
    """Record the refit of a window, which aims behind its last layer: those before it may move away from theirs."""
    if found is None or not found.after < found.before:
        return
    last = window.last.layer
    for site, after in zip(window.sites[:-1], found.inner, strict=True):
        layer = site.layer
        old = done.get(layer.node)
        before = old.before if old else None if after is None else 0.0  # what the cut did not touch is exact
        done[layer.node] = LayerRecovery(layer.node, layer.op, before, after, "joint", f"together with {last.node}")
    old = done[last.node]
    before = found.before if old.before is None else old.before
    done[last.node] = replace(
        old, before=before, after=found.after, method="joint", reason=f"{len(window.sites)} layers at once"
    )


def _is_finite(sample: Sample) -> bool:
    arrays = [a for a in (sample.rows, sample.wanted, sample.added) if a is not None and a.size]
    return all(bool(np.isfinite(a.max()) and np.isfinite(a.min())) for a in arrays)


def _sample(walk: Walk, batch: int, site: Site, layer: Layer, chosen: Indices) -> Sample:
    at, chain = layer.positions[batch], layer.chain
    rows = site.layer.rows(walk.tensor(batch, site.layer.x), at)
    added = None
    if chain.other:
        added = site.layer.outputs(chain.restore(walk.tensor(batch, chain.other)), at).astype(np.float32)
    return Sample(rows, layer.wanted[batch][:, chosen], added)
