"""The pruning ratio whose result keeps a share of the MACs nearest to a target; what the peers' scripts share."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

STEPS = 9  # tries at most
NEAR = 0.02  # a share this near ends the search
WITHIN = 0.05  # of the target: what misses by more gives way to other settings
FAILURES = 3  # tries that may fail: a ratio can be too high for a network, and a lower one is tried next


@dataclass
class Search:
    """What was tried and what was best: model, ratio, kept share; CPU seconds of each try."""

    model: Any = None
    ratio: float = 0.0
    kept: float = 1.0
    tries: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best: float = 0.0  # seconds of the try that was taken
    errors: list[Exception] = field(default_factory=list)

    def times(self) -> dict[str, float]:
        """CPU seconds of the step that was taken and of the others, as the journal holds them."""
        return {"prune": self.best, "search": sum(self.seconds) - self.best}


def search(
    prune: Callable[[float], tuple[Any, float]], keep: float, first: float, most: float = 0.95, near: float = NEAR
) -> Search:
    """Bisect the ratio, beginning with `first`; `prune` gives the model and its kept share. Raises the first error."""
    found, low, high, ratio = Search(), 0.0, most, first
    while len(found.tries) < STEPS and len(found.errors) < FAILURES:
        start = time.process_time()
        try:
            model, kept = prune(ratio)
        except Exception as e:  # noqa: BLE001 - a peer may fail in any way; a smaller cut may do
            found.errors.append(e)
            model, kept = None, 0.0
        found.tries.append(ratio)
        found.seconds.append(time.process_time() - start)
        if model is not None and (found.model is None or abs(kept - keep) < abs(found.kept - keep)):
            found.model, found.ratio, found.kept, found.best = model, ratio, kept, found.seconds[-1]
        if model is not None and abs(kept - keep) <= near:
            break
        low, high = (ratio, high) if kept > keep else (low, ratio)
        ratio = (low + high) / 2
    if found.model is None:
        raise found.errors[0]
    return found


def peak_mb() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
