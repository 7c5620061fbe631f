"""Metrics: those of scikit-learn, by its names."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from onnxprune.errors import DataError, UsageError
from onnxprune.validation.metrics import NAMES, check_drop, hits, metric
from onnxprune.validation.reading import probabilities

RNG = np.random.default_rng(0)
MANY = 5


def drawn(classes, n=300):
    """Scores of `classes` that are right often but not always, with ties, and the true classes."""
    y = RNG.integers(0, classes, n)
    scores = RNG.normal(size=(n, classes))
    scores[np.arange(n), y] += 1
    return np.rint(4 * scores) / 4, y


def value(name, predictions, targets, weights=None):
    """A metric of all samples, however it is computed."""
    m = metric(name)
    if m.each is None:
        return m.of(predictions, targets, weights)[0]
    mean = m.each(predictions, targets).mean()
    return mean**0.5 if m.root else mean


CLASSES = {
    "balanced_accuracy": sk.balanced_accuracy_score,
    "matthews_corrcoef": sk.matthews_corrcoef,
    "cohen_kappa": sk.cohen_kappa_score,
}
CLASSES |= {
    f"{name}_{average}": lambda y, p, f=function, a=average, **k: f(y, p, average=a, zero_division=0, **k)
    for name, function in (
        ("f1", sk.f1_score),
        ("precision", sk.precision_score),
        ("recall", sk.recall_score),
        ("jaccard", sk.jaccard_score),
    )
    for average in ("macro", "micro", "weighted")
}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("classes", [2, MANY])
def test_of_classes(name, classes):
    """Metrics of class numbers are scikit-learn's, also where samples count several times or not at all."""
    scores, y = drawn(classes)
    p = scores.argmax(1)
    assert value(name, p, y) == pytest.approx(CLASSES[name](y, p), abs=1e-12)
    weights = RNG.integers(0, 4, (1, len(y))).astype(float)
    assert value(name, p, y, weights) == pytest.approx(CLASSES[name](y, p, sample_weight=weights[0]), abs=1e-12)


@pytest.mark.parametrize("name", ["f1", "precision", "recall", "jaccard"])
def test_of_two_classes(name):
    """Without an average, the metrics are of class 1, and more classes are refused with the names to use."""
    scores, y = drawn(2)
    p = scores.argmax(1)
    assert value(name, p, y) == pytest.approx(getattr(sk, f"{name}_score")(y, p), abs=1e-12)
    with pytest.raises(DataError, match=f"there are 3 classes: name {name}_macro"):
        metric(name).of(np.array([0, 1, 2]), np.array([0, 1, 2]))


def test_a_class_that_nobody_names():
    """A class that only one of labels and predictions has counts as scikit-learn counts it."""
    y, p = np.array([0, 0, 1, 1, 4]), np.array([0, 2, 1, 1, 1])
    for name in ("f1_macro", "precision_macro", "recall_macro", "jaccard_macro"):
        assert value(name, p, y) == pytest.approx(CLASSES[name](y, p), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "classes", "function"),
    [
        ("roc_auc", 2, lambda y, p: sk.roc_auc_score(y, p[:, 1])),
        ("roc_auc", MANY, lambda y, p: sk.roc_auc_score(y, p, multi_class="ovr")),
        ("roc_auc_ovr", MANY, lambda y, p: sk.roc_auc_score(y, p, multi_class="ovr")),
        ("roc_auc_ovo", MANY, lambda y, p: sk.roc_auc_score(y, p, multi_class="ovo")),
        ("roc_auc_ovo", 2, lambda y, p: sk.roc_auc_score(y, p[:, 1])),
        ("average_precision", 2, lambda y, p: sk.average_precision_score(y, p[:, 1])),
        ("average_precision", MANY, sk.average_precision_score),
        ("roc_auc_ovr_weighted", MANY, lambda y, p: sk.roc_auc_score(y, p, multi_class="ovr", average="weighted")),
        ("roc_auc_ovo_weighted", MANY, lambda y, p: sk.roc_auc_score(y, p, multi_class="ovo", average="weighted")),
        ("roc_auc_ovo_weighted", 2, lambda y, p: sk.roc_auc_score(y, p[:, 1])),
        ("neg_log_loss", MANY, sk.log_loss),
        ("neg_brier_score", 2, lambda y, p: sk.brier_score_loss(y, p[:, 1])),
        ("brier_score_loss", MANY, lambda y, p: ((p - np.eye(MANY)[y]) ** 2).sum(1).mean()),
    ],
)
def test_of_probabilities(name, classes, function):
    """Metrics of probabilities are scikit-learn's, ties included."""
    scores, y = drawn(classes)
    p = probabilities(scores)
    assert value(name, p, y) == pytest.approx(function(y, p), abs=1e-9)


def test_area_with_weights():
    """The area under the curve of samples that count several times is that of the repeated samples."""
    scores, y = drawn(2)
    weights = RNG.integers(0, 3, (2, len(y))).astype(float)
    found = metric("roc_auc").of(probabilities(scores), y, weights)
    want = [sk.roc_auc_score(y, probabilities(scores)[:, 1], sample_weight=w) for w in weights]
    assert found == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("neg_mean_squared_error", sk.mean_squared_error),
        ("mse", sk.mean_squared_error),
        ("rmse", lambda y, p: sk.mean_squared_error(y, p) ** 0.5),
        ("mae", sk.mean_absolute_error),
        ("mape", sk.mean_absolute_percentage_error),
        ("r2", sk.r2_score),
        ("r2_score", sk.r2_score),
        ("explained_variance", sk.explained_variance_score),
        ("median_absolute_error", sk.median_absolute_error),
        ("d2_absolute_error_score", sk.d2_absolute_error_score),
    ],
)
def test_of_values(name, function):
    """Metrics of values are scikit-learn's, also of several values per sample."""
    y = RNG.normal(3, 1, (200, 2))
    p = y + RNG.normal(0, 0.3, y.shape)
    assert value(name, p, y) == pytest.approx(function(y, p), rel=1e-9)


@pytest.mark.parametrize("name", ["max_error", "neg_max_error"])
def test_largest_error(name):
    """The largest error is scikit-learn's, which takes one value per sample."""
    y, p = RNG.normal(size=(2, 200))
    assert value(name, p, y) == pytest.approx(sk.max_error(y, p), rel=1e-9)
    assert not metric(name).higher
    with pytest.raises(DataError, match="--metric max_error raised ValueError: Multioutput"):
        metric(name).of(np.zeros((3, 2)), np.zeros((3, 2)))


def test_top():
    """top-k counts the labels among the k largest scores; of equal scores the first is the larger, as in argmax."""
    scores, y = drawn(MANY)
    strict = scores + np.linspace(1e-3, 0, MANY)  # no ties
    for k in (1, 2, 3):
        assert value(f"top{k}", scores, y) == pytest.approx(sk.top_k_accuracy_score(y, strict, k=k), abs=1e-12)
    with pytest.raises(DataError, match="5 classes"):
        value("top5", scores, y)
    assert value("accuracy", scores, y) == (scores.argmax(1) == y).mean()
    flat = np.zeros((3, 4))
    assert hits(flat, np.array([0, 1, 2]), 2).tolist() == [1, 1, 0]


def test_pixels():
    """Labels of several places per sample give the share of a sample that is right."""
    scores = np.zeros((2, 3, 2, 2))
    scores[:, 1] = 1
    assert hits(scores, np.array([[[1, 1], [1, 1]], [[1, 0], [2, 1]]])).tolist() == [1, 0.5]
    assert hits(scores, np.array([[[1, 1], [1, 1]], [[1, 0], [2, 1]]]), 2).tolist() == [1, 0.75]


@pytest.mark.parametrize(
    ("name", "higher", "rate"),
    [
        ("accuracy", True, True),
        ("top5", True, True),
        ("f1_macro", True, True),
        ("roc_auc", True, True),
        ("matthews_corrcoef", True, False),
        ("log_loss", False, False),
        ("neg_mean_squared_error", False, False),
        ("r2", True, False),
    ],
)
def test_direction(name, higher, rate):
    """Every metric knows which way is better, and whether differences are percentage points."""
    assert (metric(name).higher, metric(name).rate) == (higher, rate)


def test_every_name_is_known():
    """What the list of names has can be asked for."""
    assert all(metric(name).name for name in NAMES)
    assert "accuracy" in NAMES


@pytest.mark.parametrize(("name", "near"), [("acuracy", "'accuracy'"), ("f1_marco", "'f1_macro'"), ("top0", "top1")])
def test_unknown_names(name, near):
    """A misspelt metric is a usage error with the nearest name."""
    with pytest.raises(UsageError, match=near):
        metric(name)


@pytest.mark.parametrize(("limit", "name"), [(100.5, None), (150, "accuracy"), (101, "f1_macro"), (1e9, "roc_auc")])
def test_drops_that_always_pass(limit, name):
    """A rate drops by at most 100 points: a larger limit is a usage error, but not of what has a unit of its own."""
    chosen = name and metric(name)
    with pytest.raises(UsageError, match=f"--max-drop .*: {name or 'accuracy'} drops by at most 100 percentage points"):
        check_drop(limit, chosen)
    check_drop(100, chosen)
    check_drop(limit, metric("mae"))


def test_own_function():
    """A function is a metric, whose attributes say how it is read; what it raises is told with its name."""

    def worst(outputs, targets):
        return np.abs(outputs - targets).max()

    assert (metric(worst).higher, metric(worst).rate, metric(worst).needs) == (True, False, "outputs")
    worst.higher_is_better = False
    assert not metric(worst).higher
    assert metric(worst).of(np.array([1.0, 5.0]), np.array([1.0, 2.0])) == 3
    with pytest.raises(DataError, match="--metric broken raised ZeroDivisionError: division by zero"):
        metric(broken).of(np.zeros(3), np.zeros(3))


def broken(outputs, targets):
    """A metric that fails."""
    return 1 / 0


def test_function_of_a_module(tmp_path, monkeypatch):
    """module:function is found from the current folder; one that is not there is an error."""
    (tmp_path / "of_mine_a.py").write_text("def half(outputs, targets):\n    return 0.5\nhalf.rate = True\n")
    monkeypatch.chdir(tmp_path)
    found = metric("of_mine_a:half")
    assert (found.name, found.rate, found.of(np.zeros(2), np.zeros(2))[0]) == ("of_mine_a:half", True, 0.5)
    with pytest.raises(DataError, match="has no function 'third'"):
        metric("of_mine_a:third")


def test_undefined():
    """Without a sample of each class there is no area: NaN, not an error."""
    assert np.isnan(metric("roc_auc").of(np.full((4, 2), 0.5), np.zeros(4, int)))
