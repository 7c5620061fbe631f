"""What tools/bench_recovery.py measures: networks, rows, and the name that each has in the journal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["original", "compress", "peer", "speed"]


@dataclass(frozen=True)
class Network:
    """A trained model, the prefix of its prepared arrays, and how many calibration inputs there are to use."""

    name: str
    data: str
    images: int
    keeps: tuple[float, ...]
    paired: bool  # the test set is small: show differences to the original instead of standard errors

    def keeps_of(self, default: bool) -> tuple[float, ...]:
        """Shares of the MACs to keep; the default row of ResNet-56 has one more."""
        return (0.5, 0.35, 0.2) if default and self.name == RESNET56 else self.keeps


RESNET20, RESNET56 = "cifar10_resnet20_jpegft", "cifar10_resnet56_jpegft"
NETWORKS = (
    Network(RESNET20, "cifar10", 512, (0.75, 0.5, 0.35, 0.2), False),
    Network(RESNET56, "cifar10", 512, (0.5, 0.2), False),
    Network("mlperf_vww96", "vww", 300, (0.5, 0.2), True),
    Network("mlperf_kws", "kws", 300, (0.5, 0.2), True),
)
DEFAULT = "default"
UNIFORM = {"allocate": "uniform"}
LEAST_SQUARES = {"recover": "least-squares"}
INNER = {"inner": True}  # the harness names the layers that write residual streams as `keep`
WITH_DATA: dict[str, dict[str, Any]] = {
    "cut only: random, uniform": {"method": "random", "recover": "none"} | UNIFORM,
    "cut only: l2, uniform": {"method": "l2", "recover": "none"} | UNIFORM,
    "absorb: activation, uniform": {"method": "activation", "recover": "absorb"} | UNIFORM,
    "merge: l2, uniform": {"method": "l2", "recover": "merge"} | UNIFORM,
    "merge: activation, uniform": {"method": "activation", "recover": "merge"} | UNIFORM,
    "fold: l2, uniform": {"method": "l2", "recover": "fold"} | UNIFORM,
    "fold: activation, uniform": {"method": "activation", "recover": "fold"} | UNIFORM,
    "moments: l2, uniform": {"method": "l2", "recover": "moments"} | UNIFORM,
    "moments: activation, uniform": {"method": "activation", "recover": "moments"} | UNIFORM,
    "channel ridge: activation, uniform": {"method": "activation", "recover": "ridge"} | UNIFORM,
    "least squares: random, uniform": {"method": "random"} | UNIFORM | LEAST_SQUARES,
    "least squares: l2, uniform": {"method": "l2"} | UNIFORM | LEAST_SQUARES,
    "least squares: activation, uniform": {"method": "activation"} | UNIFORM | LEAST_SQUARES,
    "least squares: obs, uniform": {"method": "obs"} | UNIFORM | LEAST_SQUARES,
    "least squares: activation, global": {"method": "activation", "allocate": "global"} | LEAST_SQUARES,
    "least squares: obs, global": {"method": "obs", "allocate": "global"} | LEAST_SQUARES,
    "least squares: activation, greedy": {"method": "activation", "allocate": "greedy"} | LEAST_SQUARES,
    "least squares: obs, greedy": {"method": "obs", "allocate": "greedy"} | LEAST_SQUARES,
    "joint: random, uniform": {"method": "random"} | UNIFORM,
    "joint: l2, uniform": {"method": "l2"} | UNIFORM,
    "joint: obs, global": {"method": "obs", "allocate": "global"},
    DEFAULT: {},
}
ON_SMALL = (  # asked of the quick networks only
    "joint: random, uniform",
    "joint: l2, uniform",
    "joint: obs, global",
    "no data, least squares: group_norm, greedy",
    "no data, least squares: activation, greedy",
)
NO_COPIES: dict[str, dict[str, Any]] = {f"{DEFAULT}, no mirrored copies": {"augment": "none"}}
ONLY_INNER: dict[str, dict[str, Any]] = {
    f"{label}, inner channels": WITH_DATA[label] | INNER
    for label in (
        "cut only: l2, uniform",
        "moments: l2, uniform",
        "least squares: l2, uniform",
        "least squares: activation, uniform",
        DEFAULT,
    )
}
WITHOUT_DATA: dict[str, dict[str, Any]] = {
    "no data, absorb: group_norm, global": {"method": "group_norm", "allocate": "global", "recover": "absorb"},
    "no data, merge: group_norm, global": {"method": "group_norm", "allocate": "global", "recover": "merge"},
    "no data, moments: group_norm, global": {"method": "group_norm", "allocate": "global", "recover": "moments"},
    f"no data, {DEFAULT}": {},
    "no data, least squares: group_norm, greedy": {"method": "group_norm", "allocate": "greedy"} | LEAST_SQUARES,
    "no data, least squares: activation, greedy": {"method": "activation", "allocate": "greedy"} | LEAST_SQUARES,
}
PEERS = {
    "Torch-Pruning: l2, one ratio, inner channels": (),
    "Torch-Pruning: l2, one ratio, inner channels, BN re-estimated": ("--bn",),
    "Torch-Pruning: l2, one ranking, inner channels": ("--global",),
    "Torch-Pruning: l2, one ranking, inner channels, BN re-estimated": ("--global", "--bn"),
}
SEEDS = (0, 1, 2)  # of random rows, but of ResNet-56, and of ResNet-20's default; the others have seed 0
CALIBRATION = (64, 128, 1024)


@dataclass(frozen=True)
class Row:
    """One measurement: one child process, one line of the journal."""

    kind: Kind
    network: str
    label: str
    keep: float = 1.0
    align: int = 1
    seed: int = 0
    images: int = 0  # calibration inputs; 0: no data
    repeat: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name in the journal."""
        if self.kind == "original":
            return f"{self.network} | original"
        end = f" | repeat {self.repeat}" if self.kind == "speed" else f" | seed {self.seed}"
        return f"{self.network} | {self.label} | {self.keep:g}/{self.align} | {self.images} inputs{end}"

    def as_dict(self) -> dict[str, Any]:
        """What the journal records of the request."""
        return {"key": self.key} | asdict(self)


def accuracy_rows() -> Iterator[Row]:
    """All rows of the tables of accuracy, the cheap networks first."""
    for network in sorted(NETWORKS, key=lambda n: (n.name == RESNET56, not n.paired)):
        yield Row("original", network.name, "original")
        yield from _grid(network)
        if not network.paired:
            yield from _sizes(network)
            yield from _peers(network)


def _grid(network: Network) -> Iterator[Row]:
    tables = [(WITH_DATA, network.images), (WITHOUT_DATA, 0)]
    if network.name == RESNET20:
        tables[1:1] = [(NO_COPIES, network.images), (ONLY_INNER, network.images)]
    if network.name == RESNET56:
        tables = [({k: v for k, v in table.items() if k not in ON_SMALL}, images) for table, images in tables]
    for table, images in tables:
        for label, options in table.items():
            drawn = options.get("method") == "random" and network.name != RESNET56
            several = drawn or (label == DEFAULT and network.name == RESNET20)
            seeds = SEEDS if several else SEEDS[:1]
            cells = [(keep, seed) for keep in network.keeps_of(label == DEFAULT) for seed in seeds]
            yield from (
                Row("compress", network.name, label, keep, seed=seed, images=images, options=options)
                for keep, seed in cells
            )
    for keep in network.keeps:
        yield Row("compress", network.name, f"{DEFAULT}, align 8", keep, 8, images=network.images)


def _sizes(network: Network) -> Iterator[Row]:
    for images in CALIBRATION:
        for keep in network.keeps if network.name == RESNET20 else (0.5,):
            yield Row("compress", network.name, f"{DEFAULT}, {images:,} images", keep, images=images)


def _peers(network: Network) -> Iterator[Row]:
    for label, flags in PEERS.items():
        for keep in network.keeps_of(True):
            yield Row("peer", network.name, label, keep, images=network.images, flags=flags)


DEPTH, IMAGES = ("resnet18", "resnet50", "resnet101"), (64, 128, 256, 512)
FEW = 32  # images of the rows that show the growth with depth at 224x224


def speed_rows(zoo: Path | None, repeats: int) -> Iterator[Row]:
    """Rows of the tables of speed; large networks are measured once."""
    for name, images in ((RESNET20, IMAGES), (RESNET56, IMAGES)):
        yield from _timed(name, "global", images, repeats)
        yield from _timed(name, "greedy", images if name == RESNET20 else (512,), repeats)
    large = ["efficientnet_lite0_dynamo"] + (["resnet50"] if zoo else [])
    for allocation in ("global", "greedy"):
        for name in large:
            yield from _timed(name, allocation, (256,), 1)
    for name in DEPTH if zoo else ():
        yield from _timed(name, "global", (FEW,), 1)


def _timed(name: str, allocation: str, images: Iterable[int], repeats: int) -> Iterator[Row]:
    options = {"allocate": allocation}
    for n in images:
        for repeat in range(repeats):
            yield Row("speed", name, allocation, 0.5, images=n, repeat=repeat, options=options)
