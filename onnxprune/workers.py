"""Tasks side by side: in processes of this machine (loky), or on a cluster of dask or ray."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, NamedTuple

from onnxprune.errors import UsageError
from onnxprune.runtime import default_threads

BACKENDS = ("loky", "dask", "ray")
Task = Callable[..., Any]
Run = Callable[[Task, Sequence[Any], Sequence[Any], int], Iterator[Any]]


class WorkerDiedError(Exception):
    """A worker died with a task."""


@contextmanager
def connected(backend: str, scheduler: str | None, jobs: int) -> Iterator[Run]:
    """What runs tasks, on the cluster whose address is `scheduler`, or on this machine.

    It is called with a task, arguments that all calls share, the last argument of each call, and how many may run at a
    time; it gives results as they are finished, in any order, and raises what a task raises, or WorkerDiedError. Raises
    UsageError where the backend is not installed, or does not answer at the address.
    """
    if backend == "dask":
        with _dask(scheduler, jobs) as client:
            yield partial(_by_dask, client, scheduler is None)
    elif backend == "ray":
        with _ray(scheduler, jobs):
            yield partial(_by_ray, scheduler is None)
    else:
        yield _by_loky


def _dask(scheduler: str | None, jobs: int) -> Any:
    """A client of dask's cluster at an address, or of one with a process per job on this machine."""
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise UsageError("--backend dask needs dask: pip install 'dask[distributed]'") from error
    if scheduler is None:
        with _deaf_to_ctrl_c():
            return Client(n_workers=jobs, threads_per_worker=1, processes=True, dashboard_address=None)
    with _answering("dask", scheduler):
        return Client(scheduler)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started here ignore Ctrl-C, which a terminal sends to all: who started them ends them."""
    if current_thread() is not main_thread():  # only the main one may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _answering(backend: str, scheduler: str | None) -> Iterator[None]:
    """What a connection fails by, as a UsageError about the address."""
    try:
        yield
    except (OSError, ValueError) as error:
        if scheduler is None:
            raise
        why = f"no {backend} cluster answers there ({error})"
        raise UsageError(f"--scheduler {scheduler!r}: {why}; give the address of one, such as host:port") from error


@contextmanager
def _ray(scheduler: str | None, jobs: int) -> Iterator[None]:
    """A connection to ray, where there is none yet."""
    try:
        import ray
    except ImportError as error:
        raise UsageError("--backend ray needs ray: pip install ray") from error
    if ray.is_initialized():
        yield
        return
    own = {"num_cpus": jobs, "include_dashboard": False} if scheduler is None else {}
    with _answering("ray", scheduler):
        ray.init(address=scheduler or "local", logging_level="warning", **own)
    try:
        yield
    finally:
        ray.shutdown()


def _by_loky(task: Task, shared: Sequence[Any], items: Sequence[Any], jobs: int) -> Iterator[Any]:
    import joblib
    from joblib.externals.loky.process_executor import BrokenProcessPool

    here = _Here.now(jobs)
    calls = (joblib.delayed(_there)(here, task, *shared, item) for item in items)
    try:
        yield from joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", pre_dispatch=jobs)(calls)
    except BrokenProcessPool as error:  # TerminatedWorkerError is one
        raise WorkerDiedError from error


def _by_dask(
    client: Any, own: bool, task: Task, shared: Sequence[Any], items: Sequence[Any], jobs: int
) -> Iterator[Any]:
    """By dask itself: joblib waits for ever where a task fails there."""
    from dask.distributed import KilledWorker, as_completed

    here = _Here.now(jobs) if own else None

    def start(item: Any) -> Any:
        return client.submit(_there, here, task, *shared, item, pure=False)

    waiting = list(items[jobs:])
    started = {start(item) for item in items[:jobs]}
    running = as_completed(started)
    try:
        for future in running:
            yield future.result()
            started.discard(future)
            future.release()  # or it is computed again where the worker that made it dies later
            if waiting:
                more = start(waiting.pop(0))
                started.add(more)
                running.add(more)
    except KilledWorker as error:
        raise WorkerDiedError from error
    finally:
        client.cancel(list(started))


def _by_ray(own: bool, task: Task, shared: Sequence[Any], items: Sequence[Any], jobs: int) -> Iterator[Any]:
    """By ray itself: its backend for joblib gives nothing before all is finished."""
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

    call, held = ray.remote(max_retries=0)(_there), [ray.put(x) for x in shared]
    here, waiting, running = _Here.now(jobs) if own else None, list(items), list[Any]()
    try:
        while waiting or running:
            new = waiting[: jobs - len(running)]
            waiting = waiting[len(new) :]
            running += [call.remote(here, task, *held, item) for item in new]
            finished, running = ray.wait(running)
            yield from ray.get(finished)
    except (NodeDiedError, OutOfMemoryError, WorkerCrashedError) as error:
        raise WorkerDiedError from error


class _Here(NamedTuple):
    """What a process of this machine takes over: the folder, in which sources may be named, and its share of CPUs."""

    folder: str
    threads: int

    @classmethod
    def now(cls, jobs: int) -> _Here:
        return cls(str(Path.cwd()), max(1, default_threads() // jobs))


def _there(here: _Here | None, task: Task, *arguments: Any) -> Any:
    """What a worker does."""
    if here is not None:
        os.chdir(here.folder)
        os.environ["ONNXPRUNE_THREADS"] = str(here.threads)
    return task(*arguments)
