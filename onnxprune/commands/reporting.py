"""`report`: the page of a result that was kept as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxprune import options as o
from onnxprune.commands.writing import place
from onnxprune.errors import DataError
from onnxprune.terminal import show_json, write

Kept = Annotated[
    Path, typer.Argument(metavar="RUN.json", help="What compress, apply, validate, search or bench print with --json.")
]


def report(
    run: Kept, output: o.Out = None, force: o.Force = False, as_json: o.AsJson = False, quiet: o.Quiet = False
) -> None:
    """Draw a result that another command printed with --json as one HTML file, with no link to elsewhere.

    Writes RUN.html unless -o names another file.
    """
    from onnxprune import files
    from onnxprune.report import html

    out = place(run, output, ".html", force)
    told = _read(run)
    files.write_text(out, html.page(told), source=run, force=force)
    if as_json:
        show_json({"run": str(run), "command": html.kind(told), "output": str(out)})
    elif not quiet:
        write(f"{run} -> {out}\n")


def _read(path: Path) -> dict[str, Any]:
    """A JSON object. Raises FileError where there is no file, DataError where it holds something else."""
    from onnxprune import files

    try:
        told = json.loads(files.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is no JSON: {error}") from error
    if not isinstance(told, dict):
        raise DataError(f"'{path}' holds no JSON object, as compress and others print with --json")
    return told
