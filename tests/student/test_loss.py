"""What a student is trained towards."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import DataError, UnsupportedError

torch = pytest.importorskip("torch")
from onnxprune.student.loss import Feature, Objective, check_labels, kinds  # noqa: E402

RNG = np.random.default_rng(0)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def tensors(arrays):
    return {n: torch.from_numpy(a) for n, a in arrays.items()}


def test_the_formula():
    """alpha T^2 KL + (1 - alpha) CE + beta MSE / E[t^2], as written out in numpy."""
    s, t = RNG.standard_normal((2, 6, 5))
    f, g = RNG.standard_normal((6, 3)), RNG.standard_normal((6, 8))
    labels, kept = np.array([0, 4, 2, 1, 1, 3]), np.array([1, 4, 7])
    objective = Objective(3.0, 0.7, 0.2, {"y": "s"}, feature=Feature("f", "g", kept))
    found = objective(tensors({"s": s, "f": f}), tensors({"y": t, "g": g}), torch.from_numpy(labels))
    p, q = softmax(t / 3), softmax(s / 3)
    kl = (p * np.log(p / q)).sum(1).mean() * 9
    ce = -np.log(softmax(s)[np.arange(6), labels]).mean()
    like = np.square(f - g[:, kept]).mean() / np.square(g[:, kept]).mean()
    assert float(found) == pytest.approx(0.7 * kl + 0.3 * ce + 0.2 * like)


def test_the_teacher_itself_has_no_loss():
    """A student that answers like its teacher has loss 0, also where the teacher gives probabilities."""
    t = RNG.standard_normal((4, 5))
    plain = Objective(2.0, 1.0, 0.0, {"y": "s"})
    assert float(plain(tensors({"s": t}), tensors({"y": t}), None)) == pytest.approx(0, abs=1e-12)
    certain = Objective(2.0, 1.0, 0.0, {"y": "s"}, frozenset({"y"}))
    assert float(certain(tensors({"s": t}), tensors({"y": softmax(t)}), None)) == pytest.approx(0, abs=1e-12)
    assert certain.agreement(tensors({"s": t}), tensors({"y": softmax(t)})) == 1


def test_dense_outputs():
    """Other outputs count with their squared error by the teacher's mean square; agreement is 1 - the relative error."""
    t = RNG.standard_normal((2, 3, 4))
    objective = Objective(2.0, 1.0, 0.0, {}, dense={"y": 4.0})
    assert float(objective(tensors({"y": t + 1}), tensors({"y": t}), None)) == pytest.approx(0.25)
    assert objective.agreement(tensors({"y": 1.1 * t}), tensors({"y": t})) == pytest.approx(0.9)


def test_kinds_of_outputs():
    """Rows of scores by KL, other floats by MSE, integers not at all; the option decides for all."""
    told = {
        "a": softmax(RNG.standard_normal((9, 3))),
        "b": np.ones((9, 1)),
        "c": np.full((9, 2, 2), 2.0),
        "d": np.ones((9, 3), int),
    }
    assert kinds(told, "auto") == (["a"], frozenset({"a"}), {"b": 1.0, "c": 4.0})
    assert kinds(told, "kl") == (["a"], frozenset({"a"}), {})
    assert list(kinds(told, "mse")[2]) == ["a", "b", "c"]
    with pytest.raises(UnsupportedError, match="--loss mse"):
        kinds({"b": told["b"]}, "kl")
    with pytest.raises(UnsupportedError, match="none of the outputs is of floats"):
        kinds({"d": told["d"]}, "auto")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            np.array([0, 1, 3]),
            r"label 3 of sample 2 is out of range: the model has the classes 0\.\.2 \(1 such label\)",
        ),
        (np.array([0, -1, -1]), r"label -1 of sample 1 .* \(2 such labels\)"),
        (np.array([0.0, 1.0, 2.0]), "expected one whole number each"),
        (np.zeros((3, 2), int), "expected one whole number each"),
    ],
)
def test_labels_are_checked(labels, message):
    """Labels out of range or of another kind are an error that says where."""
    with pytest.raises(DataError, match=message):
        check_labels(labels, {"y": np.zeros((3, 3))}, ["y"], "train.npz")


def test_labels_need_scores():
    """Labels for a model without rows of scores are an error."""
    with pytest.raises(DataError, match="no output is a row of scores"):
        check_labels(np.array([1]), {"y": np.zeros((1, 3, 3))}, [], "train.npz")
