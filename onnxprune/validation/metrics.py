"""Metrics by scikit-learn's names: what each reads of a model's output, which way is better, and its own function."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.streams import load_function, names_function
from onnxprune.errors import DataError, UsageError
from onnxprune.graph import Array

Reals = NDArray[np.float64]
Needs = Literal["scores", "classes", "probabilities", "values", "outputs"]
PerSample = Callable[[Array, Array], Reals]
Whole = Callable[[Any, Array], float]
DEFAULT = "accuracy"
_TINY = 1e-15


@dataclass(frozen=True, slots=True)
class Metric:
    """How good predictions are.

    needs: what it reads: raw scores [n, classes, ...], class numbers [n], probabilities [n, classes], values as the
    model gives them, or (functions of users) all outputs. higher: whether more is better. rate: whether it lies in
    0..1, so that differences are told in percentage points. each: gives the value of every sample [n], whose mean it is
    (the root of it where `root`); whole: gives it from all samples at once. One of the two is there.
    """

    name: str
    needs: Needs
    higher: bool
    rate: bool
    each: PerSample | None = None
    whole: Whole | None = None
    root: bool = False

    def of(self, predictions: Any, targets: Array) -> float:
        """The value on samples, NaN where it is not defined on them. Raises DataError where a function fails."""
        assert self.whole is not None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of scikit-learn, where a class is missing: NaN says it, too
                return float(self.whole(predictions, targets))
        except Exception as error:
            raise DataError(f"--metric {self.name} raised {type(error).__name__}: {error}") from error


def metric(name: str | Callable[[Any, Array], float]) -> Metric:
    """The metric of a name: of scikit-learn's functions or scorers, `topK`, `module:function`; or of a function.

    A function takes (outputs, targets): the array of the only output, or arrays by name, and the labels, all with
    samples along axis 0; it returns a number. Its attributes `higher_is_better` (default True) and `rate` (False) say
    how that is read. Raises UsageError for an unknown name, DataError for a function that cannot be imported.
    """
    if callable(name):
        return _function(name, getattr(name, "__name__", "metric"))
    if names_function(name):
        return _function(load_function(name), name)
    short = name.lower().removeprefix("neg_").removesuffix("_score")
    short = _ALIASES.get(short, short)
    if top := re.fullmatch(r"top_?(\d+)(_accuracy)?", short):
        return _top(int(top[1]))
    if short not in _TABLE:
        near = get_close_matches(short, [*_TABLE, *_ALIASES], 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise UsageError(f"--metric {name!r} is not known{hint} Known are {', '.join(NAMES)}, and module:function")
    return _TABLE[short]


def _function(function: Callable[..., Any], name: str) -> Metric:
    higher, rate = getattr(function, "higher_is_better", True), getattr(function, "rate", False)
    return Metric(name, "outputs", bool(higher), bool(rate), whole=function)


# ---- sample by sample ----------------------------------------------------------------------------------------------


def _top(k: int) -> Metric:
    if k < 1:
        raise UsageError("--metric top0: give top1, top5, ...")
    return Metric("accuracy" if k == 1 else f"top{k}", "scores", True, True, each=lambda s, y: hits(s, y, k))


def hits(scores: Array, targets: Array, k: int = 1) -> Reals:
    """[n]: share of a sample's labels that are among the k largest scores [n, classes, ...]; of equal scores the first
    counts as larger, as in argmax. Where scores are class numbers already, whether they are the labels.
    """
    if scores.shape == targets.shape:
        found = scores == targets
    elif k == 1:
        found = scores.argmax(axis=1) == targets
    else:
        own = np.take_along_axis(scores, targets[:, None], axis=1)
        number = np.arange(scores.shape[1]).reshape(-1, *[1] * (scores.ndim - 2))
        above = (scores > own) | ((scores == own) & (number < targets[:, None]))
        found = above.sum(axis=1) < k
    return _per_sample(found)


def _per_sample(values: Array) -> Reals:
    """[n]: means over all axes but that of the samples."""
    means: Reals = values.reshape(len(values), -1).mean(axis=1, dtype=np.float64)
    return means


def _error(power: int) -> PerSample:
    def each(values: Array, targets: Array) -> Reals:
        return _per_sample(np.abs(values.astype(np.float64) - targets) ** power)

    return each


def _log_loss(probabilities: Array, targets: Array) -> Reals:
    own = np.take_along_axis(probabilities, targets[:, None], axis=1)
    return np.asarray(-np.log(np.maximum(own[:, 0], _TINY)))


# ---- all samples at once, by scikit-learn --------------------------------------------------------------------------


def _sklearn(function: str, **options: Any) -> Whole:
    def whole(predictions: Array, targets: Array) -> float:
        from sklearn import metrics

        return float(getattr(metrics, function)(targets, predictions, **options))

    return whole


def _ranking(function: str, **options: Any) -> Whole:
    """Two classes are ranked by the probability of class 1; more of them one against the others."""

    def whole(probabilities: Array, targets: Array) -> float:
        two = probabilities.shape[1] == 2
        if two or function != "roc_auc_score":
            return _sklearn(function, **({} if two else options))(
                probabilities[:, 1] if two else probabilities, targets
            )
        named = options | {"labels": np.arange(probabilities.shape[1])}
        return _sklearn(function, **({"multi_class": "ovr"} | named))(probabilities, targets)

    return whole


def _averages(name: str) -> dict[str, Metric]:
    """`f1`, `f1_macro`, ...: of class 1 of two, or over the classes."""
    table = {name: Metric(name, "classes", True, True, whole=_sklearn(f"{name}_score", zero_division=0))}
    for average in ("macro", "micro", "weighted"):
        whole = _sklearn(f"{name}_score", average=average, zero_division=0)
        table[f"{name}_{average}"] = Metric(f"{name}_{average}", "classes", True, True, whole=whole)
    return table


def _table() -> Mapping[str, Metric]:
    auc: str = "roc_auc_score"
    values: Needs = "values"
    found = [
        Metric("balanced_accuracy", "classes", True, True, whole=_sklearn("balanced_accuracy_score")),
        Metric("matthews_corrcoef", "classes", True, False, whole=_sklearn("matthews_corrcoef")),
        Metric("cohen_kappa", "classes", True, False, whole=_sklearn("cohen_kappa_score")),
        Metric("roc_auc", "probabilities", True, True, whole=_ranking(auc)),
        Metric("roc_auc_ovr", "probabilities", True, True, whole=_ranking(auc, multi_class="ovr")),
        Metric("roc_auc_ovo", "probabilities", True, True, whole=_ranking(auc, multi_class="ovo")),
        Metric("average_precision", "probabilities", True, True, whole=_ranking("average_precision_score")),
        Metric("log_loss", "probabilities", False, False, each=_log_loss),
        Metric("mean_squared_error", values, False, False, each=_error(2)),
        Metric("root_mean_squared_error", values, False, False, each=_error(2), root=True),
        Metric("mean_absolute_error", values, False, False, each=_error(1)),
        *(
            Metric(name, values, name in {"r2", "explained_variance"}, False, whole=_sklearn(function))
            for name, function in (
                ("r2", "r2_score"),
                ("explained_variance", "explained_variance_score"),
                ("median_absolute_error", "median_absolute_error"),
                ("mean_absolute_percentage_error", "mean_absolute_percentage_error"),
            )
        ),
    ]
    table = {m.name: m for m in (_top(1), *found)}
    for name in ("f1", "precision", "recall", "jaccard"):
        table |= _averages(name)
    return table


_TABLE = _table()
_ALIASES = {
    "mse": "mean_squared_error",
    "rmse": "root_mean_squared_error",
    "mae": "mean_absolute_error",
    "mape": "mean_absolute_percentage_error",
    "top_k_accuracy": "top5",
    "mcc": "matthews_corrcoef",
}
NAMES = (*_TABLE, "top5")
