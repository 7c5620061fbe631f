"""What a search tried on its way to a choice, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

_SHOWN = 6  # candidates in the table
_BY = {
    "kl": "divergence on inputs; the best ones repaired",
    "naswot": "NASWOT, the linear regions of the cut network",
    "none": "nothing: the middle one was taken",
}


def tried(found: Mapping[str, Any] | None) -> RenderableType:
    """The candidates of a search, the chosen one among them; "" where there was none."""
    if found is None:
        return ""
    return _pairs(found) if found["allocate"] == "pairs" else _optimised(found)


def _pairs(found: Mapping[str, Any]) -> RenderableType:
    candidates = found["candidates"]
    order = sorted(range(len(candidates)), key=lambda i: (i != found["chosen"], _rank(candidates[i]), i))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title in ("distance", "norm", "by distance", "divergence", "repaired", "NASWOT"):
        table.add_column(title, justify="right", no_wrap=True)
    for i in order[:_SHOWN]:
        c = candidates[i]
        numbers = [f"{c['distance']:.3g}", f"{c['norm']:.3g}", f"{100 * c['removed']:.0f} %"]
        table.add_row(*numbers, *(_number(c[n]) for n in ("kl", "repaired", "naswot")))
    told = f"Tried {len(candidates)} pairs of thresholds for distance and norm, ranked by {_BY[found['proxy']]}."
    return Group(f"{told} The first was taken:", table)


def _rank(candidate: Mapping[str, Any]) -> float:
    known = [v for n in ("repaired", "kl") if (v := candidate[n]) is not None]
    return float(known[0]) if known else 0.0


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _optimised(found: Mapping[str, Any]) -> str:
    groups = found["groups"]
    better = sum(g["after"] < g["before"] for g in groups)
    taken = "taken" if found["chosen"] == "optimised" else "not taken, the criterion's choice was"
    return (
        f"{found['optimiser'].capitalize()} chose again among the small filters of {len(groups)} groups and found a "
        f"smaller refit error in {better}. Divergence after a repair: {found['plain']:.3g} by the "
        f"criterion alone, {found['optimised']:.3g} optimised: {taken}."
    )
