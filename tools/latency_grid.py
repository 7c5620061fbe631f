"""What tools/bench_latency.py measures: networks, rows, and the name that each has in the journal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["floor", "cut", "target", "int8"]
OWN = (
    "cifar10_resnet20_jpegft",
    "cifar10_resnet56_jpegft",
    "mlperf_vww96",
    "efficientnet_lite0_dynamo",
    "ultraface_rfb320",
    "fastestdet",
    "prismanet_portrait",
)  # of MODELS
ZOO = ("resnet18", "resnet50", "mobilenet_v2", "densenet121")  # of ZOO, NAME.legacy.onnx
NETWORKS = (*OWN, *ZOO)
KEEPS, ALIGNS = (0.75, 0.5, 0.25), (1, 8, 16)
CHOICES: dict[str, dict[str, str]] = {"group_norm, global": {"method": "group_norm", "allocate": "global"}}
TARGETS = ("cifar10_resnet20_jpegft", "mlperf_vww96", "efficientnet_lite0_dynamo", *ZOO)
INT8 = ("cifar10_resnet20_jpegft", "mlperf_vww96", "resnet18")


@dataclass(frozen=True)
class Row:
    """One measurement.

    kind: the original against itself; a cut against the original; a latency as the target; the four corners of int8.
    label: the choice of what leaves. keep: of the MACs, of the latency for a target.
    """

    kind: Kind
    network: str
    label: str = ""
    keep: float = 1.0
    align: int | Literal["auto"] = "auto"

    @property
    def key(self) -> str:
        """Its name in the journal."""
        parts = [self.network, self.kind, self.label, f"{self.keep:g}", f"align {self.align}"]
        return " / ".join(p for p in (parts[:2] if self.kind == "floor" else parts) if p)

    def as_dict(self) -> dict[str, Any]:
        """The row as the journal holds it."""
        return asdict(self) | {"key": self.key}


def rows() -> Iterator[Row]:
    """All rows: floors, cuts, targets, int8."""
    yield from (Row("floor", n) for n in NETWORKS)
    for label in CHOICES:
        yield from cut_rows(label)
    yield from (Row("target", n, "group_norm, global", 0.5) for n in TARGETS)
    yield from (Row("int8", n, "group_norm, global", 0.5, 8) for n in INT8)


def cut_rows(label: str) -> Iterator[Row]:
    """The cuts of one choice, by network."""
    return (Row("cut", n, label, keep, align) for n in NETWORKS for keep in KEEPS for align in ALIGNS)
