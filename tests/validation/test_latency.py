"""Rounds of models, when they end, and what they say."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from graphs import each, proto

from onnxprune.errors import DataError, FileError, ModelError, UsageError
from onnxprune.validation import latency
from onnxprune.validation.bootstrap import width
from onnxprune.validation.intervals import Interval
from onnxprune.validation.latency import (
    MIN_ROUNDS,
    How,
    Measured,
    Timing,
    measure,
    one_round,
    pair,
    precise,
    until,
    verdict,
)

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "models"  # beside the repository
REAL = [
    ROOT / "fixtures" / "vgg_dynamo.onnx",
    ROOT / "fixtures" / "cifar10" / "cifar10_densenet.onnx",
    *(SHARED / f"mlperf_{n}.onnx" for n in ("kws", "vww96")),
]
RECORDED = np.load(Path(__file__).with_name("rounds.npz"))  # by tools/record_rounds.py
ROUNDS = sorted(set(RECORDED.files) - {"about"})
SMALL = "g (float[N,8] x) => (float[N,8] y) <float[8,8] w> { y = MatMul(x, w) }"
FAILS = "g (float[2,3] x, int64[1] s) => (float[M] y) { y = Reshape(x, s) }"
ENDLESS = """g (float x) => (float y) <int64 m = {4611686018427387904}, bool c = {1}> {
  y = Loop (m, c, x) <body = b (int64 i, bool go, float a) => (bool on, float s) { on = Identity (go)  s = Neg (a) }>
}"""


def chain(layers):
    """A model of so many equal layers, each of which takes a while."""
    lines = [f"h{i + 1} = Tanh(m{i})\n m{i + 1} = MatMul(h{i + 1}, w)" for i in range(layers)]
    text = "\n".join(["m0 = MatMul(x, w)", *lines, f"y = Identity(m{layers})"])
    return proto(f"g (float[64,64] x) => (float[64,64] y) <float[64,64] w> {{ {text} }}")


def simulated(rng, ratios, jitter=0.05, phi=0.0):
    """Rounds of sessions whose medians are known: [1 second / ratio], under noise that hits all alike and each alone."""
    level = 0.0
    while True:
        level = phi * level + np.sqrt(1 - phi**2) * rng.standard_normal()
        alone = np.exp(jitter * rng.standard_normal(len(ratios)))
        yield np.exp(0.3 * level) * alone / np.array(ratios)


def enough_of(ratios, seed, precision=0.02, phi=0.0, limit=400):
    """A simulated measurement, as `measure` would end it."""
    rounds = simulated(np.random.default_rng(seed), ratios, phi=phi)
    clock = iter(range(10**9))
    times = until(rounds, partial(precise, precision=precision), limit, lambda: next(clock))
    return Measured(times, (0.0,) * len(ratios), (0.0,) * len(ratios), seed)


@pytest.mark.parametrize("phi", [0.0, 0.9])
def test_coverage_of_whole_measurements(phi):
    """With looks at the interval on the way, it still holds the true speed-up in about 95 % of measurements."""
    found = [enough_of([1, 1, 1.3], seed, phi=phi).speedup(1) for seed in range(200)]
    assert 0.90 <= np.mean([i.low <= 1.3 <= i.high for i in found]) <= 0.995


def test_equal_models_are_never_told_apart():
    """Of 200 simulated A/A measurements at most one in a hundred claims a difference, and most claim that there is none."""
    said = [verdict(m.speedup(1), m.noise) for m in (enough_of([1, 1, 1], seed) for seed in range(200))]
    assert said.count("faster") + said.count("slower") <= 2
    assert said.count("no difference") > 180


def test_differences_are_found():
    """A model that is 10 % faster or slower is called so."""
    assert all(enough_of([1, 1, 1.1], seed).speedup(1).low > 1 for seed in range(20))
    fast, slow = enough_of([1, 1, 1.1], 0), enough_of([1, 1, 0.9], 0)
    assert verdict(fast.speedup(1), fast.noise) == "faster"
    assert verdict(slow.speedup(1), slow.noise) == "slower"


VERDICTS = {
    "beyond 1 and noise": (Interval(1.2, 1.1, 1.3), Interval(1.0, 0.98, 1.02), "faster"),
    "within the noise": (Interval(1.03, 1.01, 1.05), Interval(1.02, 1.0, 1.06), "inconclusive"),
    "less than placement does": (Interval(1.007, 1.003, 1.02), Interval(1.0, 0.99, 1.001), "no difference"),
    "below": (Interval(0.8, 0.7, 0.9), Interval(1.0, 0.98, 1.02), "slower"),
    "below, within the noise": (Interval(0.97, 0.96, 0.99), Interval(0.97, 0.95, 0.99), "no difference"),
    "narrow around 1": (Interval(1.0, 0.99, 1.01), Interval(1.0, 0.99, 1.01), "no difference"),
    "wide around 1": (Interval(1.0, 0.8, 1.2), Interval(1.0, 0.99, 1.01), "inconclusive"),
}


@each(VERDICTS, "speedup,noise,expected")
def test_verdicts(speedup, noise, expected):
    """A difference must lie beyond 1 and beyond what the baseline shows against itself."""
    assert verdict(speedup, noise) == expected


def test_ends_when_precise():
    """A quiet machine needs no more rounds than the precision, a noisy one takes what the cap allows."""
    quiet = until(simulated(np.random.default_rng(0), [1, 1, 1], 1e-4), partial(precise, precision=0.02), 1, lambda: 0)
    noisy = enough_of([1, 1, 1], 0, precision=1e-6, limit=123)  # the clock ticks once a round, from the last needed on
    assert len(quiet) == MIN_ROUNDS
    assert len(noisy.times) == MIN_ROUNDS + 124


def test_sessions_that_differ_widen_the_interval():
    """What the baseline's two sessions differ beyond chance is added to the interval of the speed-up."""
    quiet, apart = (enough_of([1, twin, 1.3], 0).speedup(1) for twin in (1, 1.04))
    assert width(apart) > width(quiet) + 0.05


def test_at_least_the_minimum_of_rounds():
    """Where the cap ends early, the minimum of rounds is still made."""
    assert len(until(simulated(np.random.default_rng(0), [1, 1]), lambda _: False, 0, lambda: 1)) == MIN_ROUNDS


def test_every_round_runs_all_in_random_order():
    """Each round runs every session once; the order changes from round to round."""
    seen = []
    rng = np.random.default_rng(0)
    rows = [one_round(lambda i: seen.append(i) or float(i), 3, rng) for _ in range(20)]
    orders = np.array(seen).reshape(20, 3)
    assert all((row == [0, 1, 2]).all() for row in rows)
    assert (np.sort(orders, axis=1) == [0, 1, 2]).all()
    assert len({tuple(o) for o in orders}) == 6


# ---- real models --------------------------------------------------------------------------------------------------


def replayed(name, factor=1.0):
    """A recorded measurement of a model beside itself, decided again; factor: of the candidate's times."""
    rounds = RECORDED[name].astype(np.float64) * [1, 1, factor]
    times = until(iter(rounds), partial(precise, precision=0.02), np.inf, lambda: 0.0)
    return Measured(times, (0.0,) * 3, (0.0,) * 3, int(name[-1]))


def test_recorded_measurements():
    """There are fifteen, of five networks, on a machine with more work than processors; none was left out."""
    about = json.loads(str(RECORDED["about"]))
    assert len({name.partition(".")[0] for name in ROUNDS}) == 5
    assert len(ROUNDS) == len(about["load"]) == 15
    assert min(about["load"].values()) > about["cpus"]


@pytest.mark.parametrize("name", ROUNDS)
def test_recorded_model_beside_itself(name):
    """With the noise of a busy machine, a network beside itself makes no difference; 10 % more or less is found."""
    same, slower, faster = (replayed(name, factor) for factor in (1.0, 1.1, 1 / 1.1))
    assert verdict(same.speedup(1), same.noise) == "no difference"
    assert verdict(slower.speedup(1), slower.noise) == "slower"
    assert verdict(faster.speedup(1), faster.noise) == "faster"


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_same_real_model(path):
    """A network measured beside itself is never called faster or slower, however busy the machine: whether 5 % can be
    told depends on that.
    """
    if not path.exists():
        pytest.skip(f"{path} is not here")
    found = pair(path, path, seconds=5)
    assert found.verdict not in ("faster", "slower")
    assert found.speedup.low <= found.speedup.point <= found.speedup.high


def test_ten_times_the_layers():
    """A model with ten times the layers is slower, and the other way round faster."""
    assert pair(chain(2), chain(20), seconds=2).verdict == "slower"
    assert pair(chain(20), chain(2), seconds=2).verdict == "faster"


def test_what_is_told():
    """Percentiles in order, all samples, the first run, the session and the environment."""
    found = pair(proto(SMALL), proto(SMALL), seconds=1, batch=3, precision=0.5)
    t = found.candidate
    assert isinstance(t, Timing)
    assert 0 < t.p50 <= t.p90 <= t.p99
    assert len(t.samples) == t.n >= MIN_ROUNDS
    assert min(t.first, t.load) > 0
    assert found.median.low <= found.median.point == t.p50 <= found.median.high
    told = found.as_dict()
    assert set(told) == {"baseline", "candidate", "speedup", "noise", "median", "verdict", "environment"}
    assert {"cpu", "cpus", "governor", "load", "onnxruntime", "provider", "session"} <= set(told["environment"])
    assert told["environment"]["session"]["spinning"] is False


def test_models_are_not_changed():
    """Protos are as before, and paths are taken as well."""
    model = proto(SMALL)
    before = model.SerializeToString(deterministic=True)
    pair(model, "fixtures/vgg_dynamo.onnx", seconds=1, precision=0.5)
    assert model.SerializeToString(deterministic=True) == before


def test_sessions_are_made_anew(monkeypatch):
    """A measurement of a small model goes over several sets of sessions, made in orders that differ."""
    made, produced = [], latency.produced
    monkeypatch.setattr(latency, "produced", lambda m, *rest: made.append(m.graph.name) or produced(m, *rest))
    a, b = proto(SMALL), proto(SMALL.replace("g (", "h (", 1))
    x = {"x": np.ones((1, 8), np.float32)}
    measure([a, b], [x, x], How(seconds=5, precision=0.5))
    orders = ["".join(made[i : i + 3]) for i in range(0, len(made), 3)]
    assert len(orders) >= 8
    assert {"".join(sorted(o)) for o in orders} == {"ggh"}
    assert len(set(orders)) > 1


def test_collection_is_off_while_measuring(monkeypatch):
    """Garbage is not collected while runs are timed, and again afterwards."""
    seen = []
    monkeypatch.setattr(latency, "until", lambda *_: seen.append(gc.isenabled()) or np.ones((30, 2)))
    measure([proto(SMALL)], [{"x": np.ones((1, 8), np.float32)}], How())
    assert seen == [False]
    assert gc.isenabled()


WRONG = {
    "threads": ({"threads": 0}, UsageError, "--threads 0: give at least 1"),
    "precision": ({"precision": 0.0}, UsageError, "--precision 0: give a share between 0 and 1"),
    "seconds": ({"seconds": -1.0}, UsageError, "--seconds -1: give a time above 0"),
    "batch": ({"shapes": {"x": (2, 9)}}, UsageError, "does not fit input 'x'"),
    "unknown input": ({"shapes": {"z": (2, 9)}}, UsageError, r"the model has no input \['z'\]; it has \['x'\]"),
    "provider": ({"provider": "MagicExecutionProvider"}, UsageError, "does not have it; it has .*CPUExecutionProvider"),
    "feeds": ({"feeds": {"z": np.ones(3)}}, DataError, r"missing \['x'\], unknown \['z'\]"),
    "feeds' shape": ({"feeds": {"x": np.ones((1, 9), np.float32)}}, DataError, "does not fit the model's input"),
}


@each(WRONG, "given,error,message")
def test_bad_arguments(given, error, message):
    """What cannot be measured is refused with the reason."""
    with pytest.raises(error, match=message):
        pair(proto(SMALL), proto(SMALL), **given)


def test_several_problems_at_once():
    """All wrong limits are named together."""
    with pytest.raises(UsageError, match=r"--threads 0.*--precision 2.*--seconds 0"):
        How(threads=0, precision=2, seconds=0).check()


def test_missing_shapes():
    """Sizes that the model leaves open are asked for, all inputs at once; a batch is not."""
    model = proto("g (float[N,C] x, float[N,D] z) => (float[N,M] y) { y = Concat<axis = 1>(x, z) }")
    with pytest.raises(UsageError, match=r"input 'x' is N,C.*--input-shape x:.*input 'z' is N,D"):
        pair(model, model)


def test_fixed_batch():
    """A batch that the model does not take is refused."""
    model = proto("g (float[1,8] x) => (float[1,8] y) { y = Relu(x) }")
    with pytest.raises(UsageError, match="--batch 4: input 'x' has the fixed shape 1,8"):
        pair(model, model, batch=4)


def test_cap_too_short():
    """A cap that has no room for the minimum of rounds is refused before they are run, with one that has."""
    with pytest.raises(
        UsageError, match=r"--seconds 0.001 is too short: a round takes .* 30 rounds .* give --seconds 1"
    ):
        pair(proto(SMALL), proto(SMALL), seconds=0.001)


def test_a_cap_that_nobody_named_gives_way(monkeypatch):
    """Where the default cap has no room for the minimum of rounds, they are made all the same, and no more."""
    monkeypatch.setattr(latency, "CAP", 1e-3)
    assert pair(proto(SMALL), proto(SMALL)).candidate.n == MIN_ROUNDS


def test_cap_is_checked_without_rounds(monkeypatch):
    """Whether a cap has room can be asked for beforehand; the message names the option that sets it."""
    monkeypatch.setattr(latency, "until", None)  # no round is run
    model, x = proto(SMALL), {"x": np.ones((1, 8), np.float32)}
    latency.check_cap([model], [x], How(seconds=60))
    with pytest.raises(UsageError, match=r"--latency-seconds 0.001 is too short.*; give --latency-seconds 1"):
        latency.check_cap([model], [x], How(seconds=0.001, option="--latency-seconds"))


def test_model_that_fails():
    """A node that fails in a run is named."""
    feeds = {"x": np.ones((2, 3), np.float32), "s": np.array([5])}
    with pytest.raises(ModelError, match="Reshape"):
        pair(proto(FAILS), proto(FAILS), feeds=feeds)


def test_missing_file():
    """A file that is not there is a FileError."""
    with pytest.raises(FileError, match="there is no file"):
        pair("nowhere.onnx", proto(SMALL))


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
@pytest.mark.parametrize("endless", [False, True], ids=["between runs", "in a run"])
def test_ctrl_c(endless):
    """An interrupt ends a measurement at once, between runs and within one, and nothing goes on behind it."""
    model = proto(ENDLESS) if endless else proto(SMALL)
    feeds = {"x": np.float32(1)[...]} if endless else None
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        pair(model, model, feeds=feeds, precision=1e-9, seconds=60)
    assert time.perf_counter() - start < 30
    timer.join()
    for worker in [t for t in threading.enumerate() if t.name.startswith("onnxruntime")]:
        worker.join(60)
        assert not worker.is_alive()
