"""The tables of tools/bench_latency.py as Markdown, from its journal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from latency_grid import ALIGNS, CHOICES, INT8, KEEPS, NETWORKS, TARGETS, Row
from recovery_table import Lines, provenance

NOISY = 0.02  # of the original against itself
NEAR = 0.08  # of the share of the MACs: the aim at align 8
HEAD = """# MACs and latency

Shares of the cleaned original's latency, one thread, on random inputs: median of the ratios of interleaved runs, its
95 % interval in the journal. Bare cuts: a repair changes weights, not times. Written by
`python tools/bench_latency.py MODELS ZOO`; the journal beside it has intervals, medians, noise, commit, machine and
load of every row. A star: the original differed from itself by more than 2 % in this row.
""".splitlines()


def write(found: Lines, path: Path) -> None:
    """Write the tables."""
    lines = [*HEAD, "", *(provenance(found) if found else ())]
    for part in (floors, cuts, targets, int8):
        lines += part(found)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def result(found: Lines, row: Row) -> dict[str, Any]:
    """What a row gave; nothing where it was not run."""
    return found.get(row.key, {}).get("result", {})


def table(title: str, columns: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A section with a table; nothing without rows."""
    if not body:
        return []
    rule = ["--", *["--:"] * (len(columns) - 1)]
    return [f"## {title}", "", *(f"| {' | '.join(r)} |" for r in (columns, rule, *body)), ""]


def floors(found: Lines) -> list[str]:
    """The original against itself."""
    every = ((n, result(found, Row("floor", n))) for n in NETWORKS)
    body = [[n, *([r["failed"], "", "", ""] if "failed" in r else _floor(r))] for n, r in every if r]
    return table("The original beside itself", ("network", "median, ms", "ratio", "95 %", "in blocks"), body)


def _floor(r: dict[str, Any]) -> list[str]:
    at = r["ratio"]
    span = f"{at['low']:.3f} to {at['high']:.3f}"
    return [f"{1e3 * r['before']['p50']:.2f}", f"{at['point']:.3f}", span, f"{r['blocked'][0]} of {r['convs'][0]}"]


def cuts(found: Lines) -> Iterator[str]:
    """Latency by kept MACs and alignment."""
    for label in CHOICES:
        body = []
        for network in NETWORKS:
            for keep in KEEPS:
                both = [result(found, Row("cut", network, label, keep, a)) for a in ALIGNS]
                if any(both):
                    body.append([network, f"{keep:g}", *(cell for r in both for cell in _cut(r))])
        names = [f"{what}, align {a}" for a in ALIGNS for what in ("MACs", "latency", "in blocks")]
        yield from table(f"Cuts: {label}", ("network", "kept MACs", *names), body)
        yield from _near(found, label)


def _cut(r: dict[str, Any]) -> tuple[str, str, str]:
    if "ratio" not in r:
        return r.get("failed", "-"), "-", "-"
    star = "*" if abs(r["noise"]["point"] - 1) > NOISY else ""
    return f"{r['kept']:.3f}", f"{r['ratio']['point']:.3f}{star}", f"{r['blocked'][1]} of {r['convs'][1]}"


def _near(found: Lines, label: str) -> Iterator[str]:
    """How many networks follow their MACs at the last alignment, and which do not."""
    held = {(n, k): result(found, Row("cut", n, label, k, ALIGNS[-1])) for n in NETWORKS for k in KEEPS}
    apart = {place: r["ratio"]["point"] - r["kept"] for place, r in held.items() if "ratio" in r}
    if apart:
        far = ", ".join(f"{n} at {k:g} ({d:+.2f})" for (n, k), d in apart.items() if abs(d) > NEAR)
        count = sum(abs(d) <= NEAR for d in apart.values())
        told = f"{count} of {len(apart)} latencies are within {NEAR} of the MACs; not: {far or '-'}."
        yield from (f"At align {ALIGNS[-1]}, {told}", "")


def targets(found: Lines) -> list[str]:
    """Latency as the target: as measured on the way, and once more."""
    body = []
    for network in TARGETS:
        r = result(found, Row("target", network, "group_norm, global", 0.5))
        if "failed" in r:
            body.append([network, r["failed"], "", "", "", "", ""])
        elif r:
            told = r["latency"]
            numbers = (told["predicted"], told["measured"]["ratio"]["point"], r["ratio"]["point"], r["kept"])
            first = told["iterations"][0]
            said = f"{first['predicted']:.3f} -> {first['measured']:.3f}"
            count = [str(len(told["iterations"])), f"{r['wall']:.0f}"]
            body.append([network, said, *(f"{x:.3f}" for x in numbers), *count])
    columns = ("network", "first prediction", "predicted", "measured", "again", "MACs", "measurements", "seconds")
    return table("`--latency 0.5`", columns, body)


def int8(found: Lines) -> list[str]:
    """The four corners."""
    body = []
    for network in INT8:
        r = result(found, Row("int8", network, "group_norm, global", 0.5, 8))
        if "failed" in r:
            body.append([network, r["failed"], "", "", ""])
        for c in r.get("corners", ()):
            speed = f"{c['speedup']['point']:.2f}" if c["speedup"] else "1"
            body.append([network, c["model"], f"{1e3 * c['median']:.2f}", speed, f"{c['bytes'] / 1e6:.2f}"])
    return table("int8", ("network", "model", "median, ms", "times as fast", "MB"), body)
