"""How far the outputs of two networks agree on the same inputs, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph import Array

_TINY = 1e-12
Reals = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Outputs of a network beside the original's, on inputs that no fit has seen.

    samples: number of inputs. top1: share of inputs with the same largest class, None unless an output is one row of
    scores per sample. divergence: mean Kullback-Leibler divergence in nats there, else the squared relative error.
    relative_error: norm of the difference by the norm of the original, over all outputs. chance: share of the
    original's most frequent answer (None where top1 is).
    """

    samples: int
    top1: float | None
    divergence: float
    relative_error: float
    chance: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def agreement(original: Iterable[Mapping[str, Array]], other: Iterable[Mapping[str, Array]]) -> Agreement:
    """Compare the outputs, batch by batch as dicts name -> [samples, ...]."""
    found = _beside(original, other)
    wrong, size = (sum(getattr(f, n) for f in found) for n in ("wrong", "size"))
    scores = next((f for f in found if f.pairs), None)
    top1 = chance = None
    if scores is not None:
        answers, others = (x.argmax(1) for x in scores.joined())
        top1 = float((answers == others).mean())
        chance = float(np.bincount(answers).max() / len(answers))
    samples = max(f.samples for f in found)
    return Agreement(samples, top1, _divergence(found), (wrong / max(size, _TINY)) ** 0.5, chance)


def divergence(original: Iterable[Mapping[str, Array]], other: Iterable[Mapping[str, Array]]) -> float:
    """Sum over the outputs of the mean KL divergence in nats (rows of scores) or of the squared relative error."""
    return _divergence(_beside(original, other))


@dataclass
class _Beside:
    """One output of both networks over all batches: squared norms; of rows of scores, also the rows."""

    samples: int = 0
    wrong: float = 0.0
    size: float = 0.0
    pairs: list[tuple[Reals, Reals]] = field(default_factory=list)

    def add(self, a: Reals, b: Reals) -> None:
        self.samples += len(a)
        self.wrong += float(np.square(b - a).sum())
        self.size += float(np.square(a).sum())
        if a.ndim == 2 and a.shape[1] > 1:
            self.pairs.append((a, b))

    def joined(self) -> tuple[Reals, Reals]:
        """The rows of scores."""
        a, b = zip(*self.pairs, strict=True)
        return np.concatenate(a), np.concatenate(b)


def _beside(original: Iterable[Mapping[str, Array]], other: Iterable[Mapping[str, Array]]) -> list[_Beside]:
    """Both networks, output by output; no more than a batch of them is held, but for rows of scores."""
    found = dict[str, _Beside]()
    for batch, changed in zip(original, other, strict=True):
        for name, array in batch.items():
            a, b = (np.atleast_1d(np.asarray(x, np.float64)) for x in (array, changed[name]))
            found.setdefault(name, _Beside()).add(a, np.nan_to_num(b, nan=0.0, posinf=1e30, neginf=-1e30))
    return list(found.values())


def _divergence(found: Iterable[_Beside]) -> float:
    return sum(_divergence_of_scores(*f.joined()) if f.pairs else f.wrong / max(f.size, _TINY) for f in found)


def _divergence_of_scores(a: Reals, b: Reals) -> float:
    p, q = (_probabilities(x, like=a) for x in (a, b))
    return float((p * (np.log(p + _TINY) - np.log(q + _TINY))).sum(1).mean())


def _probabilities(scores: Reals, like: Reals) -> Reals:
    """The rows, if those of the original are probabilities, else their softmax."""
    if like.min() >= 0 and np.allclose(like.sum(1), 1, atol=1e-3):
        kept = np.maximum(scores, 0)
    else:
        kept = np.exp(scores - scores.max(1, keepdims=True))
    result: Reals = kept / np.maximum(kept.sum(1, keepdims=True), _TINY)
    return result
