"""`validate`: a gate."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxprune.commands import record
from onnxprune.commands.gate_options import Validating
from onnxprune.errors import FileError, OnnxpruneError, TargetError
from onnxprune.signature import taking
from onnxprune.terminal import progress, show, show_json

if TYPE_CHECKING:
    from onnxprune.validation.result import Validation


@taking(Validating)
def validate(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", help="A model.")],
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE", help="The smaller model.")],
    given: Validating,
) -> None:
    """Compare a model with its original on data, with 95 % intervals, and return 1 unless it meets its goals.

    Without goals, only show what is measured. Files are overwritten.
    """
    with progress(given.quiet):
        from onnxprune.validation import config, result

        record.check_free(given.files(), (original, candidate), given.data)
        with _noted(original, candidate, given):
            arguments = given.arguments(config.settings(given.config))
        record.check_free(given.files(), (original, candidate), arguments.get("data"))
        with _noted(original, candidate, given):
            _check_summary()
            found = result.validate(original, candidate, **arguments)
    from onnxprune.report import validation as told

    shown = found.as_dict() | record.made(original, candidate, arguments.get("data"))
    _write_reports(found, shown, given)
    if given.as_json:
        show_json(shown)
    elif not given.quiet:
        show(told.text(found))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        sys.stderr.writelines(f"{line}\n" for line in told.workflow_commands(found))
        _add_summary(told.markdown(found))
    if not found.passed:
        raise TargetError(told.missed(found))


@contextmanager
def _noted(original: Path, candidate: Path, given: Validating) -> Iterator[None]:
    """What ends the command is in its JUnit file, too: CI systems would show that of an earlier run."""
    try:
        yield
    except (OnnxpruneError, OSError, MemoryError) as error:
        _write_error(error, original, candidate, given)
        raise


def _write_error(error: Exception, original: Path, candidate: Path, given: Validating) -> None:
    """The error is told in any case, so that a file which cannot be written is none."""
    from onnxprune import files
    from onnxprune.report import junit

    if given.junit is not None:
        about = {"original": str(original), "candidate": str(candidate), "data": str(given.data or "")}
        with suppress(FileError):
            files.write_text(given.junit, junit.stopped(error, about, **_where()), force=True)


def _where() -> dict[str, Any]:
    """Time and host, as JUnit XML has them."""
    import socket
    from datetime import UTC, datetime

    return {"time": datetime.now(UTC).replace(tzinfo=None), "host": socket.gethostname()}


def _write_reports(found: Validation, shown: dict[str, Any], given: Validating) -> None:
    import json

    from onnxprune import files
    from onnxprune.report import junit
    from onnxprune.report import validation as told

    if given.junit is not None:
        files.write_text(given.junit, junit.judged(found, **_where()), force=True)
    if given.report is not None and given.report.suffix == ".html":
        record.write_page(shown, given.report)
    elif given.report is not None:
        files.write_text(given.report, json.dumps(shown, indent=2, allow_nan=False) + "\n", force=True)
    summary = _summary()
    if given.markdown is not None and (
        summary is None or os.path.realpath(given.markdown) != os.path.realpath(summary)
    ):
        files.write_text(given.markdown, told.markdown(found), force=True)


def _summary() -> str | None:
    """The page of the job, under GitHub Actions."""
    return os.environ.get("GITHUB_STEP_SUMMARY") if os.environ.get("GITHUB_ACTIONS") == "true" else None


def _check_summary() -> None:
    """Whether it can be written is known before any work."""
    from onnxprune import files

    if summary := _summary():
        files.append_text(summary, "")


def _add_summary(text: str) -> None:
    """Nothing that goes wrong here may hide the verdict."""
    from onnxprune import files

    if summary := _summary():
        try:
            files.append_text(summary, text)
        except FileError as error:
            sys.stderr.write(f"warning: the summary is missing: {error}\n")
