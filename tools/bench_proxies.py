"""How well proxies rank networks of equal cost: Kendall's tau with the accuracy after repair, over 24 candidates.

Usage: python tools/bench_proxies.py MODELS DATA [--model cifar10_resnet20_jpegft] [--keep 0.35] [--threads N]

Candidates: pairs of thresholds as in --method hybrid, criteria, and rankings with random weights per group; all keep
the same share of the MACs and are repaired by least squares on the same 512 unlabelled inputs. The proxies see
calibration inputs only; the test set is for the accuracy alone. Appends to tools/results/proxies.jsonl and writes
proxies.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_recovery as bench
import numpy as np
import recovery_row
from scipy.stats import kendalltau

JOURNAL, TABLE = bench.TOOLS / "results" / "proxies.jsonl", bench.TOOLS / "results" / "proxies.md"
COUNT = 24
# Whether larger is better, by name.
PROXIES = {
    "kl after a quick refit": -1,
    "kl after least squares, all calibration inputs": -1,
    "kl after least squares, held-out inputs": -1,
    "naswot of the cut": 1,
    "naswot after least squares": 1,
}
HEAD = """# Proxies of the accuracy

Kendall's tau of each proxy with the accuracy on the test set (1: the same order, 0: none), over 24 networks of equal
MACs, repaired by least squares; and the accuracy of the network that each proxy would take, beside the best and the
worst of them. Written by `python tools/bench_proxies.py MODELS DATA --model NAME --keep SHARE`.
""".splitlines()


def candidates(analysis: Any, study: Any, decide: Any) -> Iterator[tuple[str, Any]]:
    """Names and choices, [classes + 1] bool, all different."""
    from onnxprune import criteria
    from onnxprune.criteria.norms import per_group
    from onnxprune.searching.pairs import pairs, relative_norms

    for pair in pairs(analysis, criteria.score("cluster", analysis), lambda s: decide(s, False), 10):
        yield f"hybrid, distance {pair.distance:.3g}", pair.choice.kept
    found = study.readers_of_original()
    scores = {name: study.scores(name, found) for name in ("group_norm", "activation", "obs")}
    for name, values in scores.items():
        yield name, decide(values, True).kept
        yield f"{name}, uniform", decide(criteria.uniform(analysis, values), False).kept
    yield "diversity", decide(criteria.score("diversity", analysis), False).kept
    rng = np.random.default_rng(0)
    norms, energy = relative_norms(analysis), per_group(analysis, scores["activation"])
    for number in range(COUNT):
        weights = np.exp(rng.normal(0, 0.7, len(analysis.groups) + 1))[analysis.group]
        yield f"random weights {number}", decide((norms, energy)[number % 2] * weights, False).kept


def numbers(study: Any, quick: Any, kept: Any, paths: dict[str, str], threads: int) -> dict[str, float]:
    """The proxies of one choice, and its accuracy."""
    import onnx

    from onnxprune.cut import cut
    from onnxprune.normalize.describe import export
    from onnxprune.recover.agreement import divergence
    from onnxprune.recover.program import program, write_back
    from onnxprune.searching.naswot import naswot

    original, smaller = study.reference.outputs, cut(study.analysis, kept)
    done = study.repaired(kept, "least-squares")
    held = divergence(study.held_of(original), study.held_of(done.outputs))
    raw, repaired = (naswot(p, study.reference.batches) for p in (program(smaller), done.program))
    write_back(done.program, smaller)
    onnx.save(export(smaller), paths["out"])
    test = np.load(paths["test"])
    right = recovery_row.predictions(paths["out"], test, threads) == test["labels"]
    values = (quick.divergence(kept), divergence(original, done.outputs), held, raw, repaired)
    return dict(zip(PROXIES, map(float, values), strict=True)) | {"accuracy": float(right.mean())}


def measure(args: argparse.Namespace, scratch: str) -> dict[str, Any]:
    """All candidates of one network at one share."""
    from onnxprune import analyze
    from onnxprune.budget import Budget
    from onnxprune.calibration import calibration
    from onnxprune.recovery import Study
    from onnxprune.searching.quick import Quick
    from onnxprune.settings import Options

    start = time.perf_counter()
    model, data = args.models / f"{args.model}.onnx", args.data / "cifar10_calib.npz"
    analysis = analyze(model)
    budget = Budget(analysis, Options(flops=args.keep, data=data, align=1))
    study = Study(analysis, calibration(analysis, data, size=512, seed=0))
    quick, rows = Quick(study, study.readers_of_original()), dict[bytes, dict[str, Any]]()
    paths = {"out": f"{scratch}/cut.onnx", "test": str(args.data / "cifar10_test.npz")}
    for name, kept in candidates(analysis, study, lambda s, g: budget.decide(s, g, args.keep)):
        if len(rows) < COUNT and kept.tobytes() not in rows:
            rows[kept.tobytes()] = {"candidate": name} | numbers(study, quick, kept, paths, args.threads)
            print(json.dumps(bench.rounded(rows[kept.tobytes()])), flush=True)
    spent = {"seconds": time.perf_counter() - start, "candidates": list(rows.values())}
    return {"model": args.model, "keep": args.keep} | spent | bench.provenance(args.threads)


def table(found: dict[str, Any]) -> Iterator[str]:
    """One section of the page."""
    rows = found["candidates"]
    accuracy = np.array([r["accuracy"] for r in rows])
    yield f"## {found['model']} at {found['keep']:g} of the MACs"
    yield ""
    best, worst = 100 * accuracy.max(), 100 * accuracy.min()
    spent = f"{found['seconds']:.0f} s, commit {found['commit']}"
    yield f"{len(rows)} networks, accuracy {worst:.1f} to {best:.1f} %; {spent}."
    yield ""
    yield "| proxy | tau | would take |"
    yield "|--|--|--|"
    for name, sign in PROXIES.items():
        values = sign * np.array([r[name] for r in rows])
        tau = kendalltau(values, accuracy)[0]
        yield f"| {name} | {tau:+.2f} | {100 * accuracy[int(np.argmax(values))]:.1f} |"
    yield ""


def main() -> int:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="cifar10_resnet20_jpegft")
    parser.add_argument("--keep", type=float, default=0.35)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    recovery_row.restrict(args.threads)
    with tempfile.TemporaryDirectory() as scratch, JOURNAL.open("a", encoding="utf-8") as out:
        out.write(json.dumps(bench.rounded(measure(args, scratch))) + "\n")
    lines = (json.loads(line) for line in JOURNAL.read_text(encoding="utf-8").splitlines())
    latest = {(x["model"], x["keep"]): x for x in lines}
    TABLE.write_text("\n".join([*HEAD, "", *(t for x in latest.values() for t in table(x))]) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
