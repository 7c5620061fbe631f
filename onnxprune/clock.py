"""The stages of a command: how long each takes, and how far its loops are, told as they go."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Self, TypeVar

_LOG = logging.getLogger("onnxprune")  # the stages, for a progress display
_SOON = 2  # seconds before which the pace says little
_EVERY = 0.1  # seconds between two messages of a loop
_OPEN: list[Progress] = []  # loops around what is told now, the outermost first
T = TypeVar("T")


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
    """Tells the log how far a loop is, and how long the rest will take at the present pace.

    what: one turn of it; total: turns, None where only the end tells; most: whether there may be fewer; deadline: by
    time.perf_counter, at which it ends anyway; done: turns of an earlier run. As a context it is around what is told
    inside; see `around`.
    """

    def __init__(
        self, what: str, total: int | None = None, *, most: bool = False, deadline: float | None = None, done: int = 0
    ) -> None:
        self._what, self._total, self._most, self._deadline = what, total, most, deadline
        self._first, self._done, self._lock = done + 1, done, Lock()
        self._start = self._told = 0.0
        self.line = ""

    def step(self, note: str = "") -> None:
        """The next one begins; note: what else to say of it."""
        with self._lock:
            now, self._done = time.perf_counter(), self._done + 1
            first = self._done == self._first
            self._start = now if first else self._start
            if self._total == 1:
                return
            self.line = line = f"{self._what} {self._done}{self._of()}{note}{self._left(now)}"
            if not (first or now - self._told >= _EVERY or self._done == self._total):
                return
            self._told = now
        _LOG.info("%s", line)

    def _of(self) -> str:
        return "" if self._total is None else f" of {'at most ' * self._most}{self._total}"

    def _left(self, now: float) -> str:
        spent = now - self._start
        if self._deadline is not None:
            return f", at most {_duration(max(self._deadline - now, 0))} left"
        if self._total is None or self._done == self._first or spent <= _SOON:
            return ""
        left = spent / (self._done - self._first) * max(self._total - self._done + 1, 0)
        return f", {'at most' if self._most else 'about'} {_duration(left)} left"

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items, each of them a turn."""
        with self:
            for item in items:
                self.step()
                yield item

    def __enter__(self) -> Self:
        _OPEN.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _OPEN.remove(self)


def around() -> list[str]:
    """How far the loops are in which we are, the outermost first."""
    return [p.line for p in _OPEN if p.line]


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
