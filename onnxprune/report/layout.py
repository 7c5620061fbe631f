"""What all reports are made of: tables, sections, numbers with units."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def si(number: float, unit: str = "") -> str:
    """A count with a decimal prefix: 4.09 G, 25.6 M, 512."""
    for factor, prefix in _UNITS:
        if abs(number) >= 0.9995 * factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number:g} {unit}".strip()


def percent(fraction: float) -> str:
    """A fraction as a percentage with one digit."""
    return f"{100 * fraction:.1f} %"


def new_table(*columns: tuple[str, str]) -> Table:
    """Columns as (title, "<" for text that may fold or ">" for numbers)."""
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for title, side in columns:
        if side == ">":
            made.add_column(title, justify="right", no_wrap=True)
        else:
            made.add_column(title, overflow="fold")
    return made


def lines(*given: str) -> str:
    """Lines below one another, empty ones left out."""
    return "\n".join(line for line in given if line)


def sections(*parts: RenderableType, gap: int = 1) -> Group:
    """Parts below one another, empty ones left out."""
    present = [p for p in parts if p != ""]
    spaced = [x for p in present for x in ([""] * gap + [p])]
    return Group(*spaced[gap:])
