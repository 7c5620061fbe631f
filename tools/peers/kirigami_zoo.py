"""torch-kirigami on a network of the zoo. Prints one line of JSON.

Usage (in its own environment): python kirigami_zoo.py NAME KEEP OUT WHOLE
As its quick start does: all candidates that it discovers, group L2 magnitude, greedy; the share of channels that may
leave every layer is found by bisection.
"""

from __future__ import annotations

import copy
from importlib.metadata import version

import torch
from torch import nn
from torch_kirigami import DependencyGraph
from torch_kirigami.pruning import ChannelRatio, Greedy, GroupMagnitude, Pruner
from torch_zoo import main


def prune(network: nn.Module, images: torch.Tensor, ratio: float) -> nn.Module:
    """A copy without up to this share of the channels."""
    smaller = copy.deepcopy(network)
    pruner = Pruner(smaller, graph=DependencyGraph.build(smaller, args=(images,)))
    candidates = pruner.discover_candidates()
    pruned, _ = pruner.prune(candidates, budget=ChannelRatio(ratio), strategy=Greedy(GroupMagnitude(p=2)))
    return pruned


if __name__ == "__main__":
    settings = {"importance": "group magnitude, L2", "ratio": "one for all layers", "strategy": "greedy"}
    main(f"torch-kirigami {version('torch-kirigami')}", (prune, settings))
