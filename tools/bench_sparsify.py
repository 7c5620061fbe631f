"""Masks that an optimiser finds beside magnitude alone, at equal sparsity: top-1 after `sparsify`.

python tools/bench_sparsify.py MODEL CALIB LABELLED [--sparsity 0.8,0.9,0.95] [--recover auto,none]
    [--optimiser evolution,annealing,economics] [--budget 300] [--seed 0] [--journal FILE]

MODEL has one input; CALIB: .npz of unlabelled inputs; LABELLED: .npz of inputs and `labels` to measure on. Prints a
table row per setting as it is measured; with --journal, finished rows are kept there and not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import onnxprune

HEAD = "| zeros | refit | masks | candidates | mean layer error | KL, held out | top-1 | gzip bytes | CPU seconds |"


def top1(model: onnx.ModelProto, path: Path, batch: int = 250) -> float:
    """Percent of labelled inputs that get their label."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    with np.load(path) as data:
        inputs, labels = data[name], data["labels"]
    parts = (session.run(None, {name: inputs[i : i + batch]})[0] for i in range(0, len(inputs), batch))
    return float(100 * np.mean(np.concatenate(list(parts)).argmax(1) == labels))


def measured(given: argparse.Namespace, sparsity: str, recover: str, masks: str) -> dict[str, Any]:
    """One row; masks: an optimiser, or "magnitude"."""
    start = time.process_time()
    evolves = masks != "magnitude"
    result = onnxprune.sparsify(
        given.model,
        sparsity=float(sparsity),
        recover=recover,
        method="evolve" if evolves else "magnitude",
        optimiser=masks if evolves else None,
        budget=given.budget if evolves else None,
        data=given.calib,
        seed=given.seed,
    )
    seconds, found = time.process_time() - start, result.report.masked
    agreement = found.evolved if evolves else found.magnitude
    assert agreement is not None
    return {
        "zeros": result.report.sparsity,
        "candidates": found.budget,
        "error": found.errors()["evolved" if evolves else "magnitude"],
        "kl": agreement.divergence,
        "shipped": found.shipped,
        "top1": top1(result.model, given.labelled),
        "gzip": result.report.gzip[1],
        "seconds": seconds,
    }


def line(recover: str, masks: str, row: dict[str, Any]) -> str:
    """The row as Markdown."""
    name = masks if masks == "magnitude" or row["shipped"] == "evolved" else f"{masks} (magnitude was written)"
    figures = f"{row['candidates'] or '-'} | {row['error']:.3f} | {row['kl']:.2f} | {row['top1']:.2f}"
    refit = "no" if recover == "none" else "yes"
    return f"| {row['zeros']:.3f} | {refit} | {name} | {figures} | {row['gzip']} | {row['seconds']:.0f} |"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("calib", type=Path)
    parser.add_argument("labelled", type=Path)
    parser.add_argument("--sparsity", default="0.8,0.9,0.95")
    parser.add_argument("--recover", default="auto,none")
    parser.add_argument("--optimiser", default="evolution,annealing,economics")
    parser.add_argument("--budget", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--journal", type=Path)
    given = parser.parse_args(arguments)
    lines = given.journal.read_text(encoding="utf-8").splitlines() if given.journal and given.journal.exists() else []
    known: dict[str, Any] = dict(json.loads(x) for x in lines)
    print(f"original: top-1 {top1(onnx.load(given.model), given.labelled):.2f}\n\n{HEAD}\n{'|--' * 9}|", flush=True)
    masks = ["magnitude", *given.optimiser.split(",")]
    for setting in itertools.product(given.sparsity.split(","), given.recover.split(","), masks):
        key = " ".join([given.model.name, *setting, str(given.budget), str(given.seed)])
        row = known.get(key) or measured(given, *setting)
        if given.journal and key not in known:
            with given.journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, row]) + "\n")
        print(line(*setting[1:], row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
