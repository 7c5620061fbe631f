"""What a run did, as data; the modules beside this one turn it into text. Pure: nothing here prints or writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from onnxprune.cost import Cost
from onnxprune.plan import Plan, dumps
from onnxprune.recover.result import Recovery
from onnxprune.verify import Verification


@dataclass(frozen=True, slots=True)
class LayerChange:
    """Widths and MACs of one layer before and after; a product of two activations has no filters, hence no widths.

    frozen: how many of its filters can never leave; reason: why.
    """

    node: str
    op: str
    inputs: tuple[int, int] | None
    outputs: tuple[int, int] | None
    macs: tuple[int, int]
    frozen: int = 0
    reason: str = ""

    @property
    def kept(self) -> float:
        """Share of the layer's MACs that is kept, 0..1."""
        return self.macs[1] / self.macs[0] if self.macs[0] else 1.0


@dataclass(frozen=True, slots=True)
class GroupChange:
    """Classes that are ranked together: the parameter axis that names them, and the layers they bind.

    width: of that axis, before and after; makers, readers: numbers of the layers that have filters in these classes,
    and of those that read them, in the order of the graph from 0.
    """

    parameter: str
    axis: int
    width: tuple[int, int]
    classes: int
    makers: tuple[int, ...]
    readers: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"width": {"before": self.width[0], "after": self.width[1]}}


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is worth knowing about one compression.

    original: the cleaned model; reachable: the smallest kept fraction that the floors allow; frozen: (positions,
    reason) summed over layers; notes: what cleaning did; caveats: what to know of the inputs that the choice looked at,
    where the recovery does not tell it; note: why the target is met loosely; tried: what a search tried, latency: what
    was measured on the way to a share of it, both JSON-ready.
    """

    model: str
    original: Cost
    compressed: Cost
    classes: int
    removed: int
    frozen_positions: int
    inexact: int
    verification: Verification
    layers: tuple[LayerChange, ...]
    frozen: tuple[tuple[int, str], ...]
    notes: tuple[str, ...]
    seconds: dict[str, float]
    plan: Plan
    note: str = ""
    reachable: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    recovery: Recovery | None = None
    tried: Mapping[str, Any] | None = None
    latency: Mapping[str, Any] | None = None
    groups: tuple[GroupChange, ...] = ()
    caveats: tuple[str, ...] = ()

    @property
    def synthetic(self) -> bool:
        """Whether made-up inputs decided what leaves, or how it was repaired."""
        data = self.recovery.data if self.recovery else None
        return bool(data["synthetic"] if data else self.caveats and self.settings.get("data") == "synthetic")

    def of_bytes(self, size: int) -> Report:
        """The same of a file of another size: what int8 makes of the model."""
        return replace(self, compressed=replace(self.compressed, bytes=size))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with stable keys; the values of `kept` are fractions 0..1."""
        return {
            "model": self.model,
            "original": asdict(self.original),
            "compressed": asdict(self.compressed),
            "kept": self.compressed.fractions(self.original),
            "coupling": {
                "classes": self.classes,
                "removed": self.removed,
                "frozen": self.frozen_positions,
                "inexact": self.inexact,
                "reasons": [{"positions": n, "reason": r} for n, r in self.frozen],
            },
            "verification": self.verification.as_dict(),
            "layers": [_layer(x) for x in self.layers],
            "groups": [g.as_dict() for g in self.groups],
            "notes": [*self.notes, *self.caveats],
            "note": self.note,
            "reachable": self.reachable,
            "settings": self.settings,
            "tried": self.tried,
            "latency": self.latency,
            "recovery": self.recovery.as_dict() if self.recovery else None,
            "seconds": {k: round(v, 4) for k, v in self.seconds.items()},
            "plan": json.loads(dumps(self.plan)),
        }


def _layer(change: LayerChange) -> dict[str, Any]:
    pairs = {
        k: v and {"before": v[0], "after": v[1]}
        for k, v in (("inputs", change.inputs), ("outputs", change.outputs), ("macs", change.macs))
    }
    return {"node": change.node, "op": change.op, **pairs, "frozen": change.frozen, "reason": change.reason}
