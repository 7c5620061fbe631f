"""The smallest network within a drop of the accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import done, run

import onnxprune
from onnxprune import within
from onnxprune.data import open_data
from onnxprune.errors import DataError, Exit, TargetError, UsageError
from onnxprune.runtime import input_specs
from onnxprune.validation.intervals import Interval

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODEL, TEST = FIXTURES / "resnet_bn_legacy.onnx", FIXTURES / "digits_test.npz"
OPTIONS = {"data": TEST, "allocate": "global", "recover": "least-squares"}


@pytest.fixture(scope="module")
def found():
    """The smallest network within 3 points."""
    return onnxprune.compress_within(MODEL, max_drop=3.0, **OPTIONS)


def test_the_choice_is_within_and_the_next_is_not(found):
    """The result is the smallest trial within the limit, one standard error included; all smaller trials are not."""
    good = [t for t in found.trials if t.within]
    for t in (t for t in found.trials if t.drop is not None):
        assert t.within == (t.drop.point + (t.drop.high - t.drop.low) / 3.92 <= 3.0)
    smallest = min(good, key=lambda t: t.kept)
    report = found.result.report
    assert smallest.kept == report.compressed.macs / report.original.macs
    assert not any(t.within for t in found.trials if t.kept < smallest.kept)
    assert 0.1 < smallest.kept < 0.6


def test_the_final_figure_is_on_inputs_of_its_own(found):
    """The parts share no input, and the final metric is that of `validate` on the last part."""
    specs = input_specs(within.read(MODEL))
    options = within.WithinOptions(max_drop=3.0, **OPTIONS)
    parts = within._parts(within.read(MODEL), options)
    rows = [{a.tobytes() for a in p["input"]} for p in parts]
    assert tuple(map(len, rows)) == found.samples
    assert sum(map(len, rows)) == open_data(TEST, specs).count
    assert not (rows[0] & rows[1] or rows[0] & rows[2] or rows[1] & rows[2])
    assert set(parts[0]) == {"input"}
    assert found.final == onnxprune.validate(MODEL, found.result.model, data=parts[2]).metric


def test_bisection(monkeypatch):
    """With a drop that grows as less is kept, the result is within 5 % of the smallest that is allowed."""
    limit, calls = 0.237, []

    def tried(model, options, flops, *parts):
        calls.append(flops)
        return within.Trial(flops, flops, Interval(0, 0, 0), flops >= limit, 0.0), flops

    monkeypatch.setattr(within, "_tried", tried)
    best, trials = within._bisected(MODEL, None, {}, {})
    assert limit <= best < limit * 1.05
    assert len(trials) == len(calls) <= within._STEPS


def test_nothing_within_is_told(monkeypatch):
    """Where even the least cut drops too much, the error says so; nothing is written."""
    drop = Interval(9.0, 8.0, 10.0)
    monkeypatch.setattr(within, "_tried", lambda *args: (within.Trial(args[2], args[2], drop, False, 0.0), None))
    with pytest.raises(TargetError, match=r"no network is within a drop of 1, .*drops by 9.00 .*larger --max-drop"):
        onnxprune.compress_within(MODEL, max_drop=1.0, **OPTIONS)


def test_the_command(tmp_path, monkeypatch):
    """The command writes the network, tells the trials, and returns 1 where the final drop is beyond the limit."""
    monkeypatch.chdir(tmp_path)
    common = ("compress", MODEL, "--data", TEST, "--allocate", "global", "--recover", "least-squares")
    told = json.loads(done(*common, "--max-drop", 3, "-o", "a.onnx", "--json").stdout)
    assert Path("a.onnx").stat().st_size == told["compressed"]["bytes"]
    assert told["max_drop"]["held"] is True
    assert set(told["max_drop"]["trials"][0]) == {"flops", "kept", "drop", "within", "seconds", "failed"}
    monkeypatch.setattr(within.Within, "held", property(lambda self: False))
    failed = run(*common, "--max-drop", 3, "-o", "b.onnx")
    assert failed.exit_code == Exit.TARGET
    assert "on the inputs kept aside" in failed.stderr
    assert Path("b.onnx").exists()
    assert "inputs that nothing was chosen on" in failed.stdout


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"flops": 0.5}, UsageError, "leave out --flops"),
        ({"max_drop": -1.0}, UsageError, "--max-drop -1"),
        ({"max_drop": float("nan")}, UsageError, "--max-drop nan"),
        ({"max_drop": float("inf")}, UsageError, "--max-drop inf"),
        ({"max_drop": 101.0}, UsageError, "--max-drop 101: accuracy drops by at most 100"),
        ({"metric": "acuracy"}, UsageError, "did you mean 'accuracy'"),
        ({"data": None}, UsageError, "give --data with labels"),
        ({"data": {"input": np.zeros((64, 1, 8, 8), np.float32)}}, DataError, "has no labels"),
        (
            {"data": {"input": np.zeros((20, 1, 8, 8), np.float32), "labels": np.zeros(20, int)}},
            DataError,
            "20 labelled inputs; --max-drop needs 48",
        ),
    ],
    ids=["two targets", "negative", "nan", "infinite", "beyond 100", "unknown metric", "no data", "no labels", "few"],
)
def test_bad_input(options, error, message):
    """What cannot be measured is refused before any work."""
    with pytest.raises(error, match=message):
        onnxprune.compress_within(MODEL, **{"max_drop": 1.0, **OPTIONS, **options})
