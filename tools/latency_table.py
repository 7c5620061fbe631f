"""The tables of tools/bench_latency.py as Markdown, from its journal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from latency_grid import ALIGNS, CHOICES, INT8, NETWORKS, TARGETS, Row, cut_rows
from recovery_table import Lines, provenance

NOISY = 0.02  # of the original against itself
NEAR = 0.08  # of the share of the MACs: the aim
HEAD = """# MACs and latency

Shares of the cleaned original's latency, one thread, on random inputs: median of the ratios of interleaved runs, its
95 % interval in the journal. Bare cuts: a repair changes weights, not times. Written by
`python tools/bench_latency.py MODELS ZOO`; the journal beside it has intervals, medians, noise, commit, machine and
load of every row. A star: the original differed from itself by more than 2 % in this row. MACs in whole blocks: of
the convolutions, if every width from a block on (16 channels with AVX-512) is rounded up to whole blocks, as the
kernels work.
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
        every = [(row, result(found, row)) for row in cut_rows(label)]
        body = [[row.network, f"{row.keep:g}", str(row.align), *_cut(r)] for row, r in every if r]
        columns = ("network", "goal", "align", "MACs", "MACs in whole blocks", "latency", "convolutions in blocks")
        yield from table(f"Cuts: {label}", columns, body)
        timed = [(row, r) for row, r in every if "ratio" in r]
        for align in ALIGNS[1:] if timed else ():
            chosen = [(row, r) for row, r in timed if row.align == align]
            yield from (_near(chosen, align, "kept", "MACs"), "", _near(chosen, align, "blocks", "MACs in blocks"), "")


def _cut(r: dict[str, Any]) -> tuple[str, str, str, str]:
    if "ratio" not in r:
        return r.get("failed", "-"), "-", "-", "-"
    star = "*" if abs(r["noise"]["point"] - 1) > NOISY else ""
    latency = f"{r['ratio']['point']:.3f}{star}"
    return f"{r['kept']:.3f}", f"{r['blocks']:.3f}", latency, f"{r['blocked'][1]} of {r['convs'][1]}"


def _near(chosen: Sequence[tuple[Row, dict[str, Any]]], align: int, key: str, what: str) -> str:
    """How many latencies are near a share, and which are not."""
    apart = [(row, r["ratio"]["point"] - r[key]) for row, r in chosen]
    far = ", ".join(f"{row.network} at {row.keep:g} ({d:+.2f})" for row, d in apart if abs(d) > NEAR)
    near = sum(abs(d) <= NEAR for _, d in apart)
    return f"Align {align}: {near} of {len(apart)} latencies are within {NEAR} of the {what}; not: {far or '-'}."


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
