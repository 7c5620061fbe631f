"""Peak memory of a model, measured in a process of its own."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxprune.errors import FileError, OnnxpruneError
from onnxprune.files import read_text, write_model
from onnxprune.graph import Array
from onnxprune.runtime import CPU, session, version

_CODE = "from onnxprune.validation.memory import child; child()"
_RUNS = 3


def peak_memory(model: ModelProto, feeds: Mapping[str, Array], *, threads: int = 1, provider: str = CPU) -> int | None:
    """Bytes that loading a model from its file and running it add to a process at most; None where it is not told.

    model: not changed. Raises ModelError when it does not run.
    """
    with tempfile.TemporaryDirectory(prefix="onnxprune") as folder:
        path = Path(folder) / "model.onnx"
        write_model(model, path)
        task = pickle.dumps((path, dict(feeds), threads, provider))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            [sys.executable, "-c", _CODE], input=task, capture_output=True, check=False, env=environment
        )
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        raise OnnxpruneError(f"the process that measures memory failed: {told[-1] if told else done.returncode}")
    found: int | OnnxpruneError | None = pickle.loads(done.stdout)
    if isinstance(found, OnnxpruneError):
        raise found
    return found


def child() -> None:
    """What runs in the other process: a task on stdin, the result on stdout."""
    path, feeds, threads, provider = pickle.loads(sys.stdin.buffer.read())
    sys.stdout.buffer.write(pickle.dumps(_measured(path, feeds, threads, provider)))


def _measured(path: Path, feeds: dict[str, Array], threads: int, provider: str) -> int | OnnxpruneError | None:
    version()  # loads onnxruntime, which does not count
    before = _status("VmRSS")
    try:
        made = session(path, optimize=True, threads=threads, provider=provider)
        for _ in range(_RUNS):
            made.run(feeds)
    except OnnxpruneError as error:
        return type(error)(str(error))
    after = _status("VmHWM")
    return None if before is None or after is None else max(after - before, 0)


def _status(field: str) -> int | None:
    """Bytes that Linux gives for this process: not what `getrusage` says, which counts the parent's memory too."""
    try:
        lines = read_text("/proc/self/status").splitlines()
    except FileError:
        return None
    values: list[Any] = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(values[0]) * 1024 if values else None
