"""Work side by side: in order, on several threads, errors raised, BLAS as it was afterwards."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from onnxprune import parallel


def blas_threads():
    """Threads of every BLAS in this process."""
    return [x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"]


def test_results_come_in_order():
    """Two items at once where there are two CPUs; the results are in the order of the items."""
    second = threading.Event()

    def work(i):
        if i == 1:
            second.set()
        return i * i, i > 0 or parallel.default_threads() == 1 or second.wait(30)

    assert parallel.each(work, range(20)) == [(i * i, True) for i in range(20)]
    assert parallel.each(work, []) == []


def test_blas_has_one_thread_inside_and_the_old_number_after():
    """Inside, each BLAS has one thread; afterwards as many as before, also after an error."""
    before = blas_threads()
    assert all(set(found) == {1} for found in parallel.each(lambda _: blas_threads(), range(3)))
    assert blas_threads() == before
    with pytest.raises(ZeroDivisionError):
        parallel.each(lambda i: 1 / i, [1, 0, 2])
    assert blas_threads() == before


def test_sums_do_not_depend_on_threads():
    """The same bits as a plain loop over the same products."""
    arrays = [np.random.default_rng(i).standard_normal((300, 40)).astype(np.float32) for i in range(8)]
    with parallel._blas().limit(limits=1, user_api="blas"):
        plain = [a.T @ a for a in arrays]
    assert all(np.array_equal(a, b) for a, b in zip(parallel.each(lambda a: a.T @ a, arrays), plain, strict=True))
