"""What may leave a model, what that costs, and the choice within the budget."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from fnmatch import fnmatchcase

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune import files
from onnxprune.allocate import Allocation, allocate, widths_apart
from onnxprune.analysis import Analysis, Mask, Role
from onnxprune.cost import CostModel, Duration, Kind
from onnxprune.errors import UsageError
from onnxprune.normalize.describe import export
from onnxprune.origin import Origin
from onnxprune.settings import Options
from onnxprune.target import Target
from onnxprune.validation.kernels import block_size

Reals = NDArray[np.float64]
_SURE = 0.98  # scores decide which of several classes an axis keeps, so that what is reachable depends a little on them


class Budget:
    """What may leave, what it costs, and the choice that scores lead to.

    origin: where earlier cuts made the model, what they started from: floors are shares of its groups, and its widths
    tell the steps in which they go down.
    """

    def __init__(self, analysis: Analysis, options: Options, origin: Origin | None = None) -> None:
        self.analysis, self.options, self.target = analysis, options, options.target()
        self._kind: Kind = "flops" if self.target.kind == "latency" else self.target.kind
        self._protect = protected(analysis, options.patterns)  # a wrong pattern is known before any work
        whole = origin.analysis if origin else analysis
        least = floors(whole, options.min_keep, options.rates) if options.max_rate else options.min_keep
        self._floors = origin.floors(analysis, least) if origin else least
        self._before = origin.widths(analysis) if origin else None
        self.free: Mask = ~self._protect & (~analysis.inexact if not options.inexact else True)
        cleaned = export(analysis.model)  # what `clean` writes: its digest and its bytes are what a plan refers to
        self._overhead, self._wide = overhead(cleaned), 8
        self.cost, self.digest = CostModel(analysis, self._overhead), files.digest(cleaned)

    def in_time(self, durations: Sequence[Duration]) -> Budget:
        """The same, counted in the latency that durations predict; widths are whole blocks unless told otherwise."""
        timed = copy(self)
        timed.cost, timed._kind = CostModel(self.analysis, self._overhead, durations), "latency"
        timed._wide = block_size()
        return timed

    def decide(self, scores: Reals, per_group: bool, keep: float, best_effort: bool = False) -> Allocation:
        """The choice that keeps at most a fraction."""
        options = self.options
        return allocate(
            self.analysis,
            scores,
            self.cost,
            target=Target(self._kind, keep),
            min_keep=self._floors,
            align=options.align,
            wide=self._wide,
            steps=None if self._before is None else widths_apart(self._before, options.align, self._wide),
            protect=self._protect,
            inexact=options.inexact,
            best_effort=options.best_effort or best_effort or options.latency is not None,
            per_group=per_group,
        )

    def lowest(self) -> Allocation:
        """What is kept near the target whatever the scores are, within reach or not."""
        return self.decide(np.ones(self.analysis.classes + 1), False, self.target.keep, best_effort=True)

    def check(self) -> None:
        """Raise TargetError where the target is out of reach whatever the scores are."""
        if self.target.kind == "latency":
            return  # known when it is measured
        if self.lowest().smallest * _SURE > self.target.keep:
            self.decide(np.ones(self.analysis.classes + 1), False, self.target.keep)


def protected(analysis: Analysis, patterns: Sequence[str], role: Role | None = None, option: str = "--keep") -> Mask:
    """[classes + 1] bool: the classes of layers that patterns name, on axes of this role only if one is given. Raises
    UsageError, with the name of the option, for patterns that name nothing.
    """
    mask = np.zeros(analysis.classes + 1, bool)
    params = analysis.trace.trace.params
    layers = [
        (n.name or n.outputs[0].name, {params[t.name] for t in n.inputs if t.name in params})
        for n in analysis.model.graph.nodes
    ]
    constants, unknown = analysis.model.constants(), list[str]()
    for pattern in patterns:
        named = [held for label, held in layers if label and fnmatchcase(label, pattern)]
        hit = set().union(*named, {c for c in constants if fnmatchcase(c, pattern)})
        if not hit:
            unknown.append(repr(pattern))
        for axis in analysis.axes:
            if axis.param in hit and role in (None, axis.role):
                mask[axis.classes] = True
    if unknown:
        raise UsageError(
            f"{option} {', '.join(unknown)} names no layer and no parameter of the model; `onnxprune analyze` lists "
            "the layers"
        )
    mask[0] = False
    return mask


def floors(analysis: Analysis, min_keep: float, rates: Sequence[tuple[str, float]]) -> Reals:
    """[groups + 1] least share of each group that stays: at least `min_keep`, and 1 - rate for the groups of filters of
    the layers that each (pattern, rate) names. Raises UsageError for a pattern that names nothing.
    """
    least = np.full(len(analysis.groups) + 1, min_keep)
    for pattern, rate in rates:
        named = (
            protected(analysis, [pattern], "out", "--max-rate")
            if pattern != "*"
            else np.ones(analysis.classes + 1, bool)
        )
        groups = np.unique(analysis.group[named])
        least[groups] = np.maximum(least[groups], 1 - rate)
    return least


def overhead(proto: onnx.ModelProto) -> int:
    """Bytes of the file beside the data of its weights."""
    return files.file_bytes(proto) - files.weights_bytes(proto)
