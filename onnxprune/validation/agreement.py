"""How far the outputs of two models agree, sample by sample, without labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.columns import is_float
from onnxprune.graph import Array
from onnxprune.validation.intervals import Interval
from onnxprune.validation.reading import finite, probabilities
from onnxprune.validation.statistics import of_means, rate, score_bound

Reals = NDArray[np.float64]
Intervals = dict[str, Interval]  # by measure
MORE_IS_BETTER = frozenset({"top1", "cosine"})
_TINY = 1e-300


class Agreements:
    """Collects what each output of the original and the candidate have in common, batch by batch.

    Keeps a few numbers per sample and output.
    """

    def __init__(self) -> None:
        self._outputs: dict[str, _Output] = {}

    def add(self, original: Mapping[str, Array], candidate: Mapping[str, Array]) -> None:
        """Outputs of a batch by name, [n, ...], of the same names and shapes."""
        for name, array in original.items():
            self._outputs.setdefault(name, _Output()).add(array, candidate[name])

    def intervals(self, seed: int) -> dict[str, Intervals]:
        """By output: `top1`: share of the same answers, where the output is one row of scores, or one class number, per
        sample; `cosine`: mean over samples; `relative_error`: norm of the difference by the norm of the original;
        `divergence`: Kullback-Leibler, in nats.
        """
        return {name: output.intervals(seed) for name, output in self._outputs.items()}


class _Output:
    """One output of both models."""

    def __init__(self) -> None:
        self._same: list[Reals] = []
        self._divergence: list[Reals] = []
        self._distance: list[Reals] = []  # [n, 3]: squared difference, squared norm, cosine

    def add(self, a: Array, b: Array) -> None:
        if _answers(a):
            self._same.append((_answer(a) == _answer(b)).astype(np.float64))
            if a.ndim == 2 and is_float(a.dtype):
                self._divergence.append(_divergence(probabilities(a), probabilities(b)))
        self._distance.append(_distance(a, b))

    def intervals(self, seed: int) -> Intervals:
        found = Intervals()
        if self._same:
            same = np.concatenate(self._same)
            found["top1"] = rate(int(same.sum()), len(same))
        distance = np.concatenate(self._distance)
        found["cosine"] = _at_least(of_means(distance[:, 2:], lambda m: m[..., 0], seed), len(distance))
        found["relative_error"] = of_means(distance[:, :2], _relative, seed)
        if self._divergence:
            found["divergence"] = of_means(np.concatenate(self._divergence)[:, None], lambda m: m[..., 0], seed)
        return found


def worst(outputs: Mapping[str, Intervals]) -> Intervals:
    """Each measure of the output where it is worst."""
    names = [n for n in ("top1", "cosine", "relative_error", "divergence") if any(n in o for o in outputs.values())]
    given = {n: [o[n] for o in outputs.values() if n in o] for n in names}
    return {n: (min if n in MORE_IS_BETTER else max)(found, key=lambda i: i.point) for n, found in given.items()}


def _at_least(found: Interval, n: int) -> Interval:
    """Where all samples are alike, what the others of the population might be."""
    return found if found.low < found.high else Interval(found.point, found.point - score_bound(n), found.high)


def _relative(means: Reals) -> Reals:
    return np.asarray(np.sqrt(means[..., 0] / np.maximum(means[..., 1], _TINY)))


def _answers(output: Array) -> bool:
    scores = output.ndim == 2 and output.shape[1] > 1
    numbers = output.dtype.kind in "iu" and output.size == len(output)
    return scores or numbers


def _answer(output: Array) -> Array:
    return np.asarray(output.argmax(axis=1)) if output.size > len(output) else output.reshape(len(output))


def _divergence(p: Reals, q: Reals) -> Reals:
    ratio = np.log(np.maximum(p, 1e-12)) - np.log(np.maximum(q, 1e-12))
    return np.asarray(np.maximum((p * ratio).sum(axis=1), 0.0))


def _distance(original: Array, candidate: Array) -> Reals:
    """[n, 3]: squared difference, squared norm of the original, cosine of the angle (1 where both are 0)."""
    a, b = (finite(x.reshape(len(x), -1)) for x in (original, candidate))
    products: list[Any] = [np.einsum("ij,ij->i", x, y) for x, y in ((a, a), (b, b), (a, b), (a - b, a - b))]
    aa, bb, ab, difference = products
    lengths = np.sqrt(aa * bb)
    cosine = np.where(lengths > 0, ab / np.maximum(lengths, _TINY), (aa == bb).astype(np.float64))
    return np.column_stack([difference, aa, np.where(difference == 0, 1.0, np.clip(cosine, -1, 1))])
