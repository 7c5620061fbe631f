"""The table of criteria: a criterion gives one number per class, and the classes with the smallest leave first."""

from __future__ import annotations

from collections.abc import Callable, KeysView

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Analysis
from onnxprune.errors import UsageError

Scores = NDArray[np.float64]
Criterion = Callable[[Analysis, int], Scores]

_TABLE: dict[str, Criterion] = {}
NAMES: KeysView[str] = _TABLE.keys()


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register a function (analysis, seed) -> [classes + 1] float64 as `--method name`; larger means keep.

    Entry 0 belongs to frozen positions and is ignored. Raises ValueError where the name is taken.
    """

    def register(function: Criterion) -> Criterion:
        if name in _TABLE:
            raise ValueError(f"criterion {name!r} is registered already")
        _TABLE[name] = function
        return function

    return register


def score(name: str, analysis: Analysis, *, seed: int = 0) -> Scores:
    """Score every class by a named criterion, [classes + 1] float64; larger means keep, entry 0 has no meaning.

    Raises UsageError for an unknown name and for scores that are not finite.
    """
    if name not in _TABLE:
        raise UsageError(f"unknown method {name!r}; choose one of: {', '.join(sorted(_TABLE))}")
    result = np.asarray(_TABLE[name](analysis, seed), np.float64)
    if result.shape != (analysis.classes + 1,) or not np.isfinite(result[1:]).all():
        raise UsageError(f"method {name!r} must give one finite number per class, [{analysis.classes + 1}]")
    return result
