"""Training samples, and the teacher's answers to them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from graphs import proto

from onnxprune.data import open_data
from onnxprune.errors import DataError, UnsupportedError
from onnxprune.finetuning.samples import Room, Teacher, load
from onnxprune.runtime import input_specs

LINEAR = "g (float[N,4] x) => (float[N,2] y) <float[4,2] w> { y = MatMul(x, w) }"
ONE = "g (float[1,4] x) => (float[1,2] y) <float[4,2] w> { y = MatMul(x, w) }"
FOUR = "g (float[4,4] x) => (float[4,2] y) <float[4,2] w> { y = MatMul(x, w) }"
X = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)


def options(**given):
    return SimpleNamespace(**{"limit": None, "seed": 0, "labels": False, "views": 2, "augment": "auto"} | given)


def samples_of(model, source=X, room=1e9, chunk=1, **given):
    return load(open_data(source, input_specs(model)), Room(room), options(**given), chunk)


def test_some_are_held_out():
    """A tenth is held out, by the seed; nothing is in both parts, nothing is lost."""
    found = samples_of(proto(LINEAR))
    assert (len(found.train), len(found.held)) == (45, 5)
    assert sorted([*found.train, *found.held]) == list(range(50))
    np.testing.assert_array_equal(found.inputs["x"], X)
    again, other = samples_of(proto(LINEAR)), samples_of(proto(LINEAR), seed=1)
    np.testing.assert_array_equal(found.held, again.held)
    assert (found.held != other.held).any()


@pytest.mark.parametrize("room", [0, 1e9], ids=["in a file", "in memory"])
def test_files_hold_the_same(room):
    """What does not fit into memory lies in a temporary file, with the same values."""
    found = samples_of(proto(LINEAR), room=room)
    assert isinstance(found.inputs["x"], np.memmap) == (room == 0)
    np.testing.assert_array_equal(found.inputs["x"], X)
    np.testing.assert_array_equal(found.batch(found.held, None)["x"], X[found.held])


def test_streams():
    """Data that are not counted are read to their end."""
    found = samples_of(proto(LINEAR), lambda: iter(np.split(X, 5)))
    np.testing.assert_array_equal(found.inputs["x"], X)


def test_limit():
    """A limit takes that many at random."""
    found = samples_of(proto(LINEAR), limit=20)
    assert len(found.train) + len(found.held) == 20
    assert not np.array_equal(found.inputs["x"], X[:20])


def test_labels():
    """Labels are kept where they are asked for, and missed where they are not there."""
    source = {"x": X, "labels": np.arange(50)}
    assert samples_of(proto(LINEAR), source).labels is None
    np.testing.assert_array_equal(samples_of(proto(LINEAR), source, labels=True).labels, np.arange(50))
    with pytest.raises(DataError, match="has no labels"):
        samples_of(proto(LINEAR), labels=True)


def test_fixed_batches():
    """Where a model takes four samples at once, both parts are multiples of four."""
    found = samples_of(proto(FOUR), chunk=4)
    assert (len(found.train), len(found.held)) == (44, 4)


@pytest.mark.parametrize("text", [LINEAR, ONE, FOUR], ids=["any", "one", "four"])
def test_the_teacher_answers(text):
    """Answers are those of the model, in the order of the samples, whatever its batch; each view is computed once."""
    model = proto(text)
    found = samples_of(model, chunk=4)
    teacher, steps = Teacher(model, ["y"], Room(1e9)), []

    def step():
        steps.append("batch")

    told = teacher.know(found, 0, 8, step)["y"]
    weight = np.frombuffer(model.graph.initializer[0].raw_data, np.float32).reshape(4, 2)
    np.testing.assert_allclose(told, X[found.train] @ weight, rtol=1e-5, atol=1e-6)
    assert teacher.know(found, 0, 8, step)["y"] is told
    assert len(steps) == -(-len(found.train) // 8)


@pytest.mark.parametrize("room", [0, 1e9], ids=["in a file", "in memory"])
def test_answers_about_what_is_held_out(room):
    """They, too, lie in a temporary file where memory is short; inputs are as they are, in no view."""
    model = proto(LINEAR)
    found = samples_of(model)
    teacher = Teacher(model, ["y"], Room(room))
    told = teacher.all_answers(found, found.held, None, 2)["y"]
    assert isinstance(told, np.memmap) == (room == 0)
    np.testing.assert_allclose(told, teacher.answers({"x": X[found.held]})["y"], rtol=1e-6)


def test_outputs_without_samples():
    """An output that is not per sample cannot be imitated, and is named."""
    model = proto(
        "g (float[N,4] x) => (float[] y) <float[4,2] w> { h = MatMul(x, w) y = ReduceMean <keepdims = 0> (h) }"
    )
    with pytest.raises(UnsupportedError, match=r"'y' is .* outputs must have them along axis 0"):
        Teacher(model, ["y"], Room(0)).answers({"x": X})
