"""Printing, progress, and the error boundary of the command line."""

from __future__ import annotations

import io
import json
import logging
import re
import sys

import pytest
import typer
from rich.text import Text

from onnxprune import errors, terminal
from onnxprune.clock import Progress


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def code_of(error):
    """Exit code that an exception becomes."""
    with pytest.raises(typer.Exit) as caught, terminal.boundary():
        raise error
    return caught.value.exit_code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.TargetError("told"), 1),
        (errors.UsageError("told"), 2),
        (errors.ModelError("told"), 3),
        (errors.UnsupportedError("told"), 3),
        (errors.PlanError("told"), 3),
        (errors.DataError("told"), 3),
        (errors.FileError("told"), 4),
        (errors.ResourceError("told"), 4),
        (errors.VerificationError("told"), 5),
        (OSError(28, "told"), 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_errors_become_a_message_and_a_code(error, code, capsys):
    """Every error of ours, and of the system, is one message on stderr and the code of its class."""
    assert code_of(error) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "told" in err


def test_every_error_class_has_a_code_of_the_table():
    """No error class can be forgotten: each inherits one of the codes."""
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.OnnxpruneError)]
    assert len(classes) > 8
    assert {c.code for c in classes} == {errors.Exit(i) for i in range(1, 6)}


def test_interrupt(capsys):
    """Ctrl-C is 130."""
    assert code_of(KeyboardInterrupt()) == errors.Exit.INTERRUPTED == 130
    assert "interrupted" in capsys.readouterr().err


def test_memory(capsys):
    """Running out of memory is 4, with advice."""
    assert code_of(MemoryError()) == 4
    assert "--input-shape" in capsys.readouterr().err


def test_bug(capsys):
    """Anything else is 5 and says that it is a bug, in one line and without a traceback."""
    assert code_of(KeyError("of mine")) == 5
    err = capsys.readouterr().err
    assert "this is a bug in onnxprune (KeyError: 'of mine')" in err
    assert "ONNXPRUNE_DEBUG=1" in err
    assert "Traceback" not in err
    assert err.count("\n") == 1


def test_debug_prints_the_traceback(monkeypatch, capsys):
    """ONNXPRUNE_DEBUG=1 prints the traceback before the message."""
    monkeypatch.setenv("ONNXPRUNE_DEBUG", "1")
    assert code_of(ZeroDivisionError()) == 5
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("error: ")


def test_exit_passes():
    """An exit code that a command chose itself is left alone."""
    assert code_of(typer.Exit(1)) == 1


def test_progress_names_the_stage_on_a_terminal(monkeypatch):
    """What the library logs is shown on stderr, and nothing is left set up."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    log = logging.getLogger("onnxprune")
    before = log.handlers[:], log.level
    with terminal.progress(quiet=False):
        log.info("couple")
    assert "couple ..." in screen.getvalue()
    assert (log.handlers, log.level) == before


def shown(screen):
    """The different lines that a terminal was shown, without what moves the cursor."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    return list(dict.fromkeys(x.strip()[2:] for x in re.split(r"[\r\n]", plain) if x.strip()))


def test_loops_share_one_line(monkeypatch):
    """A loop inside another is shown behind it, and so are stages; the line fits the terminal and is gone at the end."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "60")
    log = logging.getLogger("onnxprune")
    with terminal.progress(quiet=False):
        status = log.handlers[-1]._status
        status.update = lambda text: (type(status).update(status, text), status._live.refresh())
        for _ in Progress("candidate", 2).over("ab"):
            log.info("verify")
            for _ in Progress("a layer with a long name", 2).over("ab"):
                pass
        log.info("node '[bold]\x1b[2J\n'")
        log.info("long " * 40)
    lines = shown(screen)
    assert [line[-5:] for line in lines if line.startswith("long")] == ["… ..."]
    assert "candidate 1 of 2: verify ..." in lines
    assert "candidate 2 of 2: a layer with a long name 2 of 2 ..." in lines
    assert "node '[bold]?[2J?' ..." in lines
    assert max(map(len, lines)) < 60
    assert screen.getvalue().endswith("\x1b[2K")


def test_handlers_of_other_libraries_stay_silent(monkeypatch):
    """What is shown as progress does not come out a second time where a library has set up the root logger."""
    screen, other = Screen(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    handler = logging.StreamHandler(other)
    logging.root.addHandler(handler)
    try:
        with terminal.progress(quiet=False):
            logging.getLogger("onnxprune").info("couple")
    finally:
        logging.root.removeHandler(handler)
    assert other.getvalue() == ""
    assert logging.getLogger("onnxprune").propagate


@pytest.mark.parametrize(("stream", "quiet"), [(io.StringIO, False), (Screen, True)], ids=["pipe", "quiet"])
def test_progress_is_silent(monkeypatch, stream, quiet):
    """A pipe gets no progress, and neither does who asked for quiet."""
    screen = stream()
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.progress(quiet):
        logging.getLogger("onnxprune").info("couple")
    assert screen.getvalue() == ""


def test_show_is_plain_in_a_pipe(capsys):
    """Styles vanish where stdout is no terminal, and lines have no blanks at their end."""
    terminal.show(Text("bold", style="bold") + "   ")
    assert capsys.readouterr().out == "bold\n"


def test_no_color_is_respected(monkeypatch):
    """With NO_COLOR a terminal gets no colours."""
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.show(Text("red", style="red"))
    assert screen.getvalue() == "red\n"


def test_json_is_ascii(capsys):
    """Names in any script survive any encoding of stdout; infinity is refused rather than printed as no JSON."""
    terminal.show_json({"name": "größe"})
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == {"name": "größe"}
    with pytest.raises(ValueError, match="JSON"):
        terminal.show_json({"value": float("inf")})


def test_full_disk_behind_stdout(monkeypatch):
    """An error on stdout names it."""

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.stdout, "write", full)
    with pytest.raises(errors.FileError, match="stdout: No space left on device"):
        terminal.write("text")
