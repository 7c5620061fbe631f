"""What `finetune` can be told, with defaults and checks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import onnx

from onnxprune.errors import UsageError
from onnxprune.finetuning.views import Augment
from onnxprune.plan import Plan

Source = str | Path | onnx.ModelProto
Optimizer = Literal["adam", "sgd"]
Loss = Literal["auto", "kl", "mse"]
Take = Literal["best", "last"]
Norm = Literal["batch", "frozen"]
RATES: dict[str, float] = {"adam": 1e-3, "sgd": 0.01}
WITH_LABELS = 0.9  # alpha where labels are used and nothing else is said
_RECORDED = {"epochs", "batch", "optimizer", "lr", "temperature", "alpha", "beta", "views", "augment", "loss", "seed"}
_RECORDED |= {"norm", "limit", "clip", "labels", "patience", "preprocess", "take"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """What `finetune` says of each."""

    teacher: Source
    data: Any
    preprocess: str | None = None
    labels: bool = False
    epochs: int = 3
    batch: int = 128
    optimizer: Optimizer = "adam"
    lr: float | None = None
    temperature: float | None = None
    alpha: float | None = None
    beta: float = 0.0
    plan: Plan | str | Path | None = None
    views: int = 4
    augment: Augment = "auto"
    loss: Loss = "auto"
    norm: Norm = "batch"
    patience: int = 5
    take: Take = "best"
    clip: float = 1.0
    limit: int | None = None
    seed: int = 0
    memory: float = 4e9
    checkpoint: str | Path | None = None
    resume: bool = False

    @property
    def rate(self) -> float:
        """The largest learning rate."""
        return RATES[self.optimizer] if self.lr is None else self.lr

    @property
    def weight(self) -> float:
        """Share of the teacher in the loss."""
        return (WITH_LABELS if self.labels else 1.0) if self.alpha is None else self.alpha

    def check(self) -> None:
        """Raise UsageError for all that is wrong whatever the model and the data."""
        problems = [text for wrong, text in self._rules() if wrong]
        if problems:
            raise UsageError("; ".join(problems))

    def _rules(self) -> list[tuple[bool, str]]:
        choices = {"optimizer": Optimizer, "augment": Augment, "loss": Loss, "norm": Norm, "take": Take}
        rules = [(getattr(self, n) not in get_args(c), self._unknown(n, get_args(c))) for n, c in choices.items()]
        rules += [(getattr(self, n) < 1, f"--{n} must be at least 1") for n in ("epochs", "batch", "patience")]
        rules += [
            (self.data is None, "fine-tuning needs --data: inputs like those of use"),
            (not 1 <= self.views <= 8, f"--views {self.views}: give 1 to 8"),
            (not self.lr_is_fine, f"--lr {self.lr}: give a number above 0, such as {RATES['adam']}"),
            (not 0 <= self.weight <= 1, f"--alpha {self.alpha} is not a share in [0, 1]"),
            (self.weight < 1 and not self.labels, "--alpha below 1 gives weight to labels: add --labels"),
            (self.labels and self.alpha == 1, "--alpha 1 leaves --labels no weight: leave one of them out"),
            (self.temperature is not None and not self.temperature > 0, "--temperature must be above 0"),
            (self.temperature is not None and self.loss == "mse", "--loss mse has no --temperature"),
            (self.plan is not None and not self.beta, "--plan belongs to --beta, which is not given"),
            (not 0 <= self.beta < float("inf"), "--beta must be 0 or more"),
            (not self.clip > 0, "the norm that gradients are clipped to must be above 0"),
            (self.limit is not None and self.limit < 2, "--limit must be at least 2"),
            (not self.memory > 0, "--memory must be above 0"),
            (self.resume and self.checkpoint is None, "resuming needs the checkpoint to resume from"),
        ]
        return rules

    @property
    def lr_is_fine(self) -> bool:
        """Whether the learning rate is a number that can be used."""
        return self.lr is None or 0 < self.lr < float("inf")

    def _unknown(self, name: str, known: tuple[str, ...]) -> str:
        return f"--{name} {getattr(self, name)!r} is not known; choose one of: {', '.join(known)}"

    def settings(self) -> dict[str, Any]:
        """What reports and checkpoints record."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name in _RECORDED}
        return found | {"lr": self.rate, "alpha": self.weight}
