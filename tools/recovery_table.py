"""The tables of tools/bench_recovery.py as Markdown, from its journal."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from recovery_grid import DEFAULT, DEPTH, FEW, NETWORKS, RESNET20, RESNET56, Network, accuracy_rows

Lines = dict[str, dict[str, Any]]  # the journal: line by key
RESAMPLES = 10_000
HEAD = """# Recovery without training

Top-1 accuracy in percent after one cut, without training and without labels, by the share of the MACs that is kept.
Written by `python tools/bench_recovery.py MODELS DATA --peer PYTHON`; every line of the journal beside it has its
options, seed, seconds per stage, commit and machine. Inner channels: only those within the residual blocks leave.
Seed 0, which also draws the calibration inputs; random selection, but on ResNet-56, and the default on ResNet-20: mean
of the seeds 0, 1, 2, and their range. A share is given where it is not within 2 % below the target. Seconds: the whole
compression at 0.5, recovery included, on a machine with other work on it, an older one for rows without `joint` and
without `greedy`; scoring on the test set is not.
""".splitlines()
SPEED = ("network", "layers", "MMACs", "allocation", "images", "seconds", "per image, GMAC", "stages over 2 %",
         "peak MB", "of it no files", "kept", "runs")  # fmt: skip


def write(found: Lines, path: Path) -> None:
    """Write the tables."""
    lines = [*head(found)]
    for network in NETWORKS:
        lines += accuracy(network, [r for r in found.values() if r["network"] == network.name and r["kind"] != "speed"])
    lines += speed([r for r in found.values() if r["kind"] == "speed"])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def head(found: Lines) -> Iterator[str]:
    """What was measured, where."""
    yield from (*HEAD, "", *provenance(found))


def provenance(found: Lines) -> Iterator[str]:
    """Machines, versions, commits."""
    machines = {
        f"{r['machine']['cpu']}, {r['machine']['threads']} of {r['machine']['cores']} cores" for r in found.values()
    }
    versions = {", ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in found.values()}
    peers = {r["result"]["version"] for r in found.values() if "version" in r["result"]}
    yield f"Machine: {'; '.join(sorted(machines))}. Versions: {'; '.join(sorted(versions | peers))}."
    yield f"Commits: {', '.join(sorted({r['commit'] for r in found.values()}))}."
    yield ""


# ---- accuracy --------------------------------------------------------------------------------------------------------


def accuracy(network: Network, found: list[dict[str, Any]]) -> Iterator[str]:
    """The table of one network."""
    if not any(r["kind"] != "original" for r in found):
        return
    whole = next((r["result"] for r in found if r["kind"] == "original" and "correct" in r["result"]), None)
    rows = [r for r in found if r["kind"] in ("compress", "peer")]
    keeps = sorted({r["keep"] for r in rows}, reverse=True)
    yield f"## {network.name}"
    yield ""
    if whole:
        yield f"Original: {percent(whole):.2f} on {whole['n']:,} test inputs; {network.images} calibration inputs."
    yield (
        "In brackets: difference to the original in points, with its 95 % interval (bootstrap over paired inputs)."
        if network.paired
        else "± is the standard error. CIFAR-10, JPEG q75."
    )
    yield ""
    yield f"| | {' | '.join(f'{k:g}' for k in keeps)} | seconds |"
    yield "|--" * (len(keeps) + 2) + "|"
    for label in sorted_labels(rows):
        cells = [[r for r in rows if r["label"] == label and r["keep"] == k] for k in keeps]
        texts = [title(label, rows), *(cell(c, network.paired) for c in cells), seconds(rows, label)]
        yield f"| {' | '.join(texts)} |"
    yield ""


def title(label: str, rows: Iterable[dict[str, Any]]) -> str:
    """The label; defaults say what they were."""
    results = [r["result"] for r in rows if r["label"] == label and "settings" in r["result"]]
    if not (results and label.endswith(DEFAULT)):
        return label
    chosen = results[-1]
    names = [chosen["settings"].get("method"), chosen["settings"].get("allocate")]
    names.append(chosen.get("recovery", {}).get("method"))
    return f"**{label}: {', '.join(n for n in names if n)}**"


def sorted_labels(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Labels in the order of the grid: peers first, as the baselines that they are."""
    labels = list(dict.fromkeys(r["label"] for r in rows))
    order = [r.label for r in sorted(accuracy_rows(), key=lambda r: r.kind != "peer")]
    return sorted(labels, key=lambda x: (order.index(x) if x in order else len(order), x))


def cell(rows: list[dict[str, Any]], paired: bool) -> str:
    """One result, or the mean and range over seeds."""
    good = [r for r in rows if "correct" in r["result"]]
    if not good:
        return f"failed: {rows[0]['result']['failed'][:60]}" if rows else ""
    values = [percent(r["result"]) for r in good]
    text = f"{statistics.fmean(values):.1f}"
    if len(values) > 1:
        text += f" [{min(values):.1f}, {max(values):.1f}]"
    else:
        text += f" ({interval(good[0]['result'])})" if paired else f" ±{error(good[0]['result']):.1f}"
    kept = statistics.fmean(r["result"]["kept"] for r in good)
    target = good[0]["keep"]
    return text if 0.98 * target < kept <= target + 5e-4 else f"{text} (at {kept:.3f})"


def percent(result: dict[str, Any]) -> float:
    """Correct, in percent."""
    return 100 * float(result["correct"]) / float(result["n"])


def error(result: dict[str, Any]) -> float:
    """Standard error of a proportion, in points."""
    p = float(result["correct"]) / float(result["n"])
    return 100 * float((p * (1 - p) / result["n"]) ** 0.5)


def interval(result: dict[str, Any]) -> str:
    """Difference to the original in points and its 95 % interval: percentiles of resampled pairs of outcomes."""
    import numpy as np

    n, won, lost = (int(result[k]) for k in ("n", "won", "lost"))
    pairs = np.random.default_rng(0).multinomial(n, [won / n, lost / n, 1 - (won + lost) / n], RESAMPLES)
    low, high = np.percentile(100 * (pairs[:, 0] - pairs[:, 1]) / n, [2.5, 97.5])
    return f"{100 * (won - lost) / n:+.1f}: {low:+.1f} to {high:+.1f}"


def seconds(rows: list[dict[str, Any]], label: str) -> str:
    """Seconds of the compression at 0.5, mean over seeds."""
    found = [r["result"] for r in rows if r["label"] == label and r["keep"] == 0.5 and "correct" in r["result"]]
    totals = [r["total"] if "total" in r else sum(r["seconds"].values()) for r in found]
    return f"{statistics.fmean(totals):.1f}" if totals else ""


# ---- speed -----------------------------------------------------------------------------------------------------------


def speed(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Seconds, stages and memory, then growth with images and with depth."""
    if not rows:
        return
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for r in rows:
        groups.setdefault((r["network"], r["label"], r["images"]), []).append(r)
    small = (RESNET20, RESNET56)
    main = {k: v for k, v in groups.items() if k[2] == (512 if k[0] in small else 256)}
    yield from table("Speed and memory at 0.5", main)
    images = {k: v for k, v in groups.items() if k[0] in small}
    yield from table("Growth with images", images)
    depth = {k: v for k, v in groups.items() if k[1] == "global" and k[2] == (512 if k[0] in small else FEW)}
    yield from table("Growth with depth", {k: v for k, v in depth.items() if k[0] in (*small, *DEPTH)})


def table(title: str, groups: dict[tuple[str, str, int], list[dict[str, Any]]]) -> Iterator[str]:
    """One table, a row per network, allocation and number of images; medians over the repeats."""
    if not groups:
        return
    yield f"## {title}"
    yield ""
    yield f"| {' | '.join(SPEED)} |"
    yield "|--" * len(SPEED) + "|"
    for (network, label, images), rows in groups.items():
        good = [r["result"] for r in rows if "total" in r["result"]]
        if not good:
            yield f"| {network} | | | {label} | {images} | failed: {rows[0]['result']['failed'][:80]} | | | | | | |"
            continue
        middle = sorted(good, key=lambda r: float(r["total"]))[len(good) // 2]
        total, macs = float(middle["total"]), float(middle["macs"])
        stages = ", ".join(f"{k} {v:.1f}" for k, v in middle["seconds"].items() if v > 0.02 * total)
        size = f"{network} | {middle['layers']} | {macs / 1e6:.0f}"
        rate = f"{total:.1f} | {total / images / (macs / 1e9):.3f}"
        known = [r["anonymous_mb"] for r in good if "anonymous_mb" in r]
        peaks = f"{max(r['peak_mb'] for r in good):.0f} | {f'{max(known):.0f}' if known else '-'}"
        end = f"{peaks} | {middle['kept']:.3f} | {len(good)}"
        yield f"| {size} | {label} | {images} | {rate} | {stages} | {end} |"
    yield ""
