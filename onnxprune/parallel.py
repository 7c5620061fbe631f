"""Work on many arrays at once: one thread per CPU, and one thread of BLAS in each.

Matrices here are small or narrow; BLAS splits each of them over the CPUs at a loss, while whole products side by side
keep the CPUs busy. Results do not depend on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from onnxprune.runtime import default_threads

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

In = TypeVar("In")
Out = TypeVar("Out")
_LOCK = Lock()


def each(function: Callable[[In], Out], items: Sequence[In]) -> list[Out]:
    """The function of every item, in order. It must not call `each` itself; the first error is raised.

    The number of BLAS threads belongs to the whole process: of several threads that call this, one works at a time.
    """
    with _LOCK, _blas().limit(limits=1, user_api="blas"):
        return [function(x) for x in items] if len(items) < 2 else list(_pool().map(function, items))


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(default_threads(), thread_name_prefix="onnxprune")


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401 - brings a BLAS of its own, which the controller must find
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _forked() -> None:
    """A child has the pool, but not its threads; and whoever held the lock stayed behind."""
    global _LOCK  # noqa: PLW0603
    _pool.cache_clear()
    _LOCK = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
