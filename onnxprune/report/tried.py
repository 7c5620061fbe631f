"""What a search tried on its way to a choice, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

_SHOWN = 6  # candidates in the table
_BY = {"kl": "divergence from the original", "naswot": "NASWOT of the cut network"}


def tried(found: Mapping[str, Any] | None) -> RenderableType:
    """The candidates of a search, the chosen one first; "" where there was none."""
    if found is None:
        return ""
    return _pairs(found) if found["allocate"] == "pairs" else _optimised(found)


def _pairs(found: Mapping[str, Any]) -> RenderableType:
    candidates, proxy = found["candidates"], found["proxy"]
    order = sorted(range(len(candidates)), key=lambda i: (i != found["chosen"], *_rank(candidates[i], proxy), i))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title in ("distance", "norm", "rate", "by distance", "divergence", "repaired", "NASWOT"):
        table.add_column(title, justify="right", no_wrap=True)
    for i in order[:_SHOWN]:
        c = candidates[i]
        numbers = [f"{c['distance']:.3g}", f"{c['norm']:.3g}", f"{c['rate']:.3g}", f"{100 * c['by_distance']:.0f} %"]
        table.add_row(*numbers, *(_number(c[n]) for n in ("kl", "repaired", "naswot")))
    more = [f"{_SHOWN} of {len(candidates)}; --json has all."] if len(candidates) > _SHOWN else []
    return Group(_told(found), table, *more)


def _told(found: Mapping[str, Any]) -> str:
    lead = f"Pairs of thresholds for distance and norm: {len(found['candidates'])}"
    if found["proxy"] == "none":
        return f"{lead}, not compared; the first below, from the middle, was taken."
    told = f"{lead}, ranked by {_BY[found['proxy']]}; the first below was taken."
    if len({c["rate"] for c in found["candidates"]}) > 1:
        told += " Rate: the share that streams which several layers write may lose."
    if found["proxy"] == "kl":
        told += f" Divergence: after a quick refit, and, of the best, after a {found['repair']} repair, on all inputs."
    return told


def _rank(candidate: Mapping[str, Any], proxy: str) -> tuple[float, float]:
    """Smaller comes first: what was repaired, then the rest."""
    if proxy == "naswot":
        return 0.0, -(candidate["naswot"] or 0.0)
    repaired, kl = candidate["repaired"], candidate["kl"]
    return (0.0, float(repaired)) if repaired is not None else (1.0, float(kl or 0.0))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _optimised(found: Mapping[str, Any]) -> str:
    groups = found["groups"]
    better = sum(g["after"] < g["before"] for g in groups)
    taken = "taken" if found["chosen"] == "optimised" else "not taken, the criterion's choice was"
    return (
        f"{found['optimiser'].capitalize()} chose again among the small filters of {len(groups)} groups and found a "
        f"smaller refit error in {better}. Divergence after a {found['repair']} repair, on all inputs: "
        f"{found['plain']:.3g} by the criterion alone, {found['optimised']:.3g} optimised: {taken}."
    )
