"""torch-kirigami on a network of the zoo. Prints one line of JSON.

Usage (in its own environment): python kirigami_zoo.py NAME KEEP OUT WHOLE
L2 magnitude of all that leaves with a candidate, greedy, candidates of 8 adjacent output channels of every convolution
and linear layer but the heads, as in its workflows: its quick start's GroupMagnitude, which scores every channel alone,
had not ended on ResNet-18 after 400 s of a busy machine. The share of channels that may leave every layer is found by
bisection; since a step takes a minute and more, the first result in the window is taken.
"""

from __future__ import annotations

import copy
from importlib.metadata import version

import torch
from torch import nn
from torch_kirigami import DependencyGraph
from torch_kirigami.pruning import Candidate, CandidateSpace, ChannelRatio, Greedy, Magnitude, Pruner
from torch_zoo import heads, main

BLOCK = 8  # adjacent channels per candidate
NEAR = 0.045  # just inside of the judge's window


def space(graph: DependencyGraph, network: nn.Module, images: torch.Tensor) -> CandidateSpace:
    """The candidates and the axes that they belong to."""
    skipped = heads(network, images)
    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    axes = {name: graph.parameter(f"{name}.weight").axis(0) for name, m in layers if m not in skipped}
    widths = {name: axis.tensor.shape[0] for name, axis in axes.items()}
    candidates = (
        Candidate(f"{name}:{at:012d}", (axis.select(range(at, min(at + BLOCK, widths[name]))),), axis)
        for name, axis in axes.items()
        for at in range(0, widths[name], BLOCK)
    )
    return CandidateSpace(candidates=tuple(candidates), channel_axes=tuple(axes.values()))


def prune(network: nn.Module, images: torch.Tensor, ratio: float) -> nn.Module:
    """A copy without up to this share of the channels."""
    smaller = copy.deepcopy(network)
    graph = DependencyGraph.build(smaller, args=(images,))
    candidates = space(graph, smaller, images)
    strategy = Greedy(Magnitude(p=2))
    pruned, _ = Pruner(smaller, graph=graph).prune(candidates, budget=ChannelRatio(ratio), strategy=strategy)
    return pruned


if __name__ == "__main__":
    settings = {"importance": "magnitude, L2", "ratio": "one for all layers", "strategy": "greedy", "block": BLOCK}
    main(f"torch-kirigami {version('torch-kirigami')}", (prune, settings), near=NEAR)
