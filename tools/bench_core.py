"""Speed and memory of the core, beside the peers; writes tools/results/bench_core.json and .md.

Usage: python tools/bench_core.py ZOO [--peer torch-pruning=PYTHON] [--peer onnxsim=PYTHON] [--repeats 5] [--keep 0.5]

ZOO holds NAME.legacy.onnx as tools/zoo_export.py writes them. Measured, medians over the repeats: process   `onnxprune
compress --flops 0.5` from process start to file written, wall seconds and peak memory analysis  model in memory to
classes (normalise, shapes, couple) step      model in memory to cut model in memory (analysis, score, allocate, cut,
export), without verification, one thread peers     the same step in their own environments (tools/peers), one thread A
synthetic chain of 10,000 nodes shows that cost is linear in the size of the graph.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PEERS = Path(__file__).resolve().parent / "peers"
MODELS = ["resnet18", "resnet50", "resnet101", "resnet152", "densenet121", "densenet201"]
AGAINST_PEERS = ["resnet50", "resnet152", "densenet121", "densenet201"]


def chain(nodes: int) -> Any:
    """A model of that many nodes: Conv 1x1 (8 channels) and Relu in turn."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((nodes // 2, 8, 8, 1, 1)).astype(np.float32)
    body, weights = [], []
    for i in range(nodes // 2):
        weights.append(numpy_helper.from_array(weight[i], f"w{i}"))
        body.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"c{i}"]))
        body.append(helper.make_node("Relu", [f"c{i}"], [f"x{i + 1}"]))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8, 4, 4]) for n in ("x0", f"x{nodes // 2}")]
    graph = helper.make_graph(body, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def in_process(path: str, keep: float, repeats: int) -> dict[str, float]:
    """Median seconds of analysis and of the whole step; runs in a child with one thread."""
    import onnx

    from onnxprune import criteria, normalize
    from onnxprune.allocate import allocate
    from onnxprune.cost import CostModel
    from onnxprune.couple import couple
    from onnxprune.cut import cut
    from onnxprune.shapes import concrete_shapes
    from onnxprune.target import Target

    proto = chain(int(path)) if path.isdigit() else onnx.load(path)
    kept = 1.0

    def analyse() -> Any:
        model = normalize.normalize(proto)
        return couple(model, concrete_shapes(model))

    def step() -> None:
        nonlocal kept
        analysis = analyse()
        scores = criteria.score("group_norm", analysis)
        choice = allocate(analysis, scores, CostModel(analysis), target=Target("flops", keep))
        cut(analysis, choice.kept).to_proto()
        kept = choice.fraction

    return {
        "analysis": median(analyse, repeats),
        "step": median(step, repeats),
        "kept": kept,
        "nodes": len(proto.graph.node),
    }


def median(work: Callable[[], object], repeats: int) -> float:
    """Median seconds after one warm-up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def whole_process(path: Path, keep: float, repeats: int) -> dict[str, float]:
    """Median wall seconds and peak memory of the command, process start to file written."""
    times, peaks = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "onnxprune",
                "compress",
                str(path),
                "--flops",
                str(keep),
                "--recover",
                "none",
                "-o",
                f"{folder}/out.onnx",
                "--quiet",
            ]
            start = time.perf_counter()
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(child.pid, 0)
            times.append(time.perf_counter() - start)
            if status:
                raise SystemExit(f"{' '.join(command)}: status {status}")
            peaks.append(usage.ru_maxrss / 1024)
    size = path.stat().st_size / 2**20
    return {"process": statistics.median(times), "peak_mb": max(peaks), "model_mb": size}


def child(arguments: list[str], python: str = sys.executable) -> dict[str, Any]:
    """Run a measuring script with one thread and read its line of JSON."""
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run([python, *arguments], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(zoo: Path, peers: dict[str, str], repeats: int, keep: float) -> dict[str, Any]:
    """All numbers, by model."""
    results: dict[str, Any] = {}
    for name in [*MODELS, "1000", "10000"]:
        path = zoo / f"{name}.legacy.onnx"
        row = child(
            [__file__, "--step", name if name.isdigit() else str(path), "--keep", str(keep), "--repeats", str(repeats)]
        )
        if not name.isdigit():
            row |= whole_process(path, keep, repeats)
        if name in AGAINST_PEERS:
            slow = name.startswith("densenet")
            if python := peers.get("torch-pruning"):
                row["torch-pruning"] = child(
                    [str(PEERS / "torch_pruning_step.py"), name, "0.3", "1" if slow else "3"], python
                )
            if python := peers.get("onnxsim"):
                row["onnxsim"] = child([str(PEERS / "onnxsim_step.py"), str(path), str(keep), str(repeats)], python)
        results[name] = row
        print(name, json.dumps(row), flush=True)
    return results


def table(results: dict[str, Any], command: str) -> str:
    """Markdown of the results."""
    import platform

    import numpy
    import onnx
    import onnxruntime

    versions = ", ".join(f"{m.__name__} {m.__version__}" for m in (onnx, onnxruntime, numpy))
    versions += f", Python {platform.python_version()}"
    lines = [
        "# Speed and memory of the core",
        "",
        f"`{command}` on {os.cpu_count()} cores; {versions}; load {os.getloadavg()[0]:.1f} at the end. Medians.",
        "Seconds; share of the MACs kept in brackets. A peer that cuts only part of the graph cannot keep as few.",
        "",
        "| model | nodes | analysis | step | Torch-Pruning step | onnxsim step | whole command | peak memory / model |",
        "|--|--|--|--|--|--|--|--|",
    ]
    for name, row in results.items():
        peers = [_peer(row.get(p)) for p in ("torch-pruning", "onnxsim")]
        whole = (
            f"{row['process']:.2f} | {row['peak_mb']:.0f} / {row['model_mb']:.0f} MB" if "process" in row else "- | -"
        )
        title = f"chain of {name}" if name.isdigit() else name
        own = f"{row['analysis']:.3f} | {row['step']:.3f} ({row['kept']:.3f})"
        lines.append(f"| {title} | {row['nodes']} | {own} | {' | '.join(peers)} | {whole} |")
    return "\n".join(lines) + "\n"


def _peer(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return (
        f"failed: {row['failed']}" if "failed" in row else f"{row['seconds']:.3f} ({row['kept']:.3f}), {row['version']}"
    )


def main() -> int:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("zoo", type=Path, nargs="?")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(in_process(args.step, args.keep, args.repeats)))
        return 0
    peers = dict(p.split("=", 1) for p in args.peer)
    results = measure(args.zoo, peers, args.repeats, args.keep)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bench_core.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    command = (
        "python tools/bench_core.py ZOO" + "".join(f" --peer {p}=PYTHON" for p in peers) + f" --repeats {args.repeats}"
    )
    text = table(results, command)
    (RESULTS / "bench_core.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
