"""The original of a model that is cut in several steps: what every step is held to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Analysis, Mask

Reals = NDArray[np.float64]
Indices = NDArray[np.intp]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Origin:
    """What earlier cuts started from, and what they left of it.

    analysis: of the original; kept: [classes + 1] bool, what is left; trained: whether that was fine-tuned since.
    """

    analysis: Analysis
    kept: Mask
    trained: bool = False

    @property
    def outputs(self) -> dict[str, Indices]:
        """What is left of the outputs of each weight, as indices in the original."""
        return {x.weight: np.flatnonzero(self.kept[x.outputs]) for x in self.analysis.layers if x.weight is not None}

    def floors(self, now: Analysis, least: float | Reals) -> Reals:
        """The least share of each group of what is left, [groups + 1], so that of the original's groups a share `least`
        stays, a number or [its groups + 1].
        """
        must = np.maximum(np.ceil(least * _widths(self.analysis) - 1e-9), 1)
        result: Reals = np.minimum(must[self._groups(now)] / np.maximum(_widths(now), 1), 1.0)
        return result

    def widths(self, now: Analysis) -> Counts:
        """How wide the axis of each group of what is left was in the original, [groups + 1]."""
        sizes = np.array([0, *(len(a.classes) for a in self.analysis.groups)])
        found: Counts = sizes[self._groups(now)]
        return found

    def _groups(self, now: Analysis) -> Counts:
        """The group of the original that each group of what is left was, [groups + 1]."""
        axes, found = {(a.param, a.axis): a.classes for a in self.analysis.axes}, [0]
        for number, axis in enumerate(now.groups, 1):
            before = axes[axis.param, axis.axis]
            own = self.analysis.group[before[self.kept[before]]][now.group[axis.classes] == number]
            found.append(int(np.bincount(own).argmax()))
        return np.array(found)


def _widths(analysis: Analysis) -> Counts:
    """Positions of each group on its own axis, [groups + 1]."""
    owned = (np.count_nonzero(analysis.group[a.classes] == g) for g, a in enumerate(analysis.groups, 1))
    return np.array([0, *owned], np.int64)
