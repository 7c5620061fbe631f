"""Where the one file goes that a command writes."""

from __future__ import annotations

from pathlib import Path

from onnxprune.options import beside


def place(source: Path, output: Path | None, suffix: str, force: bool, *read: Path) -> Path:
    """The file of -o, or SOURCE with another suffix; raises FileError, before any work, where it must not be written.

    source, read: what the command reads, which is not replaced.
    """
    from onnxprune import files

    out = output or beside(source, suffix)
    for used in (*read, source):
        files.check_output(out, used, force)
    return out
