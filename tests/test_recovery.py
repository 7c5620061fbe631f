"""Recovery of a network as a whole: what ships, what is told, and what stays untouched."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import analyse, proto, random_plan
from onnx import numpy_helper
from recovering import far, feeds, outputs

import onnxprune
from onnxprune import pipeline, recovery
from onnxprune.calibration import Calibration
from onnxprune.cut import cut
from onnxprune.recover.program import program

TEXT = """g (float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w, float[8] b, float[8,8,3,3] v, float[8] c, float[5,8] u, float[5] d> {
    h = Conv(x, w, b)
    r = Relu(h)
    i = Conv(r, v, c)
    s = Relu(i)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, u, d)
}"""

RAW = """g (float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w, float[8] b, float[6,8,3,3] v, float[6] c> {
    h = Conv(x, w, b)
    r = Relu(h)
    y = Conv(r, v, c)
}"""


def study(batches=6, held=2, *, change=None, labels=None, text=TEXT):
    """A model, a random cut and the original on random inputs, which `change` may alter."""
    analysis = analyse(text)
    given = feeds(analysis.model, batches)
    if change:
        change(given)
    found = Calibration(tuple(given), held, labels, "random", 32 * batches, False, ())
    kept = random_plan(analysis, 0.4, 0)
    return analysis, kept, cut(analysis, kept), recovery.Study(analysis, found)


def weights(model):
    return {n: np.array(a) for n, a in program(model).weights.items()}


@pytest.mark.parametrize("method", [m for m in recovery.METHODS if m != "none"])
def test_the_better_one_ships(method):
    """Whatever the repair: on held inputs the network that ships diverges no more than the plain cut."""
    analysis, kept, smaller, seen = study()
    old = weights(smaller)
    plain = outputs(program(smaller), seen.calibration.batches[-2:])
    done = recovery.recover(analysis, kept, smaller, method, seen)
    new = outputs(program(smaller), seen.calibration.batches[-2:])
    better = done.after.divergence <= done.before.divergence
    assert done.shipped == ("repaired" if better else "cut")
    if better:
        assert far(new, seen.original()) != far(plain, seen.original())
    else:
        assert all(np.array_equal(a, old[n]) for n, a in weights(smaller).items())
    wanted = done.after if better else done.before
    assert recovery.agreement(seen.original(), new).divergence == pytest.approx(wanted.divergence, rel=1e-3, abs=1e-9)


def test_the_default_helps():
    """The default repair ships, and brings the outputs much nearer."""
    analysis, kept, smaller, seen = study()
    done = recovery.recover(analysis, kept, smaller, "auto", seen)
    assert (done.method, done.shipped) == ("joint", "repaired")
    assert done.after.relative_error < 0.5 * done.before.relative_error


def test_a_repair_that_fails_is_not_shipped():
    """Fitted to inputs unlike the held ones, moments make the network worse: the cut ships, unchanged to the bit."""

    def alter(given):
        for batch in given[:4]:
            batch["x"][:] = 1e-3 * batch["x"] - 3

    analysis, kept, smaller, seen = study(change=alter, text=RAW)
    old = weights(smaller)
    done = recovery.recover(analysis, kept, smaller, "moments", seen)
    assert done.after.divergence > done.before.divergence
    assert done.shipped == "cut"
    assert all(np.array_equal(a, old[n]) for n, a in weights(smaller).items())


def test_metric():
    """With labels, the accuracy of original, cut and repaired network on the held inputs."""
    analysis, kept, smaller, seen = study()
    answers = np.concatenate([b["y"] for b in seen.original()]).argmax(1)
    seen = study(labels=answers)[3]
    plain = np.concatenate([b["y"] for b in seen.outputs(program(smaller))]).argmax(1)
    done = recovery.recover(analysis, kept, smaller, "auto", seen)
    new = np.concatenate([b["y"] for b in seen.outputs(program(smaller))]).argmax(1)
    assert done.metric == {
        "original": 1.0,
        "cut": (plain == answers).mean(),
        "repaired": (new == answers).mean(),
    }
    assert done.before.top1 == done.metric["cut"]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (np.zeros((64, 5), np.int64), "int64 [n, 5]"),
        (np.zeros(64), "float64 [n]"),
        (np.zeros((64, 1), np.float32), "float32 [n, 1]"),
        (np.zeros((64, 3, 4), np.uint8), "uint8 [n, 3, 4]"),
        (np.zeros(63, np.int64), "int64 [n]"),
    ],
    ids=str,
)
def test_no_metric(labels, told):
    """Labels that are no class number per sample give no accuracy, which is noted with their type and shape."""
    analysis, kept, smaller, seen = study(labels=labels)
    found = recovery.recover(analysis, kept, smaller, "auto", seen)
    assert found.metric is None
    assert f"the labels, {told}, were not used" in found.notes[-1]
    assert "`validate --metric`" in found.notes[-1]


def test_class_numbers_without_scores():
    """Class numbers for an output that is no row of scores are noted, too; labels that are used, or not there, are not."""
    for labels, text, count in ((np.zeros(64, np.int64), RAW, 1), (np.zeros(64, np.int64), TEXT, 0), (None, TEXT, 0)):
        analysis, kept, smaller, seen = study(labels=labels, text=text)
        notes = recovery.recover(analysis, kept, smaller, "moments", seen).notes
        assert sum("labels" in n for n in notes) == count


def test_one_batch():
    """With a single batch everything is compared on it."""
    analysis, kept, smaller, seen = study(batches=1, held=0)
    done = recovery.recover(analysis, kept, smaller, "auto", seen)
    assert done.shipped == "repaired"
    assert done.after.relative_error < done.before.relative_error


def test_without_inputs():
    """Repairs of weights alone need no inputs, and say nothing of agreement."""
    analysis, kept, smaller, _ = study()
    old = weights(smaller)
    done = recovery.recover(analysis, kept, smaller, "merge", None)
    assert (done.before, done.after, done.data) == (None, None, None)
    assert any(not np.array_equal(a, old[n]) for n, a in weights(smaller).items())


def test_the_cut_is_verified_before_recovery(monkeypatch, tmp_path):
    """The oracle looks at the plain cut: the same model to the bit as without recovery."""
    steps, real = [], (pipeline.verify, recovery.recover)

    def verify(analysis, kept, smaller, **options):
        steps.append(("verify", weights(smaller)))
        return real[0](analysis, kept, smaller, **options)

    def recover(analysis, kept, smaller, *rest, **more):
        steps.append(("recover", weights(smaller)))
        return real[1](analysis, kept, smaller, *rest, **more)

    monkeypatch.setattr(pipeline, "verify", verify)
    monkeypatch.setattr(recovery, "recover", recover)
    path = tmp_path / "x.npz"
    np.savez(path, x=np.random.default_rng(0).standard_normal((100, 3, 8, 8)).astype(np.float32))
    result = onnxprune.compress(proto(TEXT), flops=0.5, data=str(path), align=1)
    assert [name for name, _ in steps] == ["verify", "recover"]
    assert all(np.array_equal(a, steps[1][1][n]) for n, a in steps[0][1].items())
    assert result.report.recovery.shipped == "repaired"
    assert result.report.recovery.after.relative_error < result.report.recovery.before.relative_error
    made = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    assert any(not np.array_equal(a, made[n]) for n, a in steps[0][1].items())


def test_deterministic(tmp_path):
    """The same seed gives the same model, byte by byte."""
    path = tmp_path / "x.npz"
    np.savez(path, x=np.random.default_rng(0).standard_normal((100, 3, 8, 8)).astype(np.float32))
    first, second = (onnxprune.compress(proto(TEXT), flops=0.5, data=str(path), align=1) for _ in range(2))
    assert first.model.SerializeToString() == second.model.SerializeToString()
