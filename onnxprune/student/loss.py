"""What a student is trained towards: the teacher's outputs, labels where there are some, and an inner tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nn

from onnxprune.errors import DataError, UnsupportedError
from onnxprune.graph import Array

_TINY = 1e-12


@dataclass(frozen=True)
class Feature:
    """An inner tensor of both networks; kept: the teacher's channels (axis 1) that the student still has, None: all."""

    student: str
    teacher: str
    kept: Array | None


@dataclass(frozen=True)
class Objective:
    """alpha T^2 KL(teacher / T, student / T) + (1 - alpha) CE + beta MSE(feature) / E[teacher's feature^2] (Hinton
    2015, Romero 2015); outputs that are not rows of scores count with their MSE by the teacher's mean square.

    scores: output -> the student's tensor with its logits; probabilities: those of them of which the teacher gives
    probabilities; dense: output -> mean square.
    """

    temperature: float
    alpha: float
    beta: float
    scores: Mapping[str, str]
    probabilities: frozenset[str] = frozenset()
    dense: Mapping[str, float] = field(default_factory=dict)
    feature: Feature | None = None

    @property
    def wanted(self) -> list[str]:
        """Tensors of the student that are compared."""
        inner = [self.feature.student] if self.feature else []
        return list(dict.fromkeys([*self.scores.values(), *self.dense, *inner]))

    def __call__(self, made: Mapping[str, Tensor], told: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        """The loss of a batch. made: the student's tensors; told: the teacher's; labels: [n] int64."""
        terms = [self.alpha * self._imitation(made[s], self.logits(o, told[o])) for o, s in self.scores.items()]
        terms += [self.alpha * nn.mse_loss(made[o].float(), told[o].float()) / m for o, m in self.dense.items()]
        if labels is not None and self.alpha < 1:
            terms += [(1 - self.alpha) * nn.cross_entropy(made[s], labels) for s in self.scores.values()]
        if self.feature is not None and self.beta:
            terms.append(self.beta * self._likeness(made[self.feature.student], told[self.feature.teacher]))
        return torch.stack(terms).sum()

    def logits(self, output: str, told: Tensor) -> Tensor:
        """The teacher's scores, before any softmax."""
        return torch.log(told.clamp_min(_TINY)) if output in self.probabilities else told

    def _imitation(self, made: Tensor, told: Tensor) -> Tensor:
        t = self.temperature
        p, q = nn.log_softmax(made / t, 1), nn.log_softmax(told / t, 1)
        return nn.kl_div(p, q, reduction="batchmean", log_target=True) * t**2

    def _likeness(self, made: Tensor, told: Tensor) -> Tensor:
        assert self.feature is not None
        if self.feature.kept is not None:
            told = told.index_select(1, torch.from_numpy(self.feature.kept).to(told.device))
        return nn.mse_loss(made, told) / told.square().mean().clamp_min(_TINY)

    def agreement(self, made: Mapping[str, Tensor], told: Mapping[str, Tensor]) -> float:
        """Share of the samples with the teacher's answer; without scores, 1 - the relative error of the outputs."""
        if self.scores:
            output, student = next(iter(self.scores.items()))
            return float((made[student].argmax(1) == told[output].argmax(1)).float().mean())
        wrong = sum(float((made[o] - told[o]).square().sum()) for o in self.dense)
        size = sum(float(told[o].square().sum()) for o in self.dense)
        return 1 - math.sqrt(wrong / max(size, _TINY))

    def accuracy(self, made: Mapping[str, Tensor], labels: Tensor) -> float:
        """Share of the samples that the first scores answer as labelled; made: as for the loss."""
        return float((made[next(iter(self.scores.values()))].argmax(1) == labels).float().mean())


def kinds(told: Mapping[str, Array], loss: str) -> tuple[list[str], frozenset[str], dict[str, float]]:
    """How the teacher's outputs are compared: rows of scores [n, classes] by KL, other floats by MSE, integers not.

    told: [n, ...] by output. loss: "kl" or "mse" for all of them, or "auto". Raises UnsupportedError where nothing is
    left to compare.
    """
    floats = {n: a for n, a in told.items() if np.issubdtype(a.dtype, np.floating)}
    rows = [n for n, a in floats.items() if a.ndim == 2 and a.shape[1] > 1]
    if loss == "kl" and not rows:
        raise UnsupportedError("--loss kl needs an output with one row of scores per sample; use --loss mse")
    scores = [] if loss == "mse" else rows
    dense = {n: max(float(np.square(a, dtype=np.float64).mean()), _TINY) for n, a in floats.items() if n not in scores}
    if loss == "kl":
        dense = {}
    if not floats:
        raise UnsupportedError(
            "none of the outputs is of floats: there is nothing that a student could be trained towards"
        )
    certain = frozenset(n for n in scores if floats[n].min() >= 0 and np.allclose(floats[n].sum(1), 1, atol=1e-3))
    return scores, certain, dense


def check_labels(labels: Array | None, told: Mapping[str, Array], scores: list[str], name: str) -> None:
    """Raise DataError for labels that are not whole numbers within the number of classes."""
    if labels is None:
        return
    if not scores:
        raise DataError(f"{name} has labels, but no output is a row of scores per sample: leave out --labels")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"the labels of {name} are {labels.dtype} {list(labels.shape)}: expected one whole number each")
    classes = min(told[s].shape[1] for s in scores)
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if bad.size:
        first = int(bad[0])
        raise DataError(
            f"{name}: label {labels[first]} of sample {first} is out of range: the model has the classes "
            f"0..{classes - 1} ({bad.size} such label{'s' * (bad.size > 1)})"
        )
