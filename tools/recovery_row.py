"""One row of tools/bench_recovery.py or of tools/bench_methods.py, which start it as a process of its own.

Usage: python tools/recovery_row.py TASK     TASK: JSON, made by `bench_recovery.Runner.task`
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

BATCH = 500  # of the test set


def child(task: dict[str, Any]) -> dict[str, Any]:
    """Do what one row asks for; the tasks are made by `Runner.task`."""
    work = {"original": original, "compress": compressed, "speed": compressed, "peer": scored}
    return work[task["kind"]](task)


def compressed(task: dict[str, Any]) -> dict[str, Any]:
    """Compress, then score the result where there is a test set."""
    import onnx

    import onnxprune
    from onnxprune.settings import CompressOptions

    options = task["options"] | {"flops": task["keep"], "align": task["align"], "seed": task["seed"]}
    if options.pop("inner", False):
        options["keep"] = stream_biases(onnx.load(task["model"]))
    data = {"data": calibration(task), "calibration_size": task["images"]} if task["images"] else {}
    start = time.perf_counter()
    with Anonymous() as memory:
        if task["plan"]:
            result, earlier = replayed(task, options, data)
        else:
            earlier, looks = 0.0, CompressOptions(**options, **data).runs_inputs
            result = onnxprune.compress(task["model"], **options, **(data if looks else {}))
    total = time.perf_counter() - start + earlier
    report = result.report
    onnx.save(result.model, task["out"])
    found = {
        "kept": report.compressed.macs / report.original.macs,
        "macs": report.original.macs,
        "layers": len(report.layers),
        "total": total,
        "seconds": report.seconds,
        "peak_mb": peak_mb(),
        "anonymous_mb": memory.peak,
        "settings": {k: v for k, v in report.settings.items() if k != "keep"},
        "note": report.note,
        "recovery": recovery(report),
    }
    return found | (score(task) if task["test"] else {})


def replayed(task: dict[str, Any], options: dict[str, Any], data: dict[str, Any]) -> tuple[Any, float]:
    """The network cut by a plan that rows share which differ in the repair only, and the seconds that an earlier row
    took to make it.
    """
    import onnxprune
    from onnxprune.plan import dumps
    from onnxprune.settings import ReplayOptions

    path, earlier, how = Path(task["plan"]), 0.0, {"recover": options["recover"], "seed": options["seed"]}
    spent = path.with_suffix(".seconds")
    if spent.exists():
        earlier = float(spent.read_text(encoding="utf-8"))
    else:
        start = time.perf_counter()
        plan = onnxprune.make_plan(task["model"], **{k: v for k, v in options.items() if k != "recover"}, **data)
        path.write_text(dumps(plan), encoding="utf-8")
        spent.write_text(str(time.perf_counter() - start), encoding="utf-8")
    used = data if ReplayOptions(**how, **data).runs_inputs else {}
    return onnxprune.apply_plan(task["model"], path, **how, **used), earlier


def calibration(task: dict[str, Any]) -> Any:
    """The calibration inputs: the file, or its array where a network calls its input otherwise."""
    import numpy as np
    import onnx

    name = onnx.load(task["model"]).graph.input[0].name
    held = np.load(task["data"])
    return Path(task["data"]) if name in held else {name: inputs(held, name)}


def inputs(held: Any, name: str) -> Any:
    """The array of an archive that a network's input reads: the one of this name, or the only one beside the labels."""
    (found,) = [name] if name in held else set(held) - {"labels"}
    return held[found]


def recovery(report: Any) -> dict[str, Any]:
    """What the report says of recovery, the layers counted by what was done."""
    if report.recovery is None:
        return {}
    told: dict[str, Any] = report.recovery.as_dict()
    return told | {"layers": dict(Counter(x["method"] for x in told["layers"]))}


def stream_biases(model: Any) -> list[str]:
    """Biases of the convolutions that write residual streams: the first one, and those that an Add reads.

    Naming a bias leaves the outputs of its convolution alone, but not the inputs.
    """
    writer = {o: n for n in model.graph.node for o in n.output}
    first = next(n for n in model.graph.node if n.op_type == "Conv")
    read = [writer[i] for n in model.graph.node if n.op_type == "Add" for i in n.input if i in writer]
    return [n.input[2] for n in (first, *read) if n.op_type == "Conv"]


class Anonymous:
    """Peak memory of this process without what is mapped from files, MiB, looked at twice a second."""

    def __init__(self) -> None:
        self.peak, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Anonymous:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.5):
            lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            self.peak = max(self.peak, next(int(x.split()[1]) / 1024 for x in lines if x.startswith("RssAnon")))


def peak_mb() -> float:
    """Peak resident memory of this process or of the largest that it started, MiB."""
    users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(u).ru_maxrss for u in users) / 1024


def predictions(path: str, test: Any, threads: int) -> Any:
    """Class of every test input, [n] int64."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    images = inputs(test, name)
    batches = np.array_split(images, -(-len(images) // BATCH))
    return np.concatenate([session.run(None, {name: x})[0].argmax(-1) for x in batches])


def original(task: dict[str, Any]) -> dict[str, Any]:
    """Classes of the original, stored for the rows to compare with."""
    import numpy as np

    test = np.load(task["test"])
    classes = predictions(task["model"], test, task["threads"])
    np.save(task["reference"], classes)
    return {"n": len(classes), "correct": int((classes == test["labels"]).sum())}


def score(task: dict[str, Any]) -> dict[str, Any]:
    """Correct on the test set; won and lost against the original; agreement with it."""
    import numpy as np

    start = time.perf_counter()
    test, before = np.load(task["test"]), np.load(task["reference"])
    after = predictions(task["out"], test, task["threads"])
    right, was = after == test["labels"], before == test["labels"]
    return {
        "n": len(right),
        "correct": int(right.sum()),
        "won": int((right & ~was).sum()),
        "lost": int((was & ~right).sum()),
        "agreement": float((after == before).mean()),
        "seconds_test": time.perf_counter() - start,
    }


def scored(task: dict[str, Any]) -> dict[str, Any]:
    """Score what a peer wrote, with its MACs counted as ours are."""
    from onnxprune import analyze
    from onnxprune.cost import CostModel

    macs = [CostModel(analyze(task[path])).original.macs for path in ("out", "model")]
    return {"kept": macs[0] / macs[1], "macs": macs[1]} | score(task)


def restrict(threads: int) -> None:
    """Use only the first CPUs of those given, so that onnxruntime and BLAS agree."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    restrict(job["threads"])
    print(json.dumps(child(job)))
