"""Metrics of weighted samples, for many weightings at once: a resample is a weighting by how often each was drawn.

They equal scikit-learn's functions of the same name with `sample_weight`, which take one weighting at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from onnxprune.errors import DataError
from onnxprune.graph import Array

Reals = NDArray[np.float64]
Weighted = Callable[[Array, Array, Reals], Reals]  # predictions, targets [n], weights [b, n] -> [b]
PerClass = Callable[[Reals, Reals, Reals], Reals]  # right, predicted, true [b, classes] -> [b, classes]
Average = Literal["binary", "macro", "micro", "weighted"]

PER_CLASS: dict[str, PerClass] = {
    "f1": lambda right, predicted, true: _ratio(2 * right, predicted + true),
    "precision": lambda right, predicted, _: _ratio(right, predicted),
    "recall": lambda right, _, true: _ratio(right, true),
    "jaccard": lambda right, predicted, true: _ratio(right, predicted + true - right),
}


def _ratio(a: Reals, b: Reals) -> Reals:
    """a / b, 0 where b is: scikit-learn's zero_division."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def _counts(predictions: Array, targets: Array, weights: Reals) -> tuple[Reals, Reals, Reals]:
    """[b, classes] each: how often a class is predicted rightly, predicted, and true."""
    if targets.ndim != 1:
        raise DataError("it counts one class per sample; per-pixel classes have accuracy only")
    classes, n = int(max(predictions.max(), targets.max())) + 1, len(targets)

    def summed(of: Array, chosen: Array) -> Reals:
        table = csr_array((chosen.astype(np.float64), (of, np.arange(n))), shape=(classes, n))
        return np.asarray((table @ weights.T).T)

    every = np.ones(n)
    right = summed(targets, predictions == targets)
    return right, summed(predictions, every), summed(targets, every)


def of_classes(name: str, average: Average) -> Weighted:
    """F1, precision, recall or the Jaccard index: of class 1, or over the classes that occur."""
    per_class = PER_CLASS[name]

    def value(predictions: Array, targets: Array, weights: Reals) -> Reals:
        right, predicted, true = _counts(predictions, targets, weights)
        if average == "micro":
            return per_class(*(np.sum(x, axis=1, keepdims=True) for x in (right, predicted, true)))[:, 0]
        found = per_class(right, predicted, true)
        if average == "binary":
            if found.shape[1] > 2:
                raise DataError(
                    f"there are {found.shape[1]} classes: name {name}_macro, {name}_micro or {name}_weighted"
                )
            return found[:, -1] if found.shape[1] == 2 else np.zeros(len(weights))
        shares = true if average == "weighted" else (predicted + true > 0).astype(np.float64)
        return np.asarray((found * shares).sum(axis=1) / shares.sum(axis=1))

    return value


def balanced_accuracy(predictions: Array, targets: Array, weights: Reals) -> Reals:
    """Mean recall of the classes that occur."""
    right, _, true = _counts(predictions, targets, weights)
    return np.asarray(_ratio(right, true).sum(axis=1) / (true > 0).sum(axis=1))


def matthews_corrcoef(predictions: Array, targets: Array, weights: Reals) -> Reals:
    """Correlation of predicted and true classes."""
    right, predicted, true = _counts(predictions, targets, weights)
    n = true.sum(axis=1)
    covariance = right.sum(axis=1) * n - (predicted * true).sum(axis=1)
    spread = (n**2 - (predicted**2).sum(axis=1)) * (n**2 - (true**2).sum(axis=1))
    return _ratio(covariance, np.sqrt(np.maximum(spread, 0.0)))


def cohen_kappa(predictions: Array, targets: Array, weights: Reals) -> Reals:
    """Agreement beyond chance."""
    right, predicted, true = _counts(predictions, targets, weights)
    n = true.sum(axis=1)
    chance = (predicted * true).sum(axis=1) / n**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((right.sum(axis=1) / n - chance) / (1 - chance))


def roc_auc(probabilities: Array, targets: Array, weights: Reals) -> Reals:
    """Area under the ROC curve: of class 1 of two, else the mean over each class against the others."""
    classes = probabilities.shape[1]
    chosen = [1] if classes == 2 else range(classes)
    return np.asarray(np.mean([_area(probabilities[:, c], targets == c, weights) for c in chosen], axis=0))


def _area(scores: Array, positive: Array, weights: Reals) -> Reals:
    """Share of the pairs that are in the right order, equal scores half; NaN without one of each."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    ordered, one = weights[:, order], positive[order]
    ones = np.add.reduceat(ordered * one, starts, axis=1)
    zeros = np.add.reduceat(ordered * ~one, starts, axis=1)
    below = np.cumsum(zeros, axis=1) - zeros / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((ones * below).sum(axis=1) / (ones.sum(axis=1) * zeros.sum(axis=1)))
