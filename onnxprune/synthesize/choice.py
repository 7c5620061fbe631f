"""Which candidates to take: those whose statistics, put together, are what they should be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
_SWAPS = 4  # times the number chosen, at most
_TRIED = 16  # of the chosen, for the best swap


def herd(gram: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """Choose `count` candidates so that the sum of their feature vectors is as close to 0 as possible.

    gram: [candidates, candidates], scalar products of their feature vectors, each minus its target. One candidate after
    the other, then swaps while they help (kernel herding without replacement).
    """
    norms = np.diag(gram).astype(np.float64)
    products = np.zeros(len(gram))  # of every candidate with the sum of the chosen ones
    chosen = np.zeros(len(gram), bool)
    for _ in range(count):
        best = int(np.where(chosen, np.inf, 2 * products + norms).argmin())
        chosen[best] = True
        products += gram[best]
    for _ in range(_SWAPS * count if count < len(gram) else 0):
        gains = np.where(chosen, 2 * products - norms, -np.inf)  # of leaving
        leaving = np.argsort(-gains)[: min(_TRIED, count)]
        costs = np.where(chosen, np.inf, 2 * (products - gram[leaving]) + norms)  # of joining instead, [leaving, all]
        out, joining = divmod(int(np.argmax(gains[leaving, None] - costs)), len(gram))
        worst = leaving[out]
        if gains[worst] - costs[out, joining] <= 1e-9 * abs(gains[worst]):
            break
        chosen[[worst, joining]] = False, True
        products += gram[joining] - gram[worst]
    return np.flatnonzero(chosen)


def balanced(classes: NDArray[np.intp], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Choose `count` candidates with as even numbers of every class as there are, at random within a class."""
    order = rng.permutation(len(classes))
    grouped = order[np.argsort(classes[order], kind="stable")]
    sizes = np.bincount(classes)
    turn = np.empty(len(classes), np.intp)
    turn[grouped] = np.arange(len(classes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # the how-manieth of its class
    return np.lexsort((rng.random(len(classes)), turn))[:count]
