"""The tables of tools/bench_peers.py as Markdown, from its journal and that of tools/bench_recovery.py."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peers_judge import SAME, WINDOW
from recovery_grid import DEFAULT, PEERS
from recovery_table import Lines, cell, provenance
from zoo_list import architectures

Result = dict[str, Any]
TOOLS = ("onnxprune", "torch-pruning", "onnxsim", "torch-kirigami")
BARE = tuple(label for label, flags in PEERS.items() if "--bn" not in flags)
ESTIMATED = tuple(label for label, flags in PEERS.items() if "--bn" in flags)
COLUMNS: dict[str, tuple[str, ...]] = {  # labels of the journals
    "Torch-Pruning": BARE,
    "onnxsim": ("onnxsim",),
    "onnxprune, cut only (l2)": ("cut only: l2, uniform",),
    "the same, inner channels": ("cut only: l2, uniform, inner channels",),
    "onnxprune, no data": (f"no data, {DEFAULT}",),
    "Torch-Pruning, BN re-estimated with data": ESTIMATED,
    "onnxprune, with data": (DEFAULT,),
}
HEAD = f"""# Beside the peers

Written by `python tools/bench_peers.py ZOO MODELS DATA WORK --peer torch-pruning=PYTHON --peer onnxsim=PYTHON
--peer torch-kirigami=PYTHON`; the journal beside it has settings, seconds, memory, load and commit of every row. The
networks are the first 40 of tools/zoo_list.py, random weights, traced exports; every tool prunes to half of the MACs in
its own way. onnxprune and onnxsim are given the ONNX file, the others the torch module, which is then exported.

One judge for all files: onnx.checker; runs in onnxruntime; output shapes of the original; finite; MACs as onnxprune
counts them within {WINDOW[0]} to {WINDOW[1]}. Equal: the outputs are those of the original in which the weights that
left are zero, to {SAME:g} of the largest output; which weights left is read off the two files. Where a normalisation
looks at the channels that leave (LayerNorm), no cut equals its masked original, and nothing is stated. Batch of 1:
onnxsim found enough to remove only after the input was made static.
""".splitlines()
COST = """
CPU seconds of one pruning step at the ratio that was taken and of writing the file; in brackets those of the search for
that ratio, which onnxprune does not need. onnxsim's include simplifying, onnxprune's reading, normalising and verifying
against a masked original of its own. MB: peak resident memory of the process, with its libraries.
""".strip().splitlines()


def write(found: Lines, recovery: Lines, path: Path) -> None:
    """Write the tables."""
    lines = [*HEAD, "", *(provenance(found) if found else ())]
    pruned = {(r["network"], r["label"]): r["result"] for r in found.values() if r["kind"] == "prune"}
    for part in (summary(pruned), files(pruned), costs(pruned), accuracy(found, recovery), latency(found)):
        lines += part
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def table(title: str, columns: Sequence[str], body: Sequence[Sequence[str]], note: Sequence[str] = ()) -> list[str]:
    """A section with a table; nothing without rows."""
    if not body:
        return []
    rule = ["--", *["--:"] * (len(columns) - 1)]
    above = [*note, ""] if note else []
    return [f"## {title}", "", *above, *(f"| {' | '.join(r)} |" for r in (columns, rule, *body)), ""]


# ---- files -----------------------------------------------------------------------------------------------------------


def valid(r: Result) -> bool:
    """Whether there is a file without a problem."""
    return "failed" not in r and not r["problems"]


def equal(r: Result) -> bool:
    """Whether a valid file computes what its masked original does, which is not what the original does."""
    return valid(r) and r.get("error", 1.0) <= SAME < r.get("masked", 0.0)


def unstated(r: Result) -> bool:
    """Whether nothing can be said of the masked original of a valid file."""
    return valid(r) and "error" not in r


def networks(pruned: dict[tuple[str, str], Result]) -> list[str]:
    """Names in the order of the zoo."""
    order = architectures()
    return sorted({n for n, _ in pruned}, key=lambda n: (order.index(n) if n in order else len(order), n))


def common(pruned: dict[tuple[str, str], Result], tools: Sequence[str]) -> list[str]:
    """Networks of which all these tools gave a valid file."""
    return [n for n in networks(pruned) if all(valid(pruned.get((n, t), {"failed": ""})) for t in tools)]


def summary(pruned: dict[tuple[str, str], Result]) -> list[str]:
    """Tool by tool: how many files are valid and equal; cost on the networks that all could prune."""
    tools = [t for t in TOOLS if any(tool == t for _, tool in pruned)]
    shared = common(pruned, tools[:3])
    body = []
    for tool in tools:
        every = [r for (_, t), r in pruned.items() if t == tool]
        counts = [sum(f(r) for r in every) for f in (valid, equal, unstated)]
        counts.append(counts[0] - counts[1] - counts[2])
        both = [pruned[n, tool] for n in shared if valid(pruned.get((n, tool), {"failed": ""}))]
        body.append(
            [tool, str(len(every)), *map(str, counts), *(_medians(both) if len(both) == len(shared) else _NONE)]
        )
    columns = ("", "run", "valid", "equal", "not stated", "differ", "seconds", "search", "MB")
    names = ", ".join(tools[:3])
    return table(
        "Summary", columns, body, [f"Seconds and MB: medians over the {len(shared)} networks that {names} prune."]
    )


_NONE = ("-", "-", "-")


def _medians(results: Sequence[Result]) -> tuple[str, str, str]:
    if not results:
        return _NONE
    numbers = [(step(r), r["seconds"]["search"], r["peak_mb"]) for r in results]
    seconds, search, peak = (statistics.median(column) for column in zip(*numbers, strict=True))
    return f"{seconds:.2f}", f"{search:.2f}", f"{peak:.0f}"


def step(r: Result) -> float:
    """Seconds of pruning once and writing the file."""
    return float(r["seconds"]["prune"] + r["seconds"]["export"])


def files(pruned: dict[tuple[str, str], Result]) -> list[str]:
    """Network by network: kept share of the MACs, and whether it equals its masked original."""
    body = [[n, *(verdict(pruned.get((n, t))) for t in TOOLS)] for n in networks(pruned)]
    return table("Files", ("kept MACs", *TOOLS), body)


def verdict(r: Result | None) -> str:
    """One file in a few words."""
    if r is None:
        return "not run"
    if "failed" in r:
        return f"failed: {plain(r['failed'])}"
    if r["problems"]:
        return f"invalid: {plain('; '.join(r['problems']))}"
    said = [f"{r['kept']:.3f}"]
    if "error" in r:
        said.append("equal" if equal(r) else f"differs: {r['error']:.1e}")
    if r["settings"].get("inexact"):
        said.append("inexact")
    if "static" in r["settings"].get("form", ""):
        said.append("batch of 1")
    return ", ".join(said)


def plain(text: str) -> str:
    """The start of a message, for a table."""
    short = " ".join(text.replace("|", "/").split())
    return short if len(short) <= 90 else short[:87] + "..."


def costs(pruned: dict[tuple[str, str], Result]) -> list[str]:
    """Network by network: seconds and memory."""
    body = [[n, *(cost(pruned.get((n, t), {"failed": ""})) for t in TOOLS)] for n in networks(pruned)]
    return table("Seconds and memory", ("", *TOOLS), body, COST)


def cost(r: Result) -> str:
    """Seconds, those of the search, memory; of invalid files, too."""
    if "failed" in r:
        return "-"
    search = f" (+{r['seconds']['search']:.1f})" if r["seconds"]["search"] else ""
    return f"{step(r):.1f}{search} s, {r['peak_mb']:.0f} MB"


# ---- accuracy and latency --------------------------------------------------------------------------------------------


def accuracy(found: Lines, recovery: Lines) -> Iterator[str]:
    """Top-1 without training: onnxsim from this journal, the others from that of tools/bench_recovery.py."""
    own = [r for r in found.values() if r["kind"] == "accuracy"]
    places = list(dict.fromkeys((r["network"], r["keep"]) for r in own))
    rows = [r | {"seed": r.get("seed", 0)} for r in (*own, *recovery.values())]
    cells = {}
    for network, keep in places:
        here = [r for r in rows if r["network"] == network and r.get("keep") == keep and r.get("align", 1) == 1]
        cells[network, keep] = {column: best(here, labels) for column, labels in COLUMNS.items()}
    columns = [c for c in COLUMNS if any(row[c] != "-" for row in cells.values())]
    body = [[network, f"{keep:g}", *(row[c] for c in columns)] for (network, keep), row in cells.items()]
    note = (
        "Top-1 in percent; ± is the standard error; in brackets the difference to the original and its 95 % interval,",
        "or the range of several draws of the inputs, of which the mean is given.",
        "Torch-Pruning: the better of one ratio and one ranking, on inner channels (its script rebuilds CIFAR ResNets",
        "only). Columns that say so look at unlabelled images, the others at no data. A share is given where it",
        "is not within 2 % below the target. All but onnxsim: tools/results/recovery.jsonl.",
    )
    yield from table("Accuracy without training", ("", "kept MACs", *columns), body, note)


def best(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> str:
    """The best of these labels, by the mean over its seeds."""
    mine = [r for r in rows if r["label"] in labels and "result" in r]
    good = [r for r in mine if "correct" in r["result"]]
    if not good:
        return cell(mine[:1], False) or "-"
    groups = [[r for r in good if r["label"] == label] for label in {r["label"]: None for r in good}]
    top = max(groups, key=lambda g: statistics.fmean(r["result"]["correct"] / r["result"]["n"] for r in g))
    return cell(top, top[0]["network"] == "mlperf_vww96")


def latency(found: Lines) -> list[str]:
    """Shares of the cleaned original's latency."""
    timed = {(r["network"], r["label"]): r["result"] for r in found.values() if r["kind"] == "latency"}
    body = [[n, *(ratio(timed.get((n, t), {})) for t in TOOLS)] for n in networks(timed)]
    note = (
        "Share of the cleaned original's latency, one thread, median of paired runs, with its 95 % interval. A star:",
        "the original differed from itself by more than 2 %.",
    )
    return table("Latency", ("", *TOOLS), body, note)


def ratio(r: Result) -> str:
    """A ratio with its interval."""
    if "ratio" not in r:
        return plain(r.get("failed", "-"))
    at, star = r["ratio"], "*" if abs(r["noise"]["point"] - 1) > 0.02 else ""
    return f"{at['point']:.3f}{star} ({at['low']:.3f} to {at['high']:.3f})"
