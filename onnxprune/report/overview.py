"""What `analyze` tells about a model, as data: layers and their cost, coupled classes, which layers share a fate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnxprune.analysis import Analysis, Labels, Layer
from onnxprune.cost import Cost


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer: widths (None for a product of two activations, which has no filters), how many of its filters are
    frozen, its MACs and their share of the model's, 0..1.
    """

    node: str
    op: str
    weight: str | None
    inputs: int | None
    outputs: int | None
    frozen: int
    macs: int
    share: float


@dataclass(frozen=True, slots=True)
class GroupRow:
    """Classes that are ranked together: the parameter axis that gives them their name, and the layers they bind.

    width: positions of that axis; producers: layers with filters in these classes; readers: layers that read them.
    """

    parameter: str
    axis: int
    width: int
    classes: int
    producers: tuple[str, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """The analysis of a model in numbers.

    largest: most filters that can only leave together; inexact: classes that only `--inexact` admits; frozen: (filters,
    reason); filters: of all parameters, frozen ones included.
    """

    model: str
    cost: Cost
    classes: int
    largest: int
    inexact: int
    filters: int
    frozen: tuple[tuple[int, str], ...]
    layers: tuple[LayerRow, ...]
    groups: tuple[GroupRow, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with stable keys."""
        return {
            "model": self.model,
            "cost": asdict(self.cost),
            "coupling": {
                "classes": self.classes,
                "largest": self.largest,
                "inexact": self.inexact,
                "filters": self.filters,
                "frozen": sum(n for n, _ in self.frozen),
                "reasons": [{"positions": n, "reason": r} for n, r in self.frozen],
            },
            "layers": [asdict(x) for x in self.layers],
            "groups": [asdict(x) for x in self.groups],
            "notes": list(self.notes),
        }


def overview(analysis: Analysis, cost: Cost, frozen: tuple[tuple[int, str], ...], model: str = "") -> Overview:
    """Summarise an analysis.

    cost: of the cleaned model; frozen: (filters, reason), the most frequent first; model: its name for the reader.
    """
    filters = [axis.classes for axis in analysis.axes if axis.role == "out"]
    sizes = np.bincount(np.concatenate([np.zeros(0, np.int32), *filters]), minlength=analysis.classes + 1)
    return Overview(
        model=model,
        cost=cost,
        classes=analysis.classes,
        largest=int(sizes[1:].max(initial=0)),
        inexact=int(analysis.inexact.sum()),
        filters=int(sizes[1:].sum()) + sum(n for n, _ in frozen),
        frozen=frozen,
        layers=tuple(_layers(analysis)),
        groups=tuple(_groups(analysis)),
        notes=analysis.notes,
    )


def _layers(analysis: Analysis) -> Iterator[LayerRow]:
    whole = np.ones(analysis.classes + 1, np.bool_)
    macs = [layer.macs.count(whole) for layer in analysis.layers]
    total = max(sum(macs), 1)
    for layer, n in zip(analysis.layers, macs, strict=True):
        frozen = int(np.count_nonzero(layer.outputs == 0)) if layer.weight else 0
        width, filters = (layer.inputs.size, layer.outputs.size) if layer.weight else (None, None)
        yield LayerRow(layer.node, layer.op, layer.weight, width, filters, frozen, n, round(n / total, 6))


def _groups(analysis: Analysis) -> Iterator[GroupRow]:
    producers = _bound(analysis, [(x, x.outputs) for x in analysis.layers])
    readers = _bound(analysis, [(x, x.inputs) for x in analysis.layers])
    classes = np.bincount(analysis.group[1:], minlength=len(analysis.groups) + 1)
    for g, axis in enumerate(analysis.groups, 1):
        made, read = producers.get(g, ()), readers.get(g, ())
        yield GroupRow(axis.param, axis.axis, axis.classes.size, int(classes[g]), tuple(made), tuple(read))


def _bound(analysis: Analysis, ends: list[tuple[Layer, Labels]]) -> dict[int, list[str]]:
    """Names of the layers that have positions in the classes of each group."""
    found: dict[int, list[str]] = {}
    for layer, labels in ends:
        for g in np.unique(analysis.group[labels]).tolist():
            found.setdefault(g, []).append(layer.node)
    return found
