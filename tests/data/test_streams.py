"""Data that code gives: functions, generators, loaders and calibration readers, and what goes wrong with them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from onnxprune.data import open_data, streams
from onnxprune.errors import DataError, FileError, ResourceError


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    written = []
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def module(text, name="calib"):
        (tmp_path / f"{name}.py").write_text(f"import numpy as np\n{text}")
        written.append(name)

    yield module
    for name in written:
        sys.modules.pop(name, None)


class Loader:
    """Iterable again and again, as torch's DataLoader is; a list of inputs and labels per batch."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter([[self.samples[i : i + 3], np.arange(10)[i : i + 3]] for i in range(0, 10, 3)])


class Tensor:
    """Something that numpy can take, as torch's tensors are."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class Feeder:
    """A CalibrationDataReader as people write it: of one pass, always through the same array."""

    def __init__(self, samples):
        self.samples, self.place, self.buffer = samples, 0, np.empty_like(samples[:1])

    def get_next(self):
        if self.place == len(self.samples):
            return None
        self.buffer[:] = self.samples[self.place]
        self.place += 1
        return {"x": self.buffer}


class Rewindable(Feeder):
    """The same with `rewind`, and with an empty dict at the end."""

    def get_next(self):
        return super().get_next() or {}

    def rewind(self):
        self.place = 0


FORMS = {
    "generator of arrays": ("for i in range(10): yield a[i:i+1]", False, None),
    "generator of dicts": ("for i in range(0, 10, 4): yield {'x': a[i:i+4]}", False, None),
    "generator of pairs": ("for i in range(0, 10, 4): yield a[i:i+4], y[i:i+4]", True, None),
    "generator of pairs with dicts": ("yield {'x': a[:9]}, y[:9]\n    yield {'x': a[9:]}, y[9:]", True, None),
    "generator of dicts with labels": ("yield {'x': a, 'labels': y}", True, None),
    "list": ("return [a[:5], a[5:]]", False, None),
    "array": ("return a", False, 10),
    "dict": ("return {'x': a, 'labels': y}", True, 10),
    "dict of one array": ("return {'other': a}", False, 10),
    "pair": ("return a, y", True, 10),
    "pair with list": ("return a, list(y)", True, 10),
    "pair with dict": ("return {'x': a}, y", True, 10),
}


@pytest.mark.parametrize(("body", "labelled", "count"), FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("source", ["calib:make", "calib.py:make"])
def test_module_function(module, model, samples, read, source, body, labelled, count):
    """A function in the current folder may give its data in any form; each pass and each batch size has them all."""
    make = "(np.arange(10, dtype='f').reshape(10, 1, 1, 1) + np.arange(60).reshape(3, 4, 5).astype('f') / 100)"
    module(f"def make():\n    a, y = {make}, np.arange(10) % 3\n    {body}\n")
    data = open_data(source, model, minimum=10)
    assert (data.name, data.count, data.labelled) == (source, count, labelled)
    for size in (1, 4, 64):
        assert [len(b) for b in data.batches(size)] == [min(size, 10 - s) for s in range(0, 10, size)]
        inputs, labels = read(data, size)
        np.testing.assert_array_equal(inputs["x"], samples)
        assert not labelled or labels.tolist() == (np.arange(10) % 3).tolist()


def test_neighbours_are_found_while_it_runs(module, model):
    """A generator may import a module beside its own when it runs."""
    module("SHAPE = 2, 3, 4, 5", "neighbour")
    module("def make():\n    from neighbour import SHAPE\n    yield np.zeros(SHAPE)")
    assert sum(map(len, open_data("calib:make", model).batches(1))) == 2


def test_streams_are_not_read_further_than_needed(model, samples):
    """Opening takes as many items as `minimum` asks for, a limit as many as it needs; nothing is read ahead."""
    given = []

    def make():
        for i in range(10):
            given.append(i)
            yield samples[i : i + 1]

    data = open_data(make, model, minimum=3)
    assert given == [0, 1, 2]
    batches = data.batches(2, limit=4)
    next(batches)
    assert given[3:] == [0, 1]
    assert [len(b) for b in batches] == [2]
    assert given[3:] == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", [1, 3, 4, 9, 10, 11])
def test_limit(model, samples, read, limit):
    """A limit takes the first samples, also out of the middle of an item; the notes say so."""
    data = open_data(Loader(samples), model)
    inputs, labels = read(data, 2, limit=limit, seed=5)
    np.testing.assert_array_equal(inputs["x"], samples[:limit])
    assert labels.tolist() == list(range(min(limit, 10)))
    assert "not counted" in data.notes[0]


def sources(samples):
    pieces = [samples[:4], samples[4:]]
    return {
        "list": pieces,
        "iterator": iter(pieces),
        "generator": (p for p in pieces),
        "loader": Loader(samples),
        "tensors": [Tensor(p) for p in pieces],
        "reader": Feeder(samples),
        "rewindable reader": Rewindable(samples),
        "function of a reader": lambda: Feeder(samples),
    }


@pytest.mark.parametrize("kind", sources(np.zeros((10, 1))))
def test_objects_can_be_read_again(model, samples, read, kind):
    """Every pass over what code gives has all samples, also after a pass that was given up."""
    data = open_data(sources(samples)[kind], model)
    assert data.count is None
    next(data.batches(3))
    for size in (1, 7, 7):
        np.testing.assert_array_equal(read(data, size)[0]["x"], samples)


def test_a_class_is_a_function(module, model, samples, read):
    """The class of a reader stands for a function that makes one."""

    class Own(Feeder):
        def __init__(self):
            super().__init__(samples)

    np.testing.assert_array_equal(read(open_data(Own, model))[0]["x"], samples)


def test_two_passes_over_a_reader(model, samples, refused):
    """A reader that is rewound under a pass is an error, not a mixture."""
    data = open_data(Rewindable(samples), model)
    first, second = data.batches(1), data.batches(1)
    next(first), next(second)
    refused(DataError, ["Rewindable", "rewound"], lambda: next(first))


def test_what_is_kept_has_a_limit(model, samples, monkeypatch, refused, read):
    """What can be read only once is kept up to a number of bytes."""
    monkeypatch.setattr(streams, "KEPT", samples[:4].nbytes)
    data = open_data(Feeder(samples), model)
    for _ in range(2):
        np.testing.assert_array_equal(read(data, 2, limit=4)[0]["x"], samples[:4])
    refused(ResourceError, ["Feeder", "only once", "rewind"], lambda: read(data))
    pairs = iter([(samples[:4], np.arange(4))])
    refused(ResourceError, ["only once"], lambda: open_data(pairs, model))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 3", ["an array, a dict", "got int"]),
        ("return None", ["got NoneType"]),
        ("return 'abc'", ["got str"]),
        ("yield 3", ["got int"]),
        ("yield [1, 2, 3]", ["got list"]),
        ("yield {'x': [1.0]}", ["got a dict with list"]),
        ("return {'x': 3}", ["got a dict with int"]),
        ("yield from ()", ["gave no samples"]),
        ("raise ValueError('boom')", ["raised ValueError: boom"]),
        ("yield a\n    raise KeyError('late')", ["raised KeyError: 'late'"]),
        ("yield np.zeros(3)", ["float64 [3]", "1 dims instead of 4"]),
        ("yield np.zeros((3, 4, 5))", ["float64 [3,4,5]", "array[None]"]),
        ("yield np.zeros((2, 3, 4, 6))", ["6 instead of 5 along axis 3"]),
        ("yield np.zeros((2, 4, 5, 3))", ["--preprocess layout=nchw"]),
        ("yield np.float32(3)", ["float32 []", "axis 0"]),
        ("yield np.zeros((0, 3, 4, 5))", ["float64 [0,3,4,5]"]),
        ("yield np.array([object()])", ["object [1]"]),
        ("yield np.ones((2, 3, 4, 5), int)", ["int64", "--preprocess"]),
        ("yield a * np.nan", ["sample 0 has NaN"]),
        ("yield a\n    b = a.copy()\n    b[1, 0, 0, 0] = np.inf\n    yield b", ["sample 3 has NaN or infinity"]),
        ("yield a, np.arange(3)", ["2 of 'x'", "3 of 'labels'"]),
        ("yield a, [object()] * 2", ["'labels'", "object"]),
        ("yield a, 3", ["'labels'", "[]"]),
        ("yield a, [[1], [1, 2]]", ["raised ValueError"]),
        ("yield a, np.arange(2)\n    yield a", ["some samples only", "sample 2"]),
        ("yield {'y': a, 'z': a}", ["'x' is missing", "'y' is no input"]),
        ("yield {'lables': a, 'x': a}", ["'lables' is no input (is it 'labels'?)"]),
    ],
)
def test_functions_that_go_wrong(module, model, refused, body, words):
    """What a function gives is checked item by item; its own errors are passed on with their cause."""
    module(f"def make():\n    a = np.zeros((2, 3, 4, 5), np.float32)\n    {body}\n")
    refused(DataError, ["calib:make", *words], lambda: open_data("calib:make", model, minimum=4))


@pytest.mark.parametrize(
    ("text", "source", "words"),
    [
        ("", "calib:make", ["no function 'make'"]),
        ("make = 3", "calib:make", ["no function 'make'"]),
        ("", "other:make", ["no module 'other'", "nor installed"]),
        ("", "json.other.deep:make", ["no module 'json.other'"]),
        ("import absent", "calib:make", ["raised ModuleNotFoundError", "'absent'"]),
        ("1 / 0", "calib:make", ["raised ZeroDivisionError"]),
        ("def make(path): yield path", "calib:make", ["raised TypeError", "path"]),
    ],
)
def test_modules_that_go_wrong(module, model, refused, text, source, words):
    """A missing module or function, and a module that fails, are told apart."""
    module(text)
    refused(DataError, [source, *words], lambda: open_data(source, model))


def test_readers_that_go_wrong(model, refused):
    """Exceptions in a reader, and a reader without any feed, are errors that name it."""

    class Empty:
        def get_next(self):
            return None

    class Broken:
        def get_next(self):
            raise OSError("no disk")

    class Stuck(Broken):
        rewind = Broken.get_next

    refused(DataError, ["Empty", "gave no samples"], lambda: open_data(Empty(), model))
    for reader in (Broken(), Stuck()):
        refused(DataError, [type(reader).__name__, "OSError: no disk"], lambda reader=reader: open_data(reader, model))


def test_functions_that_do_not_start_anew(model, samples, refused, read):
    """A function that gives the same used-up iterator again is told so."""
    once = iter([samples])
    data = open_data(lambda: once, model)
    refused(DataError, ["no samples", "start anew"], lambda: read(data))


def test_interrupts_pass(model):
    """Ctrl-C in a user's function stays Ctrl-C."""

    def make():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_data(make, model)


def test_what_is_no_source(model, refused):
    """Numbers are no data, and a text that is neither a path nor a function is a missing file."""
    refused(DataError, ["int", "expected an array"], lambda: open_data(3, model))
    refused(DataError, ["got int"], lambda: open_data([1], model))
    for text in ("calib.npz", "a:b:c", ":f", "m:", "1:f"):
        refused(FileError, [f"'{text}'", "module:function"], lambda text=text: open_data(text, model))


def test_several_inputs(spec, read, refused):
    """Functions fill several inputs by dicts; one array is not enough."""
    model = [spec("N", 2, name="a"), spec("N", None, name="b", dtype="int64")]
    feeds = {"a": np.ones((3, 2), np.float32), "b": np.arange(9, dtype=np.int32).reshape(3, 3)}
    inputs, _ = read(open_data(lambda: iter([feeds]), model), 2)
    assert inputs["b"].dtype == np.int64
    assert inputs["b"].tolist() == feeds["b"].tolist()
    refused(DataError, ["'a', 'b'", "dict"], lambda: open_data(lambda: iter([feeds["a"]]), model))


def test_sequences_of_different_lengths(spec, refused):
    """Items of different sizes are read in batches of 1, and refused in larger ones."""
    model = [spec("N", "length", dtype="int64")]
    data = open_data([np.ones((1, n), np.int64) for n in (3, 5)], model)
    assert [b.inputs["x"].shape for b in data.batches(1)] == [(1, 3), (1, 5)]
    refused(DataError, ["different sizes", "batches of 1"], lambda: list(data.batches(2)))
