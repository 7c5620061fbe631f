"""Run the product on a zoo of exported models and write the table tools/results/zoo.md (and .jsonl, the journal).

Usage: python tools/zoo.py FOLDER [FOLDER ...] [--only PATTERN] [--again]     (exports: tools/zoo_export.py)

Each model is compressed in a process of its own at `--flops 0.5 --align 1`, `--flops 0.5 --align 8`, `--flops 0.2
--best-effort --align 1` and, where there are inexact classes, `--flops 0.5 --inexact --best-effort --align 1`. The
journal makes a run resumable: what it holds is not run again without --again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
RUNS: dict[str, dict[str, Any]] = {
    "0.5": {"flops": 0.5, "align": 1},
    "0.5/8": {"flops": 0.5, "align": 8},
    "0.2": {"flops": 0.2, "align": 1, "best_effort": True},
    "inexact": {"flops": 0.5, "align": 1, "best_effort": True, "inexact": True},
}
LIMIT = 1200  # seconds per model


def one(path: str) -> dict[str, Any]:
    """Compress one model in every way; runs in the child."""
    from onnxprune import analyze, compress

    start = time.perf_counter()
    analysis = analyze(path)
    row: dict[str, Any] = {
        "seconds_analyze": time.perf_counter() - start,
        "nodes": len(analysis.model.graph.nodes),
        "classes": analysis.classes,
        "inexact": int(analysis.inexact.sum()),
        "largest": analysis.largest,
        "frozen_share": analysis.frozen_share,
        "frozen": sum(f.positions for f in analysis.frozen),
        "reasons": _reasons(analysis),
        "runs": {},
    }
    del analysis
    for name, options in RUNS.items():
        if name == "inexact" and not row["inexact"]:
            continue
        try:
            report = compress(path, recover="none", **options).report
            row["macs"] = report.original.macs
            row["runs"][name] = {
                "kept": report.compressed.macs / max(report.original.macs, 1),
                "reachable": report.reachable,
                "error": report.verification.relative_error,
                "differs": report.verification.masked_differs,
                "seconds": sum(report.seconds.values()),
                "note": report.note,
            }
        except Exception as e:  # noqa: BLE001 - the table must show what failed, whatever it is
            row["runs"][name] = {"failed": f"{type(e).__name__}: {e}"[:300]}
    return row


def _reasons(analysis: Any) -> list[list[Any]]:
    from onnxprune.api import frozen_summary

    return [list(x) for x in frozen_summary(analysis)][:4]


def run(files: Iterable[Path], journal: Path, again: bool) -> None:
    """Run what the journal does not hold yet, one child process per model."""
    done = set() if again else {r["file"] for r in rows(journal)}
    for file in files:
        if file.name in done:
            continue
        row: dict[str, Any] = {"file": file.name}
        try:
            child = subprocess.run(
                [sys.executable, __file__, "--one", str(file)],
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=False,
            )
            row |= (
                json.loads(child.stdout)
                if child.returncode == 0
                else {"failed": child.stderr.strip()[-300:] or f"exit {child.returncode}"}
            )
        except subprocess.TimeoutExpired:
            row["failed"] = f"more than {LIMIT} s"
        with journal.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        print(line(row), flush=True)


def rows(journal: Path) -> list[dict[str, Any]]:
    """The journal, the latest row of each file."""
    if not journal.exists():
        return []
    found = (json.loads(text) for text in journal.read_text(encoding="utf-8").splitlines())
    return list({r["file"]: r for r in found}.values())


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    if "failed" in row:
        return f"| {row['file']} | FAILED: {row['failed']} |"
    cells = [_cell(row["runs"].get(name)) for name in RUNS]
    good = [r for r in row["runs"].values() if "failed" not in r]
    reachable = f"{row['runs']['0.2']['reachable']:.3f}" if "reachable" in row["runs"]["0.2"] else "-"
    error = f"{max((r['error'] for r in good), default=float('nan')):.1e}"
    differs = "" if all(r["differs"] for r in good) else " (vacuous)"
    reasons = "; ".join(f"{n} {why}" for n, why in row["reasons"])
    seconds = f"{row['seconds_analyze']:.2f} / {max((r['seconds'] for r in good), default=0):.1f}"
    shares = (
        f"{row['classes']} | {row['largest']} | {row['inexact']} | {row['frozen']} ({100 * row['frozen_share']:.1f} %)"
    )
    macs = f"{row.get('macs', 0) / 1e6:.1f}"
    kept = " | ".join([macs, *cells, reachable])
    return f"| {row['file']} | {kept} | {error}{differs} | {shares} | {reasons} | {seconds} |"


def _cell(run: dict[str, Any] | None) -> str:
    if run is None:
        return "-"
    return f"FAILED {run['failed'][:80]}" if "failed" in run else f"{run['kept']:.4f}"


def published(folders: Iterable[Path]) -> dict[str, float]:
    """Multiply-accumulates in units of 1e9 that torchvision publishes, by file, from the manifests of the exports."""
    out: dict[str, float] = {}
    for manifest in (d / "manifest.json" for d in folders):
        if manifest.exists():
            records = json.loads(manifest.read_text(encoding="utf-8"))
            listed = records.values() if isinstance(records, dict) else records
            out |= {r["file"]: r["published_gmacs"] for r in listed if r.get("published_gmacs") and r.get("file")}
    return out


def summary(found: list[dict[str, Any]], figures: dict[str, float]) -> list[str]:
    """What the table shows, in a few lines."""
    runs = [(r["file"], name, x) for r in found if "runs" in r for name, x in r["runs"].items()]
    good = [(file, name, x) for file, name, x in runs if "failed" not in x]
    half = [x for _, name, x in good if name in ("0.5", "0.5/8")]
    reached = sum(0.49 < x["kept"] <= 0.5 for x in half)
    counted = {r["file"]: r["macs"] / 1e9 for r in found if "macs" in r}
    near = {f: abs(counted[f] - v) <= 6e-4 for f, v in figures.items() if f in counted}
    return [
        f"- `--flops 0.5`: {reached} of {len(half)} results keep (0.49, 0.50] of the MACs.",
        f"- Largest error of the masking oracle over {len(good)} cuts: {max(x['error'] for *_, x in good):.1e};"
        f" cuts whose masked original does not differ from the original: {sum(not x['differs'] for *_, x in good)}"
        " (those that had to remove nothing).",
        f"- MACs equal torchvision's published figure, to its rounding, in {sum(near.values())} of {len(near)} exports;"
        f" not in: {', '.join(f for f, equal in near.items() if not equal) or 'none'}.",
        "- Failures: " + ("; ".join(f"{f} ({name}): {x['failed']}" for f, name, x in runs if "failed" in x) or "none"),
        "",
    ]


def write(journal: Path, table: Path, figures: dict[str, float]) -> None:
    """The table from the journal."""
    found = sorted(rows(journal), key=lambda r: r["file"])
    bad = [r for r in found if "failed" in r or any("failed" in x for x in r["runs"].values())]
    head = [
        "# The zoo",
        "",
        f"{len(found)} exported models, {len(found) - len(bad)} without a failure. Written by",
        "`python tools/zoo.py FOLDER`; exports by `tools/zoo_export.py` (random weights, randomised normalisations),",
        "and the trained models at hand. Kept: share of the MACs. Reachable: the smallest share at floors of 10 %.",
        "Error: masking oracle, largest of the runs, relative. Largest: filters in the largest class. Seconds:",
        "analysis alone / slowest compression, process start excluded.",
        "",
        *summary(found, figures),
        "| model | MMACs | 0.5 | 0.5, align 8 | 0.2 best effort | 0.5 inexact | reachable | error | classes | largest"
        " | inexact | frozen filters | why frozen | seconds |",
        "|--|--|--|--|--|--|--|--|--|--|--|--|--|--|",
    ]
    table.write_text("\n".join(head + [line(r) for r in found]) + "\n", encoding="utf-8")


def main() -> int:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--only", default="*")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one)))
        return 0
    RESULTS.mkdir(exist_ok=True)
    files = sorted(
        (f for d in args.folders for f in d.glob("*.onnx") if fnmatch(f.name, args.only)),
        key=lambda f: f.stat().st_size,
    )
    run(files, RESULTS / "zoo.jsonl", args.again)
    write(RESULTS / "zoo.jsonl", RESULTS / "zoo.md", published(args.folders))
    return 0


if __name__ == "__main__":
    sys.exit(main())
