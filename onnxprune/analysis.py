"""What coupling finds out about a model: classes of positions, the layers, their cost, and what is frozen and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxprune.drawing import brief, fragment, heights, strip

if TYPE_CHECKING:
    from onnxprune.graph import Model

Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]
Role = Literal["out", "in", "with"]
_SHOWN = 20  # layers in a notebook


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of one parameter.

    classes: [dim] int32, the class of each position, 0 where it is frozen.
    role: "out" where the positions are filters that a layer produces, "in" where a layer reads them (its consumers'
    columns), "with" where they merely go along (bias, BN vectors, PRelu slopes, constants of an Add).
    """

    param: str
    axis: int
    classes: Labels
    role: Role


@dataclass(frozen=True, slots=True)
class Product:
    """A count that is `factor` times the number of kept positions in each of `dims` (MACs of a layer, elements of a
    tensor).
    """

    factor: int
    dims: tuple[Labels, ...]

    def count(self, kept: Mask) -> int:
        """Value for kept classes, [classes + 1] bool with `kept[0]` (frozen) true."""
        total = self.factor
        for classes in self.dims:
            total *= int(np.count_nonzero(kept[classes]))
        return total


@dataclass(frozen=True, slots=True)
class Layer:
    """A Conv, ConvTranspose, Gemm, MatMul or Einsum. `weight` is None where both operands are activations."""

    node: str
    op: str
    weight: str | None
    outputs: Labels
    inputs: Labels
    macs: Product


@dataclass(frozen=True, slots=True)
class Frozen:
    """Positions of one parameter axis that can never be removed, and why (the tie to atom 0 that decided it)."""

    name: str
    axis: int
    op: str
    reason: str
    positions: int


@dataclass(frozen=True, slots=True)
class Element:
    """One parameter: how many elements it keeps, and the bytes of one."""

    param: str
    elements: Product
    itemsize: int


@dataclass(frozen=True)
class Analysis:
    """The coupled model.

    model: the cleaned model. classes: number of removable classes, with ids 1..classes; id 0 is frozen.
    inexact: [classes + 1] bool, classes whose removal changes the function even where they are dead (LayerNorm, ...).
    axes: every parameter axis with more than one position that couples with anything, in graph order.
    group: [classes + 1] int32, 0 for frozen; classes with the same first producer axis are ranked and aligned together;
    group g's producer axis is `groups[g - 1]`. parts: the classes of selected parts of tensors, each of which must keep
    some.
    """

    model: Model
    shapes: dict[str, tuple[int, ...]]
    classes: int
    inexact: Mask
    axes: tuple[Axis, ...]
    layers: tuple[Layer, ...]
    elements: tuple[Element, ...]
    group: Labels
    groups: tuple[Axis, ...]
    frozen: tuple[Frozen, ...]
    notes: tuple[str, ...]
    trace: Any  # the interpreter's record: ties with their reasons, views and refits; for cut, verify and explain
    parts: tuple[Labels, ...] = ()

    def __repr__(self) -> str:
        return f"Analysis({self.classes} classes, {len(self.layers)} layers, {len(self.axes)} parameter axes)"

    def _repr_html_(self) -> str:
        """For notebooks: widths in the order of the graph, and the first layers."""
        whole = np.ones(self.classes + 1, np.bool_)
        widths = [x.outputs.size if x.weight else 0 for x in self.layers]
        held = [int(np.count_nonzero(x.outputs == 0)) if x.weight else 0 for x in self.layers]
        tall = heights(widths, max(widths, default=1))
        title = f"{len(self.layers)} layers; filters in {self.classes:,} classes; {sum(held):,} filters frozen"
        rows = [
            [brief(x.node), x.op, *map(str, (x.inputs.size, x.outputs.size) if x.weight else ("-", "-")), str(n or ""),
             f"{x.macs.count(whole):,}"]
            for x, n in zip(self.layers[:_SHOWN], held, strict=False)
        ]  # fmt: skip
        picture = strip(tall, tall, [i for i, n in enumerate(held) if n], title, alone=True)
        left = len(self.layers) - _SHOWN
        more = f"{left:,} more layers; onnxprune.api.overview tells all." if left > 0 else ""
        return fragment(title, ("layer", "op", "in", "out", "frozen", "MACs"), rows, more, picture)

    def kept_axes(self, kept: Mask) -> dict[str, dict[int, NDArray[np.int64]]]:
        """Kept indices of every parameter axis that loses positions, for kept classes, [classes + 1] bool."""
        out: dict[str, dict[int, NDArray[np.int64]]] = {}
        ends = np.cumsum([0, *(a.classes.size for a in self.axes)])
        stays = kept[np.concatenate([np.zeros(0, np.int32), *(a.classes for a in self.axes)])]
        left = np.append(0, np.cumsum(stays))[ends]
        for i in np.flatnonzero(np.diff(left) < np.diff(ends)).tolist():
            axis, indices = self.axes[i], stays[ends[i] : ends[i + 1]].nonzero()[0]
            out.setdefault(axis.param, {})[axis.axis] = indices
        return out

    @property
    def largest(self) -> int:
        """Filters (rows of producers) in the largest class."""
        counts = sum(
            (np.bincount(a.classes, minlength=self.classes + 1) for a in self.axes if a.role == "out"), np.zeros(1, int)
        )
        return int(counts[1:].max(initial=0))

    @property
    def frozen_share(self) -> float:
        """Share of all filters that can never be removed, 0..1."""
        frozen = sum(f.positions for f in self.frozen)
        free = sum(int(np.count_nonzero(a.classes)) for a in self.axes if a.role == "out")
        return frozen / (frozen + free) if frozen else 0.0
