"""Commands of the program, run inside the tests."""

from __future__ import annotations

from typer.testing import CliRunner

from onnxprune import cli


def run(*args):
    """A command through typer's runner."""
    return CliRunner().invoke(cli.app, list(map(str, args)))


def done(*args):
    """A command that must succeed; its result."""
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result
