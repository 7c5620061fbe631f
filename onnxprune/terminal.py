"""What the command line prints, and where: results on stdout, progress and errors on stderr; its error boundary."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from onnxprune.clock import around
from onnxprune.errors import Exit, FileError, OnnxpruneError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.status import Status

_PIPE_CLOSED = 128 + 13  # what a program that is ended by SIGPIPE returns to the shell
_BESIDE = 8  # columns that the spinner and the dots take, and that stay free
_NAME = 8  # characters of a name that stay on a line beside the numbers, however narrow the terminal
_LOG = logging.getLogger("onnxprune")


# ---- results ------------------------------------------------------------------------------------------------------


def show(renderable: RenderableType) -> None:
    """Print a table or text on stdout; plain where that is not a terminal or NO_COLOR is set."""
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)  # names of nodes are full of brackets and colons
    _widen(renderable, console.width)
    with console.capture() as capture:
        console.print(renderable, crop=False)
    write("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")


def _widen(renderable: RenderableType, width: int) -> None:
    """Let tables be wider than the terminal where their numbers, and the beginning of their names, need it."""
    from rich.cells import cell_len
    from rich.console import Group
    from rich.table import Table

    for part in renderable.renderables if isinstance(renderable, Group) else ():
        _widen(part, width)
    if not isinstance(renderable, Table):
        return
    needed, (_, right, _, left) = 0, renderable.padding
    for column in renderable.columns:
        longest = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
        needed += left + right + (longest if column.no_wrap else min(longest, _NAME))
    if needed > width:
        renderable.width = needed


def show_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout; ASCII, so that no encoding can spoil it."""
    write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def write(text: str) -> None:
    """Write to stdout and flush; a reader that has gone away (`| head`) ends the program quietly."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit complains
        raise typer.Exit(_PIPE_CLOSED) from None
    except OSError as error:
        raise FileError(f"cannot write the result to stdout: {error.strerror}") from error


def warn_made_up(made_up: bool) -> None:
    """One line on stderr where inputs were made up and no report says so."""
    if made_up:
        sys.stderr.write("warning: SYNTHETIC INPUTS: no --data were given; what was looked at is made up\n")


# ---- progress -----------------------------------------------------------------------------------------------------


class _Stages(logging.Handler):
    """Shows what the library logs as the text of a spinner, behind the loops that it is part of; in one line."""

    def __init__(self, status: Status) -> None:
        super().__init__(logging.INFO)
        self._status = status

    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text

        told = ": ".join(dict.fromkeys([*around(), record.getMessage()]))
        line = Text("".join(c if c.isprintable() else "?" for c in told))
        line.truncate(max(self._status.console.width - _BESIDE, 1), overflow="ellipsis")
        self._status.update(line.append(" ..."))


@contextmanager
def progress(quiet: bool) -> Iterator[None]:
    """A spinner on stderr that names the stage at work, unless that is no terminal or `quiet`."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True, markup=False).status("loading ...") as status:
        handler, level, propagate = _Stages(status), _LOG.level, _LOG.propagate
        _LOG.addHandler(handler)
        _LOG.setLevel(logging.INFO)
        _LOG.propagate = False  # libraries that we call may have given the root logger a handler
        try:
            yield
        finally:
            _LOG.removeHandler(handler)
            _LOG.setLevel(level)
            _LOG.propagate = propagate


# ---- errors -------------------------------------------------------------------------------------------------------


INTERRUPTED = "interrupted; output files are written whole or not at all"


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """Collects Ctrl-C, which still raises KeyboardInterrupt; only the main thread may ask for that."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as in the background of a shell script
    if ignored or threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def boundary() -> Iterator[None]:
    """Turn every exception into one message on stderr and an exit code of `errors.Exit`."""
    with _noted_interrupts() as interrupts:
        yield from _translated(interrupts)


def _translated(interrupts: list[int]) -> Iterator[None]:
    try:
        yield
    except typer.Exit:
        raise
    except OnnxpruneError as error:
        _fail(str(error), error.code)
    except KeyboardInterrupt:
        _fail(INTERRUPTED, Exit.INTERRUPTED)
    except MemoryError:
        advice = "close other programs, give smaller sizes with --input-shape, or use a machine with more memory"
        _fail(f"there is not enough memory: {advice}", Exit.RESOURCE)
    except OSError as error:
        _fail(str(error), Exit.RESOURCE)
    except Exception as error:  # noqa: BLE001 - the last resort, so that no user meets a traceback
        if interrupts:  # a library was interrupted where it hides that, such as in the middle of an import
            _fail(INTERRUPTED, Exit.INTERRUPTED)
        what = " ".join(str(error).split())
        bug = f"this is a bug in onnxprune ({type(error).__name__}: {what}); please report it with the model and what "
        _fail(bug + "ONNXPRUNE_DEBUG=1 in the environment prints", Exit.INTERNAL)


def _fail(message: str, code: Exit) -> NoReturn:
    if os.environ.get("ONNXPRUNE_DEBUG"):
        traceback.print_exc()
    sys.stderr.write(f"error: {message}\n")
    raise typer.Exit(int(code)) from None
