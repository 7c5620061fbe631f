"""Choices compared quickly: every layer refitted from the same second moments, and one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.analysis import Mask
from onnxprune.cut import cut
from onnxprune.graph import Array
from onnxprune.recover.agreement import divergence
from onnxprune.recover.program import Program, outputs, program
from onnxprune.recover.statistics import Reader, refitted
from onnxprune.recovery import Study

_INPUTS = 96


class Quick:
    """Scores choices on the inputs of a study, of which it looks at the original once."""

    def __init__(self, study: Study, readers: Sequence[Reader]) -> None:
        """readers: of the original."""
        self._study, self._readers = study, readers
        self._batches, self._original = study.first(_INPUTS)

    def divergence(self, kept: Mask) -> float:
        """Divergence of the cut and refitted network's outputs from the original's, on 96 inputs that fits see."""
        return divergence(self._original, outputs(self.program(kept), self._batches))

    def program(self, kept: Mask) -> Program:
        """The network cut to `kept`; every layer that reads less is refitted on what it reads in the original."""
        analysis, lost = self._study.analysis, ~kept
        changed: dict[str, Array] = {}
        for r in (r for r in self._readers if lost[r.inputs.classes].any() and not r.inputs.follows):
            changed.update(refitted(r, lost, self._study.program))
        axes = analysis.kept_axes(kept)
        for name, array in changed.items():
            for axis, indices in axes.get(name, {}).items():
                array = np.take(array, indices, axis)  # noqa: PLW2901
            changed[name] = array
        return program(cut(analysis, kept)).replaced(changed)
