"""MACs against latency: cuts beside their originals; writes tools/results/latency.md and .jsonl.

Usage: python tools/bench_latency.py MODELS ZOO [--only PATTERN] [--again | --failed] [--seconds S] [--list]

MODELS holds the trained networks, ZOO exports of tools/zoo_export.py. A row is one child process on one CPU, on random
inputs; nothing is repaired, since weights do not change the time. The journal makes a run resumable: what it holds,
failures included, is not run again without --again; --failed runs the failures again. For the committed results the
machine must be idle: a row whose original differs from itself by more than 2 % is marked.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from typing import Any

import bench_recovery as bench
import recovery_row
from latency_grid import CHOICES, ZOO, Row, rows
from latency_table import write

JOURNAL, TABLE = bench.TOOLS / "results" / "latency.jsonl", bench.TOOLS / "results" / "latency.md"
CALIBRATION = 32  # random inputs that int8 is calibrated on: its time does not depend on them

# ---- in the child ----------------------------------------------------------------------------------------------------


def child(task: dict[str, Any]) -> dict[str, Any]:
    """Do what one row asks for."""
    work = {"floor": floor, "cut": cut, "target": target, "int8": int8}
    return work[task["kind"]](task)


def floor(task: dict[str, Any]) -> dict[str, Any]:
    """The cleaned original against itself."""
    from onnxprune import clean

    model = clean(task["model"])
    return paired(model, model, task["seconds"])


def paired(before: Any, after: Any, seconds: float) -> dict[str, Any]:
    """Share of the latency, with its interval and the noise floor, and which convolutions run in blocks."""
    from onnxprune.validation.kernels import blocked
    from onnxprune.validation.latency import pair

    found = pair(before, after, seconds=seconds)
    at = found.speedup
    kernels = [blocked(m) for m in (before, after)]
    return {
        "ratio": {"point": 1 / at.point, "low": 1 / at.high, "high": 1 / at.low},
        "noise": found.noise.as_dict(),
        "before": found.baseline.as_dict(),
        "after": found.candidate.as_dict(),
        "blocked": [k.blocked for k in kernels],
        "convs": [len(k.convs) for k in kernels],
    }


def cut(task: dict[str, Any]) -> dict[str, Any]:
    """A bare cut beside the cleaned original."""
    from onnxprune import clean

    result, before = compressed(task, flops=task["keep"]), clean(task["model"])
    blocks = in_blocks(result.model) / in_blocks(before)
    return kept(result) | {"blocks": blocks} | paired(before, result.model, task["seconds"])


def in_blocks(model: Any) -> float:
    """MACs of the convolutions, if every width from a block on is the next multiple of it, as the kernels have it."""
    from onnx import shape_inference

    from onnxprune.validation.kernels import block_size

    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    block, weights = block_size(), {t.name: tuple(t.dims) for t in graph.initializer}
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)}
    total = 0
    for node in (n for n in graph.node if n.op_type == "Conv"):
        outputs, inputs, *kernel = weights[node.input[1]]
        whole = -(-inputs // block) * block if inputs >= block else inputs
        total += -(-outputs // block) * block * whole * math.prod(kernel) * math.prod(sizes[node.output[0]][2:])
    return float(total)


def compressed(task: dict[str, Any], **given: float) -> Any:
    """Cut as the row says; not repaired."""
    from onnxprune import compress

    options = CHOICES[task["label"]] | {"align": task["align"], "recover": "none", "best_effort": True} | given
    return compress(task["model"], **options)


def kept(result: Any) -> dict[str, Any]:
    """Share of the MACs that is left, and what the report notes."""
    report = result.report
    return {"kept": report.compressed.macs / report.original.macs, "note": report.note}


def target(task: dict[str, Any]) -> dict[str, Any]:
    """A latency as the target, then the result beside the original once more."""
    from onnxprune import clean

    start = time.perf_counter()
    result = compressed(task, latency=task["keep"])
    told = dict(result.report.latency)
    del told["environment"]
    found = {"latency": told, "wall": time.perf_counter() - start}
    return kept(result) | found | paired(clean(task["model"]), result.model, task["seconds"])


def int8(task: dict[str, Any]) -> dict[str, Any]:
    """Original and cut, in floats and in int8."""
    import numpy as np

    from onnxprune import benchmark, clean
    from onnxprune.validation.feeds import made_up

    result, before = compressed(task, flops=task["keep"]), clean(task["model"])
    feeds = [made_up(before, seed=i) for i in range(CALIBRATION)]
    data = {name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]}
    found = benchmark([before, result.model], int8=True, data=data, seconds=task["seconds"], memory=False)
    names = ("original", "cut", "original in int8", "cut in int8")
    corners = [
        {"model": n, "bytes": size, "median": r.median.point, "speedup": r.speedup and r.speedup.as_dict()}
        for n, size, r in zip(names, found.size.values(), found.rows, strict=True)
    ]
    return kept(result) | {"corners": corners}


# ---- in the parent ---------------------------------------------------------------------------------------------------


def task_of(row: Row, args: argparse.Namespace) -> dict[str, Any]:
    """All that a child needs to know."""
    path = args.data / f"{row.network}.legacy.onnx" if row.network in ZOO else args.models / f"{row.network}.onnx"
    return row.as_dict() | {"model": str(path), "seconds": args.seconds}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = bench.parser_of(__doc__, "ZOO")
    parser.add_argument("--seconds", type=float, default=60.0, help="time cap of each measurement")
    return bench.parsed(parser)


def main() -> int:
    """Parse, run, write."""
    args = arguments()
    if args.row:
        recovery_row.restrict(1)
        print(json.dumps(child(json.loads(args.row))))
        return 0
    todo = bench.chosen(rows(), args, JOURNAL)
    if args.list:
        print("\n".join(r.key for r in todo))
        return 0

    def run(row: Row) -> dict[str, Any]:
        return bench.launch([sys.executable, __file__, "--row", json.dumps(task_of(row, args))], 1)

    bench.measure(todo, run, 1, JOURNAL)
    write(bench.journal(JOURNAL), TABLE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
