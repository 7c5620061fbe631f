"""Tasks on clusters: what a worker gets of the machine, and addresses where nobody answers."""

from __future__ import annotations

import signal

import pytest

from onnxprune import workers
from onnxprune.errors import UsageError
from onnxprune.workers import connected


@pytest.mark.filterwarnings("default")  # of the cluster's own shutdown
def test_a_cluster_of_dask_on_this_machine(monkeypatch):
    """Without an address there are as many processes as jobs, with one task each, and the threads are shared.

    Ctrl-C, which a terminal sends to all, is for the one who started them.
    """
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "default_threads", lambda: 6)
    asked = [
        "len(__import__('distributed').get_client().scheduler_info()['workers'])",
        "__import__('distributed').get_worker().state.nthreads",
        "__import__('os').environ['ONNXPRUNE_THREADS']",
        "__import__('signal').getsignal(2).name",
    ]
    before = signal.getsignal(signal.SIGINT)
    with connected("dask", None, 3) as run:
        found = [next(run(eval, (), [x], 3)) for x in asked]
        assert signal.getsignal(signal.SIGINT) is before
    assert found == [3, 1, "2", "SIG_IGN"]


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1:9"])
def test_nobody_answers(address):
    """An address that is none, and one without a scheduler, are told as what they are."""
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    told = f"--scheduler '{address}': no dask cluster answers there"
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(UsageError, match=told),
        connected("dask", address, 2),
    ):
        raise AssertionError("there is no cluster")
