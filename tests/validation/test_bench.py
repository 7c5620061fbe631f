"""Several models beside each other: the library, the table and the command."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from commands import done, run
from graphs import each, proto
from rich.console import Console

import onnxprune
from onnxprune.commands import measuring
from onnxprune.errors import DataError, UsageError
from onnxprune.report import latency as report
from onnxprune.validation.bench import benchmark

MODEL, OTHER = "fixtures/resnet_bn_dynamo.onnx", "fixtures/vgg_dynamo.onnx"
QUICK = {"seconds": 2, "precision": 0.5, "memory": False}
FAST = ("--seconds", "2", "--precision", "50%", "--no-memory")
SYMBOLIC = "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"
OPEN = "g (float[N,C] x) => (float[N,C] y) { y = Relu(x) }"


def text(found):
    """The report as plain text, 80 columns wide."""
    console = Console(width=80, no_color=True, markup=False)
    with console.capture() as capture:
        console.print(report.benchmark(found))
    return capture.get()


def test_options_without_data():
    """How data are read says nothing without data: a usage error, before any work."""
    with pytest.raises(UsageError, match="--preprocess says how to read --data, which is not given"):
        benchmark("nowhere.onnx", preprocess="imagenet")
    assert run("bench", MODEL, "--preprocess", "imagenet", *FAST).exit_code == 2


def test_calibration_without_int8():
    """Only int8 is calibrated: how many inputs that takes is a usage error without it, before any work."""
    with pytest.raises(UsageError, match="--calibration-size belongs to --int8, which is not given"):
        benchmark("nowhere.onnx", calibration_size=512)
    assert run("bench", MODEL, "--calibration-size", 512, *FAST).exit_code == 2


def test_models_beside_each_other():
    """Every model has a row; the first is the baseline, and the others have a speed-up over it."""
    found = benchmark([MODEL, OTHER], profile=True, **QUICK)
    assert [(r.model, r.threads, r.batch) for r in found.rows] == [(MODEL, 1, 1), (OTHER, 1, 1)]
    first, second = found.rows
    assert first.speedup is first.verdict is None
    assert second.speedup.low <= second.speedup.point <= second.speedup.high
    assert second.throughput == pytest.approx(1 / second.timing.p50)
    assert found.nodes[MODEL].keys() == {"CPUExecutionProvider"}
    assert {name: len(k.convs) for name, k in found.kernels.items()} == {MODEL: 12, OTHER: 4}
    assert {r.node for r in found.layers[OTHER]} >= {"node_conv2d", "node_linear"}
    assert "inputs are random numbers" in found.notes


def test_every_combination():
    """Numbers of threads and batches are measured each with each, on inputs of that size."""
    found = benchmark(proto(SYMBOLIC), threads=[1, 2], batch=[1, 8], **QUICK)
    assert [(r.threads, r.batch) for r in found.rows] == [(1, 1), (2, 1), (1, 8), (2, 8)]
    assert "threads  batch" in text(found)


def test_the_same_model_twice():
    """A model that is given twice has two rows under different names."""
    found = benchmark([OTHER, OTHER], **QUICK)
    assert [r.model for r in found.rows] == [f"{OTHER} (1)", f"{OTHER} (2)"]
    assert found.rows[1].verdict in ("no difference", "inconclusive")


def test_one_model():
    """Of a single model, the noise floor is measured, and told in the JSON and the report, with what it ran on."""
    found = benchmark(OTHER, **QUICK)
    (row,) = found.as_dict()["rows"]
    assert row["noise"].keys() == {"point", "low", "high"}
    assert row["noise"]["low"] <= row["noise"]["point"] <= row["noise"]["high"]
    assert row["speedup"] is row["verdict"] is None
    told = text(found)
    assert re.search(rf"A again +{row['noise']['point']:.3f} .* noise floor", told)
    assert "Every node ran on CPUExecutionProvider." in told


def test_data():
    """Inputs are those of the data, a batch of them."""
    found = benchmark(MODEL, data="fixtures/digits_test.npz", batch=4, **QUICK)
    assert found.rows[0].batch == 4
    assert "inputs are random numbers" not in found.notes


def test_memory():
    """Peak memory is measured where it is asked for."""
    found = benchmark(OTHER, **(QUICK | {"memory": True}))
    assert found.rows[0].memory is None or found.rows[0].memory > 100_000


def test_report():
    """The report shows latencies, the noise floor, kernels, layers and what was measured on, in 80 columns."""
    told = text(benchmark([MODEL, OTHER], profile=True, **QUICK))
    assert "A: fixtures/resnet_bn_dynamo.onnx (203 kB)" in told
    for part in (
        "p50",
        "samples/s",
        "A / it",
        "A again",
        "noise floor",
        "node_conv2d",
        "no spinning",
        "1 thread; batch 1",
    ):
        assert part in told
    assert max(map(len, told.splitlines())) <= 80


def test_report_of_layers_that_left_the_blocks():
    """The warning names the layer and what would fix it."""
    base, cut = (
        proto(f"""g (float[1,16,8,8] x) => (float[] y) <float[{n},16,3,3] w, float[16,{n},3,3] v> {{
            [first] h = Conv(x, w)
            [second] y = Conv(h, v)
        }}""")
        for n in (20, 18)
    )
    found = benchmark([base, cut], **QUICK)
    if not found.kernels["g (1)"].blocked:
        pytest.skip("onnxruntime has no blocked kernels here")
    told = text(found)
    assert [c.node for c in found.fell_off["g (2)"]] == ["second"]
    assert "Warning: 1 of them left the blocks" in told
    assert "second: 18 input channels are no multiple of 4; inputs 16 or 20 (--align 4)" in told


def test_provider_that_does_not_run_the_model():
    """A provider that takes no node is told, with what ran instead."""
    if "AzureExecutionProvider" not in onnxprune.runtime.providers():
        pytest.skip("this onnxruntime has only one provider")
    told = text(benchmark(OTHER, provider="AzureExecutionProvider", **QUICK))
    assert "Warning: AzureExecutionProvider did not run everything." in " ".join(told.split())
    assert "nodes on CPUExecutionProvider" in " ".join(told.split())


WRONG = {
    "no model": (([],), {}, UsageError, "at least one model"),
    "batch": ((proto(SYMBOLIC),), {"batch": 0}, UsageError, "--batch 0"),
    "threads": ((proto(SYMBOLIC),), {"threads": [1, 0]}, UsageError, "--threads 0"),
    "shape": ((proto(OPEN),), {}, UsageError, "--input-shape x:"),
    "data": ((MODEL,), {"data": {"y": np.ones((4, 3))}}, DataError, "3 instead|dims instead"),
    "few data": ((MODEL,), {"data": np.zeros((4, 1, 8, 8), np.float32), "batch": 8}, DataError, "8"),
}


@each(WRONG, "args,given,error,message")
def test_bad_arguments(args, given, error, message):
    """What cannot be measured is refused with the reason."""
    with pytest.raises(error, match=message):
        benchmark(*args, **(QUICK | given))


# ---- the command --------------------------------------------------------------------------------------------------


def test_command():
    """`bench` prints the table, or one JSON object."""
    assert "noise floor" in done("bench", MODEL, OTHER, *FAST).stdout
    told = json.loads(done("bench", MODEL, OTHER, *FAST, "--json", "--profile").stdout)
    assert [r["model"] for r in told["rows"]] == [MODEL, OTHER]
    assert told["rows"][1]["speedup"].keys() == {"point", "low", "high"}
    assert told["models"][MODEL]["kernels"]["convs"] == 12
    assert told["models"][MODEL]["layers"]
    assert told["environment"]["onnxruntime"]


@pytest.mark.parametrize("quiet", [False, True])
def test_progress(monkeypatch, tmp_path, quiet):
    """The command shows its stages as the others do; with --quiet nothing is printed, but files are written."""
    asked, page = [], tmp_path / "page.html"

    @contextmanager
    def spinner(silent):
        asked.append(silent)
        yield

    monkeypatch.setattr(measuring, "progress", spinner)
    found = done("bench", OTHER, *FAST, "--report", page, *["--quiet"] * quiet)
    assert asked == [quiet]
    assert bool(found.output) == (not quiet)
    assert "noise floor" in page.read_text()


def test_input_shape(tmp_path):
    """Sizes that the model leaves open can be given."""
    path = tmp_path / "open.onnx"
    onnxprune.files.write_model(proto(OPEN), path)
    told = json.loads(done("bench", path, *FAST, "--input-shape", "x:3,5", "--json").stdout)
    assert told["rows"][0]["batch"] == 3
    assert run("bench", path, *FAST).exit_code == 2


COMMANDS = {
    "precision": (("--precision", "200%"), 2, "--precision '200%': give a share"),
    "precision, text": (("--precision", "low"), 2, "--precision 'low'"),
    "seconds": (("--seconds", "soon"), 2, "--seconds 'soon': give a number above 0"),
    "short": (("--seconds", "0.001"), 2, "is too short"),
    "threads": (("--threads", "1,x"), 2, "--threads '1,x': give whole numbers"),
    "batch": (("--batch", "0"), 2, "--batch '0'"),
    "provider": (("--provider", "Magic"), 2, "--provider 'Magic': this onnxruntime does not have it"),
    "data": (("--data", "nowhere.npz"), 4, "nowhere.npz"),
    "file": (("nowhere.onnx",), 4, "there is no file"),
}


@each(COMMANDS, "args,code,message")
def test_exit_codes(args, code, message):
    """Wrong options exit with 2, missing files with 4, and the message says what to do."""
    found = run("bench", OTHER, *args)
    assert found.exit_code == code
    assert message in found.output


def test_a_model_that_fails(tmp_path):
    """A model that fails in a run exits with 3 and names the node."""
    model = proto("g (float[N,3] x) => (float[M] y) <int64[1] s = {7}> { [bad] y = Reshape(x, s) }")
    onnxprune.files.write_model(model, tmp_path / "bad.onnx")
    found = run("bench", tmp_path / "bad.onnx", *FAST)
    assert found.exit_code == 3
    assert "'bad' (Reshape)" in found.output


def test_models_are_only_read(tmp_path):
    """Measuring leaves the file and its folder as they were."""
    copy = shutil.copy(OTHER, tmp_path)
    done("bench", copy, *FAST, "--profile")
    assert [p.name for p in tmp_path.iterdir()] == ["vgg_dynamo.onnx"]
    assert (tmp_path / "vgg_dynamo.onnx").read_bytes() == Path(OTHER).read_bytes()
