"""The tables of tools/bench_peers.py as Markdown, from its journal and that of tools/bench_recovery.py."""

from __future__ import annotations

from pathlib import Path

from recovery_table import Lines


def write(found: Lines, recovery: Lines, path: Path) -> None:
    """Write the tables."""
