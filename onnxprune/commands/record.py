"""What a result says of how it was made, and the page that shows it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from onnxprune import __version__
from onnxprune.errors import UsageError

ARGUMENTS: ContextVar[tuple[str, ...]] = ContextVar("arguments", default=())  # of the command that runs
_LIBRARIES = ("onnx", "numpy")


def made(*used: str | Path | None) -> dict[str, Any]:
    """The key `run` of every result: command, date, version, environment, and digests of the files among `used`."""
    from datetime import UTC, datetime
    from importlib.metadata import version

    from onnxprune import files
    from onnxprune.runtime import CPU, default_threads
    from onnxprune.validation.environment import environment

    digests = {str(path): files.file_digest(path) for path in used if path is not None}
    around = environment(default_threads(), CPU)
    kept = ("cpu", "cpus", "governor", "load", "system", "python", "onnxruntime")
    run = {
        "command": shlex.join(("onnxprune", *ARGUMENTS.get())),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "environment": {k: around[k] for k in kept} | {name: version(name) for name in _LIBRARIES},
        "sha256": {path: digest for path, digest in digests.items() if digest is not None},
    }
    return {"run": run}


def check_page(
    page: Path | None, models: Sequence[Path], *read: str | Path | None, beside: Mapping[str, Path | None] | None = None
) -> None:
    """Raise what can be known to be wrong with `--report` before any work is done.

    models, read: what the command reads; beside: what else it writes, by option.
    """
    if page is None:
        return
    if page.suffix != ".html":
        raise UsageError(f"--report {str(page)!r}: give a name that ends in .html")
    others = {name: path for name, path in (beside or {}).items() if path is not None}
    check_free(others | {"--report": page}, models, *read)


def check_free(outputs: Mapping[str, Path], models: Sequence[Path], *read: str | Path | None) -> None:
    """Raise for reports that would replace what is read or written besides; older reports they may replace."""
    from onnxprune import files

    places = {os.path.realpath(p): f"the input '{p}'" for p in (*models, *read) if p is not None}
    for name, path in outputs.items():
        place = os.path.realpath(path)
        if place in places:
            raise UsageError(f"{name} '{path}' is {places[place]} too: name another file")
        places[place] = f"the file of {name}"
        for model in models:
            files.check_output(path, model, force=True)


def write_page(told: Mapping[str, Any], page: Path | None) -> None:
    """Write the page of a result, where one is asked for."""
    if page is None:
        return
    from onnxprune import files
    from onnxprune.report.html import page as drawn

    files.write_text(page, drawn(told), force=True)
