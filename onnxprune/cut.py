"""The cut: slice every parameter with one uniform rule, and refit every constant that carries a shape."""

from __future__ import annotations

import numpy as np

from onnxprune.analysis import Analysis, Mask
from onnxprune.factors import Factor, Shape, View, lines
from onnxprune.graph import Array, Model, values
from onnxprune.ops.versions import set_parameter


class Kept:
    """Which positions stay: the answers that refits ask for."""

    def __init__(self, analysis: Analysis, kept: Mask) -> None:
        self._removed: Mask = ~kept[analysis.trace.classes]

    def mask(self, atoms: Factor) -> Array:
        """[n] bool: which positions of a 1-D array of atoms are kept."""
        stays: Mask = ~self._removed[atoms]
        return stays

    def shape(self, view: View, shape: Shape) -> list[int]:
        """Size of each axis once positions are gone: an index is gone once all positions on it are."""
        gone = [np.zeros(n, bool) for n in shape]
        for f in view:
            for axis in (a for a, n in enumerate(f.shape) if n > 1):
                gone[axis] |= lines(self._removed[f], axis).all(1)
        return [n - int(g.sum()) for n, g in zip(shape, gone, strict=True)]


def cut(analysis: Analysis, kept: Mask) -> Model:
    """A copy of the cleaned model without the classes that are not kept.

    kept: [classes + 1] bool, `kept[0]` true. Nothing removed gives the same bytes.
    """
    model = analysis.model.copy()
    keep = analysis.kept_axes(kept)
    if not keep:
        return model
    constants = model.constants()
    for name, axes in keep.items():
        constants[name].values = _sliced(values(constants[name]), axes)
    _refit(analysis, model, Kept(analysis, kept))
    return model


def _sliced(array: Array | None, axes: dict[int, Array]) -> Array:
    """Take the kept indices of each axis, the outermost first: its slices are the largest pieces."""
    assert array is not None, "only types that can be read get atoms"
    for axis in sorted(axes):
        array = array.take(axes[axis], axis)
    return np.ascontiguousarray(array)


def _refit(analysis: Analysis, model: Model, kept: Kept) -> None:
    nodes = {o.name: n for n in model.graph.nodes for o in n.outputs if o.name}
    taken = model.names()
    for key, refit in analysis.trace.trace.refits:
        for parameter, value in refit(kept).items():
            set_parameter(model, nodes[key], parameter, value, taken)
