"""Latency of models beside each other: interleaved runs in random order, judged by the median of paired ratios.

Other work on the machine hits all models alike, since each round runs every one of them, and the order changes from
round to round. The baseline runs twice in every round, in two sessions: how far these two differ (A/A) is the noise
floor.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.clock import Progress
from onnxprune.errors import UsageError
from onnxprune.files import PROTOBUF_LIMIT, read_model, weights_bytes
from onnxprune.graph import Array
from onnxprune.runtime import CPU, Run, Session, Timer, session, timing
from onnxprune.validation.bootstrap import median_interval, ratio_interval, width
from onnxprune.validation.environment import environment
from onnxprune.validation.feeds import Shapes, made_up
from onnxprune.validation.intervals import Interval

Source = str | Path | ModelProto
Feeds = Mapping[str, Array]
Verdict = Literal["faster", "slower", "no difference", "inconclusive"]
Times = NDArray[np.float64]

MIN_ROUNDS, MAX_ROUNDS = 30, 20_000
CAP = 15.0  # seconds, unless a cap is named
_WARM_RUNS, _WARM_SECONDS = 5, 0.2
_SITTINGS, _SHORTEST = 8, 0.05  # new sessions so often, where there is time; least set-up in seconds that counts
_PLACEMENT = 0.01  # smaller differences come from where memory lies, and count for nothing
_GROWTH = 1.4  # rounds between two looks at the intervals: looking often makes them too narrow


@dataclass(frozen=True, slots=True)
class How:
    """How to measure; `pair` says what each means."""

    threads: int = 1
    provider: str = CPU
    precision: float = 0.02
    seconds: float | None = None
    seed: int = 0
    option: str = "--seconds"

    @property
    def cap(self) -> float:
        """The time cap in seconds; one that nobody named gives way to the minimum of rounds."""
        return CAP if self.seconds is None else self.seconds

    def check(self) -> None:
        """Raise UsageError for what no measurement can keep; all at once."""
        checks = (
            (self.threads >= 1, f"--threads {self.threads}: give at least 1"),
            (0 < self.precision < 1, f"--precision {self.precision:g}: give a share between 0 and 1, such as 2%"),
            (0 < self.cap < np.inf, f"{self.option} {self.cap:g}: give a time above 0"),
        )
        if problems := [problem for fine, problem in checks if not fine]:
            raise UsageError("; ".join(problems))


@dataclass(frozen=True, slots=True)
class Timing:
    """Latency of one model in seconds: percentiles, the first run, making the session, and every sample in order."""

    p50: float
    p90: float
    p99: float
    first: float
    load: float
    n: int
    samples: Times

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it, seconds; the samples as 101 quantiles, from the quickest to the slowest."""
        told = {k: getattr(self, k) for k in ("p50", "p90", "p99", "first", "load", "n")}
        quantiles = np.percentile(self.samples, np.arange(101))
        return told | {"quantiles": [float(f"{q:.4g}") for q in quantiles]}


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models beside each other.

    speedup: baseline / candidate, median of the ratios of runs in the same round. noise: the same of the baseline
    against itself. median: the candidate's latency in seconds.
    """

    baseline: Timing
    candidate: Timing
    speedup: Interval
    noise: Interval
    median: Interval
    environment: dict[str, Any]

    @property
    def verdict(self) -> Verdict:
        """Whether the candidate is faster, as far as this measurement can tell."""
        return verdict(self.speedup, self.noise)

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        parts = {k: getattr(self, k).as_dict() for k in ("baseline", "candidate", "speedup", "noise", "median")}
        return parts | {"verdict": self.verdict, "environment": self.environment}


@dataclass(frozen=True, slots=True)
class Measured:
    """Rounds of several models.

    times: float64 [rounds, 1 + models] seconds; column 0 is the baseline's second session, the others the models in
    order. first, load: seconds, per column.
    """

    times: Times
    first: tuple[float, ...]
    load: tuple[float, ...]
    seed: int

    @property
    def noise(self) -> Interval:
        """Ratio of the baseline's two sessions."""
        return ratio_interval(self.times[:, 1], self.times[:, 0], self.seed)

    def speedup(self, model: int) -> Interval:
        """Baseline / model: median of the paired ratios of both of the baseline's sessions.

        The interval is widened by what these two differ beyond chance: by where its memory lies, any session may.
        """
        found = _ratio(self.times, 1 + model, self.seed)
        beyond = max(self.noise.low, 1 / self.noise.high, 1.0)
        return Interval(found.point, found.low / beyond, found.high * beyond)

    def median(self, model: int) -> Interval:
        """Median latency of a model in seconds."""
        return median_interval(self.times[:, 1 + model], self.seed)

    def timing(self, model: int) -> Timing:
        """Percentiles of a model."""
        samples = self.times[:, 1 + model].copy()
        p50, p90, p99 = map(float, np.percentile(samples, [50, 90, 99]))
        return Timing(p50, p90, p99, self.first[1 + model], self.load[1 + model], len(samples), samples)


def verdict(speedup: Interval, noise: Interval, margin: float = 0.05) -> Verdict:
    """What an interval of speed-ups says beside the noise floor.

    A difference counts where the interval lies beyond what the baseline shows against itself, and beyond what where its
    memory lies does to any session; there is no difference where it lies within `margin` of 1.
    """
    if speedup.low > max(1 + _PLACEMENT, noise.high):
        return "faster"
    if speedup.high < min(1 / (1 + _PLACEMENT), noise.low):
        return "slower"
    return "no difference" if speedup.low > 1 / (1 + margin) and speedup.high < 1 + margin else "inconclusive"


def pair(
    baseline: Source,
    candidate: Source,
    *,
    feeds: Feeds | None = None,
    threads: int = 1,
    batch: int | None = None,
    provider: str = CPU,
    precision: float = 0.02,
    seconds: float | None = None,
    seed: int = 0,
    shapes: Shapes | None = None,
    option: str = "--seconds",
) -> Paired:
    """Measure two models beside each other.

    baseline, candidate: paths or protos (not changed). feeds: an array per input; random ones unless given, with
    `batch` as the first dimension where it is symbolic and `shapes` where more is. threads: of one operator. provider:
    an execution provider of onnxruntime. precision: width of the interval of the speed-up, relative to it, at which the
    measurement ends; seconds: time cap, at which it ends anyway; 15 unless given, and then more where the minimum of
    rounds takes longer; option: what messages call it. Raises UsageError for shapes that are missing or a cap that is
    too short, ModelError for a model that fails, DataError for feeds that do not fit.
    """
    protos = [loaded(baseline), loaded(candidate)]
    inputs = [made_up(p, batch, shapes, seed) if feeds is None else feeds for p in protos]
    found = measure(protos, inputs, How(threads, provider, precision, seconds, seed, option))
    return Paired(
        found.timing(0), found.timing(1), found.speedup(1), found.noise, found.median(1), environment(threads, provider)
    )


def loaded(model: Source) -> ModelProto:
    """The model of a path, or the model itself."""
    return model if isinstance(model, ModelProto) else read_model(model)


def measure(models: Sequence[ModelProto], feeds: Sequence[Feeds], how: How) -> Measured:
    """Run several models, each on its feeds, in rounds; the first is the baseline. Raises as `pair` does."""
    how.check()
    deadline = time.perf_counter() + how.cap

    def work(timer: Timer) -> Measured:
        first = _first(timer, models, feeds, how, deadline)
        sittings = [first]
        needed = min(_SITTINGS, int(how.cap / 2 / (1.5 * first.rounds)))
        rounds = _rounds(timer, models, feeds, how, sittings)
        progress = _progress(sum(first.quickest), deadline)
        with _no_collection():
            times = until(
                progress.over(rounds),
                lambda times: len(sittings) >= needed and precise(times, how.precision),
                deadline,
                time.perf_counter,
            )
        return Measured(times, first.first, first.load, how.seed)

    return timing(work)


def _progress(one: float, deadline: float) -> Progress:
    """Rounds that take `one` second each: until the deadline, or the minimum of them where that takes longer."""
    if one * MIN_ROUNDS > deadline - time.perf_counter():
        return Progress("latency: round", MIN_ROUNDS)
    return Progress("latency: round", deadline=deadline)


def check_cap(models: Sequence[ModelProto], feeds: Sequence[Feeds], how: How) -> None:
    """Raise UsageError where `measure` would find the cap too short; without a single round."""
    how.check()
    deadline = time.perf_counter() + how.cap
    timing(lambda timer: _first(timer, models, feeds, how, deadline))


@dataclass(frozen=True, slots=True)
class _Sitting:
    """Sessions of all models, the baseline's second one first, warmed up; seconds per session.

    Where the memory of a session lies makes it faster or slower for as long as it lives, by up to a few percent for
    models of less than a millisecond. New sessions, made in random order, turn that into noise that intervals show.
    """

    runs: tuple[Run, ...]
    load: tuple[float, ...]
    first: tuple[float, ...]
    quickest: tuple[float, ...]

    @property
    def rounds(self) -> float:
        """Seconds of rounds: twice what the next set-up will take."""
        return 2 * max(sum(self.load) + _WARM_RUNS * sum(self.quickest), _SHORTEST)


def _first(timer: Timer, models: Sequence[ModelProto], feeds: Sequence[Feeds], how: How, deadline: float) -> _Sitting:
    """The first sitting, which shows whether the time cap has room for the minimum of rounds."""
    found = _sitting(timer, models, feeds, how, np.random.default_rng(how.seed), _WARM_SECONDS)
    if how.seconds is not None:
        _check_cap(sum(found.quickest), deadline - time.perf_counter(), how)
    return found


def _sitting(
    timer: Timer,
    models: Sequence[ModelProto],
    feeds: Sequence[Feeds],
    how: How,
    rng: np.random.Generator,
    warm: float = 0.0,
) -> _Sitting:
    columns = list(zip((models[0], *models), (feeds[0], *feeds), strict=True))
    load, runs = [0.0] * len(columns), dict[int, Run]()
    for i in map(int, rng.permutation(len(columns))):
        before = time.perf_counter()
        made = produced(columns[i][0], how.threads, how.provider)
        load[i], runs[i] = time.perf_counter() - before, made.bind(columns[i][1])
    ordered = tuple(runs[i] for i in range(len(columns)))
    first, quickest = zip(*(_warm(partial(timer, run), warm, how.cap) for run in ordered), strict=True)
    return _Sitting(ordered, tuple(load), first, quickest)


def _rounds(
    timer: Timer, models: Sequence[ModelProto], feeds: Sequence[Feeds], how: How, sittings: list[_Sitting]
) -> Iterator[Times]:
    """Rounds of the last of the sittings, to which new ones are added from time to time."""
    rng = np.random.default_rng([how.seed, 1])
    while True:
        now = sittings[-1]
        end = time.perf_counter() + now.rounds
        while time.perf_counter() < end:
            yield one_round(lambda i: timer(now.runs[i]), len(now.runs), rng)  # noqa: B023 - called at once
        sittings.append(_sitting(timer, models, feeds, how, rng))


def produced(model: ModelProto, threads: int, provider: str = CPU) -> Session:
    """A session as in production: from the bytes of the file, all optimisations on."""
    content = model.SerializeToString() if weights_bytes(model) <= PROTOBUF_LIMIT else model
    return session(content, optimize=True, threads=threads, provider=provider)


def _warm(run: Callable[[], float], least: float, seconds: float) -> tuple[float, float]:
    """The first run, and the quickest of those after it, in seconds; so many that they take `least` seconds."""
    first, rest = run(), [run()]
    while len(rest) + 1 < _WARM_RUNS or first + sum(rest) < least:
        if first + sum(rest) > seconds / 10:  # a slow model, whose caches two runs have warmed
            break
        rest.append(run())
    return first, min(rest)


def _check_cap(one_round: float, left: float, how: How) -> None:
    needed = one_round * MIN_ROUNDS
    if needed > left:
        advice = f"give {how.option} {int(np.ceil((how.cap - left + needed) * 1.5))}"
        raise UsageError(
            f"{how.option} {how.cap:g} is too short: a round takes {one_round:.3g} s, {MIN_ROUNDS} rounds are needed, "
            f"and {max(left, 0):.3g} s are left after loading and warm-up; {advice}"
        )


def one_round(run: Callable[[int], float], count: int, rng: np.random.Generator) -> Times:
    """Seconds of every session, run in random order."""
    row = np.empty(count)
    for i in rng.permutation(count):
        row[i] = run(i)
    return row


def until(
    rounds: Iterator[Times], enough: Callable[[Times], bool], deadline: float, clock: Callable[[], float]
) -> Times:
    """Rounds [n, columns] until they are enough, or the deadline; at least MIN_ROUNDS."""
    rows: list[Times] = []
    look: float = MIN_ROUNDS
    for row in rounds:
        rows.append(row)
        if len(rows) < MIN_ROUNDS:
            continue
        if clock() > deadline or len(rows) >= MAX_ROUNDS:
            break
        if len(rows) >= look:
            look = len(rows) * _GROWTH
            if enough(np.array(rows)):
                break
    return np.array(rows)


def precise(times: Times, precision: float) -> bool:
    """Whether the intervals of all ratios to the baseline are narrow enough; of one model alone, also its median's."""
    if times.shape[1] == 2:
        return all(width(x) <= precision for x in (median_interval(times[:, 1]), ratio_interval(*times.T)))
    return all(width(_ratio(times, column)) <= precision for column in range(2, times.shape[1]))


def _ratio(times: Times, column: int, seed: int = 0) -> Interval:
    return ratio_interval(times[:, :2], times[:, [column]], seed)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection while it would be timed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
