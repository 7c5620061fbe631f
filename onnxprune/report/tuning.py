"""What fine-tuning did, as data and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What a fine-tuning did.

    history: per epoch `epoch`, `loss` (training), `held_loss`, `agreement` 0..1 with the teacher and, where labels are
    used, `accuracy` 0..1 (all on held-out data), `seconds`; the first entry is the start. epoch: whose weights were
    taken; stopped: why it ended early, "" if it did not; failed: whether the loss was not finite; interrupted: whether
    by Ctrl-C. shares: seconds by what they were spent on; images: samples trained on; proof: largest relative
    difference between torch and onnxruntime, `before` and `after`; normalised: layers that were normalised by batch;
    teacher_accuracy: that of the original on held-out data, where labels are used.
    """

    model: str
    teacher: str
    data: str
    samples: int
    held: int
    weights: int
    settings: dict[str, Any]
    history: tuple[dict[str, Any], ...]
    epoch: int
    stopped: str
    failed: bool
    interrupted: bool
    shares: dict[str, float]
    images: int
    proof: dict[str, float]
    device: str
    normalised: int
    teacher_accuracy: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Of training, teacher included."""
        return sum(self.shares.values())

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with stable keys."""
        rate = self.images / self.seconds if self.seconds else 0.0
        shares = {k: round(v, 3) for k, v in self.shares.items()}
        changed = {"shares": shares, "seconds": round(self.seconds, 3), "images_per_second": round(rate, 1)}
        return asdict(self) | changed | {"history": list(self.history), "notes": list(self.notes)}


def tuning(report: TuneReport, output: object) -> RenderableType:
    """The report as text."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    labelled = report.teacher_accuracy is not None
    for name in ("epoch", "loss", "held-out loss", "agreement", *["accuracy"] * labelled, "seconds"):
        table.add_column(name, justify="right")
    for e in report.history:
        loss = "" if e["loss"] is None else f"{e['loss']:.4g}"
        seconds = f"{e['seconds']:.1f}" if e["epoch"] else ""
        shares = [f"{e[n]:.1%}" for n in ("agreement", "accuracy")[: 1 + labelled]]
        table.add_row(str(e["epoch"]), loss, f"{e['held_loss']:.4g}", *shares, seconds)
    head = (
        f"{report.model} -> {output}\n\n{report.weights} weights trained on {report.samples} samples of {report.data}; "
        f"{report.held} held out."
    )
    if report.teacher_accuracy is not None:
        head += f" The original answers {report.teacher_accuracy:.1%} of these as labelled."
    if report.normalised:
        head += f" {report.normalised} layers were normalised by batch meanwhile."
    spent = ", ".join(f"{k} {v / report.seconds:.0%}" for k, v in report.shares.items()) if report.seconds else ""
    found = f"The weights are those of epoch {report.epoch}"
    why = f"; stopped early: {report.stopped}" if report.stopped else ""
    rate = f"{report.images / report.seconds:.0f} samples a second on the {report.device}: {spent}." if spent else ""
    proof = f"torch and onnxruntime agree to {report.proof['after']:.1e} relative."
    return Group(
        Text(f"{head}\n"),
        table,
        Text(f"\n{found}{why}. {proof}\n{rate}"),
        *(Text(note) for note in report.notes),
        Text("Agreement is with the teacher on held-out training data: measure accuracy on a test set before use."),
    )


def handing_over(model: object, folder: object, names: Sequence[str]) -> RenderableType:
    """What a bundle holds."""
    from rich.text import Text

    return Text(f"{model} -> {folder}\n\n{', '.join(names)}\n\nREADME.md there says how to train and what to do then.")


def absorbing(
    model: object,
    weights: object,
    out: object,
    changed: Mapping[str, float],
    same: Sequence[str],
    missing: Sequence[str],
) -> RenderableType:
    """What changed in a model that took trained weights."""
    from rich.text import Text

    most = max(changed, key=lambda n: changed[n], default=None)
    lines = [f"{model} + {weights} -> {out}", "", f"{len(changed)} weights changed, {len(same)} did not."]
    if most is not None:
        lines.append(f"Most: '{most}', by {changed[most]:.2g} of its largest value.")
    if missing:
        shown = ", ".join(f"'{n}'" for n in missing[:5]) + (", ..." if len(missing) > 5 else "")
        lines.append(f"{len(missing)} weights of the model were not in the file, and stay: {shown}.")
    return Text("\n".join(lines))
