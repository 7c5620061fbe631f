"""What tools/bench_methods.py measures: networks, methods, repairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from recovery_grid import RESNET20, RESNET56, SEEDS, Network, Row

OWN = ("cifar10_vgg", "cifar10_densenet", "cifar10_mobilenet")  # of tools/train_nets.py, in fixtures/cifar10
NETWORKS = (
    Network(RESNET20, "cifar10", 512, (0.75, 0.5, 0.35, 0.2), False),
    *(Network(name, "cifar10", 512, (0.5, 0.2), False) for name in OWN),
    Network("mlperf_vww96", "vww", 300, (0.5, 0.2), True),
    Network(RESNET56, "cifar10", 512, (0.5, 0.2), False),
)
GLOBAL = {"allocate": "global"}
DEFAULT = "obs, greedy"  # the choice by default, with data; tools/recovery_grid.py has it for the other networks
METHODS: dict[str, dict[str, Any]] = {
    "random": {"method": "random"} | GLOBAL,
    "l2": {"method": "l2"} | GLOBAL,
    "geometric_median": {"method": "geometric_median"} | GLOBAL,
    "cluster": {"method": "cluster"},
    "diversity": {"method": "diversity"},
    "hybrid": {"method": "hybrid"},
    "hybrid, naswot": {"method": "hybrid", "proxy": "naswot"},
    "evolve": {"method": "evolve"},
    "activation": {"method": "activation"} | GLOBAL,
    DEFAULT: {"method": "obs", "allocate": "greedy"},
}
REPAIRS = ("none", "merge", "least-squares")


def rows() -> Iterator[Row]:
    """All rows: the least squares first, since they tell most."""
    for repair in reversed(REPAIRS):
        for network in NETWORKS:
            if network.name == RESNET20 or repair != "merge":
                yield from _grid(network, repair)


def _grid(network: Network, repair: str) -> Iterator[Row]:
    yield Row("original", network.name, "original")
    several = network.name == RESNET20 and repair == "least-squares"
    by_default = repair == REPAIRS[-1] and network.name in OWN
    for name, options in ((n, o) for n, o in METHODS.items() if n != DEFAULT or by_default):
        for keep in network.keeps:
            for seed in SEEDS if name == "random" and several else SEEDS[:1]:
                label, more = f"{repair}: {name}", options | {"recover": repair}
                yield Row("compress", network.name, label, keep, seed=seed, images=network.images, options=more)
