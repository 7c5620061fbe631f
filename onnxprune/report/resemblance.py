"""How far the filters of each layer resemble each other, as text."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from onnxprune.report.names import short
from onnxprune.resemblance import DISTANCES, QUANTILES, Redundancy


def redundancy(found: Redundancy, model: str | Path) -> RenderableType:
    """A row per layer: filters, effective rank, largest cosines, clusters that are left at each distance."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("layer", justify="left", overflow="fold")
    heads = ("filters", "rank", *(f"q{100 * q:.0f}" for q in QUANTILES), "classes", *(f"d{d:g}" for d in DISTANCES))
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for x in found.layers:
        cosines = ["-"] * len(QUANTILES) if x.similarity is None else [f"{s:.2f}" for s in x.similarity]
        clusters = ["-"] * (1 + len(DISTANCES)) if x.clusters is None else [str(n) for n in (x.classes, *x.clusters)]
        table.add_row(short(x.node), str(x.filters), f"{x.effective_rank:.1f}", *cosines, *clusters)
    legend = (
        "rank: effective rank of the filters. q: quantiles of each filter's largest cosine with another one of its "
        "layer. classes: what can leave, of all layers that go together; d: clusters left of them at that distance. "
        "Cosines near 1, a low rank or few clusters show redundancy; only a cut shows what it is worth."
    )
    parts: list[RenderableType] = [str(model), "", table, "", legend, *(f"- {n}" for n in found.notes)]
    following = f"Next: `onnxprune compress {model} --flops 0.5 --method diversity`, or cluster, hybrid."
    return Group(*parts, "", following)
