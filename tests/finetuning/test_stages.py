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
from onnxprune.finetuning import stages, tune
from onnxprune.origin import Origin
from onnxprune.plan import kept_classes
from onnxprune.recovery import Known
from onnxprune.settings import CompressOptions

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODEL, DATA = FIXTURES / "senet_dynamo.onnx", FIXTURES / "digits_test.npz"
OPTIONS = {"flops": 0.2, "data": DATA, "allocate": "global", "calibration_size": 128, "align": 1}


def beginning():
    """Nothing chosen yet: the original on the inputs."""
    return pipeline.begin(MODEL, CompressOptions(**OPTIONS), Known())


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
    origin = (Origin(whole.budget.analysis, kept, **how), whole.study) if how else ()
    options = CompressOptions(**(OPTIONS | {"flops": 0.8, "recover": "least-squares"}))
    return pipeline.complete(pipeline.begin(model, options, Known(), *origin), options)


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
    """With --best-effort the note tells what is left, and what could help, as the error does without."""
    options = {"flops": 0.05, "best_effort": True, "recover": "none", "min_keep": 0.5}
    result = stages.staged(MODEL, options, steps=2).result
    with pytest.raises(TargetError) as refused:
        stages.staged(MODEL, options | {"best_effort": False}, steps=2)
    assert result.report.note == str(refused.value)
    assert "a smaller --min-keep" in result.report.note
    assert result.plan.predicted["note"] == result.report.note


def test_the_time_is_that_of_all_steps(monkeypatch):
    """Every step may take its share of --time-budget."""
    seconds, real = [], pipeline.chosen
    monkeypatch.setattr(pipeline, "chosen", lambda b, study, c: seconds.append(study.seconds) or real(b, study, c))
    stages.staged(MODEL, OPTIONS | {"time_budget": 300.0, "recover": "moments"}, steps=3)
    assert seconds == [100.0, 100.0, 100.0]


@pytest.mark.parametrize("flops", [0.06, 0.3])
def test_widths_go_down_as_in_one_step(flops):
    """Widths that were 32 and more in the original stay multiples of 8, others of 4, in every step."""
    model = FIXTURES / "cifar10" / "cifar10_mobilenet.onnx"
    options = {"flops": flops, "method": "l2", "allocate": "global", "recover": "none", "best_effort": True}
    layers = stages.staged(model, options, steps=3).result.report.layers
    widths = [x.outputs for x in layers if x.outputs is not None and x.outputs[0] != x.outputs[1]]
    assert len(widths) > 10
    assert not [w for w in widths if w[1] % (8 if w[0] >= 32 else 4)]


def test_a_plan_predicts_what_its_replay_has():
    """Biases that repairs added are not in the plan, and not in what it predicts."""
    model = FIXTURES / "dense_legacy.onnx"
    options = {"flops": 0.5, "method": "l2", "recover": "least-squares"}
    result = stages.staged(model, OPTIONS | options, steps=2).result
    replayed = onnxprune.apply_plan(model, result.plan).report.compressed
    predicted = result.plan.predicted
    assert (predicted["macs"], predicted["params"]) == (replayed.macs, replayed.params)
    assert result.report.compressed.params > replayed.params


def test_what_a_search_tried_is_told():
    """What the last step tried, and how far the floors of the original allow going down."""
    options = {"method": "evolve", "allocate": None, "budget": 2, "recover": "none", "calibration_size": 32}
    once, twice = (stages.staged(MODEL, OPTIONS | {"flops": 0.4} | options, steps=n).result.report for n in (1, 2))
    assert once.tried.keys() == twice.tried.keys()
    assert once.reachable == pytest.approx(twice.reachable, rel=0.02)


def test_repairs_from_weights_alone(monkeypatch):
    """Those of every step are told."""
    found, real = set(), pipeline.complete

    def complete(*given):
        result = real(*given)
        found.update(x.node for x in result.report.recovery.layers)
        return result

    monkeypatch.setattr(pipeline, "complete", complete)
    options = {"flops": 0.6, "method": "l2", "allocate": "global", "align": 1, "recover": "merge"}
    report = stages.staged(FIXTURES / "resnet_folded_legacy.onnx", options, steps=3).result.report
    assert "cut in 3 steps" in report.recovery.notes[0]
    assert sorted(found) == sorted(x.node for x in report.recovery.layers)


@pytest.mark.parametrize("steps", [1, 2])
def test_what_it_is_compared_on_is_not_trained_on(torch, monkeypatch, steps):
    """Training sets the inputs aside that the repair was compared on, if its data have them."""
    seen, real = [], tune.load
    monkeypatch.setattr(tune, "load", lambda *a: seen.append(real(*a)) or seen[-1])
    stages.staged(MODEL, OPTIONS, steps=steps, tuning={"data": DATA, "epochs": 1, "batch": 16})
    study = beginning().study
    compared = {row.tobytes() for b in study.held for row in b["input"]}
    assert len(compared) > 20
    assert len(seen) == steps
    for samples in seen:
        assert not compared & {row.tobytes() for row in samples.inputs["input"][samples.train]}
        assert compared <= {row.tobytes() for row in samples.inputs["input"][samples.held]}
        assert len(samples.train) + len(samples.held) == 500


def test_a_page_of_a_bare_cut_that_was_trained(torch, tmp_path):
    """Text and page say that it was trained, and how it answers then."""
    line = ("compress", MODEL, "--flops", 0.5, "--recover", "none", "--allocate", "global", "--finetune", DATA)
    text = " ".join(
        run(*line, "--epochs", 1, "-o", tmp_path / "s.onnx", "--report", tmp_path / "p.html").output.split()
    )
    assert "Not recovered: the bare cut was trained, as told below." in text
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "The bare cut was trained, as told below." in page
    assert "same answers as the original on what training held out" in page
    assert "fine-tune it before use" not in page + text


def test_on_the_command_line(tmp_path):
    """The text tells the three networks as those of the whole."""
    line = ("compress", MODEL, "--flops", 0.1, "--steps", 2, "--data", DATA, "--allocate", "global")
    text = " ".join(run(*line, "--recover", "moments", "-o", tmp_path / "s.onnx").output.split())
    assert "accuracy (original 100.0 %)" in text or "accuracy (original 9" in text
    assert "cut in 2 steps; 'cut' is the whole cut at once, without a repair" in text
