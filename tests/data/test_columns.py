"""Files of arrays: read by rows, streamed, and refused."""

from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest

from onnxprune.data import columns, open_data
from onnxprune.errors import DataError, FileError

MB = 1 << 20


@pytest.fixture
def peak():
    """Most memory that Python and numpy take during a call, in bytes."""

    def peak(call):
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return peak


@pytest.fixture
def small(monkeypatch):
    """Compressed arrays count as large."""
    monkeypatch.setattr(columns, "SMALL", 0)


def save(path, kind, arrays):
    {"stored": np.savez, "compressed": np.savez_compressed}[kind](path, **arrays)
    return path


def repack(path, method):
    """The same archive with another compression."""
    with zipfile.ZipFile(path) as old:
        members = {n: old.read(n) for n in old.namelist()}
    with zipfile.ZipFile(path, "w", method) as new:
        for name, content in members.items():
            new.writestr(name, content)
    return path


@pytest.mark.parametrize("kind", ["stored", "compressed"])
@pytest.mark.parametrize("size", [1, 3, 10, 64])
def test_npz(tmp_path, model, samples, read, kind, size):
    """Arrays under the inputs' names and `labels` come back, in batches of any size."""
    labels = np.arange(10) % 3
    data = open_data(save(tmp_path / "d.npz", kind, {"x": samples, "labels": labels}), model)
    assert (data.name, data.count, data.labelled) == ("d.npz", 10, True)
    assert [len(b) for b in data.batches(size)] == [min(size, 10 - s) for s in range(0, 10, size)]
    inputs, found = read(data, size)
    np.testing.assert_array_equal(inputs["x"], samples)
    np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_large_archives_of_every_compression(tmp_path, model, samples, read, small, method):
    """A large archive is read sample by sample whatever its compression, again in each pass."""
    path = repack(save(tmp_path / "d.npz", "stored", {"x": samples}), method)
    data = open_data(path, model)
    for _ in range(2):
        np.testing.assert_array_equal(read(data, 3)[0]["x"], samples)


def test_passes_do_not_disturb_each_other(tmp_path, model, samples, small):
    """Two passes over a large compressed archive at the same time each see all samples."""
    data = open_data(save(tmp_path / "d.npz", "compressed", {"x": samples}), model)
    pairs = list(zip(data.batches(2), data.batches(2), strict=True))
    assert len(pairs) == 5
    assert all((a.inputs["x"] == b.inputs["x"]).all() for a, b in pairs)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_npy(tmp_path, model, samples, read, version, order, dtype):
    """A .npy file of any format, order of values or bytes, and precision feeds the model's one input."""
    array = np.asarray(np.floor(samples), dtype, order=order)
    with (tmp_path / "d.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version)
    inputs, labels = read(open_data(tmp_path / "d.npy", model))
    assert inputs["x"].dtype == np.dtype("float32")
    np.testing.assert_array_equal(inputs["x"], np.floor(samples))
    assert labels is None


def test_extra_fields_of_the_archive(tmp_path, model, samples, read):
    """Stored arrays are found behind zip headers with long extra fields and comments."""
    path, buffer, labels = tmp_path / "d.npz", io.BytesIO(), io.BytesIO()
    np.save(buffer, samples)
    np.save(labels, np.arange(10))
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("x.npy")
        info.extra, info.comment = b"\x99\x99\x08\x00" + bytes(8), b"calibration"
        archive.writestr("labels.npy", labels.getvalue())
        archive.writestr(info, buffer.getvalue())
    np.testing.assert_array_equal(read(open_data(path, model))[0]["x"], samples)


@pytest.mark.parametrize("kind", ["stored", "compressed", "npy"])
def test_memory_stays_at_a_batch(tmp_path, spec, small, peak, kind):
    """Opening and reading 32 MB takes memory for a batch, not for the array."""
    array = np.zeros((512, 64, 256), np.float32)
    path = tmp_path / f"d.{'npy' if kind == 'npy' else 'npz'}"
    np.save(path, array) if kind == "npy" else save(path, kind, {"x": array})
    assert array.nbytes == 32 * MB
    del array
    seen = []

    def run():
        seen.extend(len(b) for b in open_data(path, [spec("N", 64, 256)]).batches(8))

    assert peak(run) < 4 * MB
    assert sum(seen) == 512


def test_the_check_for_nan_reads_in_parts(tmp_path, spec, peak):
    """Floats that are looked at before any work are read in parts."""
    np.savez(tmp_path / "d.npz", x=np.zeros((512, 64, 256), np.float32))
    assert peak(lambda: open_data(tmp_path / "d.npz", [spec("N", 64, 256)])) < 8 * MB


def test_small_compressed_archives_are_shuffled(tmp_path, model, samples, read, monkeypatch):
    """A seed shuffles what is stored or small; a large compressed archive gives the same samples in file order."""
    path = save(tmp_path / "d.npz", "compressed", {"x": samples, "labels": np.arange(10)})
    _, shuffled = read(open_data(path, model), limit=6, seed=1)
    monkeypatch.setattr(columns, "SMALL", 0)
    inputs, ordered = read(open_data(path, model), limit=6, seed=1)
    assert list(ordered) == sorted(shuffled) != list(shuffled)
    np.testing.assert_array_equal(inputs["x"], samples[ordered])


def test_no_pickle_is_run(tmp_path, model, refused):
    """Arrays of objects are refused unread."""

    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    array = np.empty(2, object)
    array[:] = [Trap(), Trap()]
    np.save(tmp_path / "d.npy", array)
    np.savez(tmp_path / "d.npz", x=array)
    (tmp_path / "d.pkl").write_bytes(pickle.dumps([1]))
    refused(DataError, ["d.npy", "Python objects"], lambda: open_data(tmp_path / "d.npy", model))
    refused(DataError, ["d.npz", "'x'", "Python objects"], lambda: open_data(tmp_path / "d.npz", model))
    refused(DataError, ["neither a .npz nor a .npy"], lambda: open_data(tmp_path / "d.pkl", model))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.float32(1), ["single float32"]),
        (np.zeros((0, 3, 4, 5), np.float32), ["empty", "[0,3,4,5]"]),
        (np.zeros((2, 3, 0, 5), np.float32), ["empty", "[2,3,0,5]"]),
        (np.zeros(2, [("a", "f4")]), ["named fields"]),
        (np.array(["a", "b"]), ["instead of 4"]),
        (np.zeros((2, 3, 4, 5), complex), ["complex128", "float32"]),
        (np.zeros((2, 3, 4, 5), bool), ["bool", "float32"]),
    ],
    ids=["scalar", "no samples", "no values", "fields", "text", "complex", "bool"],
)
def test_arrays_that_are_no_samples(tmp_path, model, refused, array, words):
    """What cannot be samples is refused from .npy and .npz alike."""
    np.save(tmp_path / "d.npy", array)
    np.savez(tmp_path / "d.npz", x=array)
    for name in ("d.npy", "d.npz"):
        refused(DataError, [name, *words], lambda name=name: open_data(tmp_path / name, model))


def test_named_fields_in_other_alphabets(tmp_path, model, refused):
    """The third .npy format is refused, too."""
    with pytest.warns(UserWarning, match="format 3.0"):
        np.save(tmp_path / "d.npy", np.zeros(2, [("\u65e5", "f4")]))
    refused(DataError, ["format 3.0"], lambda: open_data(tmp_path / "d.npy", model))


@pytest.mark.parametrize("kind", ["stored", "compressed", "npy"])
@pytest.mark.parametrize("cut", [1, 100, 1000])
def test_files_that_are_cut_off(tmp_path, model, refused, kind, cut):
    """A truncated file is refused before any work."""
    array = np.random.default_rng(0).random((10, 3, 4, 5)).astype(np.float32)
    path = tmp_path / f"d.{'npy' if kind == 'npy' else 'npz'}"
    np.save(path, array) if kind == "npy" else save(path, kind, {"x": array})
    path.write_bytes(path.read_bytes()[:-cut])
    refused(DataError, ["d.np", "cut off" if kind == "npy" else "damaged"], lambda: open_data(path, model))


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_files_that_shrink(tmp_path, model, samples, refused, kind, read):
    """A file that is cut off after it was opened is an error, not other numbers."""
    path = tmp_path / f"d.{kind}"
    {"npy": np.save, "npz": lambda path, array: np.savez(path, x=array)}[kind](path, samples)
    data = open_data(path, model)
    path.write_bytes(path.read_bytes()[:2000])
    refused(DataError, [path.name, "damaged", "ends too early"], lambda: read(data))


def test_flipped_bits_of_a_compressed_archive(tmp_path, model, refused):
    """Damage within a compressed array is an error, not other numbers."""
    path = save(tmp_path / "d.npz", "compressed", {"x": np.random.default_rng(0).random((10, 3, 4, 5))})
    content = bytearray(path.read_bytes())
    content[1000:1010] = bytes(10)
    path.write_bytes(content)
    refused(DataError, ["d.npz", "damaged"], lambda: open_data(path, model))


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_flipped_bits_of_a_large_compressed_archive(tmp_path, spec, small, refused, read, place):
    """Damage within an array that is streamed is an error before the pass is over."""
    values = np.random.default_rng(0).integers(0, 256, (1000, 60)).astype(np.uint8)
    path = save(tmp_path / "d.npz", "compressed", {"x": values})
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    refused(DataError, ["d.npz", "damaged"], lambda: read(open_data(path, [spec("N", 60, dtype="uint8")])))


def test_members_that_are_elsewhere(tmp_path, model, samples, refused):
    """A stored array without its own header is not read from where the archive's list has it."""
    path = save(tmp_path / "d.npz", "stored", {"x": samples})
    path.write_bytes(b"PK\x03\x09" + path.read_bytes()[4:])
    refused(DataError, ["'x'", "damaged"], lambda: open_data(path, model))


def test_encrypted_members(tmp_path, model, samples, refused):
    """An encrypted archive is refused as such."""
    path = save(tmp_path / "d.npz", "stored", {"x": samples})
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    path.write_bytes(content[: start + 8] + b"\x01" + content[start + 9 :])
    refused(DataError, ["'x'", "encrypted"], lambda: open_data(path, model))


def test_fortran_order_in_a_large_compressed_archive(tmp_path, model, samples, small, refused):
    """Samples that cannot be streamed are refused with what to do."""
    path = save(tmp_path / "d.npz", "compressed", {"x": np.asfortranarray(samples)})
    refused(DataError, ["'x'", "ascontiguousarray"], lambda: open_data(path, model))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty"]),
        (b"id,label\n1,2\n", ["neither"]),
        (b"PK\x03\x04rest", ["damaged"]),
        (b"\x93NUMPY", ["damaged"]),
    ],
    ids=["empty", "csv", "zip", "npy"],
)
def test_other_files(tmp_path, model, refused, content, words):
    """Content decides: what is no archive and no array is refused whatever its name."""
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    refused(DataError, ["d.npz", *words], lambda: open_data(path, model))


def test_archive_without_arrays(tmp_path, model, refused):
    """A zip of images is told from arrays."""
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("a.png", b"")
    refused(DataError, ["without arrays", "unpack"], lambda: open_data(tmp_path / "d.zip", model))


def test_missing_and_unreadable_files(tmp_path, model, monkeypatch, refused):
    """A missing file, and one that may not be read, are file errors with its name."""
    refused(FileError, ["there is no file", "no.npz"], lambda: open_data(tmp_path / "no.npz", model))
    refused(FileError, ["there is no file"], lambda: open_data("a\0b", model))
    np.save(tmp_path / "d.npy", np.zeros((1, 3, 4, 5)))

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", denied)
    refused(FileError, ["d.npy", "Permission denied"], lambda: open_data(tmp_path / "d.npy", model))
