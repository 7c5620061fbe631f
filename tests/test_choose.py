"""`--latency`: the choice whose measured latency is the share that was asked for. Latencies are made up here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from commands import done, run

import onnxprune
from onnxprune import choose, reach, recovery
from onnxprune.errors import Exit, TargetError, UsageError
from onnxprune.validation import layer_times
from onnxprune.validation.intervals import Interval

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODEL, CALIB = FIXTURES / "resnet_bn_legacy.onnx", FIXTURES / "digits_calib.npz"


def weights(proto):
    """Elements of all parameters of a model."""
    return sum(int(np.prod(t.dims)) for t in proto.graph.initializer)


@pytest.fixture
def calls(monkeypatch):
    """A machine on which a model takes 0.2 and 0.8 per parameter, and layers what they have of MACs; the pairs."""
    made, measured = [], choose.durations

    def pair(baseline, candidate, *, feeds, threads, seed):
        made.append((baseline, candidate, threads))
        share = 0.2 + 0.8 * weights(candidate) / weights(baseline)
        faster = Interval(1 / share, 0.99 / share, 1.01 / share)
        return SimpleNamespace(
            speedup=faster,
            noise=Interval(1.0, 0.99, 1.01),
            baseline=SimpleNamespace(p50=0.002),
            candidate=SimpleNamespace(p50=0.002 * share),
        )

    def durations(analysis, feeds, threads):
        whole = {x.node: 1e-9 * x.macs.count(np.ones(analysis.classes + 1, bool)) for x in analysis.layers}
        return measured(analysis, feeds, threads, timer=lambda c, i, o: 1e-9 * i * o, whole=whole)

    monkeypatch.setattr(choose.latency, "pair", pair)
    monkeypatch.setattr(choose, "durations", durations)
    return made


def ratio(model):
    """The made-up share of the latency."""
    return 0.2 + 0.8 * weights(model) / weights(onnxprune.clean(MODEL))


def test_the_measured_share_is_met(calls):
    """The result takes the share of the latency that was asked for, within 3 %, and the report tells the way."""
    result = onnxprune.compress(MODEL, latency=0.5, recover="none", align=1)
    told = result.report.latency
    assert abs(ratio(result.model) / 0.5 - 1) < 0.03
    assert told["measured"]["ratio"]["point"] == pytest.approx(ratio(result.model))
    assert told["met"] is True
    assert len(told["iterations"]) == len(calls)
    assert all(onnx.ModelProto.SerializeToString(c[0]) == onnxprune.clean(MODEL).SerializeToString() for c in calls)
    assert {c[2] for c in calls} == {1}
    assert result.report.note == ""
    assert result.plan.settings["latency"] == 0.5
    assert result.plan.predicted["latency"] == told["measured"]["ratio"]["point"]


def test_one_table_for_all_corrections(calls, monkeypatch):
    """With data, what a greedy choice starts from is measured once, however many networks are tried for the latency."""
    made, real = [], recovery.curves
    monkeypatch.setattr(recovery, "curves", lambda *args, **more: made.append(args[1].tobytes()) or real(*args, **more))
    result = onnxprune.compress(MODEL, latency=0.5, recover="none", align=1, data=CALIB, calibration_size=64)
    assert len(result.report.latency["iterations"]) > 1
    assert len(made) == len(set(made)) > 1


def test_widths_stay_aligned(calls):
    """Unless told otherwise, wide layers keep whole blocks, and narrow ones multiples of 4."""
    report = onnxprune.compress(MODEL, latency=0.6, recover="none").report
    widths = [x.outputs[1] for x in report.layers if x.op == "Conv" and x.outputs[1] < x.outputs[0]]
    assert widths
    assert all(w % 4 == 0 for w in widths)


def test_repair_comes_once_at_the_end(calls, monkeypatch):
    """Networks that are only measured are not repaired; what is written is."""
    repairs = []
    original = recovery.recover
    monkeypatch.setattr(recovery, "recover", lambda *a, **k: repairs.append(1) or original(*a, **k))
    result = onnxprune.compress(
        MODEL, latency=0.5, data=CALIB, allocate="global", method="l2", recover="least-squares", align=1
    )
    assert len(repairs) == 1
    assert result.report.recovery is not None
    assert len(calls) >= 1


def test_greedy_saves_latency(calls):
    """The allocation by damage weighs it against latency, and reaches the target, too."""
    result = onnxprune.compress(MODEL, latency=0.6, data=CALIB, recover="none", calibration_size=64, align=1)
    assert result.report.settings["allocate"] == "greedy"
    assert result.report.latency["met"] is True


def test_a_plan_leads_to_the_same_bytes(calls):
    """`plan` measures as `compress` does, and `apply` needs no measurement."""
    plan = onnxprune.make_plan(MODEL, latency=0.5, align=1)
    count = len(calls)
    model = onnxprune.apply_plan(MODEL, plan).model
    assert len(calls) == count
    assert model == onnxprune.compress(MODEL, latency=0.5, align=1, recover="none").model


def test_out_of_reach(calls):
    """Below the floor, the error names the share that was measured; --best-effort takes it, with the same words."""
    with pytest.raises(TargetError, match=r"--latency 0.05 cannot be reached: .* 0\.2[0-9]* of the latency"):
        onnxprune.compress(MODEL, latency=0.05, recover="none")
    result = onnxprune.compress(MODEL, latency=0.05, recover="none", best_effort=True)
    assert "cannot be reached" in result.report.note
    assert result.report.latency["met"] is False


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_is_above_0_and_at_most_1(share):
    """Other numbers are refused before any work."""
    with pytest.raises(UsageError, match="--latency"):
        onnxprune.compress(MODEL, latency=share)


@pytest.mark.parametrize("other", [("--flops", 0.5), ("--params", 0.5), ("--size", 0.5)])
def test_one_target_only(other, tmp_path):
    """A latency and another target contradict each other."""
    result = run("compress", MODEL, "--latency", 0.5, *other, "-o", tmp_path / "a.onnx")
    assert result.exit_code == Exit.USAGE
    assert "exactly one of" in result.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--latency", 0.5, "--max-drop", 1, "--data", FIXTURES / "digits_test.npz"), "leave out"),
        (("--latency", 0.5, "--steps", 2), "leave out --steps"),
        (("--flops", 0.5, "--threads", 2), "--latency is measured"),
        (("--latency", 0.5, "--threads", 0), "at least 1"),
    ],
)
def test_contradictions(options, told, tmp_path):
    """What does not go with a latency is refused, and nothing is written."""
    result = run("compress", MODEL, *options, "-o", tmp_path / "a.onnx")
    assert result.exit_code == Exit.USAGE
    assert told in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


def test_the_command(calls, tmp_path):
    """The command tells what was measured, as text and in the JSON, and measures with the threads asked for."""
    common = ("compress", MODEL, "--latency", 0.5, "--align", 1, "--recover", "none", "--threads", 2)
    text = " ".join(done(*common, "-o", tmp_path / "a.onnx").stdout.split())
    assert "50.0 % wanted" in text
    assert "on 2 threads" in text
    told = json.loads(done(*common, "-o", tmp_path / "b.onnx", "--json").stdout)
    assert told["latency"]["wanted"] == 0.5
    assert {"predicted", "measured", "iterations", "environment"} < told["latency"].keys()
    assert {c[2] for c in calls} == {2}
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_wide_interval_is_told(calls, monkeypatch):
    """Where the measurement cannot tell 3 %, the note gives its interval."""
    exact = choose.latency.pair

    def pair(*args, **given):
        found = exact(*args, **given)
        at = found.speedup.point
        return SimpleNamespace(**{**vars(found), "speedup": Interval(at, at * 0.8, at * 1.2)})

    monkeypatch.setattr(choose.latency, "pair", pair)
    assert "only known to lie between" in onnxprune.compress(MODEL, latency=0.5, recover="none", align=1).report.note


def test_for_real(tmp_path, monkeypatch):
    """Without anything made up, networks are measured, and the times of the layers are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choose.latency, "CAP", 1e-3)  # a slow model, beside it: no measurement fails for that
    monkeypatch.setattr(reach, "_STEPS", 2)
    result = onnxprune.compress(MODEL, latency=0.9, recover="none", best_effort=True)
    told = result.report.latency
    assert told["iterations"]
    assert told["measured"]["seconds"]["original"] > 0
    assert layer_times._cache().exists()
