"""int8 models: what stays, how well they agree, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import run
from graphs import proto

import onnxprune
from onnxprune import files, quantize
from onnxprune.data import open_data
from onnxprune.errors import ModelError, TargetError, UnsupportedError, UsageError
from onnxprune.runtime import input_specs, session
from onnxprune.validation import bench, corners, environment, latency
from onnxprune.validation.bench import benchmark
from onnxprune.validation.intervals import Interval

MODEL, CALIB, TEST = "fixtures/vgg_legacy.onnx", "fixtures/digits_calib.npz", "fixtures/digits_test.npz"
CUT = {"flops": 0.5, "data": CALIB, "recover": "none", "allocate": "global", "method": "l1"}
AS_OPTIONS = [x for name, value in CUT.items() for x in (f"--{name}", value)]


def in_int8(path=MODEL):
    """A fixture and the same in int8."""
    model = files.read_model(path)
    data = open_data(CALIB, input_specs(model))
    return model, quantize.quantize(model, (b.inputs for b in data.batches(64, limit=256)))


@pytest.fixture(scope="module")
def pair():
    """A model and the same in int8."""
    return in_int8()


def test_accuracy_and_size(pair):
    """The int8 model loses no more than 1 % of its answers, and less than half of the bytes are left."""
    model, small = pair
    test = np.load(TEST)
    answers = [session(m).run({"input": test["input"]})["logits"].argmax(1) for m in (model, small)]
    assert (answers[0] == answers[1]).mean() > 0.99
    assert files.file_bytes(small) < files.file_bytes(model) / 2


def test_signature_stays(pair):
    """Names, shapes, operator sets and producer are those of the model, and the tools leave no marks."""
    model, small = pair
    assert [i.SerializeToString() for i in small.graph.input] == [i.SerializeToString() for i in model.graph.input]
    assert [o.name for o in small.graph.output] == [o.name for o in model.graph.output]
    assert {o.domain: o.version for o in small.opset_import} == {o.domain: o.version for o in model.opset_import}
    assert (small.producer_name, small.ir_version) == (model.producer_name, model.ir_version)
    assert not small.metadata_props
    onnx.checker.check_model(small, full_check=True)


def test_reproducible(pair):
    """The same inputs give the same bytes, and the model is not changed."""
    model, small = pair
    before = model.SerializeToString()
    again = in_int8()[1]
    assert again.SerializeToString(deterministic=True) == small.SerializeToString(deterministic=True)
    assert model.SerializeToString() == before


def test_what_cannot_be_quantized(tmp_path, monkeypatch, capfd):
    """A failure of the tools is an UnsupportedError; nothing is printed and no file is left behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = proto("g (float[N,4] x) => (float[N,4] y) <float[4,4] w> { y = MatMul(x, w) }")
    with pytest.raises(UnsupportedError, match="onnxruntime cannot quantize the model"):
        quantize.quantize(model, [])
    assert list(Path(tmp_path).iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET


def test_processors():
    """Instructions for int8 are looked for where the system tells which there are."""
    assert quantize.has_int8({"avx2", "avx512_vnni"})
    assert quantize.has_int8({"asimddp"})
    assert quantize.has_int8({"avx2", "avx512f"}) is False
    assert quantize.has_int8(set()) is None


# ---- in bench and compress ----------------------------------------------------------------------------------------


def test_four_corners():
    """With int8, every model is there twice, with its accuracy beside the first."""
    found = benchmark([MODEL, "fixtures/vgg_dynamo.onnx"], int8=True, data=TEST, seconds=3, precision=0.5, memory=False)
    assert len(found.rows) == 4
    assert [x.quantized for x in found.int8] == [r.model for r in found.rows[2:]]
    assert found.accuracy[f"{MODEL} in int8"].metric.candidate > 0.97
    told = found.as_dict()
    assert told["int8"][0]["speedup"].keys() == {"point", "low", "high"}
    assert told["models"][f"{MODEL} in int8"]["metric"]["metric"] == "accuracy"
    (note,) = (n for n in told["notes"] if "were fitted on" in n)
    assert note.startswith("500 of the 500 inputs whose answers are compared are those that int8")


def test_int8_needs_data():
    """Without data there is nothing to calibrate on."""
    with pytest.raises(UsageError, match="--int8 needs --data"):
        benchmark(MODEL, int8=True)
    assert run("compress", MODEL, "--flops", "0.5", "--int8").exit_code == 2


def measurement(pays):
    """Stands in for the measurement: int8 is twice, or half as fast."""

    def measured(protos, given, hows, **_):
        point = 2.0 if pays else 0.5
        speedup, said = Interval(point, point * 0.99, point * 1.01), "faster" if pays else "slower"
        made = bench._quantized(protos, given).items()
        gains = tuple(bench.Int8(name, f"{name} in int8", proto, speedup, said) for name, proto in made)
        return bench.Benchmark((), {}, {}, {}, {}, {}, {}, int8=gains)

    return measured


@pytest.mark.parametrize(("pays", "forced"), [(True, False), (False, False), (False, True)])
def test_compress_in_int8(monkeypatch, pays, forced):
    """The result is quantized where that pays, or where it is forced; else it stays in floats, and says why."""
    monkeypatch.setattr(corners, "measured", measurement(pays))
    result = onnxprune.compress(MODEL, int8=True, best_effort=forced, **CUT)
    kinds = {n.op_type for n in result.model.graph.node}
    assert ("QuantizeLinear" in kinds) == (pays or forced)
    assert bool(result.refused) == (not pays and not forced)
    told = result.report.as_dict()
    assert told["compressed"]["bytes"] == files.file_bytes(result.model)
    assert told["kept"]["bytes"] == files.file_bytes(result.model) / told["original"]["bytes"]


def test_processor_without_int8(monkeypatch):
    """A processor that gains nothing is refused before any work, unless the model is for another device."""
    monkeypatch.setattr(environment, "cpu_flags", lambda: frozenset({"avx2"}))
    with pytest.raises(TargetError, match=r"no instructions for int8.*best-effort"):
        onnxprune.compress("nowhere.onnx", flops=0.5, data=CALIB, int8=True)


def test_refusal_of_the_command(tmp_path, monkeypatch):
    """Where int8 does not pay, the float model is written and the command exits with 1."""
    monkeypatch.setattr(corners, "measured", measurement(False))
    copy, out = shutil.copy(MODEL, tmp_path), tmp_path / "small.onnx"
    found = run("compress", copy, "--int8", *AS_OPTIONS, "-o", out, "--quiet")
    assert found.exit_code == 1
    assert "int8 gains nothing here" in found.output
    assert "QuantizeLinear" not in {n.op_type for n in files.read_model(out).graph.node}


def test_a_slow_model(monkeypatch):
    """Where the minimum of rounds takes longer than the time cap that nobody named, all four are measured."""
    monkeypatch.setattr(latency, "CAP", 1e-3)
    result = onnxprune.compress(MODEL, int8=True, best_effort=True, **CUT)
    assert [row.timing.n for row in result.int8.rows] == [latency.MIN_ROUNDS] * 4
    assert "QuantizeLinear" in {n.op_type for n in result.model.graph.node}


@pytest.mark.parametrize("error", [ModelError("it gives NaN"), MemoryError(), OSError(28, "No space left on device")])
def test_a_measurement_that_fails(tmp_path, monkeypatch, error):
    """Where int8 or its measurement fails, the float model is written all the same, with the reason and exit code 1."""

    def measured(*_, **__):
        raise error

    monkeypatch.setattr(corners, "measured", measured)
    monkeypatch.setattr(environment, "cpu_flags", lambda: frozenset({"avx512_vnni"}))
    out = tmp_path / "small.onnx"
    found = run("compress", MODEL, "--int8", *AS_OPTIONS, "-o", out, "--json")
    assert found.exit_code == 1
    told = json.loads(found.stdout)
    assert told["int8"] is None
    assert told["refused"].startswith("int8 failed, so the pruned model stays in floats: ")
    assert told["refused"] in found.stderr
    bare = {k: v for k, v in CUT.items() if k != "data"}  # at which only int8 looks
    assert files.read_model(out) == onnxprune.compress(MODEL, **bare).model
