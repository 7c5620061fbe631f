"""The product beside its peers on 40 architectures; writes tools/results/peers.md and .jsonl.

Usage: python tools/bench_peers.py ZOO MODELS DATA WORK --peer torch-pruning=PYTHON --peer onnxsim=PYTHON
       --peer torch-kirigami=PYTHON [--only PATTERN] [--again | --failed] [--limit SECONDS] [--list]
       python tools/bench_peers.py ZOO MODELS DATA WORK --latency [--seconds S]

ZOO holds exports of tools/zoo_export.py, MODELS the trained networks, DATA their prepared arrays (as for
tools/bench_recovery.py); every PYTHON is an environment of its own. Each tool prunes to half of the MACs in its own way
in a child process with one thread, and one judge looks at all the files (tools/peers_judge.py). The files of a few
networks stay in WORK for --latency, which needs an idle machine. The journal makes a run resumable: what it holds,
failures included, is not run again without --again; --failed runs the failures again.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import bench_recovery as bench
import peers_table
import recovery_row
from recovery_grid import NETWORKS
from zoo_list import architectures

JOURNAL, TABLE = bench.TOOLS / "results" / "peers.jsonl", bench.TOOLS / "results" / "peers.md"
OWN = "onnxprune"
SCRIPTS = {
    "torch-pruning": "torch_pruning_zoo.py",
    "onnxsim": "onnxsim_zoo.py",
    "torch-kirigami": "kirigami_zoo.py",
}
SLOW = "torch-kirigami"
FILES = ("onnxsim",)  # peers that prune an ONNX file; the others are given the network's name
COUNT = 40  # of the architectures, in the order of tools/zoo_list.py
LATENCY = ("resnet18", "resnet50", "mobilenet_v2", "densenet121", "efficientnet_b0", "vit_tiny_patch16_224")
TRAINED = ("cifar10_resnet20_jpegft", "cifar10_resnet56_jpegft", "mlperf_vww96")
KEEP = 0.5
LIMIT = 300  # seconds of CPU that a tool may take per network


@dataclass(frozen=True)
class Row:
    """One measurement: a network of the zoo pruned, its latency, or the accuracy of a trained one.

    label: the tool.
    """

    kind: Literal["prune", "latency", "accuracy"]
    network: str
    label: str
    keep: float = KEEP

    @property
    def key(self) -> str:
        """Its name in the journal."""
        return f"{self.network} | {self.kind} | {self.label} | {self.keep:g}"

    def as_dict(self) -> dict[str, Any]:
        """What the journal records of the request."""
        return {"key": self.key} | asdict(self)


def rows() -> Iterator[Row]:
    """All rows: every tool on a network before the next network, then accuracy, the slowest tool, latency."""
    tools = (OWN, *SCRIPTS)
    networks = architectures()[:COUNT]
    yield from (Row("prune", network, tool) for network in networks for tool in tools if tool != SLOW)
    for network in (n for n in NETWORKS if n.name in TRAINED):
        yield from (Row("accuracy", network.name, "onnxsim", keep) for keep in network.keeps)
    yield from (Row("prune", network, SLOW) for network in networks)
    yield from (Row("latency", network, tool) for network in LATENCY for tool in tools)


# ---- in the child ----------------------------------------------------------------------------------------------------


def child(task: dict[str, Any]) -> dict[str, Any]:
    """Do what the task says."""
    work = {"own": own, "judge": judged, "accuracy": accuracy, "latency": latency}
    return work[task["work"]](task)


def own(task: dict[str, Any]) -> dict[str, Any]:
    """Prune with onnxprune: exactly, and where too little can leave so, what normalisations rescale, too."""
    import onnx

    import onnxprune
    from onnxprune.errors import TargetError

    start, options = time.process_time(), {"recover": "none", "inexact": False}
    try:
        result = onnxprune.compress(task["model"], flops=task["keep"], **options)
    except TargetError:
        options["inexact"] = True
        result = onnxprune.compress(task["model"], flops=task["keep"], **options)
    pruned = time.process_time()
    onnx.save(result.model, task["out"])
    seconds = {"prune": pruned - start, "search": 0.0, "export": time.process_time() - pruned}
    seconds["prune"] += resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    told = {"version": f"onnxprune {onnxprune.__version__}", "settings": options, "peak_mb": recovery_row.peak_mb()}
    report = result.report
    onnx.save(onnxprune.clean(task["model"]), task["whole"])
    return told | {"seconds": seconds, "kept_own": report.compressed.macs / report.original.macs}


def judged(task: dict[str, Any]) -> dict[str, Any]:
    """What the judge says of a file."""
    from peers_judge import judge

    return judge(task["model"], task["whole"], task["out"])


def accuracy(task: dict[str, Any]) -> dict[str, Any]:
    """Top-1 of a pruned file beside the original's."""
    if not Path(task["reference"]).exists():
        recovery_row.original(task)
    return recovery_row.scored(task)


def latency(task: dict[str, Any]) -> dict[str, Any]:
    """The pruned file beside the cleaned original, one thread."""
    import onnx
    from bench_latency import paired

    from onnxprune import clean

    return paired(clean(task["model"]), onnx.load(task["out"]), task["seconds"])


# ---- in the parent ---------------------------------------------------------------------------------------------------


@dataclass
class Runner:
    """Runs rows in child processes."""

    zoo: Path
    models: Path
    data: Path
    work: Path
    peers: dict[str, str]
    limit: int
    seconds: float

    def run(self, row: Row) -> dict[str, Any]:
        """What a row gives; `failed` says why there is nothing."""
        task = self.task(row)
        if row.kind == "latency":
            return self.start(task, "latency") if Path(task["out"]).exists() else {"failed": "no file"}
        found = self.start(task, "own", self.limit) if row.label == OWN else self.peer(row, task)
        if "failed" not in found:
            found |= self.start(task, "judge" if row.kind == "prune" else "accuracy")
        self.tidy(row, task, valid="failed" not in found and not found.get("problems"))
        return found

    def task(self, row: Row) -> dict[str, Any]:
        """All that a child needs to know."""
        trained = next((n for n in NETWORKS if n.name == row.network), None)
        model = self.models / f"{row.network}.onnx" if trained else self.zoo / f"{row.network}.legacy.onnx"
        stem = self.work / f"{row.network}.{row.label}"
        paths = {"model": model, "out": f"{stem}.onnx", "whole": f"{stem}.whole.onnx"}
        if trained:
            paths |= {"reference": self.work / f"{row.network}.npy", "test": self.data / f"{trained.data}_test.npz"}
        return row.as_dict() | {k: str(v) for k, v in paths.items()} | {"threads": 1, "seconds": self.seconds}

    def start(self, task: dict[str, Any], work: str, cpu: int | None = None) -> dict[str, Any]:
        """Run a child of our own."""
        command = [sys.executable, __file__, "--row", json.dumps(task | {"work": work})]
        return bench.launch(command, 1, cpu)

    def peer(self, row: Row, task: dict[str, Any]) -> dict[str, Any]:
        """Let a peer write its files."""
        source = task["model"] if row.label in FILES else row.network
        script = str(bench.TOOLS / "peers" / SCRIPTS[row.label])
        command = [self.peers[row.label], script, source, str(row.keep), task["out"], task["whole"]]
        return bench.launch(command, 1, self.limit)

    def tidy(self, row: Row, task: dict[str, Any], valid: bool) -> None:
        """Leave only valid files whose latency is to be measured."""
        wanted = valid and row.kind == "prune" and row.network in LATENCY
        for path in [task["whole"], *([] if wanted else [task["out"]])]:
            Path(path).unlink(missing_ok=True)


def chosen(args: argparse.Namespace) -> list[Row]:
    """The rows to run, of the tools that are at hand."""
    wanted = (r for r in rows() if (r.kind == "latency") == args.latency)
    present = (r for r in wanted if args.latency or r.label == OWN or r.label in args.peers)
    return bench.chosen(present, args, JOURNAL)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("zoo", "models", "data", "work"):
        parser.add_argument(name, metavar=name.upper(), type=Path, nargs="?")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help=", ".join(SCRIPTS))
    parser.add_argument("--latency", action="store_true", help="time the files that WORK holds")
    parser.add_argument("--seconds", type=float, default=60.0, help="time cap of each measurement of latency")
    parser.add_argument("--limit", type=int, default=LIMIT, help="CPU seconds that a tool may take per network")
    args = bench.with_rows(parser).parse_args()
    if not args.row and not args.work:
        parser.error("ZOO, MODELS, DATA and WORK are needed")
    args.peers = dict(p.split("=", 1) for p in args.peer)
    if unknown := set(args.peers) - set(SCRIPTS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}")
    return args


def main() -> int:
    """Parse, run, write."""
    args = arguments()
    if args.row:
        recovery_row.restrict(1)
        print(json.dumps(child(json.loads(args.row))))
        return 0
    todo = chosen(args)
    if args.list:
        print("\n".join(r.key for r in todo))
        return 0
    recovery_row.restrict(1)  # all children, whatever their language
    args.work.mkdir(parents=True, exist_ok=True)
    runner = Runner(args.zoo, args.models, args.data, args.work, args.peers, args.limit, args.seconds)
    bench.measure(todo, runner.run, 1, JOURNAL)
    peers_table.write(bench.journal(JOURNAL), bench.journal(bench.JOURNAL), TABLE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
