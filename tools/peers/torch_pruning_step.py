"""One structured pruning step of Torch-Pruning, timed in process. Prints one line of JSON.

Usage (in its own environment): python torch_pruning_step.py NAME RATIO REPEATS
Timed: dependency graph, importance (group L2 norm) and cut of a torchvision model in memory, one thread.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from typing import Any

warnings.filterwarnings("ignore")


def step(name: str, ratio: float) -> tuple[float, float]:
    """(seconds, kept share of the MACs)"""
    import torch
    import torch_pruning as tp
    import torchvision

    torch.manual_seed(0)
    model: Any = torchvision.models.get_model(name, weights=None).eval()
    x = torch.randn(1, 3, 224, 224)
    before, _ = tp.utils.count_ops_and_params(model, x)
    head = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1000]
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    start = time.perf_counter()
    pruner = tp.pruner.BasePruner(model, x, importance=importance, pruning_ratio=ratio, ignored_layers=head)
    pruner.step()
    seconds = time.perf_counter() - start
    after, _ = tp.utils.count_ops_and_params(model, x)
    return seconds, after / before


def main(name: str, ratio: str, repeats: str) -> None:
    """Measure and print."""
    import torch
    import torch_pruning as tp

    torch.set_num_threads(1)
    runs = [step(name, float(ratio)) for _ in range(int(repeats))]
    print(json.dumps({"version": tp.__version__, "seconds": statistics.median(s for s, _ in runs), "kept": runs[0][1]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
