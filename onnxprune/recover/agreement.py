"""How far the outputs of two networks agree on the same inputs, without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph import Array

_TINY = 1e-12


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


def agreement(original: Sequence[Mapping[str, Array]], other: Sequence[Mapping[str, Array]]) -> Agreement:
    """Compare the outputs, batch by batch as dicts name -> [samples, ...]."""
    pairs = [_joined(original, other, name) for name in original[0]]
    wrong = sum(float(np.square(b - a).sum()) for a, b in pairs)
    size = sum(float(np.square(a).sum()) for a, _ in pairs)
    scores = next(((a, b) for a, b in pairs if _is_scores(a)), None)
    top1 = chance = None
    if scores is not None:
        answers = scores[0].argmax(1)
        top1 = float((answers == scores[1].argmax(1)).mean())
        chance = float(np.bincount(answers).max() / len(answers))
    samples = max(len(a) for a, _ in pairs)
    return Agreement(samples, top1, divergence(original, other), (wrong / max(size, _TINY)) ** 0.5, chance)


def divergence(original: Sequence[Mapping[str, Array]], other: Sequence[Mapping[str, Array]]) -> float:
    """Sum over the outputs of the mean KL divergence in nats (rows of scores) or of the squared relative error."""
    return sum(_divergence(*_joined(original, other, name)) for name in original[0])


def _joined(
    original: Sequence[Mapping[str, Array]], other: Sequence[Mapping[str, Array]], name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    pair = [
        np.concatenate([np.atleast_1d(np.asarray(b[name], np.float64)) for b in batches])
        for batches in (original, other)
    ]
    return pair[0], np.nan_to_num(pair[1], nan=0.0, posinf=1e30, neginf=-1e30)


def _is_scores(output: NDArray[np.float64]) -> bool:
    return output.ndim == 2 and output.shape[1] > 1


def _divergence(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if not _is_scores(a):
        return float(np.square(b - a).sum() / max(np.square(a).sum(), _TINY))
    p, q = (_probabilities(x, like=a) for x in (a, b))
    return float((p * (np.log(p + _TINY) - np.log(q + _TINY))).sum(1).mean())


def _probabilities(scores: NDArray[np.float64], like: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rows, if those of the original are probabilities, else their softmax."""
    if like.min() >= 0 and np.allclose(like.sum(1), 1, atol=1e-3):
        kept = np.maximum(scores, 0)
    else:
        kept = np.exp(scores - scores.max(1, keepdims=True))
    result: NDArray[np.float64] = kept / np.maximum(kept.sum(1, keepdims=True), _TINY)
    return result
