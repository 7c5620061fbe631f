"""Opened data: batches, choices, fixed batches, checks before any work, and readers for onnxruntime."""

from __future__ import annotations

import copy

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import proto
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

import onnxprune.data
from onnxprune.data import as_reader, fitting, open_data
from onnxprune.errors import DataError, UnsupportedError, UsageError
from onnxprune.runtime import InputSpec, input_specs, session

LINE = [InputSpec("x", np.dtype("float32"), ("N",))]


def line(count):
    """`count` samples of one number, their own."""
    return np.arange(count, dtype=np.float32)


def test_public_names():
    """Every name of `__all__` is there."""
    assert all(getattr(onnxprune.data, name) is not None for name in onnxprune.data.__all__)


def test_opened_data_are_opened(model, samples):
    """Data that are open already are taken as they are."""
    data = open_data(samples, model)
    assert open_data(data, model) is data


def test_repr_is_short(model, samples):
    """What is shown of opened data holds no array."""
    shown = "Data(name='the arrays', count=10, labelled=False, classes=(), notes=())"
    assert repr(open_data(samples, model)) == shown


@given(
    count=st.integers(1, 40),
    size=st.integers(1, 45),
    limit=st.none() | st.integers(1, 45),
    seed=st.none() | st.integers(0, 3),
)
def test_batches_of_tables(count, size, limit, seed):
    """Batches are full but for the last and hold distinct samples, evenly spread or shuffled, as many as there are."""
    data = open_data({"x": line(count), "labels": np.arange(count)}, LINE)
    batches = list(data.batches(size, limit, seed))
    found = np.concatenate([b.inputs["x"] for b in batches])
    wanted = min(count, limit or count)
    assert [len(b) for b in batches] == [min(size, wanted - s) for s in range(0, wanted, size)]
    assert len(set(found)) == wanted
    assert np.concatenate([b.labels for b in batches]).tolist() == found.tolist()
    if seed is None:
        steps = np.diff(found)
        assert found[0] == 0
        assert wanted < 2 or steps.max() - steps.min() <= 1
        assert count - found[-1] <= -(-count // wanted)


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=8),
    size=st.integers(1, 20),
    limit=st.none() | st.integers(1, 40),
)
def test_batches_of_streams(sizes, size, limit):
    """Items of any sizes become full batches but for the last, in their order."""
    ends = np.cumsum(sizes)
    data = open_data([line(e)[e - n :] for e, n in zip(ends, sizes, strict=True)], LINE)
    batches = list(data.batches(size, limit))
    wanted = min(ends[-1], limit or ends[-1])
    assert [len(b) for b in batches] == [min(size, wanted - s) for s in range(0, wanted, size)]
    assert np.concatenate([b.inputs["x"] for b in batches]).tolist() == list(range(wanted))


def test_seeds(read):
    """A seed gives the same choice each time, another seed another; a smaller limit takes the first of it."""
    data = open_data(line(100), LINE)
    chosen = read(data, limit=50, seed=3)[0]["x"].tolist()
    assert read(open_data(line(100), LINE), limit=50, seed=3)[0]["x"].tolist() == chosen
    assert read(data, limit=20, seed=3)[0]["x"].tolist() == chosen[:20]
    assert read(data, limit=50, seed=4)[0]["x"].tolist() != chosen
    assert sorted(read(data, seed=3)[0]["x"]) == list(range(100))


@pytest.mark.parametrize(
    ("dims", "size", "found"), [([("N", 3)], 8, 8), ([(1, 3)], 8, 1), ([(4, 3), (None, 2)], 8, 4), ([None], 8, 8)]
)
def test_fitting(dims, size, found):
    """A fixed batch overrules the size asked for."""
    assert fitting(size, [InputSpec(f"x{i}", np.dtype("float32"), d) for i, d in enumerate(dims)]) == found


@pytest.mark.parametrize("dims", [[(1, 3), (2, 3)], [("N", 3), ()], []], ids=["batches", "scalar", "none"])
def test_inputs_without_samples(dims, refused):
    """Inputs that cannot all have the samples along axis 0 are refused."""
    specs = [InputSpec(f"x{i}", np.dtype("float32"), d) for i, d in enumerate(dims)]
    refused(UnsupportedError, ["axis 0"], lambda: open_data({}, specs))


def test_strings(refused, spec):
    """Inputs of strings are refused."""
    refused(UnsupportedError, ["'x'", "strings"], lambda: open_data({}, [spec("N", dtype=object)]))


@pytest.mark.parametrize("source", [line(10), [line(10)[:7], line(10)[7:]]], ids=["table", "stream"])
def test_fixed_batch(spec, refused, source):
    """A fixed batch gets whole batches only; what is left over is not given, and that is noted."""
    data = open_data(source, [spec(4)])
    assert [len(b) for b in data.batches(1)] == [len(b) for b in data.batches(64)] == [4, 4]
    assert [len(b) for b in data.batches(4, limit=7)] == [4]
    assert "batches of 4" in data.notes[0]
    refused(UsageError, ["3 samples", "of 4"], lambda: data.batches(4, limit=3))
    refused(DataError, [" 4"], lambda: open_data(line(3), [spec(4)]))
    refused(DataError, ["less than one batch of 4"], lambda: open_data([line(3)], [spec(4)]))
    assert [len(b) for b in open_data(source, [spec(1)]).batches(8)] == [1] * 10


@pytest.mark.parametrize(("size", "limit"), [(0, None), (-1, None), (4, 0), (4, -1)])
def test_sizes_that_are_none(refused, size, limit):
    """Batches and limits of less than one sample are usage errors, before anything is read."""
    refused(UsageError, ["the arrays", "cannot be read"], lambda: open_data(line(5), LINE).batches(size, limit))


@pytest.mark.parametrize("source", [line(5), [line(3), line(2)]], ids=["table", "stream"])
def test_minimum(source, refused):
    """Too few samples are refused with both numbers."""
    assert sum(map(len, open_data(source, LINE, minimum=5).batches(2))) == 5
    refused(DataError, ["has 5 samples", "at least 6"], lambda: open_data(source, LINE, minimum=6))


TWO = [InputSpec("left", np.dtype("float32"), ("N", 2)), InputSpec("right", np.dtype("int64"), ("N",))]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"left": np.ones((3, 2), "f")}, ["'right' is missing"]),
        ({"lefts": np.ones((3, 2), "f"), "right": np.ones(3, int)}, ["'left' is missing (is it 'lefts'?)"]),
        (
            {"left": np.ones((3, 2), "f"), "right": np.ones(3, int), "label": np.ones(3)},
            ["'label' is no input (is it 'labels'?)"],
        ),
        ({"left": np.ones((3, 2), "f"), "right": np.ones(4, int)}, ["3 of 'left'", "4 of 'right'"]),
        ({"left": np.ones((3, 2), "f"), "right": np.ones(3, int), "labels": np.ones(2)}, ["2 of 'labels'"]),
        (
            {"left": np.ones((3, 3), "f"), "right": np.ones(3, int)},
            ["'left'", "[N,2]", "[3,3]", "3 instead of 2 along axis 1"],
        ),
        ({"left": np.ones((3, 2), "f"), "right": np.ones(3, "f")}, ["'right'", "float32 are not int64"]),
        ({"left": np.ones((3, 2), int), "right": np.ones(3, int)}, ["'left'", "int64 are not float32", "--preprocess"]),
        ({"left": np.ones((3, 2), "f"), "right": np.array([True] * 3)}, ["bool are not int64"]),
        ({"left": np.ones((3, 2), "f"), "right": np.array([2**64 - 1] * 3, np.uint64)}, ["do not fit int64"]),
        ({"left": np.array([[1, 2], [3, np.nan]], "f"), "right": np.ones(2, int)}, ["'left'", "sample 1 has NaN"]),
        (
            {"left": np.array([[1, 2], [3, 1e300]]), "right": np.ones(2, int)},
            ["'left'", "sample 1", "float32 cannot hold"],
        ),
        ({"left": np.ones((3, 2), object), "right": np.ones(3, int)}, ["'left'", "Python objects"]),
        ({"left": np.ones((0, 2), "f"), "right": np.ones(0, int)}, ["'left'", "empty"]),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, words, refused):
    """Names, shapes, types and values are checked; from memory as from files."""

    def first(source):
        return list(open_data(source, TWO).batches(8))

    np.savez(tmp_path / "d.npz", **arrays)
    refused(DataError, ["the arrays", *words], lambda: first(arrays))
    refused(DataError, ["d.npz", *words], lambda: first(tmp_path / "d.npz"))


def test_all_floats_are_checked_before_any_work(refused):
    """NaN in the last sample is found when the data are opened."""
    values = line(1000)
    values[-1] = np.nan
    refused(DataError, ["'x'", "sample 999"], lambda: open_data(values, LINE))


def test_large_data_are_checked_as_they_are_read(monkeypatch, refused):
    """Of data over the cap the first sample is checked at once, the others in their batch, by their number."""
    monkeypatch.setattr("onnxprune.data.columns.SMALL", 0)
    values = line(100)
    values[70] = np.inf
    data = open_data(values, LINE)
    batches = data.batches(10)
    assert len([next(batches) for _ in range(7)]) == 7
    refused(DataError, ["the arrays", "'x'", "sample 70 has NaN or infinity"], lambda: next(batches))
    refused(DataError, ["sample 70"], lambda: list(data.batches(8, seed=1)))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("float64", "float32"), ("float16", "float32"), ("float32", "float16"), ("float32", "bfloat16"), ("float64", "float64"),
     ("int32", "int64"), ("int64", "int32"), ("uint8", "int64"), (">i4", "int64"), ("bool", "bool"), ("uint8", "uint8")],
)  # fmt: skip
def test_casts(spec, read, given, wanted):
    """Floats become the model's floats, integers its integers."""
    dtype = np.dtype(getattr(ml_dtypes, wanted, wanted))
    values = (np.arange(12).reshape(4, 3) % 2).astype(given)
    found = read(open_data(values, [spec("N", 3, dtype=dtype)]))[0]["x"]
    assert found.dtype == dtype
    assert found.astype(float).tolist() == values.astype(float).tolist()


def test_half_precision_overflow(spec, refused):
    """What half precision cannot hold is an error, not infinity."""
    refused(DataError, ["sample 0", "float16 cannot hold"], lambda: open_data(np.full(3, 1e5), [spec("N", dtype="f2")]))


@pytest.mark.parametrize("labels", [np.arange(6), np.eye(6), np.array(list("abcdef")), np.zeros((6, 2, 3))])
def test_labels(read, labels):
    """Labels are any array with one entry per sample, and stay as they are."""
    for source in ({"x": line(6), "labels": labels}, (line(6), labels), [(line(6), labels)]):
        found = read(open_data(source, LINE), 4)[1]
        assert found.dtype == labels.dtype
        np.testing.assert_array_equal(found, labels)


def test_an_input_may_be_called_labels(spec):
    """Where the model itself has an input `labels`, the array is for that."""
    data = open_data({"labels": line(3)}, [spec("N", name="labels")])
    assert not data.labelled
    assert next(data.batches(3)).inputs["labels"].tolist() == [0, 1, 2]


def test_batches_can_be_run(spec, pixels):
    """What is read runs in onnxruntime: contiguous, of the right type, under the right name."""
    model = proto("g (float[N,3,4,5] x) => (y) <float[2,3,1,1] w> { y = Conv(x, w) }")
    data = open_data(pixels, input_specs(model), preprocess="imagenet")
    run = session(model)
    for batch in data.batches(4):
        assert batch.inputs["x"].flags.c_contiguous
        assert run.run(batch.inputs)["y"].shape == (len(batch), 2, 4, 5)


# ---- readers for onnxruntime --------------------------------------------------------------------------------------


def test_a_reader_is_what_onnxruntime_expects():
    """The reader counts as a CalibrationDataReader, gives feeds, then None, and starts anew when rewound."""
    reader = as_reader(open_data(line(5), LINE), 2)
    assert isinstance(reader, CalibrationDataReader)
    assert len(reader) == 3
    for _ in range(2):
        assert [f["x"].tolist() for f in reader] == [[0, 1], [2, 3], [4]]
        assert reader.get_next() is None
        reader.rewind()
    assert [f["x"].tolist() for f in as_reader(open_data(line(9), LINE), limit=3)] == [[0], [3], [6]]


def test_ranges_and_copies():
    """`set_range` gives some batches; a copy starts at the beginning and shares the data."""
    data = open_data(line(9), LINE)
    reader = as_reader(data, 2)
    reader.set_range(1, 3)
    assert [f["x"].tolist() for f in reader] == [[2, 3], [4, 5]]
    reader.rewind()
    reader.get_next()
    other = copy.deepcopy(reader)
    assert other._data is data
    assert [f["x"].tolist() for f in (other.get_next(), reader.get_next())] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("count", "dims", "size", "limit", "batches"),
    [(9, ("N",), 4, None, 3), (9, (4,), 1, None, 2), (9, ("N",), 2, 5, 3)],
)
def test_length(spec, count, dims, size, limit, batches):
    """The length of a reader is its number of batches."""
    reader = as_reader(open_data(line(count), [spec(*dims)]), size, limit)
    assert len(reader) == len(list(reader)) == batches


def test_length_of_what_is_not_counted():
    """A stream has no length."""
    with pytest.raises(TypeError, match="does not know its number"):
        len(as_reader(open_data([line(3)], LINE)))


def test_round_trip(samples, model, read):
    """Data as a reader, opened as data again, are the same data."""
    again = open_data(as_reader(open_data(samples, model), 3), model)
    for _ in range(2):
        np.testing.assert_array_equal(read(again)[0]["x"], samples)


def test_onnxruntime_calibrates_with_it(tmp_path):
    """The calibrator of onnxruntime.quantization finds the range of what the reader gives."""
    model = proto("g (float[N,3] x) => (y) <float[3,2] w> { y = MatMul(x, w) }")
    onnx.save(model, tmp_path / "m.onnx")
    values = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    reader = as_reader(open_data(values, input_specs(model)), 8)
    calibrator = create_calibrator(
        tmp_path / "m.onnx", augmented_model_path=str(tmp_path / "a.onnx"), calibrate_method=CalibrationMethod.MinMax
    )
    calibrator.collect_data(reader)
    low, high = calibrator.compute_data()["x"].range_value
    assert (float(np.ravel(low)[0]), float(np.ravel(high)[0])) == (values.min(), values.max())
