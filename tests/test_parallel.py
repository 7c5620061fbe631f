"""Work side by side: in order, on several threads, errors raised, BLAS as it was afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from onnxprune import parallel


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    """As many threads as there are CPUs, also where the process of the tests has one."""
    monkeypatch.delenv("ONNXPRUNE_THREADS", raising=False)
    parallel._pool.cache_clear()
    yield
    parallel._pool.cache_clear()


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


@pytest.mark.parametrize("count", [1, 3])
def test_blas_has_one_thread_inside_and_the_old_number_after(count):
    """Inside, each BLAS has one thread, for a single item too; afterwards as many as before, also after an error."""
    with threadpool_limits(3, user_api="blas"):
        assert all(set(found) == {1} for found in parallel.each(lambda _: blas_threads(), range(count)))
        assert set(blas_threads()) == {3}
        with pytest.raises(ZeroDivisionError):
            parallel.each(lambda i: 1 / i, [1, 0, 2][-count:] if count > 1 else [0])
        assert set(blas_threads()) == {3}


def test_two_callers_at_once():
    """Several threads may call it; the old number of threads comes back."""
    before, found = blas_threads(), []

    def call(start):
        found.append(parallel.each(lambda i: (time.sleep(0.01), start + i)[1], range(4)))

    callers = [threading.Thread(target=call, args=(10 * i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert sorted(found) == [[10 * i + k for k in range(4)] for i in range(4)]
    assert blas_threads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forking is a POSIX feature")
def test_a_forked_child_has_threads_of_its_own():
    """A process forked after the pool was used can use it."""
    assert parallel.each(abs, [-1, -2]) == [1, 2]
    code = "import os; from onnxprune import parallel; parallel.each(abs, [1, 2]); pid = os.fork()\n"
    code += "if not pid: parallel.each(abs, [1, 2]); os._exit(7)\n"
    code += "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "7"


def test_sums_do_not_depend_on_threads():
    """The same bits as a plain loop over the same products with one thread of BLAS."""
    arrays = [np.random.default_rng(i).standard_normal((300, 40)).astype(np.float32) for i in range(8)]
    with threadpool_limits(1, user_api="blas"):
        plain = [a.T @ a for a in arrays]
    with threadpool_limits(3, user_api="blas"):
        found = parallel.each(lambda a: a.T @ a, arrays)
    assert all(np.array_equal(a, b) for a, b in zip(found, plain, strict=True))
