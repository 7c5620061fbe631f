"""Files: broken ones are refused in clear words, written ones are whole or not there at all."""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper, parser

from onnxprune import files
from onnxprune.errors import FileError, ModelError, OnnxpruneError, ResourceError

MODELS = sorted((Path(__file__).parents[2] / "shared" / "models").glob("*.onnx"))  # beside the repository
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 512] x) => (float[N, 512] y) { h = Mul (x, scale)  y = Add (h, shift) }"""


def build():
    """A model with two weights of 2 KiB."""
    model = parser.parse_model(TEXT)
    for name in ("scale", "shift"):
        array = np.random.default_rng(len(name)).standard_normal(512, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def raw(model):
    """Deterministic bytes."""
    return model.SerializeToString(deterministic=True)


def plain(tmp_path):
    """The model in one file."""
    path = tmp_path / "model.onnx"
    path.write_bytes(raw(build()))
    return path


def with_data(folder, **entries):
    """The model with its first weight in `w.data`; entries override those of the external data."""
    folder.mkdir(exist_ok=True)
    model = build()
    tensor = model.graph.initializer[0]
    if not (folder / "w.data").exists():
        (folder / "w.data").write_bytes(b"head" + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": "w.data", "offset": "4", "length": "2048"} | entries).items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    (folder / "model.onnx").write_bytes(raw(model))
    return folder / "model.onnx"


def refusal(kind, call, *args, **kwargs):
    """Message of the error."""
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind
    return str(caught.value)


def listing(folder):
    """Names of everything in a folder."""
    return sorted(p.name for p in folder.iterdir())


# ---- reading


def test_missing_files_folders_and_impossible_names(tmp_path):
    """What is no regular file is a FileError that says what it is."""
    assert "there is no file" in refusal(FileError, files.read_model, tmp_path / "none.onnx")
    assert "is a folder" in refusal(FileError, files.read_model, tmp_path)
    assert "not a name" in refusal(FileError, files.read_model, "a\0b.onnx")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "there is no file" in refusal(FileError, files.read_model, tmp_path / "loop")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_without_waiting(tmp_path):
    """A pipe that nobody writes to is refused, not opened."""
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(FileError, files.read_model, tmp_path / "pipe")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, world\n" * 100, "is not an ONNX model"),
        (b"PK\x03\x04" + b"\0" * 100, "not an ONNX model but a zip archive"),
        (b"<!DOCTYPE html><html>", "an HTML or XML page: the download failed"),
        (b"<ir_version: 8> g (float x) => (float y) { y = Relu (x) }", "ONNX text"),
        (b"version https://git-lfs\noid sha256:0\n", "Git LFS pointer"),
        (b"\x18\0\0\0ORTM" + b"\0" * 100, "ORT format"),
        (bytes(range(256)) * 4, "is not an ONNX model"),
        (b"\x08\x08", "is cut off or damaged"),
        (parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> g () => () {}').SerializeToString(), "no nodes"),
    ],
)
def test_what_is_not_onnx_is_called_by_its_name(tmp_path, content, message):
    """Empty, text, zip, HTML, pointer and random files each get their own sentence."""
    (tmp_path / "model.onnx").write_bytes(content)
    assert message in refusal(ModelError, files.read_model, tmp_path / "model.onnx")


def test_an_npz_is_not_a_model(tmp_path):
    """A numpy archive given as the model is named as such."""
    np.savez(tmp_path / "model.npz", a=np.zeros(3))
    assert "zip archive" in refusal(ModelError, files.read_model, tmp_path / "model.npz")


def test_a_truncated_file_is_damaged(tmp_path):
    """Wherever a file is cut, it is refused as a model."""
    content = raw(build())
    for end in (1, 2, 100, len(content) // 2, len(content) - 8, len(content) - 1):
        (tmp_path / "model.onnx").write_bytes(content[:end])
        assert "model.onnx' " in refusal(ModelError, files.read_model, tmp_path / "model.onnx")


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_bytes_never_raise_anything_else(data):
    """Flipped, cut and inserted bytes give a model or one of our errors, nothing else."""
    content = bytearray(raw(build()))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 300) | st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(content)
        try:
            assert files.read_model(path).graph.node
        except OnnxpruneError as error:
            assert "model.onnx" in str(error)


def test_structure_is_checked_with_the_path_named(tmp_path):
    """A structural problem is reported with the file's name."""
    model = build()
    del model.graph.initializer[1]
    (tmp_path / "model.onnx").write_bytes(raw(model))
    message = refusal(ModelError, files.read_model, tmp_path / "model.onnx")
    assert message.startswith(f"'{tmp_path / 'model.onnx'}' cannot be used: the Add node that makes 'y' reads 'shift'")


def test_unsorted_nodes_are_sorted(tmp_path):
    """A file with its nodes in reverse order is read in an order that onnx's checker accepts."""
    model = build()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (tmp_path / "model.onnx").write_bytes(raw(model))
    assert raw(files.read_model(tmp_path / "model.onnx")) == raw(build())


def test_the_size_is_capped_before_anything_is_loaded(tmp_path):
    """One byte over the cap is a ResourceError, for the file alone and with its external data."""
    path = plain(tmp_path)
    size = path.stat().st_size
    assert files.read_model(path, max_bytes=size).graph.node
    assert f"{size:,} bytes, the limit is {size - 1:,}" in refusal(
        ResourceError, files.read_model, path, max_bytes=size - 1
    )
    path = with_data(tmp_path / "b")
    size = path.stat().st_size + 2048
    assert files.read_model(path, max_bytes=size).graph.node
    assert "external data" in refusal(ResourceError, files.read_model, path, max_bytes=size - 1)


def test_external_data_is_loaded(tmp_path):
    """The model read has the bytes of the one that was split, offsets and default length respected."""
    assert raw(files.read_model(with_data(tmp_path / "a"))) == raw(build())
    assert raw(files.read_model(with_data(tmp_path / "b", length=None))) == raw(build())
    assert raw(files.read_model(with_data(tmp_path / "c", checksum="0", other="1"))) == raw(build())


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../w.data"}, "'../w.data', which is not a path inside"),
        ({"location": "sub/../../w.data"}, "not a path inside"),
        ({"location": "..\\w.data"}, "not a path inside"),
        ({"location": "/etc/passwd"}, "'/etc/passwd', which is not a path inside"),
        ({"location": "C:\\w.data"}, "not a path inside"),
        ({"location": ""}, "not a path inside"),
        ({"location": None}, "not a path inside"),
        ({"location": "none.data"}, "is missing: there is no file 'none.data'"),
        ({"location": "w\0.data"}, "is missing"),
        ({"location": "x" * 5000}, "is missing"),
        ({"location": "."}, "is not in a regular file"),
        ({"offset": "-1"}, "the offset '-1', which is no sensible number"),
        ({"offset": "1e3"}, "no sensible number"),
        ({"length": "9" * 30}, "no sensible number"),
        ({"offset": "5"}, "(2048 bytes at 5 of 'w.data') lies beyond the end of the file at 2052"),
        ({"length": str(10**15)}, "lies beyond the end"),
        ({"offset": str(10**15)}, "lies beyond the end"),
        ({"offset": str(10**15), "length": "0"}, "lies beyond the end"),
        ({"length": "2044"}, "does not fit its shape [512] of FLOAT: 2048 bytes"),
        ({"length": None, "offset": None}, "(2052 bytes at 0 of 'w.data') does not fit"),
    ],
)
def test_external_data_that_cannot_be_trusted(tmp_path, entries, message):
    """Paths out of the folder, missing files and absurd offsets or lengths are refused with the tensor named."""
    text = refusal(ModelError, files.read_model, with_data(tmp_path / "m", **entries))
    assert "external data of tensor 'scale' " in text
    assert message in text


def test_all_external_problems_are_reported_at_once(tmp_path):
    """Two broken references give one error with two lines."""
    path = with_data(tmp_path / "m", location="none.data")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[1].CopyFrom(model.graph.initializer[0])
    model.graph.initializer[1].name = "shift"
    path.write_bytes(raw(model))
    message = refusal(ModelError, files.read_model, path)
    assert "2 problems:" in message
    assert "'scale'" in message
    assert "'shift'" in message


@pytest.mark.parametrize("link", ["symlink", "folder", "hard link", "dangling"])
def test_external_data_behind_links_out_of_the_folder(tmp_path, link):
    """Symbolic links, linked folders and hard links out of the model's folder are refused."""
    outside = tmp_path / "outside"
    with_data(outside)
    path = with_data(tmp_path / "m", location="sub/w.data" if link == "folder" else "w.data")
    data = path.with_name("w.data")
    data.unlink()
    if link == "symlink":
        data.symlink_to(outside / "w.data")
    elif link == "folder":
        path.with_name("sub").symlink_to(outside)
    elif link == "hard link":
        data.hardlink_to(outside / "w.data")
    else:
        data.symlink_to(path.with_name("gone"))
    messages = {"hard link": "other hard links", "dangling": "is missing"}
    assert messages.get(link, "a link that leaves the model's folder") in refusal(ModelError, files.read_model, path)


def test_links_of_a_model_cache_are_followed(tmp_path):
    """Model and data under hashed names in one folder, linked from another under their names, are read."""
    path = with_data(tmp_path / "blobs")
    path.rename(tmp_path / "blobs" / "a1")
    (tmp_path / "blobs" / "w.data").rename(tmp_path / "blobs" / "b2")
    snapshot = tmp_path / "snapshots"
    snapshot.mkdir()
    (snapshot / "model.onnx").symlink_to("../blobs/a1")
    (snapshot / "w.data").symlink_to("../blobs/b2")
    assert raw(files.read_model(snapshot / "model.onnx")) == raw(build())


@pytest.mark.parametrize("path", MODELS or [None], ids=lambda p: p.name if p else "none")
def test_real_models_survive_reading_and_writing(path, tmp_path):
    """Every exported model at hand is read, and written back with the same content in both forms."""
    if path is None:
        pytest.skip("the exported models are not on this machine")
    model = files.read_model(path)
    single = files.write_model(model, tmp_path / "a.onnx")
    double = files.write_model(model, tmp_path / "b.onnx", limit=0)
    assert [p.name for p in single + double] == ["a.onnx", "b.onnx", "b.onnx.data"]
    assert raw(files.read_model(single[0])) == raw(files.read_model(double[0])) == raw(model)


# ---- writing


ARRAYS = st.builds(
    lambda dtype, size: np.arange(size).astype(dtype),
    st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.int8, np.bool_]),
    st.integers(0, 3000),
)


@given(st.lists(ARRAYS, max_size=4), st.text(max_size=9), st.sampled_from([0, files.PROTOBUF_LIMIT]))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(arrays, doc, limit):
    """Reading what was written, in one file or two, gives the same bytes, and writing again the same files."""
    model = build()
    model.doc_string = doc
    model.graph.initializer.extend(numpy_helper.from_array(a, f"w{i}") for i, a in enumerate(arrays))
    before = raw(model)
    with tempfile.TemporaryDirectory() as folder:
        written = files.write_model(model, Path(folder, "m.onnx"), limit=limit)
        first = [p.read_bytes() for p in written]
        back = files.read_model(written[0])
        again = files.write_model(back, Path(folder, "m.onnx"), limit=limit, force=True)
        assert listing(Path(folder)) == ["m.onnx", "m.onnx.data"][: len(written)]
        assert len(written) == (1 if limit else 2)
        assert [p.read_bytes() for p in again] == first
        assert raw(back) == raw(model) == before
        assert files.digest(back, limit=limit) == files.digest(model, limit=limit)


def test_digest_is_that_of_the_file(tmp_path):
    """The digest of a model equals the SHA-256 of the file written, and differs for another weight."""
    model = build()
    (path,) = files.write_model(model, tmp_path / "m.onnx")
    assert files.digest(model) == hashlib.sha256(path.read_bytes()).hexdigest()
    digests = {files.digest(model, limit=0)}
    model.graph.initializer[0].raw_data = bytes(2048)
    digests.add(files.digest(model, limit=0))
    assert len(digests) == 2


def test_external_data_is_what_onnx_expects(tmp_path):
    """onnx itself loads the two files, and the caller's weights stay in memory."""
    model = build()
    path, data = files.write_model(model, tmp_path / "m.onnx", limit=0)
    assert data.stat().st_size == 2 * 4096
    loaded = onnx.load(path)
    for ours, theirs in zip(model.graph.initializer, loaded.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(theirs))
    assert raw(model) == raw(build())
    onnx.checker.check_model(path, full_check=True)


@pytest.mark.parametrize("kind", ["same", "symlink", "hard link", "linked folder"])
def test_the_input_is_never_overwritten(tmp_path, kind):
    """The input is refused as output under any name, even with force."""
    source = plain(tmp_path)
    output = tmp_path / "out.onnx"
    if kind == "same":
        output = Path(os.path.relpath(source))
    elif kind == "symlink":
        output.symlink_to(source)
    elif kind == "hard link":
        output.hardlink_to(source)
    else:
        (tmp_path / "link").symlink_to(tmp_path)
        output = tmp_path / "link" / source.name
    for force in (False, True):
        assert "is the input" in refusal(FileError, files.check_output, output, source, force)
        assert "is the input" in refusal(FileError, files.write_model, build(), output, source=source, force=force)
    assert source.read_bytes() == raw(build())


def test_external_data_of_the_input_is_never_overwritten(tmp_path):
    """Neither the output nor its data may replace the file that holds the input's weights."""
    source = with_data(tmp_path / "m", location="out.onnx.data")
    data = source.with_name("w.data").rename(source.with_name("out.onnx.data"))
    before = data.read_bytes()
    output = source.with_name("out.onnx")
    message = "holds weights of the input"
    assert message in refusal(FileError, files.check_output, data, source, True)
    assert message in refusal(FileError, files.write_model, build(), output, source=source, force=True, limit=0)
    assert data.read_bytes() == before
    assert listing(source.parent) == ["model.onnx", "out.onnx.data"]


def test_existing_outputs_need_force(tmp_path):
    """An existing file, or an existing data file beside it, is replaced only with force."""
    output = tmp_path / "out.onnx"
    output.write_text("old")
    assert "use --force" in refusal(FileError, files.write_model, build(), output)
    assert output.read_text() == "old"
    files.write_model(build(), output, force=True)
    assert raw(files.read_model(output)) == raw(build())
    output.unlink()
    data = tmp_path / "out.onnx.data"
    data.write_text("old")
    assert "out.onnx.data' exists" in refusal(FileError, files.write_model, build(), output, limit=0)
    assert (listing(tmp_path), data.read_text()) == (["out.onnx.data"], "old")


def test_outputs_that_cannot_be_files(tmp_path):
    """A missing folder, a folder as output, a file as folder and a device are refused, also with force."""
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path / "none" / "out.onnx", "there is no folder"),
        (tmp_path / "file" / "out.onnx", "there is no folder"),
        (tmp_path, "not a regular file"),
        (Path(os.devnull), "not a regular file"),
        ("a\0b", "not a name"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        assert message in refusal(FileError, files.write_model, build(), path, force=True)
    assert listing(tmp_path) == ["file"]


def test_a_link_as_output_is_written_through(tmp_path):
    """The file behind a link is replaced, the link stays."""
    (tmp_path / "real").mkdir()
    (tmp_path / "out.onnx").symlink_to(tmp_path / "real" / "target.onnx")
    files.write_model(build(), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").is_symlink()
    assert listing(tmp_path / "real") == ["target.onnx"]


@pytest.mark.parametrize("limit", [files.PROTOBUF_LIMIT, 0])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [1, 2])
def test_failures_leave_everything_as_it_was(tmp_path, monkeypatch, limit, error, call):
    """A full disk or Ctrl-C in the middle removes the temporary files and keeps the old ones."""
    old = {"out.onnx": b"old model", "out.onnx.data": b"old data"}
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    calls = []

    def fail(descriptor):
        calls.append(descriptor)
        if len(calls) >= min(call, 1 if limit else 2):
            raise error

    monkeypatch.setattr(os, "fsync", fail)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            files.write_model(build(), tmp_path / "out.onnx", force=True, limit=limit)
    else:
        message = refusal(FileError, files.write_model, build(), tmp_path / "out.onnx", force=True, limit=limit)
        assert "No space left on device; nothing was changed" in message
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_failed_swap_of_two_files_is_undone(tmp_path, monkeypatch, existing, step):
    """If model and data cannot both be put in place, neither is: old files come back, new ones go."""
    old = {"out.onnx": b"old model", "out.onnx.data": b"old data"} if existing else {}
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    steps = []
    replace = Path.replace

    def fail(self, target):
        steps.append(target)
        if len(steps) == (step if existing else min(step, 2)):
            raise PermissionError(errno.EACCES, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    assert "Permission denied" in refusal(
        FileError, files.write_model, build(), tmp_path / "out.onnx", force=True, limit=0
    )
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("limit", [files.PROTOBUF_LIMIT, 0])
def test_a_file_size_limit_of_the_system(tmp_path, limit):
    """When the system itself refuses to write more, the child reports FileError and leaves nothing behind."""
    source = plain(tmp_path)
    code = (
        "import resource, sys\n"
        "from onnxprune import files\n"
        "from onnxprune.errors import FileError\n"
        "model = files.read_model(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try:\n"
        "    files.write_model(model, sys.argv[2], limit=int(sys.argv[3]))\n"
        "except FileError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out.onnx"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    assert "File too large; nothing was changed" in done.stdout
    assert listing(tmp_path) == ["model.onnx"]


def test_new_files_have_ordinary_permissions(tmp_path):
    """A written model can be read by whom the umask lets, unlike a private temporary file."""
    (tmp_path / "plain").write_text("")
    files.write_model(build(), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode


# ---- text and plans


def test_text_is_written_like_models(tmp_path):
    """Text goes through the same checks, as UTF-8 with its line ends untouched."""
    path = tmp_path / "plan.json"
    files.write_text(path, "größe\r\n")
    assert path.read_bytes() == "größe\r\n".encode()
    assert files.read_text(path) == "größe\n"
    assert "use --force" in refusal(FileError, files.write_text, path, "new")
    files.write_text(path, "new", force=True)
    assert "is the input" in refusal(FileError, files.write_text, path, "x", source=path, force=True)
    assert files.read_text(path) == "new"


def test_text_that_is_not_utf8_is_a_file_error(tmp_path):
    """Reading text in another encoding fails with the file named."""
    (tmp_path / "text").write_bytes(b"\xff\xfe")
    assert "cannot read" in refusal(FileError, files.read_text, tmp_path / "text")


# ---- one process at a time -----------------------------------------------------------------------------------------


HOLD = "import sys, onnxprune.files as f, pathlib\nwith f.locked(pathlib.Path('a.lock'), 'it'):\n print(flush=True)\n "


def held_elsewhere(folder):
    """A process that has the lock of a folder until its input ends."""
    code = HOLD + "sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    assert process.stdout.readline()
    return process


def test_a_lock_is_had_once(tmp_path):
    """While one process has the lock, no other gets it; afterwards its file is gone."""
    lock = tmp_path / "a.lock"
    process = held_elsewhere(tmp_path)
    for _ in range(2):
        with (
            pytest.raises(FileError, match=r"^the folder is in use by another run: wait"),
            files.locked(lock, "the folder"),
        ):
            pytest.fail("two have it")
    assert process.communicate(b"", timeout=60)[1] == b""
    assert not list(tmp_path.iterdir())
    with files.locked(lock, "it"):
        assert [p.name for p in tmp_path.iterdir()] == ["a.lock"]
        with pytest.raises(FileError, match="in use"), files.locked(lock, "it"):
            pytest.fail("the same process has it twice")
    assert not list(tmp_path.iterdir())


def test_the_dead_hold_no_lock(tmp_path):
    """A killed process leaves its file, which is not in the way and goes with the next one's."""
    process = held_elsewhere(tmp_path)
    process.kill()
    process.communicate(timeout=60)
    assert [p.name for p in tmp_path.iterdir()] == ["a.lock"]
    with files.locked(tmp_path / "a.lock", "it"):
        pass
    assert not list(tmp_path.iterdir())


def test_errors_under_a_lock_are_those_of_the_work(tmp_path):
    """What goes wrong inside is not taken for trouble with the lock, which is given back."""
    for error in (OSError("odd"), sqlite3.OperationalError("odd")):
        with pytest.raises(type(error), match="odd"), files.locked(tmp_path / "a.lock", "it"):
            raise error
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_locked(tmp_path):
    """A missing folder and a file of something else are told, and nothing is written."""
    with pytest.raises(FileError, match=r"cannot lock .* unable to open"), files.locked(tmp_path / "no" / "a", "it"):
        pytest.fail("there is nothing to lock")
    (tmp_path / "a.lock").write_text("precious" * 100)
    with pytest.raises(FileError, match=r"cannot lock .* not a database"), files.locked(tmp_path / "a.lock", "it"):
        pytest.fail("that is no lock")
    assert (tmp_path / "a.lock").read_text() == "precious" * 100
