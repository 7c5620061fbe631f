"""Cuts in several steps: what they aim at, what they are compared with, and what bounds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import run
from onnx import numpy_helper

import onnxprune
from onnxprune import pipeline, runtime
from onnxprune.errors import TargetError
from onnxprune.finetuning import stages
from onnxprune.origin import Origin
from onnxprune.plan import kept_classes
from onnxprune.recovery import Known
from onnxprune.settings import CompressOptions

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODEL, DATA = FIXTURES / "senet_dynamo.onnx", FIXTURES / "digits_test.npz"
OPTIONS = {"flops": 0.2, "data": DATA, "allocate": "global", "calibration_size": 128, "align": 1}


def beginning(model=MODEL, origin=None, **options):
    return pipeline.begin(model, CompressOptions(**(OPTIONS | options)), Known(), origin)


def answers(model, study):
    """Scores of a model on the inputs that no fit has seen, [samples, classes]."""
    session = runtime.session(onnx.load(model) if isinstance(model, Path) else model)
    return np.concatenate([next(iter(session.run(dict(b)).values())) for b in study.held_of(study.reference.batches)])


def widths(model):
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


@pytest.mark.parametrize(("recover", "shipped"), [("moments", "cut"), ("least-squares", "repaired")])
@pytest.mark.parametrize("training", [False, True])
def test_the_report_compares_with_the_original(recover, shipped, training, request):
    """Original, whole cut and what was written, on the same inputs, whatever the steps were; the whole cut is written
    where it agrees better than what repairs made of it, unless that was trained.
    """
    tuning = {"data": DATA, "epochs": 1, "limit": 200, "batch": 16} if training else None
    if training:
        request.getfixturevalue("torch")
    result = stages.staged(MODEL, OPTIONS | {"recover": recover}, steps=3, tuning=tuning).result
    found, study = result.report.recovery, beginning().study
    bare = onnxprune.apply_plan(MODEL, result.plan).model
    wanted, cut, final = (answers(m, study) for m in (MODEL, bare, result.model))
    name = "trained" if training else shipped
    assert found.shipped == name
    assert np.array_equal(final, cut) == (name == "cut")
    assert result.report.compressed.params == sum(int(np.prod(shape)) for shape in widths(result.model).values())
    for told, made in ((found.before, cut), (found.final, final)):
        assert told.samples == len(wanted)
        assert told.top1 == (made.argmax(1) == wanted.argmax(1)).mean()
    right = {n: float((s.argmax(1) == study.calibration.labels).mean()) for n, s in
             (("original", wanted), ("cut", cut), (name, final))}  # fmt: skip
    assert right.items() <= found.metric.items()
    assert found.metric["original"] > 0.95
    assert any("cut in 3 steps" in note for note in found.notes)


def test_training_after_one_cut(torch):
    """The comparison has the trained network beside the cut and the repaired one."""
    tuning = {"data": DATA, "epochs": 1, "limit": 200, "batch": 16}
    once = onnxprune.compress(MODEL, **OPTIONS).report.recovery
    result = stages.staged(MODEL, OPTIONS, tuning=tuning).result
    found, study = result.report.recovery, beginning().study
    assert (found.before, found.after) == (once.before, once.after)
    assert found.shipped == "trained"
    assert found.trained.top1 == (answers(result.model, study).argmax(1) == answers(MODEL, study).argmax(1)).mean()
    assert found.metric.keys() == {"original", "cut", "repaired", "trained"}


@pytest.fixture(scope="module")
def damaged():
    """What the first of two steps left, with weights that were changed since; the start of both, and the plan."""
    first = onnxprune.compress(MODEL, **(OPTIONS | {"flops": 0.7, "recover": "none"}))
    model = onnx.ModelProto()
    model.CopyFrom(first.model)
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim > 1 and array.dtype == np.float32:
            changed = (array * (1 + 0.5 * rng.standard_normal(array.shape))).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    whole = beginning()
    return model, whole, kept_classes(first.plan, whole.budget.analysis, whole.budget.digest)


def second_step(damaged, **how):
    """The next step from there; without `how` it is a compression like any other."""
    model, whole, kept = damaged
    origin = Origin(whole.budget.analysis, whole.study, kept, **how) if how else None
    options = CompressOptions(**(OPTIONS | {"flops": 0.8, "recover": "least-squares"}))
    return pipeline.complete(pipeline.begin(model, options, Known(), origin), options)


def test_repairs_aim_at_the_original(damaged):
    """A network that an earlier step has left damaged is repaired towards the original, not towards what it was."""
    study = damaged[1].study
    aimed, imitated = second_step(damaged, trained=False).model, second_step(damaged).model
    assert widths(aimed) == widths(imitated)
    wanted = answers(MODEL, study)
    far = [np.linalg.norm(answers(m, study) - wanted) / np.linalg.norm(wanted) for m in (aimed, imitated)]
    assert far[0] < 0.5 * far[1]


def test_repairs_keep_to_what_was_trained(damaged):
    """After training, layers are repaired towards those of the trained network; it is compared with the original."""
    study = damaged[1].study
    trained, alone = second_step(damaged, trained=True), second_step(damaged)
    assert trained.model.SerializeToString() == alone.model.SerializeToString()
    same = (answers(trained.model, study).argmax(1) == answers(MODEL, study).argmax(1)).mean()
    assert trained.report.recovery.after.top1 == same
    assert alone.report.recovery.after.top1 != same


@pytest.mark.parametrize("bound", [{"max_rate": 0.3}, {"min_keep": 0.7}, {"max_rate": ["*=0.3"], "min_keep": 0.5}])
def test_floors_are_those_of_the_original(bound):
    """No layer loses more than it may in all steps together, and a target beyond that is refused as in one step."""
    options = {"align": 1, "allocate": "global", "recover": "none"} | bound
    with pytest.raises(TargetError) as once:
        onnxprune.compress(MODEL, flops=0.4, **options)
    with pytest.raises(TargetError) as thrice:
        stages.staged(MODEL, {"flops": 0.4} | options, steps=3)
    assert str(once.value) == str(thrice.value)
    result = stages.staged(MODEL, {"flops": 0.55} | options, steps=3).result
    shares = [x.outputs[1] / x.outputs[0] for x in result.report.layers if x.outputs is not None]
    assert 0.7 <= min(shares) < 0.75
    assert result.report.compressed.macs / result.report.original.macs <= 0.55


def test_floors_by_pattern():
    """A bound on some layers is theirs, as shares of the original's filters."""
    name = next(x.node for x in onnxprune.compress(MODEL, flops=0.2, align=1, recover="none").report.layers
                if x.outputs is not None and x.outputs[1] <= x.outputs[0] / 2)  # fmt: skip
    options = {"flops": 0.2, "align": 1, "recover": "none", "max_rate": f"{name}=0.25"}
    layers = stages.staged(MODEL, options, steps=3).result.report.layers
    kept = {x.node: x.outputs[1] / x.outputs[0] for x in layers if x.outputs is not None}
    assert kept[name] >= 0.75
    assert min(kept.values()) < 0.5


def test_a_target_that_is_missed():
    """With --best-effort the note tells the share of the original that is left."""
    options = {"flops": 0.05, "best_effort": True, "recover": "none", "min_keep": 0.5}
    result = stages.staged(MODEL, options, steps=2).result
    left = result.report.compressed.macs / result.report.original.macs
    assert result.report.note == f"--flops 0.05 was not reached: {left:.4g} is left"
    assert result.plan.predicted["note"] == result.report.note


def test_on_the_command_line(tmp_path):
    """The text tells the three networks as those of the whole."""
    line = ("compress", MODEL, "--flops", 0.1, "--steps", 2, "--data", DATA, "--allocate", "global")
    text = " ".join(run(*line, "--recover", "moments", "-o", tmp_path / "s.onnx").output.split())
    assert "accuracy (original 100.0 %)" in text or "accuracy (original 9" in text
    assert "cut in 2 steps; 'cut' is the whole cut at once, without a repair" in text
