"""Where the time goes, node by node, under the names of the original graph."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.files import read_bytes
from onnxprune.graph import Array
from onnxprune.runtime import CPU, session
from onnxprune.validation.kernels import covered, heaviest, named, optimised_graph

_WARM, _SUFFIX = 3, "_kernel_time"
REORDER = "layout changes"


@dataclass(frozen=True, slots=True)
class NodeTime:
    """Time of one layer and what is fused with it.

    node: its name in the original; op: its operator there; fused: how many nodes the kernel stands for; kernel: the
    operator that ran; seconds: per run (median); share: of all nodes.
    """

    node: str
    op: str
    fused: int
    kernel: str
    provider: str
    seconds: float
    share: float

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        return asdict(self)


def profile(
    model: ModelProto, feeds: Mapping[str, Array], *, threads: int = 1, provider: str = CPU, runs: int = 20
) -> tuple[NodeTime, ...]:
    """Time per node of the original, the slowest first, by onnxruntime's profiler (which itself takes some time).

    model: not changed; runs: how many are looked at. Raises ModelError when it does not run.
    """
    model = named(model)
    found = events(model, feeds, threads, provider, runs)
    nodes = {n.name: n for n in model.graph.node}
    optimised = optimised_graph(model, provider)
    origin = covered(model.graph, optimised)
    kernels = {n.name: f"{n.domain}.{n.op_type}".strip(".") for n in optimised.node}
    layers: dict[str, tuple[str, int, str, str, float]] = {}
    for name, (op, where, times) in found.items():
        inside = [nodes[n] for n in origin.get(name, ())]
        layer = heaviest(inside) or (REORDER if op.startswith("Reorder") else name)
        kernel, seconds = kernels.get(name, op), float(np.median(times))
        shown = nodes[layer].op_type if layer in nodes else op
        held = layers.get(layer, (shown, 0, kernel, where, 0.0))
        layers[layer] = (shown, held[1] + len(inside), held[2], where, held[4] + seconds)
    total = sum(x[-1] for x in layers.values()) or 1.0
    rows = [NodeTime(name, *found, found[-1] / total) for name, found in layers.items()]
    return tuple(sorted(rows, key=lambda r: -r.seconds))


def ran_on(model: ModelProto, feeds: Mapping[str, Array], threads: int, provider: str) -> dict[str, int]:
    """How many nodes each execution provider ran."""
    return dict(Counter(where for _, where, _ in events(named(model), feeds, threads, provider, 1).values()))


def events(
    model: ModelProto, feeds: Mapping[str, Array], threads: int, provider: str, runs: int
) -> dict[str, tuple[str, str, list[float]]]:
    """(operator, provider, seconds per run) of every node of the optimised graph, the warm-up left out."""
    with tempfile.TemporaryDirectory(prefix="onnxprune") as folder:
        made = session(model, optimize=True, threads=threads, provider=provider, profile=Path(folder) / "profile")
        for _ in range(_WARM + runs):
            made.run(feeds)
        found = json.loads(read_bytes(made.end_profiling()))
    times: dict[str, list[float]] = defaultdict(list)
    about: dict[str, tuple[str, str]] = {}
    for event in (e for e in found if e.get("cat") == "Node" and e["name"].endswith(_SUFFIX)):
        name = event["name"].removesuffix(_SUFFIX)
        times[name].append(event["dur"] / 1e6)
        about[name] = event["args"].get("op_name", ""), event["args"].get("provider", "")
    return {name: (*about[name], [*series[_WARM:]] or series) for name, series in times.items()}
