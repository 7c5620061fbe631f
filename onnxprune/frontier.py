"""Many compressions of one model side by side: what each costs, what each is worth, and which ones nobody beats."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from onnxprune import __version__, errors, files
from onnxprune.clock import Progress
from onnxprune.errors import OnnxpruneError, PlanError, UsageError
from onnxprune.outcome import Result
from onnxprune.pipeline import Source, compressed
from onnxprune.pipeline import read as read_source
from onnxprune.plan import as_json
from onnxprune.points import Candidate, Frontier, Measure, Point, common_measure, marked, of_metric
from onnxprune.recovery import Known
from onnxprune.settings import Choice, CompressOptions
from onnxprune.signature import taking
from onnxprune.validation.metrics import DEFAULT, metric
from onnxprune.validation.result import validate
from onnxprune.workers import BACKENDS, Run, WorkerDiedError, connected

_VERSION = 2
_LISTED = {"flops", "methods", "jobs", "backend", "scheduler", "journal", "resume"}  # no candidate depends on them
_OF_ALLOCATIONS = {"proxy": "pairs", "optimiser": "evolve", "budget": "evolve"}  # option -> the only one it is for
_LOG = logging.getLogger("onnxprune")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions(Choice):
    """What `search` can be told; it says what each of them means."""

    flops: float | Sequence[float] = ()
    methods: str | Sequence[str] = ()
    val: Any = None
    metric: str | Callable[..., float] | None = None
    recover: str = "auto"
    jobs: int = 1
    backend: str = "loky"
    scheduler: str | None = None
    journal: str | Path | None = None
    resume: bool = True

    def candidates(self) -> list[Candidate]:
        """Every method at every target; "" is the default method. Raises UsageError for what is wrong in any."""
        flops = [self.flops] if isinstance(self.flops, int | float) else self.flops
        methods = [self.methods] if isinstance(self.methods, str) else self.methods
        if not flops:
            raise UsageError("give the fractions of the FLOPs to try, such as --flops 0.2,0.35,0.5,0.75")
        names = dict.fromkeys(_sorted(m) for m in methods or ("",))
        found = [Candidate(m, f) for m in names for f in sorted({float(f) for f in flops})]
        for candidate in found:
            self.of(candidate).check()
        return found

    def of(self, candidate: Candidate) -> CompressOptions:
        """The options of one compression; those of an allocation that this candidate does not have are left out."""
        own = {f.name for f in fields(CompressOptions)} - {"flops", "method", *_OF_ALLOCATIONS}
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name in own}
        plain = CompressOptions(**shared, flops=candidate.flops, method=candidate.method or None)
        extra = {n: getattr(self, n) for n, owner in _OF_ALLOCATIONS.items() if owner == plain.allocation}
        return replace(plain, **extra)

    def check(self) -> None:
        """Raise UsageError for what is wrong whatever the model and the data."""
        made = [self.of(c) for c in self.candidates()]
        allocations = {x.allocation for x in made}
        if not any(x.runs_inputs for x in made):
            made[0].check_inputs_used()
        for name, owner in _OF_ALLOCATIONS.items():
            if getattr(self, name) is not None and owner not in allocations:
                raise UsageError(f"--{name} belongs to --allocate {owner}, which no candidate has")
        if self.jobs < 1:
            raise UsageError(f"--jobs {self.jobs}: give at least 1")
        if self.backend not in BACKENDS:
            raise UsageError(f"--backend {self.backend!r} is not known; choose one of: {', '.join(BACKENDS)}")
        if self.scheduler is not None and self.backend == "loky":
            raise UsageError("--scheduler is the address of a cluster: name its --backend, dask or ray")
        if self.journal is not None and not all(_told_apart(x) for x in (self.data, self.val)):
            raise UsageError("--resume needs data that can be told from other data: files, or arrays by name")
        if self.journal is not None and callable(self.metric):
            raise UsageError("a journal needs a metric with a name: give it as 'module:function'")
        if self.metric is not None and self.val is None:
            raise UsageError("--metric is measured on labelled inputs: give --val")
        _measure(self)
        if self.val is None and self.recover == "none":
            raise UsageError("nothing tells what a candidate is worth: give --val, or let --recover compare it")


class Worth(NamedTuple):
    """The fields of a Point that tell what it is worth."""

    agreement: float | None
    error: float | None
    metric: float | None
    original: float | None


@taking(SearchOptions)
def search(model: Source, options: SearchOptions) -> Frontier:
    """Compress a model by several methods to several fractions of its FLOPs, and say what each is worth.

    model: a path or a ModelProto (not modified). flops: the fractions; methods: as in `compress`, the default one if
    there is none. data, the options beside it, those of the choice, and recover: as in `compress`, for every
    candidate; proxy, optimiser and budget for those whose allocation has them. val: inputs with labels on which the
    candidates are compared by `metric` (as in `validate`; top-1 where nothing is named and the output has scores);
    without it, their outputs are compared with the original's on calibration inputs held out. jobs: candidates at a
    time, in processes of their own (`loky`), or on the cluster of `backend` "dask" or "ray" whose address `scheduler`
    is; the result does not depend on them. journal: a file in which finished candidates are noted, and from which they
    are taken if `resume`. Raises UsageError and what `compress` raises where no candidate succeeds; PlanError for a
    journal of another search, FileError for one that another process writes.
    """
    options.check()
    with _held(options.journal):
        return _searched(model, options)


def _searched(model: Source, options: SearchOptions) -> Frontier:
    todo, journal = options.candidates(), _Journal(model, options)
    done = {c: journal.points[c.name] for c in todo if c.name in journal.points}
    left = [c for c in todo if c not in done]
    known = Known(values=journal.values, noted=journal.write)
    with Progress("candidate", len(todo), done=len(done)) as progress:
        if left:
            progress.step()
        for candidate, point in _finished(model, options, left, known):
            done[candidate] = point
            journal.add(candidate, point)
            if len(done) < len(todo):
                progress.step()  # with several at a time, so many are not finished
    points = [done[c] for c in todo]
    if all(p.failed for p in points):
        raise getattr(errors, points[0].kind)(f"no candidate succeeded; the first: {points[0].failed}")
    measure = common_measure(points, _measure(options))
    source = options.source if options.data is not None else None
    return Frontier(_name(model), measure, tuple(marked(points, measure)), options.recover, source, options.seed)


def _measure(options: SearchOptions) -> Measure:
    """Comparison by the metric of the options. Raises UsageError and DataError for one that is not known."""
    named = metric(DEFAULT if options.metric is None else options.metric)
    return of_metric(named.name, higher=named.higher, rate=named.rate)


@contextmanager
def _held(journal: str | Path | None) -> Iterator[None]:
    """The journal for this process alone; a folder that is made for it goes again where it stays empty."""
    if journal is None:
        yield
        return
    path = Path(journal)
    new = not path.parent.exists()
    with suppress(OSError):  # told as a lock that cannot be had
        path.parent.mkdir(exist_ok=True)
    try:
        with files.locked(path.with_name(f"{path.name}.lock"), f"the folder '{path.parent}'"):
            yield
    finally:
        if new and path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()


def _fields(point: Point) -> dict[str, Any]:
    return {f.name: getattr(point, f.name) for f in fields(point)}


def _name(model: Source) -> str:
    return str(model) if isinstance(model, str | Path) else model.graph.name


# ---- candidates ----------------------------------------------------------------------------------------------------


def evaluate(model: Source, options: SearchOptions, candidate: Candidate, known: Known | None = None) -> Point:
    """Compress and measure one candidate; what onnxprune refuses becomes a point that says why.

    known: see `api.compressed`.
    """
    start = time.perf_counter()
    try:
        made = compressed(model, options.of(candidate), known or Known())
        worth = _worth(model, made, options)
    except OnnxpruneError as problem:
        return _failed(candidate, str(problem), type(problem).__name__)
    except MemoryError:
        return _failed(candidate, "there is not enough memory; fewer --jobs need less", "ResourceError")
    except OSError as problem:
        return _failed(candidate, str(problem), "FileError")
    except Exception as problem:  # noqa: BLE001 - one candidate must not cost the others
        return _failed(candidate, f"a bug ({type(problem).__name__}: {problem}); please report it", "VerificationError")
    kept = made.report.compressed.fractions(made.report.original)
    spent = time.perf_counter() - start
    return Point(candidate.method, candidate.flops, kept, *worth, spent, as_json(made.plan))


def _failed(candidate: Candidate, why: str, kind: str = "TargetError") -> Point:
    return Point(candidate.method, candidate.flops, {}, None, None, None, None, 0.0, None, failed=why, kind=kind)


def _worth(model: Source, made: Result, options: SearchOptions) -> Worth:
    """What a candidate is worth on the data for that, or else on calibration inputs held out."""
    if options.val is not None:
        given = {"data": options.val, "preprocess": options.preprocess, "metric": options.metric}
        found = validate(model, made.model, **given, seed=options.seed)
        told = {name: interval.point for name, interval in found.agreement.items()}
        pair = (found.metric.candidate, found.metric.original) if found.metric else (None, None)
        return Worth(told.get("top1"), told.get("relative_error"), *pair)
    repaired = made.report.recovery
    if repaired is None:
        return Worth(None, None, None, None) if made.report.removed else Worth(1.0, 0.0, None, None)
    final = repaired.final
    if final is None:
        return Worth(None, None, None, None)
    metric = repaired.metric or {}
    return Worth(final.top1, final.relative_error, metric.get(repaired.shipped), metric.get("original"))


def _finished(
    model: Source, options: SearchOptions, left: list[Candidate], known: Known
) -> Iterator[tuple[Candidate, Point]]:
    """Candidates as they are finished, in any order; one after the other, they share what is known."""
    if options.jobs == 1 and options.backend == "loky":
        yield from ((c, evaluate(model, options, c, known)) for c in left)
        return
    with connected(options.backend, options.scheduler, options.jobs) as run:
        yield from _in_parallel(run, model, options, left)


def _in_parallel(
    run: Run, model: Source, options: SearchOptions, left: list[Candidate]
) -> Iterator[tuple[Candidate, Point]]:
    """Candidates as they are finished; one whose worker dies is tried again by itself, then reported."""
    waiting = list(left)
    try:
        for candidate, point in run(_evaluated, (model, options), list(waiting), options.jobs):
            waiting.remove(candidate)
            yield candidate, point
    except WorkerDiedError:
        _LOG.info("a worker died; what is left is tried one by one")
    for candidate in waiting:
        try:
            yield from run(_evaluated, (model, options), [candidate], 2)
        except WorkerDiedError:
            why = "its worker process died twice; was there enough memory? Fewer --jobs need less"
            yield candidate, _failed(candidate, why)


def _evaluated(model: Source, options: SearchOptions, candidate: Candidate) -> tuple[Candidate, Point]:
    """What a worker does."""
    return candidate, evaluate(model, options, candidate)


# ---- journal -------------------------------------------------------------------------------------------------------


class _Journal:
    """Finished candidates of a search, and what the optimiser of an unfinished one has tried, in memory and, where a
    file is named, in that file.
    """

    def __init__(self, model: Source, options: SearchOptions) -> None:
        self._path = None if options.journal is None else Path(options.journal)
        self._key, self.points, self.values = _key(model, options), dict[str, Point](), dict[str, list[float]]()
        if options.resume and self._path is not None and self._path.exists():
            self._read(self._path)

    def _read(self, path: Path) -> None:
        try:
            head, *lines = [json.loads(line) for line in files.read_text(path).splitlines()]
            if head.get("journal") != _VERSION:
                raise ValueError("another version")
            same = head["search"] == self._key
            tried = [line["values"] for line in lines if "values" in line]
            found = {line.pop("name"): Point(**line) for line in lines if "values" not in line}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PlanError(f"{str(path)!r} is not a journal of `onnxprune search`: {error}") from error
        if not same:
            raise PlanError(f"{str(path)!r} is the journal of another model or of other options: name another file")
        self.points = found
        self.values.update(*tried)

    def add(self, candidate: Candidate, point: Point) -> None:
        """Note a finished candidate; failures are tried again another time."""
        self.points[candidate.name] = point
        self.values.clear()
        if not point.failed:
            self.write()

    def write(self) -> None:
        """Write all that is known."""
        if self._path is None:
            return
        head = {"journal": _VERSION, "search": self._key}
        lines: list[dict[str, Any]] = [{"name": n, **_fields(p)} for n, p in self.points.items() if not p.failed]
        lines += [{"values": self.values}] if self.values else []
        files.write_text(self._path, "".join(json.dumps(x) + "\n" for x in (head, *lines)), force=True)


def _key(model: Source, options: SearchOptions) -> str:
    """Digest of what the result of a candidate depends on."""
    told = {f.name: repr(getattr(options, f.name)) for f in fields(options) if f.name not in _LISTED}
    told |= {name: _content(getattr(options, name)) for name in ("data", "val")}
    text = json.dumps([__version__, files.digest(read_source(model)), told], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _told_apart(data: Any) -> bool:
    return data is None or isinstance(data, str | Path | Mapping)


def _content(data: Any) -> str:
    """What tells data from other data: size and date of files, the arrays themselves, the name of a function."""
    if isinstance(data, Mapping):
        parts = (f"{name} {array.shape} {array.dtype}".encode() + array.tobytes() for name, array in data.items())
        return hashlib.sha256(b"".join(parts)).hexdigest()
    path = Path(str(data))
    if data is None or not path.exists():
        return str(data)
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return str([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in found])


def _sorted(method: str) -> str:
    """The options of a method in one order."""
    base, colon, rest = method.partition(":")
    return base + colon + ",".join(sorted(filter(None, rest.split(","))))
