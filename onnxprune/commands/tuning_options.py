"""The options of fine-tuning and of the hand-off, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxprune import options as o
from onnxprune.errors import UsageError

# Named here, as in `options`: --help loads nothing.
AUGMENTS = ("auto", "both", "flip", "shift", "none")


_training = o.panel("Training")


Teacher = Annotated[Path, typer.Option(metavar="MODEL", help="The original, whose outputs are the target.")]
MaybeTeacher = Annotated[Path | None, typer.Option(metavar="MODEL", help="The original, to go into the bundle.")]
PlanFile = Annotated[Path | None, typer.Option(metavar="FILE", help="The plan of the cut, as `plan` writes it.")]
TrainOn = Annotated[
    str,
    typer.Option("--data", metavar="SOURCE", help="Training inputs: .npz, .npy, a folder of images, module:function."),
]
Labels = Annotated[bool, _training(None, "Use the labels of the training data, too.", "--labels")]
Epochs = Annotated[int, _training("N", "Passes over the training data.")]
Batch = Annotated[int, _training("N", "Samples per step.")]
Optimizer = Annotated[str, _training("NAME", "adam or sgd.")]
Rate = Annotated[float | None, _training("R", "Largest learning rate. Default: 1e-3 (adam), 0.01 (sgd).", "--lr")]
Temperature = Annotated[float | None, _training("T", "Of the scores. Default: 2 up to 10 classes, else 4.")]
Alpha = Annotated[
    float | None, _training("A", "Weight of the teacher, 0..1; the rest is the labels'. Default: 1, 0.9 with --labels.")
]
Beta = Annotated[float, _training("B", "Weight of the tensor before the classifier; may need --plan.")]
Views = Annotated[int, _training("N", "Fixed augmented views of every image, 1..8.")]
Augment = Annotated[str, _training("HOW", f"How views differ: {', '.join(AUGMENTS)}; auto: both, for colour images.")]
Loss = Annotated[str, _training("NAME", "kl, mse, or auto: by the shape of each output.")]
Norm = Annotated[str, _training("NAME", "batch: normalise by batch while training, folded at the end; or frozen.")]
Patience = Annotated[int, _training("N", "Stop after N epochs without progress on held-out training data.")]
Take = Annotated[str, _training("WHICH", "best: the weights best on held-out training data; last: of the last epoch.")]
Limit = Annotated[int | None, _training("N", "Use N samples, taken at random.")]
Resume = Annotated[bool, _training(None, "Go on from OUTPUT.checkpoint, which an interrupted run leaves.", "--resume")]
Steps = Annotated[int, _training("N", "Reach the target in N cuts, each repaired (and fine-tuned) before the next.")]
FineTune = Annotated[
    str | None, _training("SOURCE", "Then fine-tune on these inputs; calibrates, too, without --data.")
]
TuneEpochs = Annotated[int | None, _training("N", "Passes of --finetune over its data (3).", "--epochs")]
TuneLabels = Annotated[bool, _training(None, "Use the labels of the data of --finetune, too.", "--labels")]
TunePreprocess = Annotated[
    str | None, _training("HOW", "How the images of --finetune become inputs. Default: as --preprocess.")
]


@dataclass(frozen=True, kw_only=True)
class Tuning(o.Written):
    """All options of `finetune`."""

    teacher: Teacher
    data: TrainOn
    preprocess: o.Preprocess = None
    labels: Labels = False
    epochs: Epochs = 3
    batch: Batch = 128
    optimizer: Optimizer = "adam"
    lr: Rate = None
    temperature: Temperature = None
    alpha: Alpha = None
    beta: Beta = 0.0
    plan: PlanFile = None
    views: Views = 4
    augment: Augment = "auto"
    loss: Loss = "auto"
    norm: Norm = "batch"
    patience: Patience = 5
    take: Take = "best"
    limit: Limit = None
    seed: o.Seed = 0
    memory: o.Memory = "4GB"
    resume: Resume = False

    def arguments(self) -> dict[str, Any]:
        """The same as keyword arguments of `onnxprune.finetune`."""
        given = {n: getattr(self, n) for n in Tuning.__dataclass_fields__ if n not in o.Written.__dataclass_fields__}
        return given | {"memory": o.size(self.memory)}


@dataclass(frozen=True, kw_only=True)
class Compression(o.Compression):
    """All options of `compress`."""

    steps: Steps = 1
    finetune: FineTune = None
    finetune_preprocess: TunePreprocess = None
    epochs: TuneEpochs = None
    labels: TuneLabels = False

    def check(self) -> None:
        """Raise UsageError for what only matters to an option that is not given."""
        given = {
            "--epochs": self.epochs is not None,
            "--labels": self.labels,
            "--finetune-preprocess": self.finetune_preprocess is not None,
        }
        wrong = [option for option, there in given.items() if there and self.finetune is None]
        problems = [f"{option} belongs to --finetune, which is not given" for option in wrong]
        if self.metric is not None and self.max_drop is None:
            problems.append("--metric belongs to --max-drop, which is not given")
        if problems:
            raise UsageError("; ".join(problems))

    def arguments(self) -> dict[str, Any]:
        """The same as keyword arguments of `onnxprune.compress`; --finetune stands in for --data where that is used."""
        given = o.Compression.arguments(self)
        if self.data is None and self.finetune is not None:
            from onnxprune.settings import CompressOptions

            given |= {"data": self.finetune, "preprocess": self.finetune_preprocess or self.preprocess}
            if not CompressOptions(**given).runs_inputs:
                given |= {"data": None, "preprocess": None}  # it only trains
        return given

    def tuning(self) -> dict[str, Any] | None:
        """Keyword arguments of `onnxprune.finetune`; None without --finetune."""
        if self.finetune is None:
            return None
        given = {"preprocess": self.finetune_preprocess or self.preprocess, "memory": o.size(self.memory)}
        given |= {} if self.epochs is None else {"epochs": self.epochs}
        return given | {"data": self.finetune, "labels": self.labels, "seed": self.seed}
