"""A network of the zoo in torch: pruned to a share of its MACs and written as ONNX; shared by the peers for torch.

The networks and their random weights are those of tools/zoo_export.py; so is the export, which writes the pruned
network and the whole one, to be compared file by file.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from nearest import NEAR, WITHIN, Search, peak_mb, search
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from zoo_export import build, enliven, export_dynamo, export_legacy, quiet, random_images

warnings.filterwarnings("ignore")
FIRST = 0.29  # 1 - sqrt(0.5): a uniform ratio that leaves half of the MACs of inner layers
Prune = Callable[[nn.Module, torch.Tensor, float], nn.Module]
Way = tuple[Prune, dict[str, Any]]  # how to prune, and what to say of it


@torch.no_grad()
def macs(network: nn.Module, images: torch.Tensor) -> int:
    """Multiply-accumulates of all convolutions and matrix products, as torch counts them."""
    torch.backends.mha.set_fastpath_enabled(False)  # fused attention would not be counted
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops() // 2


def classes(network: nn.Module, images: torch.Tensor) -> int:
    """Channels of the output: layers of this width are the heads."""
    with torch.no_grad():
        return int(network(images).shape[1])


def heads(network: nn.Module, images: torch.Tensor) -> list[nn.Module]:
    """The layers that write the output's channels; no pruner may touch them."""
    n = classes(network, images)
    linear = [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == n]
    return linear + [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.out_channels == n]


def write(network: nn.Module, size: int, path: str) -> str:
    """Export by tracing, or, where that fails, by torch.export; returns the exporter's name."""
    for name, exporter in (("legacy", export_legacy), ("dynamo", export_dynamo)):
        try:
            with quiet():
                exporter(network, size, Path(path), dynamic=name == "legacy")
        except Exception:
            if name == "dynamo":
                raise
        else:
            return name
    raise AssertionError


def nearest(
    ways: Sequence[Way], network: nn.Module, images: torch.Tensor, keep: float, near: float
) -> tuple[Search, dict[str, Any]]:
    """The first way that comes near enough, or the nearest; raises what the first way raised where none works."""
    before = macs(network, images)
    found: list[tuple[Search, dict[str, Any]]] = []
    errors: list[Exception] = []
    for prune, settings in ways:

        def step(ratio: float, prune: Prune = prune) -> tuple[nn.Module, float]:
            smaller = prune(network, images, ratio)
            return smaller, macs(smaller, images) / before

        try:
            found.append((search(step, keep, FIRST, near=near), settings))
        except Exception as e:  # noqa: BLE001 - a peer may fail in any way; another way may do
            errors.append(e)
        if found and abs(found[-1][0].kept - keep) <= WITHIN:
            break
    if not found:
        raise errors[0]
    return min(found, key=lambda x: abs(x[0].kept - keep))


def main(version: str, *ways: Way, near: float = NEAR) -> None:
    """Build, search, write and print: the command line is NAME KEEP OUT WHOLE; `near` ends the search."""
    name, keep, out, whole = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(zlib.crc32(name.encode()))
    network, size = build(name)
    enliven(network, size)
    images = random_images(1, size)
    found, settings = nearest(ways, network, images, float(keep), near)
    start = time.process_time()
    exporter = write(found.model, size, out)
    seconds = found.times() | {"export": time.process_time() - start}
    peak = peak_mb()
    write(network, size, whole)
    told = {"ratio": found.ratio, "kept_own": found.kept, "tries": len(found.tries), "exporter": exporter}
    versions = f"{version}, torch {torch.__version__}"
    print(json.dumps(told | {"version": versions, "settings": settings, "seconds": seconds, "peak_mb": peak}))
