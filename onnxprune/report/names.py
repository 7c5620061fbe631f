"""Names in tables."""

from __future__ import annotations

_LENGTH = 90


def short(name: str) -> str:
    """A name that leaves room for numbers beside it: those of some exporters are paragraphs."""
    return name if len(name) <= _LENGTH else f"{name[: _LENGTH - 3]}..."
