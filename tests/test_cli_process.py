"""The command line as a process: streams, exit codes and signals as a shell sees them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parents[1] / "fixtures"
CUT = ("--flops", "0.5", "--recover", "none")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with a model and an empty file."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(FIXTURES / "resnet_bn_legacy.onnx", "m.onnx")
    Path("empty.onnx").write_bytes(b"")
    return tmp_path


def listing(folder):
    """Every file with its content."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def process(*args, **env):
    """A command as a process of its own."""
    return python("-m", "onnxprune", *args, **env)


def python(*args, **env):
    """A fresh interpreter."""
    command = [sys.executable, *map(str, args)]
    environment = os.environ | {"COLUMNS": "80"} | env
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_prints_plain_text_into_a_pipe(folder):
    """A pipe gets a report of at most 80 columns without escape codes, and nothing on stderr."""
    done = process("compress", "m.onnx", *CUT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert Path("m.pruned.onnx").exists()


def test_prints_pure_json(folder):
    """With --json stdout is JSON and nothing else, even with an ASCII-only stdout."""
    shutil.copy("m.onnx", "größe.onnx")
    done = process("analyze", "größe.onnx", "--json", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["model"] == "größe.onnx"
    text = process("analyze", "größe.onnx", PYTHONIOENCODING="ascii")
    assert (text.returncode, text.stdout.partition(".")[0]) == (0, "gr\\xf6\\xdfe")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("compress", "m.onnx", "--flops", "0.001", "--recover", "none"), 1),
        (("compress", "m.onnx"), 2),
        (("analyze", "empty.onnx"), 3),
        (("compress", "m.onnx", *CUT, "-o", "m.onnx", "--force"), 4),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_returns_the_exit_code(folder, args, code):
    """The exit codes arrive at the shell, with the message on stderr."""
    before = listing(folder)
    done = process(*args)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("error: ")
    assert listing(folder) == before


@pytest.mark.skipif(os.name == "nt", reason="pipes close differently on Windows")
def test_ends_quietly_when_nobody_reads(folder):
    """`onnxprune analyze m.onnx | head` leaves no message."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        command = [sys.executable, "-m", "onnxprune", "analyze", "m.onnx"]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


BROKEN = """
import sys
from onnxprune import api, cli
api.analyze = None
sys.argv = ["onnxprune", "analyze", "m.onnx"]
cli.main()
"""
INTERRUPTED = """
import os, signal, sys
from onnxprune import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start background jobs with it ignored
sync = os.fsync
def interrupt(number):
    sync(number)
    print(sorted(n for n in os.listdir(".") if n.endswith(".tmp")), flush=True)
    os.kill(os.getpid(), signal.SIGINT)
os.fsync = interrupt
sys.argv = ["onnxprune", "compress", "m.onnx", "--flops", "0.5", "--recover", "none"]
cli.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="no such signal on Windows")
def test_interrupted_while_writing(folder):
    """Ctrl-C in the middle of writing returns 130; the temporary file is gone, and the input is as it was."""
    before = listing(folder)
    done = python("-c", INTERRUPTED)
    assert done.returncode == 130
    assert done.stdout.count(".tmp") == 1
    assert done.stderr.startswith("error: interrupted")
    assert listing(folder) == before


def test_reports_a_bug(folder):
    """An unexpected exception is exit code 5 and one line; with ONNXPRUNE_DEBUG=1 there is the traceback."""
    for env, lines in (({}, 1), ({"ONNXPRUNE_DEBUG": "1"}, 10)):
        done = python("-c", BROKEN, **env)
        assert (done.returncode, done.stdout) == (5, "")
        assert "this is a bug in onnxprune" in done.stderr.splitlines()[-1]
        assert done.stderr.count("\n") >= lines
        assert ("Traceback" in done.stderr) == bool(env)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("fine", ["finetune"]),
        ("compress m.onnx --method ge", ["geometric_median"]),
        ("compress m.onnx --recover l", ["least-squares"]),
        ("search m.onnx --metho", ["--method"]),
    ],
)
def test_a_shell_completes(typed, offered):
    """bash is offered commands, options, and the names that options take."""
    asked = {"_ONNXPRUNE_COMPLETE": "complete_bash", "COMP_WORDS": f"onnxprune {typed}"}
    done = process(**asked, COMP_CWORD=str(len(typed.split())))
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", offered)


def test_threads_do_not_change_the_bytes(folder):
    """The default selection and repair with data write the same file with one thread and with two."""
    data = ("--data", FIXTURES / "digits_calib.npz", "--calibration-size", "128")
    for threads in ("1", "2"):
        out = f"{threads}.onnx"
        done = process("compress", "m.onnx", "--flops", "0.5", *data, "-o", out, "-q", ONNXPRUNE_THREADS=threads)
        assert (done.returncode, done.stderr) == (0, "")
    assert Path("1.onnx").read_bytes() == Path("2.onnx").read_bytes()
