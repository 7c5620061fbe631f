"""The choice by pairs of thresholds and by an optimiser, and what they tried on the way."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import criteria
from onnxprune.allocate import Allocation
from onnxprune.analysis import Analysis, Mask
from onnxprune.calibration import RATE
from onnxprune.clock import Progress
from onnxprune.cost import CostModel
from onnxprune.criteria import InputStatistics
from onnxprune.cut import cut
from onnxprune.errors import UsageError
from onnxprune.recover.agreement import divergence
from onnxprune.recover.program import program
from onnxprune.recover.reference import samples
from onnxprune.recover.statistics import Reader
from onnxprune.recovery import Study
from onnxprune.searching.filters import evolve
from onnxprune.searching.naswot import naswot
from onnxprune.searching.pairs import QUANTILES, RATES, Pair, pairs, scored, shared
from onnxprune.searching.quick import Quick

Reals = NDArray[np.float64]
ALLOCATIONS = ("pairs", "evolve")
PROXIES = ("kl", "naswot", "none")
_REPAIR = "least-squares"  # how candidates are repaired, whatever ships: bare cuts rank at random
_SHARE = 0.3  # of the time that looking at candidates may take, and as much for repairing them
_LOOKS = 224  # inputs that a look at one candidate costs forward passes of
_FEWEST = 4  # pairs of a rate that are looked at however long it takes
_EACH = 10  # pairs of each of several rates
_SMALL = 3e6  # multiply-adds that a refit error costs at least
_PASSES = 4  # forward passes over the inputs that one repair costs, about
_POSITION = 1e5  # multiply-adds that each position costs which its layers are fitted on, however small the network
Decide = Callable[[Reals, bool], Allocation]


@dataclass(frozen=True, slots=True)
class Search:
    """How a search is to be done: its proxy of the accuracy, the optimiser, candidates per group, seed."""

    proxy: str
    optimiser: str
    budget: int
    seed: int


def select(
    how: str, criterion: str, analysis: Analysis, study: Study | None, free: Mask, decide: Decide, search: Search
) -> Allocation:
    """The choice of an allocation of `ALLOCATIONS`, with what was tried in its `tried`.

    free: [classes + 1], what may leave; decide: (scores, whether to divide them by their group's mean) -> the choice
    within the budget. study: None only for pairs without a proxy.
    """
    start = time.perf_counter()
    judged = how == "evolve" or search.proxy != "none"
    found = study.readers_of_original() if study and (judged or criteria.needs_data(criterion)) else []
    statistics = [r.inputs for r in found]
    scores = criteria.score(criterion, analysis, seed=search.seed, statistics=statistics)
    if how == "pairs":
        choice, tried = _by_pairs(scores, analysis, study, found, free, decide, search.proxy)
    else:
        assert study is not None, "an optimiser looks at inputs"
        choice, tried = _by_optimiser(scores, analysis, study, statistics, free, decide, search)
    return replace(choice, tried=tried | {"seconds": time.perf_counter() - start})


def _by_pairs(
    scores: Reals,
    analysis: Analysis,
    study: Study | None,
    readers: Sequence[Reader],
    free: Mask,
    decide: Decide,
    proxy: str,
) -> tuple[Allocation, dict[str, Any]]:
    def within(values: Reals) -> Allocation:
        return decide(values, False)

    if study is None or proxy == "none":
        found = pairs(analysis, scores, within)
        best = len(found) // 2  # as much weight on redundancy as on norms
    else:
        rates, count = _looked_at(study, free)
        found = _judged(pairs(analysis, scores, within, count, rates), study, readers, proxy)
        best = _best(found, proxy)
    told: dict[str, Any] = {"allocate": "pairs", "proxy": proxy, "repair": _REPAIR, "chosen": best}
    return found[best].choice, told | {"candidates": [p.as_dict() for p in found]}


def _looked_at(study: Study, free: Mask) -> tuple[Sequence[float], int]:
    """The rates of shared groups, and how many pairs of each the time allows to look at."""
    streams = shared(study.analysis)[study.analysis.group] & free
    rates: Sequence[float] = RATES if streams.any() else RATES[:1]
    most = QUANTILES if len(rates) == 1 else _EACH * len(rates)
    once = _LOOKS * CostModel(study.analysis).original.macs / RATE
    count = int(np.clip(_SHARE * study.seconds / max(once, 1e-9), _FEWEST, most))
    if count < most:
        study.notes.append(f"to keep to the time, {count} pairs of thresholds are looked at, not {most}")
    rates = rates[: count // _FEWEST]
    return rates, count // len(rates)


def _judged(found: list[Pair], study: Study, readers: Sequence[Reader], proxy: str) -> list[Pair]:
    """The pairs with their numbers; the most promising ones repaired, where that is what counts."""
    quick = Quick(study, readers)
    batches = study.reference.batches

    def regions(kept: Mask) -> float:
        return naswot(program(cut(study.analysis, kept)), batches)

    found = scored(Progress("pair", len(found)).over(found), kl=quick.divergence, naswot=regions)
    if proxy == "kl":
        order = _promising(found)[: _affordable(study)]
        for i in Progress("repair of the best pairs:", len(order)).over(order):
            [found[i]] = scored([found[i]], repaired=partial(_repaired, study))
    return found


def _promising(found: Sequence[Pair]) -> list[int]:
    """Indices of the pairs: the best of every rate first, then all second ones, and so on; a quick refit flatters wide
    streams.
    """
    ranks, order = Counter[float](), list[tuple[int, int]]()
    for i in sorted(range(len(found)), key=lambda i: (found[i].kl, i)):
        order.append((ranks[found[i].rate], i))
        ranks[found[i].rate] += 1
    return [i for _, i in sorted(order, key=lambda entry: entry[0])]


def _affordable(study: Study) -> int:
    """How many candidates can be repaired in the time, by the rate that plans of work assume; at least two."""
    inputs = sum(samples(b) for b in study.reference.batches)
    positions = sum(len(at.sample) for layer in study.reference.layers.values() for at in layer.positions)
    once = max(_PASSES * inputs * CostModel(study.analysis).original.macs, _POSITION * positions) / RATE
    return max(2, int(_SHARE * study.seconds / max(once, 1e-9)))


def _repaired(study: Study, kept: Mask) -> float:
    """Divergence from the original, on all inputs, of the network cut to `kept` and repaired."""
    return divergence(study.reference.outputs, study.repaired(kept, _REPAIR).outputs)


def _budget(study: Study, statistics: Sequence[InputStatistics], kept: Mask, wanted: int) -> int:
    """Candidates per group that the time allows."""
    lost = [int((~kept[s.classes]).sum()) for s in statistics if not s.follows]
    once = sum(max(n**3 / 3, _SMALL) for n in lost if n) / RATE
    budget = int(np.clip(_SHARE * study.seconds / max(once, 1e-9), 1, wanted))
    if budget < wanted:
        study.notes.append(f"to keep to the time, the optimiser tries {budget} candidates per group, not {wanted}")
    return budget


def _best(found: list[Pair], proxy: str) -> int:
    """Index of the best pair; of equal ones the first. Raises UsageError where the proxy tells nothing."""
    values = [p.repaired if proxy == "kl" else None if p.naswot is None else -p.naswot for p in found]
    known = [i for i, v in enumerate(values) if v is not None and np.isfinite(v)]
    if not known:
        raise UsageError(
            f"--proxy {proxy} tells none of the candidates from another: the network has no activations that it knows, "
            "or gives the same for all inputs; try --proxy kl, or other --data"
        )
    return min(known, key=lambda i: (values[i], i))


def _by_optimiser(
    scores: Reals,
    analysis: Analysis,
    study: Study,
    statistics: Sequence[InputStatistics],
    free: Mask,
    decide: Decide,
    search: Search,
) -> tuple[Allocation, dict[str, Any]]:
    plain = decide(scores, True)
    kept, told = evolve(
        analysis,
        plain.kept,
        free,
        scores,
        statistics,
        optimiser=search.optimiser,
        budget=_budget(study, statistics, plain.kept, search.budget),
        seed=search.seed,
        known=study.known,
    )
    before, after = _repaired(study, plain.kept), _repaired(study, kept)
    tried: Mapping[str, Any] = {
        "allocate": "evolve",
        "repair": _REPAIR,
        "optimiser": search.optimiser,
        "plain": before,
        "optimised": after,
        "chosen": "optimised" if after < before else "plain",
        "groups": [e.as_dict() for e in told],
    }
    return (replace(plain, kept=kept) if after < before else plain), dict(tried)
