"""The stages of a command: how long each takes, told as it begins."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_LOG = logging.getLogger("onnxprune")  # the stages, for a progress display
_SOON = 2  # seconds before which the pace says little


@dataclass
class Clock:
    """Seconds per stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        _LOG.info(stage)
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


class Progress:
    """Tells the log how far a loop is, and how long the rest will take at the present pace."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done, self._start = what, total, 0, time.perf_counter()

    def step(self) -> None:
        """The next one begins."""
        spent, self._done = time.perf_counter() - self._start, self._done + 1
        left = spent / max(self._done - 1, 1) * (self._total - self._done + 1)
        about = f", about {left:.0f} s left" if spent > _SOON else ""
        _LOG.info("%s %d of %d%s", self._what, self._done, self._total, about)
