"""How far loops are, and how long the rest will take."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from commands import done
from graphs import each

from onnxprune import clock
from onnxprune.clock import Progress, around

FIXTURES = "fixtures"
CALIB, TEST = f"{FIXTURES}/digits_calib.npz", f"{FIXTURES}/digits_test.npz"
OUT = "o.onnx"
SMALL = f"{FIXTURES}/vgg_dynamo.onnx"
FEW = ("--calibration-size", "64")


@pytest.fixture
def seconds(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def told():
    """What is told, as the command line asks for it."""
    log, messages, handler = logging.getLogger("onnxprune"), [], logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield messages
    log.setLevel(before)
    log.removeHandler(handler)


def test_time_left(seconds, told):
    """The time left is that of the turns so far, from the second turn and two seconds on; in words for its size."""
    progress = Progress("layer", 1000)
    for spent in (1, 1, 118, 5880, 0):
        progress.step()
        seconds[0] += spent
    assert told == [
        "layer 1 of 1000",
        "layer 2 of 1000",
        "layer 3 of 1000",
        "layer 4 of 1000, about 11.1 h left",
        "layer 5 of 1000, about 415.0 h left",
    ]


@each({"seconds": (45.4, "45 s"), "minutes": (120, "2 min"), "hours": (9000, "2.5 h")}, "left,words")
def test_durations(seconds, told, left, words):
    """Seconds below a hundred of them, minutes below a hundred, else hours."""
    Progress("round", deadline=100 + left).step()
    assert told == [f"round 1, at most {words} left"]


@pytest.mark.parametrize("kind", ["deadline", "most", "unknown", "resumed"])
def test_kinds(seconds, told, kind):
    """A deadline and a largest number say "at most"; without a number nothing is known of the rest; turns of an earlier
    run count, but not for the pace.
    """
    progress, expected = {
        "deadline": (Progress("round", deadline=112.0), ["round 1, at most 12 s left", "round 2, at most 2 s left"]),
        "most": (Progress("try", 7, most=True), ["try 1 of at most 7", "try 2 of at most 7, at most 60 s left"]),
        "unknown": (Progress("batch"), ["batch 1", "batch 2"]),
        "resumed": (Progress("step", 9, done=5), ["step 6 of 9", "step 7 of 9, about 30 s left"]),
    }[kind]
    progress.step()
    seconds[0] += 10
    progress.step()
    assert told == expected


def test_fast_loops_are_seldom_told(seconds, told):
    """Turns of a fraction of a second are told ten times a second, the first and the last always."""
    for _ in Progress("round", 1001).over(range(1001)):
        seconds[0] += 1 / 512
    assert len(told) in range(19, 23)
    assert told[0] == "round 1 of 1001"
    assert told[-1].startswith("round 1001 of 1001")


def test_a_loop_of_one_turn_is_not_told(told):
    """One turn of one says nothing, neither by itself nor around others."""
    for _ in Progress("model", 1).over("a"):
        assert around() == []
    assert told == []


def test_loops_in_loops(told):
    """Open loops are around what is told in them, until they end: also by a break, or an error."""
    seen = []
    for _ in Progress("candidate", 2).over("ab"):
        for _ in Progress("layer", 3).over("abc"):
            seen.append(around())
            break
        seen.append(around())
    first, second, inner = "candidate 1 of 2", "candidate 2 of 2", "layer 1 of 3"
    assert seen == [[first, inner], [first], [second, inner], [second]]
    with pytest.raises(ZeroDivisionError), Progress("x", 2) as progress:
        progress.step()
        raise ZeroDivisionError
    assert around() == []


def test_threads_lose_no_turn(told):
    """Turns that begin in several threads are all counted."""
    progress = Progress("layer", 5000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: progress.step(), range(5000)))
    assert progress.line.startswith("layer 5000 of 5000")


# ---- the commands ---------------------------------------------------------------------------------------------------

DIGITS = ("--data", CALIB, *FEW)
COMMANDS = {
    "search": (
        ("search", SMALL, "--flops", "0.5,0.7", "--method", "l1", *DIGITS, "--recover", "least-squares", "-o", OUT),
        ("candidate 1 of 2", "candidate 2 of 2", "recover: layer 1 of 3"),
    ),
    "max drop": (
        (
            "compress",
            SMALL,
            "--max-drop",
            "99",
            "--data",
            TEST,
            "--method",
            "l1",
            "--allocate",
            "global",
            "--recover",
            "none",
            "-o",
            OUT,
        ),
        ("reading: batch 1 of", "compression 1 of at most 7", "comparing: batch 1 of"),
    ),
    "pairs": (
        (
            "compress",
            SMALL,
            "--flops",
            "0.5",
            "--method",
            "cluster",
            "--allocate",
            "pairs",
            "--data",
            CALIB,
            "--calibration-size",
            "16",
            "-o",
            OUT,
        ),
        (
            "reading inputs: batch 1 of",
            "the original: batch 1 of",
            "thresholds: 1 of at most 39",
            "pair 1 of",
            "repair of the best pairs: 1 of",
        ),
    ),
    "optimiser": (
        ("compress", SMALL, "--flops", "0.5", "--allocate", "evolve", "--budget", "20", *DIGITS, "-o", OUT),
        ("optimiser: group 1 of", "candidate 1 of at most 20", "statistics of the layers' inputs: batch 1 of"),
    ),
    "made up": (
        (
            "compress",
            SMALL,
            "--flops",
            "0.5",
            "--recover",
            "least-squares",
            "--calibration-size",
            "512",
            "-o",
            OUT,
        ),
        ("looking at made-up inputs: batch 1 of",),
    ),
    "sparsify": (
        ("sparsify", SMALL, "--sparsity", "0.5", "--method", "evolve", "--budget", "5", *DIGITS, "-o", OUT),
        ("masks: layer 1 of", "refit of network 1 of 2", "layer 1 of"),
    ),
    "bench": (
        ("bench", SMALL, SMALL, "--threads", "1,2", "--seconds", "1", "--precision", "50%", "--profile"),
        (
            "measurement 1 of 2",
            "latency: round 1, at most 1 s left",
            "peak memory of model 1 of 4",
            "profile of model 1 of 2",
        ),
    ),
    "int8": (
        ("bench", SMALL, "--int8", "--seconds", "1", "--precision", "50%", "--no-memory", *DIGITS),
        ("quantizing: batch 1 of 64", "quantizing: batch 64 of 64", "comparing: batch 1 of"),
    ),
    "validate": (
        ("validate", SMALL, SMALL, "--data", TEST),
        ("comparing: batch 1 of 500", "comparing: batch 500 of 500"),
    ),
    "latency": (
        ("compress", SMALL, "--latency", "0.9", "--best-effort", "-o", OUT, "--recover", "none"),
        ("times of layers: 1 of", "network 1 of at most 8", "latency: round 1, at most"),
    ),
}


@each(COMMANDS, "command,expected")
def test_commands(told, tmp_path, command, expected):
    """Every loop that can take more than two seconds tells how far it is; and nothing stays open."""
    done(*(tmp_path / x if x == OUT else x for x in command), "--quiet")
    assert [x for x in expected if not any(m.startswith(x) for m in told)] == []
    assert around() == []
