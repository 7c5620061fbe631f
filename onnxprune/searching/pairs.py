"""Pairs of thresholds: what leaves is redundant (closer than a distance to what stays) or small (below a norm).

The hybrid of cluster pruning and norm pruning (a thesis of 2023), reconstructed: for every distance threshold, the norm
threshold that meets the budget is found, under a limit to what layers lose; the pairs are ranked by a proxy of the
accuracy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocate import Allocation
from onnxprune.analysis import Analysis, Labels, Mask
from onnxprune.clock import Progress
from onnxprune.criteria.norms import per_group, row_norms

Reals = NDArray[np.float64]
QUANTILES = 20  # distance thresholds that are tried, 0 (norms alone) among them
RATES = (1.0, 0.0, 0.5, 0.25)  # shares that shared groups may lose


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair of thresholds that meets the budget.

    distance, norm: what is closer or smaller leaves (norms in units of their group's mean); by_distance: share of the
    classes that leave because of their distance; rate: share that shared groups may lose; kl: divergence from the
    original after a quick refit, repaired: after the repair that ships, where it was tried; naswot: of the cut network;
    None for what was not looked at.
    """

    choice: Allocation
    distance: float
    norm: float
    by_distance: float
    rate: float = 1.0
    kl: float | None = None
    naswot: float | None = None
    repaired: float | None = None
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """What the report shows."""
        names = ("distance", "norm", "by_distance", "rate", "kl", "naswot", "repaired", "seconds")
        told = {n: getattr(self, n) for n in names}
        return {"kept": self.choice.fraction} | {n: None if v in (np.inf, -np.inf) else v for n, v in told.items()}


def pairs(
    analysis: Analysis,
    distances: Reals,
    decide: Callable[[Reals], Allocation],
    count: int = QUANTILES,
    rates: Sequence[float] = RATES[:1],
) -> list[Pair]:
    """The different choices that pairs of thresholds lead to, by rate and ascending distance; `count` of each rate
    where there are so many.

    distances: [classes + 1] scores of a criterion whose numbers mean the same in every group; decide: the choice within
    the budget that scores lead to, as they are; rates: shares of the classes of `shared` groups that may leave; the
    others of them leave last, though what fills the budget to the end may take some.
    """
    norms, group, found = relative_norms(analysis), analysis.group, dict[bytes, Pair]()
    streams = np.flatnonzero(shared(analysis)[group])
    for rate in rates:

        def limited(scores: Reals, rate: float = rate) -> Allocation:
            return decide(_held_back(scores, streams, group[streams], rate))

        for pair in _of_rate(distances, norms, limited, count, rate):
            found.setdefault(pair.choice.kept.tobytes(), pair)
    return list(found.values())


def _of_rate(
    distances: Reals, norms: Reals, decide: Callable[[Reals], Allocation], count: int, rate: float
) -> list[Pair]:
    """`pairs` of one rate, which `decide` keeps to."""
    gone = distances[~decide(distances).kept]  # distances alone: larger thresholds would exceed the budget
    levels, found = _levels(gone, count), dict[bytes, Pair]()
    for level in Progress("thresholds:", len(levels), most=True).over(levels):
        if len(found) == count:
            break
        start = time.perf_counter()
        close = distances <= level if level else np.zeros(len(distances), bool)
        choice = decide(np.where(close, distances / max(level, 1e-30) - 1, norms))
        small = ~choice.kept & ~close
        norm, share = float(norms[small].max(initial=0.0)), float((~choice.kept & close)[1:].mean())
        pair = Pair(choice, level, norm, share, rate, seconds=time.perf_counter() - start)
        found.setdefault(choice.kept.tobytes(), pair)
    return sorted(found.values(), key=lambda pair: pair.distance)


def shared(analysis: Analysis) -> Mask:
    """[groups + 1], whether several layers make the filters of a group, as in residual streams. What works channel by
    channel (depthwise convolutions) does not count.
    """
    grouped = [n for n in analysis.model.graph.nodes if len(n.inputs) > 1 and int(n.attrs.get("group", 1)) > 1]
    apart = {n.inputs[1].name for n in grouped}
    layers = [x for x in analysis.layers if x.weight is not None and x.weight not in apart]
    written = [np.unique(analysis.group[x.outputs]) for x in layers]
    result: Mask = np.bincount(np.concatenate([[0], *written]), minlength=len(analysis.groups) + 1) > 1
    result[0] = False
    return result


def _held_back(scores: Reals, members: NDArray[np.intp], group: Labels, rate: float) -> Reals:
    """The scores, [classes + 1]; those of members that are not among the `rate` lowest of their group, [members], are
    above all others.
    """
    if rate >= 1 or not len(members):
        return scores
    order = np.lexsort((scores[members], group))
    members, group = members[order], group[order]
    size, first = np.bincount(group), np.searchsorted(group, group)
    stay = members[np.arange(len(members)) - first >= np.floor(rate * size[group] + 1e-9)]
    result = scores.copy()
    result[stay] += scores[1:].max() - scores[1:].min() + 1
    return result


def _levels(gone: Reals, count: int) -> list[float]:
    """Distance thresholds: `count` quantiles, the first of them 0, then those between, for where several lead to the
    same choice.
    """
    if not len(gone):
        return [0.0]
    shares = np.linspace(0, 1, count)
    found: list[float] = np.quantile(gone, [*shares, *(shares[1:] + shares[:-1]) / 2]).tolist()
    return [0.0, *found[1:]]


def relative_norms(analysis: Analysis) -> Reals:
    """[classes + 1] norm of the filters, in units of the mean of their group."""
    return per_group(analysis, np.sqrt(row_norms(analysis, 2)))


def scored(found: Iterable[Pair], **numbers: Callable[[Mask], float]) -> list[Pair]:
    """The pairs with what each of these functions of the kept classes gives, and the seconds that it took."""
    result = []
    for pair in found:
        start = time.perf_counter()
        values: dict[str, Any] = {name: function(pair.choice.kept) for name, function in numbers.items()}
        result.append(replace(pair, **values, seconds=pair.seconds + time.perf_counter() - start))
    return result
