"""What `sparsify` did and brought, as text."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from onnxprune.report.names import short
from onnxprune.sparse.result import Masked, Sparsity, TensorSparsity

_TENSORS = 10  # shown


def sparsity(report: Sparsity, output: str | Path) -> RenderableType:
    """Zeros, bytes, magnitude alone beside the masks chosen, the layers that change most, and what to beware of."""
    masked = report.masked
    before, after = report.gzip
    zeros, weights = sum(t.zeros for t in masked.tensors), sum(t.weights for t in masked.tensors)
    parts = [
        f"{report.model} -> {output}\n",
        f"{zeros:,} of {weights:,} weights are zero ({100 * report.sparsity:.1f} %); as gzip {before:,} -> {after:,} "
        f"bytes ({100 * after / max(before, 1):.1f} %).\nShapes are the same: the model runs no faster in "
        "onnxruntime.\n",
        *_comparison(report),
        *(["", _layers(masked.tensors)] if masked.errors() else []),
        *_remarks(report),
        _told_accuracy(report),
    ]
    return Group(*parts)


def _comparison(report: Sparsity) -> list[RenderableType]:
    """The networks beside the original; a word where nothing was run."""
    masked, data = report.masked, report.data
    if data is None or masked.magnitude is None:
        return ["By magnitude alone; nothing was measured. --data measures."]
    source = f"{data['samples']:,} " + ("synthetic inputs" if data["synthetic"] else f"inputs of {data['name']}")
    lead = f"Measured on {source}; networks compared on {masked.magnitude.samples} of them held out:"
    if data["synthetic"]:
        lead = f"SYNTHETIC INPUTS: no --data were given; the inputs are made up, and so are the figures below.\n{lead}"
    how = "by magnitude alone" if masked.shipped == "magnitude" else f"found by {report.settings['optimiser']}"
    return [lead, _networks(masked), f"Written: the masks {how}."]


def _networks(masked: Masked) -> Table:
    """One column per network that was run."""
    found = [a for a in (masked.magnitude, masked.evolved) if a is not None]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("beside the original", "magnitude", "evolved")[: 1 + len(found)]:
        table.add_column(title, justify="left" if title.startswith("beside") else "right")
    if errors := masked.errors().values():
        table.add_row("mean error of the layers", *(f"{e:.4f}" for e in errors))
    if found[0].top1 is not None:
        table.add_row("same top-1 answer", *(f"{100 * (a.top1 or 0):.1f} %" for a in found))
        table.add_row("KL divergence", *(f"{a.divergence:.3g}" for a in found))
    table.add_row("relative error", *(f"{a.relative_error:.3g}" for a in found))
    if masked.metric:
        m = masked.metric
        known = [m[k] for k in ("magnitude", "evolved") if k in m]
        table.add_row(f"accuracy (original {100 * m['original']:.1f} %)", *(f"{100 * a:.1f} %" for a in known))
    return table


def _layers(tensors: tuple[TensorSparsity, ...]) -> RenderableType:
    """The layers whose outputs change most, and by how much of their own square."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    searched = any(t.evolved_error is not None for t in tensors)
    for title in ("layers that change most", "weights", "zeros", "magnitude", "evolved")[: 4 + searched]:
        table.add_column(title, justify="left" if title.startswith("layers") else "right")
    for t in sorted(tensors, key=lambda t: (-(t.magnitude_error or 0), -t.sparsity))[:_TENSORS]:
        pair = ("-" if e is None else f"{e:.3f}" for e in (t.magnitude_error, t.evolved_error)[: 1 + searched])
        table.add_row(short(t.node), f"{t.weights:,}", f"{100 * t.sparsity:.1f} %", *pair)
    return table


def _remarks(report: Sparsity) -> list[str]:
    masked = report.masked
    layers = dict[str, list[str]]()
    for node, why in (*((t.node, t.reason) for t in masked.tensors if t.reason), *masked.skipped.items()):
        layers.setdefault(why, []).append(node)
    reasons = [
        f"{short(nodes[0])}{f' and {len(nodes) - 1} more' if len(nodes) > 1 else ''}: {why}"
        for why, nodes in layers.items()
    ]
    notes = [] if report.data is None else report.data["notes"]
    lines = [f"- {n}" for n in (*notes, *masked.notes, *reasons)]
    return ["", *lines] if lines else []


def _told_accuracy(report: Sparsity) -> str:
    final = report.masked.evolved if report.masked.shipped == "evolved" else report.masked.magnitude
    if final is None or report.data is None or report.data["synthetic"]:
        return "\nAccuracy on real inputs was not measured: give --data, and check it before use."
    if report.masked.metric is None:
        return "\nAccuracy was not measured, only agreement with the original: check it on labelled data before use."
    return "\nAccuracy was measured on the few held-out inputs: check it on a test set before use."
