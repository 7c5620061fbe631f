"""Speed-up beside the original, and beside the cleaned original."""

from __future__ import annotations

from types import SimpleNamespace

import onnx
import pytest
from onnx import helper
from validation.models import inputs, linear

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.validation import latency
from onnxprune.validation.intervals import Interval
from onnxprune.validation.speed import OPTION, speed


def timing(seconds):
    return SimpleNamespace(p50=seconds, as_dict=dict)


def fake(ratios):
    """A measurement that gives these speed-ups in turn, and what it was asked."""
    asked = []

    def measure(baseline, candidate, *, feeds, seconds, seed, option=OPTION):
        assert option == "--latency-seconds"
        asked.append((baseline, candidate, feeds, seconds, seed))
        point = ratios[len(asked) - 1]
        found = Interval(point, 0.9 * point, 1.1 * point)
        return SimpleNamespace(
            speedup=found,
            noise=Interval(1, 0.99, 1.01),
            median=Interval(0.002, 0.0019, 0.0021),
            baseline=timing(0.002 * point),
            candidate=timing(0.002),
            as_dict=lambda: {"speedup": found.as_dict()},
        )

    return measure, asked


def as_input(model):
    """A copy with its weight listed as a graph input, which stops onnxruntime from folding it."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    weight = copy.graph.initializer[0]
    copy.graph.input.append(helper.make_tensor_value_info("w", weight.data_type, weight.dims))
    return copy


def test_clean_original():
    """Where cleaning changes nothing, only the two models are measured."""
    measure, asked = fake([2.0])
    found = speed(linear(), linear(noise=1), feeds=None, seconds=3, seed=4, measure=measure)
    assert len(asked) == 1
    assert asked[0][2:] == (None, 3, 4)
    assert (found.speedup.point, found.pruning, found.cleaning) == (2.0, None, None)


@pytest.mark.parametrize("kind", ["weights as inputs", "needless nodes"])
def test_what_cleaning_brings(kind):
    """Where cleaning changes the graph, the candidate is also measured beside the cleaned original."""
    dirty = as_input(linear()) if kind == "weights as inputs" else linear(body="h = Identity(x)\n y = MatMul(h, w)")
    measure, asked = fake([3.0, 1.2])
    found = speed(dirty, linear(noise=1), feeds=None, seconds=3, seed=0, measure=measure)
    assert asked[1][0] == onnxprune.clean(dirty)
    assert asked[0][1] == asked[1][1]
    assert (found.speedup.point, found.pruning.point) == (3.0, 1.2)
    assert found.cleaning == pytest.approx(2.5)
    assert found.as_dict()["pruning"]["point"] == 1.2
    assert found.as_dict()["cleaned"] == {"speedup": found.pruning.as_dict()}


def test_goals_of_latency(monkeypatch):
    """Latency is measured only where something asks for it, on one sample of the data, and judged by its interval."""
    measure, asked = fake([2.0] * 4)
    monkeypatch.setattr(latency, "pair", measure)
    good, bad, x = linear(), linear(noise=0.1), inputs()
    assert onnxprune.validate(good, bad, data=x, min_agreement=0.1).speed is None
    assert asked == []
    found = onnxprune.validate(good, bad, data=x, min_speedup=1.9, max_latency=0.003)
    assert asked[0][2]["x"].shape == (1, 6)
    assert asked[0][3] is None
    assert {g.name: g.verdict for g in found.goals} == {"min_speedup": "inconclusive", "max_latency": "pass"}
    assert onnxprune.validate(good, bad, latency_seconds=1.0).as_dict()["latency"]["speedup"]["point"] == 2.0
    assert asked[1][2:4] == (None, 1.0)


def test_a_limit_that_is_too_short(monkeypatch):
    """A limit that is named and too short is an error that names its option, after the first batch of the data."""
    read = []

    def batches():
        for batch in inputs(400).reshape(-1, 40, 6):
            read.append(len(batch))
            yield batch

    monkeypatch.setattr(latency, "until", None)  # no round is run
    with pytest.raises(UsageError, match=r"--latency-seconds 0.001 is too short.*; give --latency-seconds 1"):
        onnxprune.validate(linear(), linear(), data=batches, latency_seconds=1e-3)
    assert sum(read) < 400


def test_a_slow_model(monkeypatch):
    """Where no limit is named, models too slow for the default one get the time that the minimum of rounds takes."""
    monkeypatch.setattr(latency, "CAP", 1e-3)
    found = onnxprune.validate(linear(), as_input(linear()), data=inputs(), min_speedup=0.01)
    assert found.speed.paired.candidate.n == latency.MIN_ROUNDS


def test_measured_for_real():
    """Latency is measured with what is there for it, and the report has it all."""
    found = onnxprune.validate(linear(), linear(), data=inputs(), latency_seconds=2.0)
    assert found.speed.paired.baseline.n >= 30
    assert found.speed.speedup.low <= found.speed.speedup.point <= found.speed.speedup.high
    assert found.as_dict()["latency"]["paired"]["environment"]
