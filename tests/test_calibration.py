"""Inputs for selection and recovery: split, batches, mirrored copies, labels."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import analyse

from onnxprune.calibration import calibration
from onnxprune.errors import DataError, UsageError

TEXT = """g (float[N,3,16,20] x) => (float[] y) <float[4,3,3,3] w, float[4] b, float[2,4,1,1] v> {
    h = Conv(x, w, b)
    r = Relu(h)
    y = Conv(r, v)
}"""


def source(tmp_path, count, shape=(3, 16, 20), *, labels=True):
    """A file whose samples hold their own number, labelled with it."""
    rng = np.random.default_rng(0)
    x = rng.random((count, *shape)).astype(np.float32)
    x.reshape(count, -1)[:, 0] = np.arange(count)
    x.reshape(count, -1)[:, -1] = np.arange(count)
    path = tmp_path / "data.npz"
    np.savez(path, x=x, **({"labels": np.arange(count)} if labels else {}))
    return str(path), x


def taken(tmp_path, count, *, text=TEXT, shape=(3, 16, 20), labels=True, **options):
    """Calibration of a model, and the data in the file."""
    path, x = source(tmp_path, count, shape, labels=labels)
    return calibration(analyse(text), path, **({"size": 512, "seed": 0, "augment": "none"} | options)), x


def numbers(batches):
    """Numbers of the samples in batches."""
    return [int(n) for b in batches for n in b["x"].reshape(len(b["x"]), -1)[:, 0]]


@pytest.mark.parametrize("count", [16, 40, 64, 65, 128, 200, 321])
def test_split(tmp_path, count):
    """Exactly a fifth, rounded up, is held back, however many there are; every sample is there once."""
    found, _ = taken(tmp_path, count)
    train, held = found.batches[: -found.held], found.batches[-found.held :]
    assert found.held >= 1
    assert sum(len(b["x"]) for b in held) == -(-count // 5)
    assert sorted(numbers(found.batches)) == list(range(count))
    assert max(len(b["x"]) for b in train) <= 64
    assert found.samples == count
    assert not found.synthetic


def test_labels_of_the_held_part(tmp_path):
    """Labels are those of the held samples, in order, with mirrored copies too."""
    for augment in ("none", "flip"):
        found, _ = taken(tmp_path, 150, augment=augment)
        assert found.labels.tolist() == numbers(found.batches[-found.held :])
    found, _ = taken(tmp_path, 150, labels=False)
    assert found.labels is None


def test_size_and_seed(tmp_path):
    """As many as asked, chosen and ordered by the seed alone."""
    first, again, other = (taken(tmp_path, 100, size=30, seed=s)[0] for s in (0, 0, 1))
    assert first.samples == 30
    assert numbers(first.batches) == numbers(again.batches)
    assert numbers(first.batches) != numbers(other.batches)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_mirrored_copies(tmp_path, layout):
    """The fitted part comes once more, mirrored left to right; the held part does not."""
    text, shape, axis = TEXT, (3, 16, 20), 3
    if layout == "NHWC":
        text = TEXT.replace("float[N,3,16,20]", "float[N,16,20,3]").replace(
            "h = Conv(x", "t = Transpose <perm = [0, 3, 1, 2]> (x)\n h = Conv(t"
        )
        shape, axis = (16, 20, 3), 2
    plain, _ = taken(tmp_path, 150, text=text, shape=shape)
    found, _ = taken(tmp_path, 150, text=text, shape=shape, augment="flip")
    n = len(plain.batches) - plain.held
    assert found.held == plain.held
    assert len(found.batches) == 2 * n + found.held
    assert found.samples == 150
    for i in range(n):
        assert np.array_equal(found.batches[i]["x"], plain.batches[i]["x"])
        assert np.array_equal(found.batches[n + i]["x"], np.flip(plain.batches[i]["x"], axis))
    for a, b in zip(found.batches[2 * n :], plain.batches[n:], strict=True):
        assert np.array_equal(a["x"], b["x"])
    assert any("mirrored" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (TEXT.replace("3,16,20", "1,16,20").replace("4,3,3,3", "4,1,3,3"), (1, 16, 20)),
        (TEXT.replace("16,20", "8,8"), (3, 8, 8)),
    ],
    ids=["grey", "tiny"],
)
def test_what_is_no_picture_is_not_mirrored(tmp_path, text, shape):
    """By default only pictures of three colours and some size are mirrored."""
    found, _ = taken(tmp_path, 150, text=text, shape=shape, augment="auto")
    assert sorted(numbers(found.batches)) == list(range(150))
    assert not found.notes
    with pytest.raises(UsageError, match="--augment flip: the model takes no images of three colours"):
        taken(tmp_path, 150, text=text, shape=shape, augment="flip")


def test_mirrored_by_default_where_time_allows(tmp_path):
    """`auto` mirrors small pictures, unless the time is short: then fewer are used, too, and that is said."""
    assert "mirrored" in taken(tmp_path, 150, augment="auto")[0].notes[0]
    short = taken(tmp_path, 150, augment="auto", seconds=1e-6)[0]
    assert short.samples == 64
    assert short.notes == ("to keep to the time, 64 calibration inputs are used, not 512",)


def test_fixed_batch(tmp_path):
    """A model of a fixed batch gets batches of that size, all of them full."""
    found, _ = taken(tmp_path, 50, text=TEXT.replace("float[N", "float[8"))
    assert {len(b["x"]) for b in found.batches} == {8}
    assert found.samples == sum(len(b["x"]) for b in found.batches)
    held = sum(len(b["x"]) for b in found.batches[-found.held :])
    assert 10 <= held <= 16
    assert found.labels.tolist() == numbers(found.batches[-found.held :])


def test_one_fixed_batch(tmp_path):
    """Where the model takes all at once nothing can be held back: said, not mirrored, labels of all."""
    found, _ = taken(tmp_path, 32, text=TEXT.replace("float[N", "float[32"), augment="flip")
    assert (found.held, len(found.batches)) == (0, 1)
    assert found.labels.tolist() == numbers(found.batches)
    assert "have seen" in found.notes[-1]
    assert not any("mirrored" in note for note in found.notes)


def test_memory(tmp_path):
    """Less memory, smaller batches."""
    found, _ = taken(tmp_path, 60, memory=2e6)
    assert 1 <= max(len(b["x"]) for b in found.batches) < 32


def test_too_few(tmp_path):
    """Fewer inputs than can be fitted and checked are refused."""
    with pytest.raises(DataError, match="16"):
        taken(tmp_path, 15)
    with pytest.raises(DataError, match="16"):
        taken(tmp_path, 100, size=10)


CLASSES = """g (float[N,3] x) => (float[N,K] y) <float[3,K] w> {
    y = MatMul(x, w)
}"""


@pytest.mark.parametrize("wrong", [-1, 4, 255])
def test_labels_without_a_score_are_refused(wrong):
    """A label below 0, or beyond the scores of the output, is named with its sample, held out or not."""
    text, labels = CLASSES.replace("K", "4"), np.arange(40) % 4
    rows = {"x": np.zeros((40, 3), np.float32), "labels": labels.copy()}
    assert calibration(analyse(text), rows, size=512, seed=0).labels.max() == 3
    for place in (0, 39):
        rows["labels"] = labels.copy()
        rows["labels"][place] = wrong
        with pytest.raises(DataError, match=f"one is {wrong}, but the output 'y' has the classes 0 to 3"):
            calibration(analyse(text), rows, size=512, seed=0)


def test_labels_of_other_outputs_are_taken_as_they_are():
    """Where the output is one score per sample, or the labels are no class numbers, no range is known."""
    rows = {"x": np.zeros((40, 3), np.float32), "labels": np.full(40, 7)}
    assert calibration(analyse(CLASSES.replace("K", "1")), rows, size=512, seed=0).labels.max() == 7
    rows["labels"] = np.full(40, 7.5)
    assert calibration(analyse(CLASSES.replace("K", "4")), rows, size=512, seed=0).labels.max() == 7.5
