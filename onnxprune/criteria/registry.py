"""The table of criteria: a criterion gives one number per class, and the classes with the smallest leave first."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Analysis
from onnxprune.errors import UsageError

Scores = NDArray[np.float64]
Partners = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Ranking:
    """What a criterion finds: scores [classes + 1], larger means keep, and for each class the one of its group that can
    take its place, [classes + 1] int32, 0 for none; None where the criterion does not look for any.
    """

    scores: Scores
    partners: Partners | None = None


Criterion = Callable[..., Scores | Ranking]
F = TypeVar("F", bound=Criterion)

_TABLE: dict[str, _Entry] = {}
NAMES = _TABLE.keys()


@dataclass(frozen=True, slots=True)
class _Entry:
    function: Criterion
    data: bool
    options: frozenset[str]
    comparable: bool


def criterion(
    name: str, *, data: bool = False, options: Collection[str] = (), comparable: bool = False
) -> Callable[[F], F]:
    """Register a function (analysis, seed) -> [classes + 1] float64, or Ranking, as `--method name`; larger means keep.

    data: the function wants a third argument, the statistics of every layer's inputs on calibration data (a sequence of
    `activations.InputStatistics`). options: words that may follow the name, as in `name:word,word`; the function gets
    those that do as another argument, a frozenset. comparable: one threshold on the scores means the same in every
    group. Entry 0 of the scores belongs to frozen positions and is ignored. Raises ValueError where the name is taken.
    """

    def register(function: F) -> F:
        if name in _TABLE:
            raise ValueError(f"criterion {name!r} is registered already")
        _TABLE[name] = _Entry(function, data, frozenset(options), comparable)
        return function

    return register


def needs_data(name: str) -> bool:
    """Whether a criterion looks at calibration data."""
    return _entry(name)[0].data


def _entry(name: str, shown: str | None = None) -> tuple[_Entry, frozenset[str]]:
    """The criterion, and the options that `name:option,option` gives it. Raises UsageError, about `shown` if given."""
    base, _, rest = name.partition(":")
    entry, given = _TABLE.get(base), frozenset(filter(None, rest.split(",")))
    if entry is None:
        near = get_close_matches(base, _TABLE, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise UsageError(f"--method {name!r} is not known{hint} Choose one of: {', '.join(sorted(_TABLE))}")
    if unknown := given - entry.options:
        have = f"has the options {', '.join(sorted(entry.options))}" if entry.options else "has no options"
        raise UsageError(f"--method {shown or name!r}: {base} {have}, not {', '.join(sorted(unknown))}")
    return entry, given


def is_comparable(name: str) -> bool:
    """Whether one threshold on the scores of a criterion means the same in every group."""
    return _entry(name)[0].comparable


def comparable() -> list[str]:
    """The criteria for which `is_comparable` holds."""
    return sorted(name for name, entry in _TABLE.items() if entry.comparable)


def check(name: str, shown: str | None = None) -> None:
    """Raise UsageError for an unknown criterion or option; shown: what the user called it."""
    _entry(name, shown)


def score(name: str, analysis: Analysis, *, seed: int = 0, statistics: Any = None) -> Scores:
    """The scores of `rank`."""
    return rank(name, analysis, seed=seed, statistics=statistics).scores


def rank(name: str, analysis: Analysis, *, seed: int = 0, statistics: Any = None) -> Ranking:
    """Score every class by a named criterion, [classes + 1] float64; larger means keep, entry 0 has no meaning.

    name: `name` or `name:option,option`; statistics: of the layers' inputs, for criteria that need data. Raises
    UsageError for an unknown name, for a criterion without the data it needs, and for scores that are not finite.
    """
    entry, options = _entry(name)
    if entry.data and statistics is None:
        raise UsageError(f"method {name!r} looks at calibration inputs: give some with --data")
    more = ((statistics,) if entry.data else ()) + ((options,) if entry.options else ())
    found = entry.function(analysis, seed, *more)
    found = found if isinstance(found, Ranking) else Ranking(np.asarray(found, np.float64))
    if found.scores.shape != (analysis.classes + 1,) or not np.isfinite(found.scores[1:]).all():
        raise UsageError(f"method {name!r} must give one finite number per class, [{analysis.classes + 1}]")
    return found
