"""Comparisons that would say nothing, or hide something: what is refused, put in doubt, or told."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper
from validation.models import inputs, labels, linear, two

import onnxprune
from onnxprune.errors import DataError

validate = onnxprune.validate


@pytest.mark.parametrize("name", ["top4", "top5"])
def test_all_classes_are_not_the_best(pair, name):
    """Among as many answers as there are classes the right one always is: topK of them is refused."""
    good, bad, x, y = pair
    with pytest.raises(DataError, match=rf"--metric {name}: .* 4 classes: .* top1 to top3"):
        validate(good, bad, data=(x, y), metric=name, max_drop=1.0)
    assert validate(good, bad, data=(x, y), metric="top3").metric.candidate < 1


def test_class_numbers_have_no_second_answer(pair):
    """A model that gives class numbers, or one score for two classes, has a top1 only."""
    _, _, x, _ = pair
    single = linear(outputs="float[N,1] y", shape="6,1")
    with pytest.raises(DataError, match=r"--metric top2: .* only top1"):
        validate(single, single, data=(x, np.arange(200) % 2), metric="top2")
    assert validate(single, single, data=(x, np.arange(200) % 2), metric="top1").metric


@pytest.mark.parametrize("by", ["interval", "point"])
@pytest.mark.parametrize("name", ["accuracy", "top2", "f1_macro", "balanced_accuracy"])
def test_labels_of_other_samples(pair, name, by):
    """Where the original answers the labels no better than chance, no drop passes, and a note says why."""
    good, _, x, y = pair
    shuffled = np.random.default_rng(0).permutation(y)
    found = validate(good, good, data=(x, shuffled), metric=name, max_drop=50.0, verdict=by)
    assert (found.verdict, found.passed, found.metric.at_chance) == ("inconclusive", False, True)
    assert "no better than" in found.goals[0].reason
    assert any("labels" in n and "order" in n for n in found.notes)
    right = validate(good, good, data=(x, y), metric=name, max_drop=50.0, verdict=by)
    assert (right.verdict, right.metric.at_chance, right.goals[0].reason, right.notes) == ("pass", False, "", ())


def test_chance_is_the_most_frequent_label(pair):
    """The level of chance is the share of the most frequent label, or of the K most frequent ones for topK."""
    good, bad, x, _ = pair
    y = np.repeat([0, 1, 2, 3], [100, 60, 30, 10])
    for name, level in (("accuracy", 0.5), ("top2", 0.8), ("top3", 0.95)):
        assert validate(good, bad, data=(x, y), metric=name).metric.chance == pytest.approx(level)
    assert validate(good, bad, data=(x, y), metric="roc_auc").metric.chance == 0.5
    assert validate(good, bad, data=(x, y), metric="log_loss").metric.chance is None


def test_a_drop_that_fails_at_chance_fails(pair):
    """Doubt about the labels does not turn a missed goal into one that may pass."""
    good, _, x, _ = pair
    other = linear(seed=7)
    never = (labels(other, x, wrong=0) + 1 + np.arange(len(x)) % 3) % 4  # what the candidate answers, but another class
    found = validate(good, other, data=(x, never), max_drop=0.0)
    assert (found.metric.at_chance, found.verdict) == (True, "fail")


@pytest.mark.parametrize("name", ["roc_auc", "roc_auc_ovo", "r2", "explained_variance"])
def test_chance_of_other_metrics(pair, name):
    """Of a ROC AUC that may be 0.5, and an R2 that may be 0, no drop passes, and a note gives both numbers."""
    good, _, x, y = pair
    level = 0.5 if name.startswith("roc") else 0.0
    if not level:
        y = x @ numpy_helper.to_array(good.graph.initializer[0])
        y = y + np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    wrong = np.random.default_rng(0).permutation(y)
    found = validate(good, good, data=(x, wrong), metric=name, max_drop=50.0)
    assert (found.verdict, found.metric.chance, found.metric.at_chance) == ("inconclusive", level, True)
    assert any(f"whose {name} is {level:g} (the original's is {found.metric.original:.3g})" in n for n in found.notes)
    right = validate(good, good, data=(x, y), metric=name, max_drop=50.0)
    assert (right.verdict, right.metric.at_chance, right.notes) == ("pass", False, ())


def test_a_function_has_no_level_of_chance(pair):
    """A user's function is not taken for the metric whose name it has."""
    good, _, x, y = pair

    def r2(outputs, targets):
        return -1.0 - 0.0 * len(targets)

    found = validate(good, good, data=(x, y), metric=r2)
    assert (found.metric.chance, found.metric.at_chance, found.notes) == (None, False, ())


@pytest.fixture(scope="module")
def ruined():
    """Two models of two outputs, of which the candidate's second is noise; and inputs."""
    body = "y = MatMul(x, w)\n s = Sin(y)\n z = Unsqueeze(s, a)"
    bad = "y = MatMul(x, w)\n t = Mul(y, y)\n u = Mul(t, y)\n s = Neg(u)\n z = Unsqueeze(s, a)"
    axis = "a = Constant<value_ints = [1]>()\n "
    outputs = "float[N,4] y, float[N,1,4] z"
    return *(linear(outputs=outputs, body=axis + b) for b in (body, bad)), inputs()


def test_a_ruined_output_is_seen(ruined):
    """Each output is compared; a goal of agreement is about the worst of them, and says which that is."""
    good, bad, x = ruined
    found = validate(good, bad, data=x, min_agreement=0.9)
    assert list(found.outputs) == ["y", "z"]
    assert found.outputs["y"]["cosine"].point == found.outputs["y"]["top1"].point == 1
    assert found.outputs["z"]["cosine"].point < 0.5
    assert found.agreement["cosine"] == found.outputs["z"]["cosine"]
    assert found.agreement["relative_error"] == found.outputs["z"]["relative_error"]
    assert (found.verdict, found.goals[0].what) == ("fail", "cosine of 'z'")
    assert found.goals[0].measured == found.outputs["z"]["cosine"]


def test_agreement_of_one_output(ruined):
    """--output-name says which output the agreement is about; the others are still told."""
    good, bad, x = ruined
    found = validate(good, bad, data=x, min_agreement=0.9, output_name="y")
    assert (found.verdict, found.goals[0].what) == ("pass", "same top-1 answer of 'y'")
    assert found.agreement == found.outputs["y"]
    assert set(found.as_dict()["outputs"]["z"]) == {"cosine", "relative_error"}


def test_the_worst_of_several_scores():
    """Of outputs that all have answers the one with the fewest same answers counts, in whatever order they are."""
    x = {"a": inputs(), "b": inputs(seed=2)}
    found = validate(two(), two(0.5), data=x, min_agreement=0.99)
    assert found.outputs["z"]["top1"].point == 1 > found.outputs["y"]["top1"].point
    assert found.goals[0].what == "same top-1 answer of 'y'"
    assert found.agreement["top1"] == found.outputs["y"]["top1"]


def test_one_hot_labels(pair):
    """One-hot labels are told how to become class numbers, with and without a metric; shapes are of all the data."""
    good, bad, x, y = pair
    hot = np.eye(4, dtype=int)[y]
    words = r"int64 \[200,4\].*labels.argmax\(1\)"
    with pytest.raises(DataError, match=words):
        validate(good, bad, data=(x, hot), metric="accuracy")
    with pytest.raises(DataError, match=words) as found:
        validate(good, bad, data=(x, hot), max_drop=1.0)
    assert "32" not in str(found.value)
    (note,) = validate(good, bad, data=(x, hot)).notes
    assert "labels.argmax(1)" in note
    (other,) = validate(good, bad, data=(x, np.zeros((200, 7)))).notes
    assert "float64 [200,7]" in other
    assert "argmax" not in other


def test_shapes_of_what_is_not_counted(pair):
    """The number of samples that a function gives is not known, and not said."""
    good, bad, x, y = pair

    def batches():
        yield from (({"x": x[i : i + 50]}, np.eye(4, dtype=int)[y[i : i + 50]]) for i in range(0, 200, 50))

    with pytest.raises(DataError, match=r"the labels are int64 \[N,4\], the outputs 'y' float32 \[N,4\]"):
        validate(good, bad, data=batches, metric="accuracy")
