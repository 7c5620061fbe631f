"""What recovery did and brought, as text."""

from __future__ import annotations

from collections import Counter

from rich.console import Group, RenderableType
from rich.table import Table

from onnxprune.recover.result import Recovery
from onnxprune.recover.sequence import LayerRecovery
from onnxprune.report.names import short

_WORST = 6  # layers shown
_NAMES = {"joint": "joint refits"}
_EACH = {"least-squares": "least squares", "bias": "bias only"}  # of a layer


def recovery(found: Recovery | None) -> RenderableType | str:
    """Agreement with the original before and after, the layers that stay worst, and what to beware of."""
    if found is None:
        return "Not recovered: this is the bare cut, which needs fine-tuning before use."
    if found.data is None or found.before is None or found.after is None:
        return f"Recovered by {found.method} from the weights alone; nothing was measured. --data measures."
    data = found.data
    source = f"{data['samples']:,} " + ("synthetic inputs" if data["synthetic"] else f"inputs of {data['name']}")
    how = _NAMES.get(found.method, found.method)
    lines = [f"Recovered by {how} on {source}; compared on {found.before.samples} held out:"]
    if data["synthetic"]:
        lines.insert(0, "SYNTHETIC INPUTS: no --data were given; the inputs are made up, and so are the figures below.")
    notes = [*data["notes"], *found.notes, *_warnings(found)]
    return Group("\n".join(lines), _agreements(found), _layers(found.layers), *(f"- {n}" for n in notes))


def _agreements(found: Recovery) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    networks = {"cut": found.before, "repaired": found.after, "trained": found.trained}
    shown = {title: a for title, a in networks.items() if a is not None}
    table.add_column("beside the original")
    for title in shown:
        table.add_column(title, justify="right")
    if all(a.top1 is not None for a in shown.values()):
        table.add_row("same top-1 answer", *(f"{100 * (a.top1 or 0):.1f} %" for a in shown.values()))
        table.add_row("KL divergence", *(f"{a.divergence:.3g}" for a in shown.values()))
    table.add_row("relative error", *(f"{a.relative_error:.3g}" for a in shown.values()))
    if found.metric:
        m = found.metric
        table.add_row(f"accuracy (original {100 * m['original']:.1f} %)", *(f"{100 * m[k]:.1f} %" for k in shown))
    return table


def _layers(layers: tuple[LayerRecovery, ...]) -> str:
    fitted = [x for x in layers if x.after is not None and x.before is not None]
    if not fitted:
        idle = sum(x.method == "none" for x in layers)
        return f"{len(layers) - idle} weights changed, {idle} left."
    done = [x for x in layers if x.method != "none"]
    how = Counter(_EACH.get(x.method, x.method) for x in done)
    counts = ", ".join(f"{n} {name}" for name, n in how.most_common())
    worst = sorted(fitted, key=lambda x: -(x.after or 0))[:_WORST]
    shown = "\n".join(f"  {x.before:8.3f} -> {x.after:.3f}  {short(x.node)}" for x in worst)
    left = f", {len(layers) - len(done)} left as they were (--json says why)" if len(layers) > len(done) else ""
    refitted = f"{len(done)} layers refitted ({counts})" if done else "0 layers refitted"
    return f"{refitted}{left}. Largest errors left (share of the layer's variance):\n{shown}"


def _warnings(found: Recovery) -> list[str]:
    told = []
    if found.shipped == "cut":
        told.append("the repair did not help on the held-out inputs: the bare cut was written")
    if found.at_chance:
        told.append("AT CHANCE LEVEL: the answers are no better than always giving the most frequent one")
    return told


def told_accuracy(found: Recovery | None) -> str:
    """One sentence on what is known of the accuracy."""
    if found is None or found.after is None:
        return "Accuracy was not measured: check it on your data before use."
    if found.data is not None and found.data["synthetic"]:
        return "Accuracy on real inputs was not measured: give --data, and check it before use."
    if found.metric is not None:
        return "Accuracy was measured on the few held-out inputs: check it on a test set before use."
    return "Accuracy was not measured, only agreement with the original: check it on labelled data before use."
