"""The table of criteria: a criterion gives one number per class, and the classes with the smallest leave first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Analysis
from onnxprune.errors import UsageError

Scores = NDArray[np.float64]
Criterion = Callable[..., Scores]

_TABLE: dict[str, _Entry] = {}
NAMES = _TABLE.keys()


@dataclass(frozen=True, slots=True)
class _Entry:
    function: Criterion
    data: bool


def criterion(name: str, *, data: bool = False) -> Callable[[Criterion], Criterion]:
    """Register a function (analysis, seed) -> [classes + 1] float64 as `--method name`; larger means keep.

    data: the function wants a third argument, the statistics of every layer's inputs on calibration data (a sequence of
    `activations.InputStatistics`). Entry 0 of the scores belongs to frozen positions and is ignored. Raises ValueError
    where the name is taken.
    """

    def register(function: Criterion) -> Criterion:
        if name in _TABLE:
            raise ValueError(f"criterion {name!r} is registered already")
        _TABLE[name] = _Entry(function, data)
        return function

    return register


def needs_data(name: str) -> bool:
    """Whether a criterion looks at calibration data."""
    return _entry(name).data


def _entry(name: str) -> _Entry:
    if name not in _TABLE:
        raise UsageError(f"unknown method {name!r}; choose one of: {', '.join(sorted(_TABLE))}")
    return _TABLE[name]


def score(name: str, analysis: Analysis, *, seed: int = 0, statistics: Any = None) -> Scores:
    """Score every class by a named criterion, [classes + 1] float64; larger means keep, entry 0 has no meaning.

    statistics: of the layers' inputs, for criteria that need data. Raises UsageError for an unknown name, for a
    criterion without the data it needs, and for scores that are not finite.
    """
    entry = _entry(name)
    if entry.data and statistics is None:
        raise UsageError(f"method {name!r} looks at calibration inputs: give some with --data")
    more = (statistics,) if entry.data else ()
    result = np.asarray(entry.function(analysis, seed, *more), np.float64)
    if result.shape != (analysis.classes + 1,) or not np.isfinite(result[1:]).all():
        raise UsageError(f"method {name!r} must give one finite number per class, [{analysis.classes + 1}]")
    return result
