"""Recovery without training: accuracy and speed, beside a peer; writes tools/results/recovery.md and .jsonl.

Usage: python tools/bench_recovery.py MODELS DATA [--peer PYTHON] [--only PATTERN] [--again | --failed] [--threads N]
       python tools/bench_recovery.py MODELS DATA --speed [--zoo ZOO] [--repeats 3]

MODELS holds the trained networks, DATA their prepared arrays (NAME_calib.npz, NAME_test.npz with `labels`), ZOO exports
of tools/zoo_export.py, PYTHON has torch and torch-pruning. A row is one child process; it sees the test set once, for
its final number. The journal makes a run resumable: what it holds, failures included, is not run again without --again;
--failed runs the failures again. Two runs side by side: `taskset -c 0 python tools/bench_recovery.py ... --only
'mlperf*'`, and another one on CPU 1; children use the first --threads of the CPUs that the run may use.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from recovery_grid import NETWORKS, Network, Row, accuracy_rows, speed_rows
from recovery_table import write

TOOLS = Path(__file__).resolve().parent
JOURNAL, TABLE = TOOLS / "results" / "recovery.jsonl", TOOLS / "results" / "recovery.md"
PEER = TOOLS / "peers" / "torch_pruning_recovery.py"
LIMIT = 3600  # seconds per row
R = TypeVar("R")  # a row of any grid: it has `key`, `kind` and `as_dict`
SEARCHED = ("hybrid", "evolve")  # methods that compare many candidates
PACKAGES = ("numpy", "onnx", "onnxruntime", "scipy")  # whose versions a row records


@dataclass
class Runner:
    """Runs rows in child processes.

    scratch: a folder for what lives as long as the run.
    """

    models: Path
    data: Path
    zoo: Path | None
    peer: str | None
    threads: int
    scratch: Path
    networks: Sequence[Network] = NETWORKS

    def run(self, row: Row) -> dict[str, Any]:
        """What a row gives; `failed` says why there is nothing."""
        if row.kind in ("compress", "peer") and not self.reference(row).exists():
            first = self.start(self.task(Row("original", row.network, "original")))
            if "failed" in first:
                return first
        task = self.task(row)
        if row.kind != "peer":
            return self.start(task)
        found = self.start_peer(row, task)
        return found if "failed" in found else found | self.start(task)

    def reference(self, row: Row) -> Path:
        """Where the original's classes are."""
        return self.scratch / f"{row.network}.npy"

    def task(self, row: Row) -> dict[str, Any]:
        """All that a child needs to know."""
        prefix = next((n.data for n in self.networks if n.name == row.network), None)
        test = str(self.data / f"{prefix}_test.npz") if row.kind != "speed" else None
        data = self.data / f"{prefix}_calib.npz" if prefix else self.smooth(row.images)
        paths = {"model": self.model(row.network), "data": data, "out": self.scratch / f"{os.getpid()}.onnx"}
        paths["reference"] = self.reference(row)
        more = {"test": test, "plan": self.plan(row), "threads": self.threads}
        return row.as_dict() | {k: str(v) for k, v in paths.items()} | more

    def plan(self, row: Row) -> str | None:
        """Where rows that differ in the repair only share what a search chose, which takes longer than all the rest."""
        if row.options.get("method") not in SEARCHED:
            return None
        chosen = [f"{k}={v}" for k, v in sorted(row.options.items()) if k != "recover"]
        return str(self.scratch / f"{'-'.join([row.network, *chosen, f'{row.keep:g}', str(row.seed)])}.plan.json")

    def model(self, name: str) -> Path:
        """The file of a network: a trained one, or an export of the zoo."""
        places = [self.models / f"{name}.onnx"]
        if self.zoo is not None:
            places += [self.zoo / f"{name}.onnx", self.zoo / f"{name}.legacy.onnx"]
        return next((p for p in places if p.exists()), places[-1])

    def smooth(self, images: int) -> Path:
        """A file of smooth random images [n, 3, 224, 224]: noise at five scales, mean 0, deviation 1."""
        import numpy as np

        path = self.scratch / f"smooth{images}.npz"
        if not path.exists():
            rng = np.random.default_rng(0)
            total = np.zeros((images, 3, 224, 224), np.float32)
            for side in (7, 14, 28, 56, 112):
                noise = rng.standard_normal((images, 3, side, side), np.float32)
                total += noise.repeat(224 // side, 2).repeat(224 // side, 3)
            np.savez(path, input=total / np.float32(5**0.5))
        return path

    def start(self, task: dict[str, Any]) -> dict[str, Any]:
        """Run a child of our own."""
        return launch([sys.executable, str(TOOLS / "recovery_row.py"), json.dumps(task)], self.threads)

    def start_peer(self, row: Row, task: dict[str, Any]) -> dict[str, Any]:
        """Let the peer write its model."""
        arguments = [task["model"], task["data"], str(row.keep), task["out"], "--images", str(row.images)]
        more = ["--seed", str(row.seed), "--threads", str(self.threads), *row.flags]
        return launch([str(self.peer), str(PEER), *arguments, *more], self.threads)


def launch(command: list[str], threads: int, cpu: int | None = None) -> dict[str, Any]:
    """Run a command and read its last line, which is JSON; cpu: seconds of computing, however busy the machine is."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    if cpu is not None:
        command = ["prlimit", f"--cpu={cpu}", *command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {LIMIT} s"}
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL) and cpu is not None:
        return {"failed": f"more than {cpu} s of CPU"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def provenance(threads: int) -> dict[str, Any]:
    """Commit, machine, versions."""
    git = ["git", "-C", str(TOOLS), "describe", "--always", "--dirty", "--exclude", "*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    machine = {"cpu": cpu(), "cores": os.cpu_count(), "threads": threads, "load": round(os.getloadavg()[0], 1)}
    versions = {p: version(p) for p in PACKAGES} | {"python": platform.python_version()}
    return {"commit": commit, "machine": machine, "versions": versions, "when": time.strftime("%Y-%m-%d %H:%M")}


def cpu() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def journal(path: Path) -> dict[str, dict[str, Any]]:
    """The latest line of each row, by key."""
    if not path.exists():
        return {}
    found = (json.loads(text) for text in path.read_text(encoding="utf-8").splitlines())
    return {r["key"]: r for r in found}


def chosen(rows: Iterable[R], args: argparse.Namespace, path: Path) -> list[R]:
    """The rows to run: those named that the journal does not hold, or not with a result."""
    held = {} if args.again else journal(path)
    done = {key for key, line in held.items() if not (args.failed and "failed" in line["result"])}
    wanted = (r for r in rows if fnmatchcase(r.key, args.only) and (r.kind != "peer" or args.peer))
    return list({r.key: r for r in wanted if r.key not in done}.values())


def measure(rows: Iterable[R], run: Callable[[R], dict[str, Any]], threads: int, path: Path) -> None:
    """Run rows and append them to the journal."""
    path.parent.mkdir(exist_ok=True)
    for row in rows:
        start, load = time.perf_counter(), os.getloadavg()[0]
        result = run(row)
        line = row.as_dict() | {"wall": time.perf_counter() - start, "load": load, "result": result}
        with path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(rounded(line | provenance(threads))) + "\n")
        print(f"{row.key}: {line['wall']:.1f} s, {shown(result)}", flush=True)


def shown(result: dict[str, Any]) -> str:
    """A result in a word."""
    if "correct" in result:
        return f"{100 * result['correct'] / result['n']:.2f} %"
    if isinstance(result.get("ratio"), dict):
        return f"latency {result['ratio']['point']:.3f}"
    return result.get("failed") or "; ".join(result.get("problems", ())) or "done"


def rounded(value: Any) -> Any:
    """The same with floats of six digits, for a short journal."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def parser_of(page: str | None, second: str = "DATA") -> argparse.ArgumentParser:
    """The arguments of every benchmark with rows and a journal; second: what its second folder is called."""
    parser = argparse.ArgumentParser(description=(page or "").splitlines()[0])
    parser.add_argument("models", metavar="MODELS", type=Path, nargs="?")
    parser.add_argument("data", metavar=second, type=Path, nargs="?")
    return with_rows(parser)


def with_rows(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The same with the arguments that choose rows."""
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of the rows' names; '' only writes the table")
    parser.add_argument("--again", action="store_true", help="run what the journal holds, too")
    parser.add_argument("--failed", action="store_true", help="run again what failed")
    parser.add_argument("--list", action="store_true", help="name the rows that are left, and do not run them")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line; both folders must be there unless this is a child."""
    args = parser.parse_args()
    if not args.row and not args.data:
        parser.error("both folders are needed")
    return args


def arguments(page: str | None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of(page)
    parser.add_argument("--speed", action="store_true", help="seconds and memory instead of accuracy")
    parser.add_argument("--zoo", type=Path, help="with --speed: also resnet18, resnet50 and resnet101 of this folder")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", metavar="PYTHON", help="also the rows of Torch-Pruning")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parsed(parser)


def main() -> int:
    """Parse, run, write."""
    args = arguments(__doc__)
    rows = list(speed_rows(args.zoo, args.repeats) if args.speed else accuracy_rows())
    rows = chosen(rows, args, JOURNAL)
    if args.list:
        print("\n".join(r.key for r in rows))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(args.models, args.data, args.zoo, args.peer, args.threads, Path(scratch))
        measure(rows, runner.run, args.threads, JOURNAL)
    write(journal(JOURNAL), TABLE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
