"""`finetune`, and training within `compress`, on the command line; cuts in several steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import done, run

import onnxprune
from onnxprune.finetuning import stages
from onnxprune.finetuning.settings import RATES

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODEL, TRAIN = FIXTURES / "senet_dynamo.onnx", FIXTURES / "digits_calib.npz"
CUT = ("--flops", "0.5", "--recover", "none", "--allocate", "global", "--method", "l2", "--align", "1")


@pytest.fixture
def small(cut, tmp_path):
    """A file with a cut network."""
    onnx.save(cut, tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


def test_finetune(torch, small):
    """It writes MODEL.tuned.onnx, tells what it did as text or JSON, and leaves no checkpoint."""
    line = ("finetune", small, "--teacher", MODEL, "--data", TRAIN, "--epochs", 2, "--limit", 100, "--lr", 0.003)
    text = done(*line).stdout
    assert "weights trained on 90 samples of digits_calib.npz; 10 held out." in text
    assert "The weights are those of epoch 2" in text
    assert {p.name for p in small.parent.iterdir()} == {"small.onnx", "small.tuned.onnx"}
    told = json.loads(done(*line, "-o", small.parent / "b.onnx", "--json").stdout)
    assert told["epoch"] == 2
    assert told["proof"]["after"] < 1e-5
    assert (small.parent / "b.onnx").read_bytes() == (small.parent / "small.tuned.onnx").read_bytes()


def test_a_start_that_is_not_beaten(torch, tmp_path):
    """Where training gains nothing, the start's weights are written, the report says so, and the exit code is 0."""
    line = ("finetune", MODEL, "--teacher", MODEL, "--data", TRAIN, "--limit", 64, "--epochs", 9, "--patience", 2)
    text = " ".join(done(*line, "-o", tmp_path / "t.onnx").stdout.split())
    assert "The weights are those of epoch 0; stopped early: no better on held-out data since epoch 0" in text
    a, b = (
        {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in onnx.load(p).graph.initializer}
        for p in (MODEL, tmp_path / "t.onnx")
    )
    assert a == b
    assert [p.name for p in tmp_path.iterdir()] == ["t.onnx"]


def test_refusals(torch, small):
    """Exit codes by kind: usage, input, files; nothing is written."""
    line = ("finetune", small, "--teacher", MODEL, "--data", TRAIN)
    assert run(*line, "--epochs", 0).exit_code == 2
    assert run(*line, "--resume").exit_code == 2
    assert run(*line, "--labels").exit_code == 3
    assert run(*line, "-o", small).exit_code == 4
    assert run("finetune", small, "--teacher", FIXTURES / "digits_test.npz", "--data", TRAIN).exit_code == 3
    failed = run(*line, "--lr", 1e30, "--limit", 64, "--batch", 8)
    assert failed.exit_code == 1
    assert "Try a smaller --lr" in failed.output
    assert "nothing was written" in failed.output
    assert [p.name for p in small.parent.iterdir()] == ["small.onnx"]


def test_a_loss_that_is_not_finite_later(torch, small, monkeypatch):
    """The best weights so far are written; there is no checkpoint, as the same would be met again."""
    from onnxprune.student.training import Training

    honest = Training._step

    def step(self, places, view, answers, number):
        loss, agreement = honest(self, places, view, answers, number)
        return (float("nan") if number >= self._steps else loss), agreement

    monkeypatch.setattr(Training, "_step", step)
    failed = run("finetune", small, "--teacher", MODEL, "--data", TRAIN, "--limit", 64, "--epochs", 2, "--lr", 0.003)
    assert failed.exit_code == 1
    assert "the loss was nan in epoch 2, step 1 of" in " ".join(failed.output.split())
    assert {p.name for p in small.parent.iterdir()} == {"small.onnx", "small.tuned.onnx"}


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_and_resume(torch, small):
    """Ctrl-C writes the best weights so far and returns 130; --resume goes on, and clears up."""
    out, place = small.parent / "t.onnx", small.parent / "t.onnx.checkpoint"
    line = ["finetune", small, "--teacher", MODEL, "--data", TRAIN, "-o", out, "--epochs", "40", "--patience", "999"]
    line = [sys.executable, "-m", "onnxprune", *map(str, line), "--limit", "64"]
    process = subprocess.Popen(
        line, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 120
    while not place.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "has the best weights so far, of epoch" in said or "nothing was written" in said
    assert place.exists()
    assert run(*line[3:], "--resume", "--seed", 1).exit_code == 3, "with other options it is another run"
    told = json.loads(done(*line[3:], "--resume", "--json").stdout)
    assert len(told["history"]) == 41
    assert told["stopped"] == ""
    assert {p.name for p in small.parent.iterdir()} == {"small.onnx", "t.onnx"}


def test_compress_and_finetune(torch, tmp_path):
    """`compress --finetune` cuts, repairs and trains in one go, and calibrates on the training inputs without --data."""
    line = ("compress", MODEL, *CUT[:2], "--allocate", "global", "--recover", "moments", "--calibration-size", 64)
    line = (*line, "--finetune", TRAIN, "--epochs", 1)
    told = json.loads(done(*line, "-o", tmp_path / "s.onnx", "--json").stdout)
    assert told["recovery"]["data"]["name"] == "digits_calib.npz"
    assert len(told["tuning"]) == 1
    assert told["tuning"][0]["teacher"] == str(MODEL)
    assert told["tuning"][0]["model"] == f"{MODEL}, cut"
    assert told["tuning"][0]["proof"]["after"] < 1e-5
    text = done(*line, "-o", tmp_path / "t.onnx", "--save-plan", tmp_path / "p.json").stdout
    assert "macs" in text.lower()
    assert "weights trained on" in text
    assert (tmp_path / "s.onnx").read_bytes() == (tmp_path / "t.onnx").read_bytes()


@pytest.mark.parametrize("given", [("--epochs", 3), ("--labels",), ("--finetune-preprocess", "unit")])
@pytest.mark.parametrize("target", ["--flops", "--max-drop"])
def test_options_of_training_without_it(tmp_path, target, given):
    """What would only matter to --finetune is a usage error without it, even where it is the default's value."""
    refused = run("compress", MODEL, target, 0.5, *given, "-o", tmp_path / "n.onnx")
    assert refused.exit_code == 2
    assert f"{given[0]} belongs to --finetune, which is not given" in " ".join(refused.output.split())
    assert list(tmp_path.iterdir()) == []


def test_steps(tmp_path):
    """A cut in three steps meets the target, has one plan of the original, and that replays to the same widths."""
    told = json.loads(
        done(
            "compress",
            MODEL,
            *CUT,
            "--steps",
            3,
            "-o",
            tmp_path / "s.onnx",
            "--save-plan",
            tmp_path / "p.json",
            "--json",
        ).stdout
    )
    assert 0.4 < told["kept"]["macs"] <= 0.5
    assert (told["settings"]["steps"], told["settings"]["flops"]) == (3, 0.5)
    assert told["plan"]["predicted"]["kept"]["macs"] == pytest.approx(told["kept"]["macs"], abs=1e-6)
    done("apply", MODEL, tmp_path / "p.json", "-o", tmp_path / "a.onnx", "-q")
    a, b = (
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / n).graph.initializer}
        for n in ("a.onnx", "s.onnx")
    )
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[n], b[n]) for n in a), "nothing was repaired: the same bare cut"
    assert run("compress", MODEL, *CUT, "--steps", 0, "-o", tmp_path / "n.onnx").exit_code == 2
    quantized = ("--int8", "--best-effort", "--data", TRAIN)
    assert run("compress", MODEL, *CUT, "--steps", 2, *quantized, "-o", tmp_path / "n.onnx").exit_code == 2


def test_steps_that_stop_short(torch, tmp_path):
    """Where training fails in a step that is not the last, the message says that the target was not reached."""
    line = ("compress", MODEL, *CUT, "--steps", 2, "--finetune", TRAIN, "--epochs", 1, "-o", tmp_path / "s.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RATES, "adam", 1e30)
        stopped = run(*line)
    assert stopped.exit_code == 1
    assert "it is that of step 1 of 2: the target is not reached" in " ".join(stopped.output.split())


def test_steps_with_training(torch):
    """Every step is trained towards the original before the next cut."""
    options = {"flops": 0.2, "recover": "none", "align": 1}
    tuning = {"data": TRAIN, "epochs": 1, "limit": 64, "batch": 16, "lr": 3e-3}
    done_ = stages.staged(MODEL, options, steps=2, tuning=tuning)
    assert len(done_.tuned) == 2
    assert {r.teacher for r in done_.tuned} == {str(MODEL)}
    assert [r.model for r in done_.tuned] == [f"{MODEL}, cut (step {step} of 2)" for step in (1, 2)]
    cost = done_.result.report
    assert 0.15 < cost.compressed.macs / cost.original.macs <= 0.2
    plain = onnxprune.apply_plan(MODEL, done_.result.plan).model
    shapes = [{t.name: tuple(t.dims) for t in m.graph.initializer} for m in (plain, done_.result.model)]
    assert shapes[0] == shapes[1]
