"""Metrics by scikit-learn's names: what each reads of a model's output, which way is better, and its own function."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.streams import load_function, names_function
from onnxprune.errors import DataError, UsageError
from onnxprune.graph import Array
from onnxprune.validation import weighted

Reals = NDArray[np.float64]
Needs = Literal["scores", "classes", "probabilities", "values", "outputs"]
PerSample = Callable[[Array, Array], Reals]
Whole = Callable[[Any, Array], float]
DEFAULT = "accuracy"
# What a metric is worth without a look at the inputs, where that is a number; of accuracy the labels tell.
CHANCE = dict.fromkeys(("roc_auc", "roc_auc_ovr", "roc_auc_ovr_weighted", "roc_auc_ovo", "roc_auc_ovo_weighted"), 0.5)
CHANCE |= dict.fromkeys(("r2", "explained_variance", "d2_absolute_error"), 0.0)
_TINY = 1e-15


@dataclass(frozen=True, slots=True)
class Metric:
    """How good predictions are.

    needs: what it reads: raw scores [n, classes, ...], class numbers [n], probabilities [n, classes], values as the
    model gives them, or (functions of users) all outputs. higher: whether more is better. rate: whether it lies in
    0..1, so that differences are told in percentage points. One of three functions gives it: each, of every sample [n],
    whose mean it is (the root of it where `root`); weighted, for many weightings of the samples at once; whole, of all
    samples. top: K where it counts labels among the K best answers, else 0.
    """

    name: str
    needs: Needs
    higher: bool
    rate: bool
    each: PerSample | None = None
    weighted: weighted.Weighted | None = None
    whole: Whole | None = None
    root: bool = False
    top: int = 0

    def of(self, predictions: Any, targets: Array, weights: Reals | None = None) -> Reals:
        """[b]: the value for each weighting [b, n] of the samples, NaN where it is not defined; the weights are how
        often a sample counts, once by default. Raises DataError where a function fails.
        """
        with self._told(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scikit-learn, where a class is missing: NaN says it, too
            if self.weighted is not None:
                return self.weighted(predictions, targets, np.ones((1, len(targets))) if weights is None else weights)
            assert self.whole is not None
            if weights is None:
                return np.array([float(self.whole(predictions, targets))])
        return np.array(
            [self._of_chosen(predictions, targets, np.repeat(np.arange(len(w)), w)) for w in weights.astype(np.intp)]
        )

    def _of_chosen(self, predictions: Any, targets: Array, chosen: NDArray[np.intp]) -> float:
        """NaN where the function fails, as some do where a class is missing: it did not on all samples."""
        if isinstance(predictions, dict):
            taken = {name: array[chosen] for name, array in predictions.items()}
        else:
            taken = predictions[chosen]
        try:
            return float(self.of(taken, targets[chosen])[0])
        except DataError:
            return float("nan")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            raise DataError(f"--metric {self.name}: {error}") from error
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


def check_drop(limit: float | None, chosen: Metric | None) -> None:
    """Raise UsageError for a drop that every model is within; chosen: None for accuracy."""
    if limit is not None and limit > 100 and (chosen is None or chosen.rate):
        name = chosen.name if chosen else DEFAULT
        raise UsageError(f"--max-drop {limit:g}: {name} drops by at most 100 percentage points; give fewer")


def _function(function: Callable[..., Any], name: str) -> Metric:
    higher, rate = getattr(function, "higher_is_better", True), getattr(function, "rate", False)
    return Metric(name, "outputs", bool(higher), bool(rate), whole=function)


# ---- sample by sample ----------------------------------------------------------------------------------------------


def _top(k: int) -> Metric:
    if k < 1:
        raise UsageError("--metric top0: give top1, top5, ...")
    return Metric("accuracy" if k == 1 else f"top{k}", "scores", True, True, each=lambda s, y: hits(s, y, k), top=k)


def hits(scores: Array, targets: Array, k: int = 1) -> Reals:
    """[n]: share of a sample's labels that are among the k largest scores [n, classes, ...]; of equal scores the first
    counts as larger, as in argmax. Where scores are class numbers already, whether they are the labels. Raises
    DataError where there are no more than k classes: every answer would be right.
    """
    _check_classes(scores, targets, k)
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


def _check_classes(scores: Array, targets: Array, k: int) -> None:
    if scores.shape == targets.shape:
        if k > 1:
            raise DataError(
                f"--metric top{k}: the output gives one answer per sample, no second one: only top1 is there"
            )
    elif k >= scores.shape[1]:
        classes = scores.shape[1]
        hint = f"give top1 to top{classes - 1}" if classes > 2 else "give top1"
        raise DataError(f"--metric top{k}: the output has {classes} classes: every answer would be right; {hint}")


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


def _brier(probabilities: Array, targets: Array) -> Reals:
    """Squared error of the probabilities, summed over the classes; of two classes that of class 1 alone."""
    error = probabilities.astype(np.float64) - (np.arange(probabilities.shape[1]) == targets[:, None])
    squares = (error**2).sum(axis=1)
    return np.asarray(squares / 2 if probabilities.shape[1] == 2 else squares)


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
    names: dict[str, weighted.Average] = {name: "binary"}
    names |= {f"{name}_macro": "macro", f"{name}_micro": "micro", f"{name}_weighted": "weighted"}
    return {n: Metric(n, "classes", True, True, weighted=weighted.of_classes(name, how)) for n, how in names.items()}


def _table() -> Mapping[str, Metric]:
    ranked: Needs = "probabilities"
    mape, ovo = "mean_absolute_percentage_error", {"multi_class": "ovo"}
    found = [
        Metric("balanced_accuracy", "classes", True, True, weighted=weighted.balanced_accuracy),
        Metric("matthews_corrcoef", "classes", True, False, weighted=weighted.matthews_corrcoef),
        Metric("cohen_kappa", "classes", True, False, weighted=weighted.cohen_kappa),
        Metric("roc_auc", ranked, True, True, weighted=weighted.roc_auc),
        Metric("roc_auc_ovr", ranked, True, True, weighted=weighted.roc_auc),
        Metric("roc_auc_ovo", ranked, True, True, whole=_ranking("roc_auc_score", **ovo)),
        Metric("roc_auc_ovr_weighted", ranked, True, True, whole=_ranking("roc_auc_score", average="weighted")),
        Metric("roc_auc_ovo_weighted", ranked, True, True, whole=_ranking("roc_auc_score", **ovo, average="weighted")),
        Metric("average_precision", ranked, True, True, whole=_ranking("average_precision_score")),
        Metric("log_loss", ranked, False, False, each=_log_loss),
        Metric("brier", ranked, False, False, each=_brier),
        Metric("mean_squared_error", "values", False, False, each=_error(2)),
        Metric("root_mean_squared_error", "values", False, False, each=_error(2), root=True),
        Metric("mean_absolute_error", "values", False, False, each=_error(1)),
        Metric("r2", "values", True, False, whole=_sklearn("r2_score")),
        Metric("explained_variance", "values", True, False, whole=_sklearn("explained_variance_score")),
        Metric("median_absolute_error", "values", False, False, whole=_sklearn("median_absolute_error")),
        Metric(mape, "values", False, False, whole=_sklearn(mape)),
        Metric("max_error", "values", False, False, whole=_sklearn("max_error")),
        Metric("d2_absolute_error", "values", True, False, whole=_sklearn("d2_absolute_error_score")),
    ]
    table = {m.name: m for m in (_top(1), *found)}
    for name in weighted.PER_CLASS:
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
    "brier_score_loss": "brier",
}
NAMES = (*_TABLE, "top5")
