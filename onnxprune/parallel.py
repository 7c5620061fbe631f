"""Work on many arrays at once: one thread per CPU, and one thread of BLAS in each.

Matrices here are small or narrow; BLAS splits each of them over the CPUs at a loss, while whole products side by side
keep the CPUs busy. Results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from onnxprune.runtime import default_threads

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

In = TypeVar("In")
Out = TypeVar("Out")


def each(function: Callable[[In], Out], items: Sequence[In]) -> list[Out]:
    """The function of every item, in order. It must not call `each` itself; the first error is raised."""
    if len(items) < 2:
        return [function(item) for item in items]
    with _blas().limit(limits=1, user_api="blas"):
        return list(_pool().map(function, items))


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(default_threads(), thread_name_prefix="onnxprune")


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401 - brings a BLAS of its own, which the controller must find
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
