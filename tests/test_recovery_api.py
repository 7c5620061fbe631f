"""Recovery through the library and the command line, on the trained fixtures: what is promised, and what is refused."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import done, run
from graphs import proto
from onnx import numpy_helper

import onnxprune
from onnxprune import clock, criteria, pipeline, recovery, runtime
from onnxprune.calibration import calibration
from onnxprune.commands import tuning_options
from onnxprune.errors import DataError, Exit, TargetError, UsageError
from onnxprune.plan import dumps
from onnxprune.settings import CompressOptions

FIXTURES = Path(__file__).parents[1] / "fixtures"
CALIB, TEST = FIXTURES / "digits_calib.npz", FIXTURES / "digits_test.npz"
MODEL = FIXTURES / "resnet_bn_dynamo.onnx"
KINDS = ("resnet_bn_dynamo", "resnet_bn_legacy", "resnet_folded_legacy", "mobile_legacy", "mobile_dynamo")
KINDS += ("senet_dynamo", "dense_legacy", "vgg_legacy", "vgg_dynamo")
REPAIRS = tuple(m for m in recovery.METHODS if m != "none")
KEYS = {"method", "data", "shipped", "before", "after", "at_chance", "metric", "trained", "layers", "notes"}
HALF = ("--flops", "0.5")
NO_DATA = {"data": None, "allocate": None, "calibration_size": 512}

each_repair = pytest.mark.parametrize("method", REPAIRS)


@cache
def repaired(name="resnet_bn_dynamo", **options):
    """A fixture cut to half of its FLOPs and repaired on its calibration inputs; not to be changed."""
    return onnxprune.compress(
        FIXTURES / f"{name}.onnx",
        **({"flops": 0.5, "allocate": "global", "data": CALIB, "calibration_size": 192} | options),
    )


@cache
def bare(name="resnet_bn_dynamo", **options):
    """The same without repair."""
    return repaired(name, recover="none", **options)


def data(model):
    """The bytes of a model."""
    return model.SerializeToString(deterministic=True)


def outputs(model, images):
    """The only output of a model, fed image by image where its batch size is 1."""
    session, only = runtime.session(model), model.graph.input[0]
    step = only.type.tensor_type.shape.dim[0].dim_value or len(images)
    parts = [session.run({only.name: images[i : i + step]}) for i in range(0, len(images), step)]
    return np.concatenate([p[model.graph.output[0].name] for p in parts])


def accuracy(model):
    """Top-1 on the digits that no calibration sees."""
    test = np.load(TEST)
    return float((outputs(model, test["input"]).argmax(1) == test["labels"]).mean())


# ---- what recovery brings -----------------------------------------------------------------------------------------


def test_the_default_with_data_restores_the_accuracy():
    """obs, greedy and joint refits: nearly the original's answers at half of the FLOPs, where the cut is near chance."""
    result, original = repaired(allocate=None), accuracy(onnx.load(MODEL))
    found = result.report.recovery
    assert (found.method, found.shipped) == ("joint", "repaired")
    assert (result.plan.settings["method"], result.plan.settings["allocate"]) == ("obs", "greedy")
    assert found.after.divergence < 0.1 * found.before.divergence
    assert accuracy(bare(allocate=None).model) < 0.5
    assert accuracy(result.model) > original - 0.03
    assert not found.at_chance


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_network_improves(name):
    """Folded or not, of either exporter, depthwise, gated, densely connected, of fixed batch 1: it agrees better."""
    found = repaired(name).report.recovery
    assert found.shipped == "repaired"
    assert found.after.divergence < 0.5 * found.before.divergence
    assert found.after.top1 > found.before.top1
    assert any(x.method == "least-squares" for x in found.layers)
    assert accuracy(repaired(name).model) > accuracy(bare(name).model)


@pytest.mark.parametrize("name", ["resnet_bn_dynamo", "mobile_legacy"])
def test_what_was_cut_does_not_depend_on_the_repair(name):
    """The plan, the widths and the verification are those of the bare cut: only numbers differ."""
    cut, full = bare(name), repaired(name)
    assert cut.plan == full.plan
    assert cut.report.compressed == full.report.compressed
    assert cut.report.verification == full.report.verification
    assert cut.report.recovery is None
    shapes = [{t.name: tuple(t.dims) for t in r.model.graph.initializer} for r in (cut, full)]
    assert shapes[0] == shapes[1]
    assert data(cut.model) != data(full.model)


def test_same_seed_same_bytes():
    """Selection and repair lead to the same bytes again, and another seed takes other inputs."""
    options = {"flops": 0.5, "data": CALIB, "allocate": "greedy", "calibration_size": 128}
    first, again = (onnxprune.compress(MODEL, **options) for _ in range(2))
    assert data(first.model) == data(again.model)
    assert first.report.recovery.as_dict() == again.report.recovery.as_dict()
    other = repaired(calibration_size=128, seed=1)
    assert data(other.model) != data(repaired(calibration_size=128).model)


def test_the_model_file_is_not_touched(tmp_path):
    """Neither the file nor a model in memory changes, nor do the arrays of the data."""
    file, model = tmp_path / "m.onnx", onnx.load(MODEL)
    file.write_bytes(MODEL.read_bytes())
    images = np.load(CALIB)["input"]
    before, content = images.copy(), data(model)
    for source in (file, model):
        onnxprune.compress(source, flops=0.5, data={"input": images}, allocate="global", calibration_size=64)
    assert file.read_bytes() == MODEL.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert data(model) == content
    assert np.array_equal(images, before)


@pytest.mark.parametrize("form", ["array", "dict", "path"])
def test_forms_of_data(form):
    """The same inputs give the same bytes, whatever holds them."""
    images = np.load(CALIB)["input"]
    forms = {"array": images, "dict": {"input": images}, "path": str(CALIB)}
    assert data(repaired.__wrapped__(data=forms[form]).model) == data(repaired().model)


def test_a_generator_is_data():
    """What can be read only once serves, too."""
    images = np.load(CALIB)["input"]
    found = repaired.__wrapped__(data=(i[None] for i in images)).report.recovery
    assert found.data["samples"] == 192
    assert found.after.top1 > 0.9


# ---- every repair -------------------------------------------------------------------------------------------------


@each_repair
@pytest.mark.parametrize("name", ["resnet_bn_dynamo", "resnet_folded_dynamo", "mobile_dynamo"])
def test_no_repair_ships_what_agrees_less(name, method):
    """Whatever the repair does, what is written agrees with the original on held-out inputs at least as well as the cut;
    where the repair was refused, it is the cut."""
    result = repaired(name, recover=method)
    found = result.report.recovery
    better = found.after.divergence <= found.before.divergence
    assert found.shipped == ("repaired" if better else "cut")
    assert (data(result.model) == data(bare(name).model)) == (not better)
    assert found.method == ("joint" if method == "auto" else method)


@pytest.mark.parametrize("method", sorted(recovery.WITHOUT_INPUTS - {"none"}))
def test_repairs_from_the_weights_alone(method):
    """absorb, merge and fold need no inputs: none are made up, and nothing is said to have been measured."""
    found = repaired(recover=method, **NO_DATA)
    assert "calibrate" not in found.report.seconds
    told = found.report.recovery
    assert (told.data, told.before, told.after, told.metric) == (None, None, None, None)
    changed = data(found.model) != data(repaired(recover="none", **NO_DATA).model)
    assert changed == any(x.method != "none" for x in told.layers)
    assert changed or method == "absorb"  # batch normalisation is folded, and with it goes what absorption would need


@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("method", ["moments", "least-squares", "joint"])
def test_constant_inputs(method, value):
    """Where what is wanted does not vary there is no relative error: none is told, and of the layer only the bias, which
    has the mean, may change.
    """
    images = np.full((64, 1, 8, 8), value, np.float32)
    given = {"flops": 0.5, "allocate": "global", "method": "l2"}
    done = onnxprune.compress(MODEL, recover=method, data={"input": images}, calibration_size=64, **given)
    cut = onnxprune.compress(MODEL, recover="none", **given)
    told = done.report.recovery.layers
    assert any(x.before is None for x in told)
    for x in told:
        assert (x.before is None) == ("does not vary" in x.reason) == (x.after is None), x
        assert max(x.before or 0, x.after or 0) < 10, x
    old, new = ({t.name: t for t in m.model.graph.initializer} for m in (cut, done))
    nodes = {n.name: n for n in done.model.graph.node}
    still = [nodes[x.node].input[1] for x in told if x.before is None]
    assert all(numpy_helper.to_array(old[w]).tobytes() == numpy_helper.to_array(new[w]).tobytes() for w in still)


def test_nothing_removed_is_nothing_repaired():
    """A kept fraction of 1 is the cleaned original to the byte."""
    result = repaired(flops=1.0)
    assert data(result.model) == data(onnxprune.clean(MODEL))
    assert result.report.recovery is None


# ---- selection ----------------------------------------------------------------------------------------------------


OF_SCORES = [a for a in recovery.ALLOCATIONS if a != "threshold"]  # which wants a criterion of its own


@pytest.mark.parametrize("allocation", OF_SCORES)
def test_allocations(allocation):
    """Each meets the target, says so in the plan, and its network is repaired."""
    result = repaired(allocate=allocation)
    assert result.report.compressed.macs <= 0.5 * result.report.original.macs
    assert result.plan.settings["allocate"] == allocation
    assert result.report.recovery.after.top1 > 0.9


@pytest.mark.parametrize("method", [n for n in criteria.NAMES if criteria.needs_data(n)])
def test_criteria_that_look_at_data(method):
    """Each meets the target at any width, and chooses in its own way."""
    result = bare(method=method, align=1)
    assert 0.48 < result.report.compressed.macs / result.report.original.macs <= 0.5
    assert result.plan.settings["method"] == method
    assert result.plan.keep != bare(method="l1", align=1, **NO_DATA | {"allocate": "global"}).plan.keep


@pytest.mark.parametrize("shipped", ["none", "moments", "ridge", "auto"])
def test_search_compares_candidates_after_the_repair_that_ships(monkeypatch, shipped):
    """Beside the table's refit, which is always the default one, only the repair that ships is made, if any."""
    done, real = [], {m: getattr(m, f) for m, f in ((recovery, "repair"), (recovery.weights, "repair"))}
    monkeypatch.setattr(recovery, "repair", lambda *a, **k: done.append(k["method"]) or real[recovery](*a, **k))
    spy = lambda how, *a, **k: done.append(how) or real[recovery.weights](how, *a, **k)  # noqa: E731
    monkeypatch.setattr(recovery.weights, "repair", spy)
    repaired.__wrapped__(allocate="search", recover=shipped, calibration_size=64)
    method = "joint" if shipped == "auto" else shipped
    assert done[0] == "joint"
    assert set(done[1:]) == ({method} - {"none"})
    assert shipped == "none" or len(done) > 3  # two candidates at least, and what ships


def test_allocations_differ():
    """They are three ways of sharing the cut."""
    assert len({json.dumps(repaired(allocate=a).report.as_dict()["layers"]) for a in OF_SCORES}) == 3


def test_uniform_keeps_the_same_share_everywhere():
    """With `uniform` and any width, every layer that is cut keeps about the same share of its filters."""
    layers = bare(allocate="uniform", align=1).report.layers
    shares = [x.outputs[1] / x.outputs[0] for x in layers if x.outputs[0] != x.outputs[1]]
    assert len(shares) > 5
    assert max(shares) - min(shares) < 0.1


@pytest.mark.parametrize("align", [4, 8])
def test_greedy_keeps_to_the_alignment(align):
    """Widths of layers that are cut are multiples of the number given."""
    layers = bare(allocate="greedy", align=align, calibration_size=128, flops=0.6).report.layers
    cut = [x.outputs[1] for x in layers if x.outputs and x.outputs[0] != x.outputs[1]]
    assert cut
    assert all(width % align == 0 for width in cut)


def test_a_protected_layer_stays_in_greedy():
    """What `keep` names is left alone by the greedy allocation, too."""
    plan = bare(allocate="greedy", keep="stage1.*", calibration_size=128, flops=0.8).plan
    assert plan.keep
    assert not [name for name in plan.keep if name.startswith("stage1.conv1")]


def test_a_short_time_is_told():
    """What is thinned to keep to the time is in the report."""
    notes = repaired(allocate="greedy", time_budget=0.01, calibration_size=64).report.recovery.notes
    assert any("to keep to the time" in n for n in notes)


def test_selection_tells_its_round_and_the_time_left(monkeypatch, caplog):
    """Each group of each round is logged, with an estimate of the time left."""
    seconds = itertools.count(0.0, 3.0)
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(seconds))
    with caplog.at_level("INFO", "onnxprune"):
        repaired.__wrapped__(allocate="greedy", calibration_size=64)
    for stage in ("sensitivity, round 1 of 2: group", "sensitivity, round 2 of 2: group"):
        told = [m for m in caplog.messages if m.startswith(stage)]
        assert len(told) > 3
        assert told[-1] == f"{stage} {len(told)} of {len(told)}, about 3 s left"


# ---- the report ---------------------------------------------------------------------------------------------------


def test_recovery_as_json():
    """The keys that programs rely on survive a trip through JSON."""
    told = json.loads(json.dumps(repaired().report.as_dict(), allow_nan=False))["recovery"]
    assert set(told) == KEYS
    assert set(told["data"]) == {"name", "samples", "synthetic", "notes"}
    assert (told["data"]["samples"], told["data"]["synthetic"]) == (192, False)
    assert "digits_calib.npz" in told["data"]["name"]
    for key in ("before", "after"):
        assert set(told[key]) == {"samples", "top1", "divergence", "relative_error", "chance"}
        assert 0 < told[key]["samples"] < 512
    assert {frozenset(x) for x in told["layers"]} == {frozenset({"node", "op", "before", "after", "method", "reason"})}
    inner = [x for x in told["layers"] if x["reason"].startswith("together with")]  # may move away
    assert inner
    assert all(x["after"] <= x["before"] for x in told["layers"] if x not in inner)
    assert all(x["reason"] for x in told["layers"] if x["method"] == "none")
    assert (told["metric"], told["shipped"], told["at_chance"]) == (None, "repaired", False)


def test_the_agreement_is_that_of_the_models():
    """What the report says of cut and repaired network is what they do on the held-out inputs."""
    rows = {"input": np.load(CALIB)["input"], "labels": np.arange(512) % 10}
    found = repaired.__wrapped__(data=rows).report.recovery
    everywhere = [outputs(m, rows["input"]).argmax(1) for m in (onnx.load(MODEL), bare().model, repaired().model)]
    whole = [float((everywhere[0] == other).mean()) for other in everywhere[1:]]
    assert found.before.top1 == pytest.approx(whole[0], abs=0.12)
    assert found.after.top1 == pytest.approx(whole[1], abs=0.03)


def test_labels_give_the_metric():
    """With labels the accuracy of original, cut and repaired network on held-out inputs is reported."""
    metric = repaired(data=TEST).report.recovery.metric
    assert set(metric) == {"original", "cut", "repaired"}
    assert metric["original"] > 0.95
    assert metric["repaired"] > metric["cut"] + 0.4


# ---- without data -------------------------------------------------------------------------------------------------


def test_without_data_inputs_are_made_up_and_that_is_said():
    """By default synthetic inputs repair what group_norm leaves, and the report says that they are made up."""
    result = repaired(data=None, allocate=None, calibration_size=128)
    found = result.report.recovery
    assert (result.plan.settings["method"], result.plan.settings["allocate"]) == ("group_norm", "global")
    assert found.data["synthetic"] is True
    assert found.after.divergence <= found.before.divergence or found.shipped == "cut"
    assert result.plan.keep == repaired(recover="none", **NO_DATA).plan.keep
    assert accuracy(result.model) > accuracy(repaired(recover="none", **NO_DATA).model)


SHORT = (*HALF, "--calibration-size", "128", "--time-budget", "0.01s")
THINNED = "to keep to the time, 64 calibration inputs are used, not 128"
LEVELS = "to keep to the time, candidates are compared on 16 inputs"


def test_a_bare_cut_and_a_plan_tell_what_was_thinned(folder):
    """Where nothing is repaired, report, JSON and plan have the notes that the report of a repair would have."""
    given = ("m.onnx", *SHORT, "--data", "calib.npz")
    planned = " ".join(done("plan", *given, "-o", "p.json").stdout.split())
    cut = done("compress", *given, "--recover", "none", "--json", "--save-plan", "saved.json")
    told = json.loads(cut.stdout)
    shown = " ".join(done("compress", *given, "--recover", "none", "--force").stdout.split())
    for words in (THINNED, LEVELS):
        assert f"Note: {words}" in planned
        assert f"Note: {words}" in shown
        assert any(words in n for n in told["notes"])
        assert any(words in n for n in json.loads(Path("p.json").read_text())["predicted"]["notes"])
    assert Path("saved.json").read_text() == Path("p.json").read_text()
    assert "SYNTHETIC" not in planned + shown + cut.stderr
    steps = done("compress", *given, "--recover", "none", "--json", "--force", "--steps", "2")
    assert any(THINNED in n for n in json.loads(steps.stdout)["notes"])


def test_made_up_inputs_are_told_however_quiet(folder):
    """A plan made on made-up inputs says so; with --quiet, or where the plan itself is printed, one line on stderr."""
    given = ("m.onnx", *HALF, "--calibration-size", "64", "--method", "obs")
    assert "Note: what leaves was chosen on SYNTHETIC INPUTS" in done("plan", *given, "-o", "p.json").stdout
    quiet = ("--quiet", "--force", "--recover")
    runs = [
        ("plan", *given),
        ("plan", *given, "-o", "p.json", "--quiet", "--force"),
        ("compress", *given, *quiet, "none"),
        ("compress", *given, *quiet, "least-squares"),
        ("apply", "m.onnx", "p.json", "--calibration-size", "64", *quiet, "least-squares"),
        ("sparsify", "m.onnx", "--sparsity", "0.5", "--budget", "10", "--calibration-size", "64", "--quiet"),
    ]
    for args in runs:
        told = done(*args).stderr
        assert told.startswith("warning: SYNTHETIC INPUTS"), args
        assert told.count("\n") == 1
    for args in (("plan", "m.onnx", *HALF), ("compress", "m.onnx", *HALF, *quiet, "none"), ("plan", *given, "--json")):
        assert done(*args).stderr == ""


# ---- other forms of models ----------------------------------------------------------------------------------------

NHWC = """g (float[B,6,6,3] x) => (float[B,6,6,5] y) <float[8,3,3,3] w, float[8] b, float[5,8,3,3] v> {
    t = Transpose <perm = [0, 3, 1, 2]> (x)
    h = Conv <pads = [1, 1, 1, 1]> (t, w)
    n = Transpose <perm = [0, 2, 3, 1]> (h)
    a = Add(n, b)
    r = Relu(a)
    u = Transpose <perm = [0, 3, 1, 2]> (r)
    d = Conv <pads = [1, 1, 1, 1]> (u, v)
    y = Transpose <perm = [0, 2, 3, 1]> (d)
}"""
NCHW = """g (float[B,3,6,6] x) => (float[B,5,6,6] y) <float[8,3,3,3] w, float[8] b, float[5,8,3,3] v> {
    h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu(h)
    y = Conv <pads = [1, 1, 1, 1]> (r, v)
}"""


def doubled(text, batch):
    """A model whose last four filters are copies of the first four."""
    model = proto(text.replace("B,", f"{batch},"))
    for tensor in model.graph.initializer:
        if tensor.name in ("w", "b"):
            values = np.array(numpy_helper.to_array(tensor))
            values[4:] = values[:4]
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


@pytest.mark.parametrize("batch", ["N", "1"], ids=["any batch", "batch 1"])
@pytest.mark.parametrize("text", [NHWC, NCHW], ids=["NHWC", "NCHW"])
def test_copies_of_filters_cost_nothing(text, batch):
    """Four of eight filters are copies: half of the model computes what the whole did, in any layout and batch size."""
    model = doubled(text, batch)
    shape = (128, 6, 6, 3) if text is NHWC else (128, 3, 6, 6)
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    result = onnxprune.compress(model, flops=0.5, align=1, data=images, method="obs", allocate="global", augment="none")
    found = result.report.recovery
    assert result.report.removed == 4
    assert found.before.relative_error > 0.1
    assert found.after.relative_error <= 1e-2
    want, got = (outputs(m, images[:8]) for m in (model, result.model))
    assert np.linalg.norm(got - want) <= 1e-2 * np.linalg.norm(want)


# ---- the command line ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with a model and its data, good and bad."""
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(MODEL.read_bytes())
    images = np.load(CALIB)["input"]
    np.savez("calib.npz", input=images)
    np.savez("name.npz", picture=images, other=images)
    np.save("shape.npy", images.reshape(-1, 1, 4, 16))
    np.save("few.npy", images[:15])
    np.savez("nan.npz", input=np.where(images > 0.9, np.nan, images))
    np.savez("type.npz", input=images.astype(str))
    Path("text.npz").write_text("hello")
    return tmp_path


def listing(folder):
    """Every file with its content."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_plan_and_apply_are_the_cut(folder):
    """`plan --data`, then `apply`, gives the bytes of `compress --recover none` with these data."""
    given = (*HALF, "--data", "calib.npz", "--calibration-size", "128")
    done("compress", "m.onnx", *given, "--recover", "none", "-o", "direct.onnx", "--save-plan", "saved.json", "-q")
    done("plan", "m.onnx", *given, "-o", "p.json")
    done("apply", "m.onnx", "p.json", "-o", "replayed.onnx")
    assert Path("saved.json").read_text() == Path("p.json").read_text()
    assert Path("replayed.onnx").read_bytes() == Path("direct.onnx").read_bytes()
    settings = json.loads(Path("p.json").read_text())["settings"]
    assert {"calibration_size", "augment", "memory", "time_budget", "method", "allocate"} <= set(settings)
    assert settings["data"] == "calib.npz"


def test_compress_with_data_is_the_library_s(folder):
    """The command writes what the library returns, and its report tells the agreement."""
    fewer = ("--allocate", "global", "--calibration-size", "192")
    told = done("compress", "m.onnx", *HALF, "--data", "calib.npz", *fewer).stdout
    assert Path("m.pruned.onnx").read_bytes() == data(repaired().model)
    assert "Recovered by joint refits on 192 inputs of" in " ".join(told.split())
    assert "same top-1 answer" in told
    assert "SYNTHETIC" not in told
    assert max(map(len, told.splitlines())) <= 80


def test_json_of_the_command(folder):
    """--json prints one object with the recovery in it; settings are those of the plan."""
    more = ("--allocate", "uniform", "--recover", "moments", "--calibration-size", "64", "--augment", "none")
    told = json.loads(done("compress", "m.onnx", *HALF, "--data", "calib.npz", *more, "--json").stdout)
    assert set(told["recovery"]) == KEYS
    assert (told["recovery"]["method"], told["recovery"]["data"]["samples"]) == ("moments", 64)
    assert told["settings"] == told["plan"]["settings"]
    assert {"calibrate", "select", "recover"} <= set(told["seconds"])


REFUSED = {
    "recover": (("--recover", "least_squares"), 2, "least-squares"),
    "allocate": (("--allocate", "search2"), 2, "uniform, global, threshold"),
    "augment": (("--augment", "rotate"), 2, "--augment"),
    "range, no numbers": (("--input-range", "a,b"), 2, "--input-range"),
    "range, three numbers": (("--input-range", "0,1,2"), 2, "--input-range"),
    "range, the wrong way": (("--input-range", "1,0"), 2, "--input-range"),
    "preprocess without data": (("--preprocess", "imagenet"), 2, "--preprocess"),
    "memory without a unit": (("--memory", "4"), 2, "--memory"),
    "memory in words": (("--memory", "lots"), 2, "--memory"),
    "no memory": (("--memory", "0GB"), 2, "--memory"),
    "time in words": (("--time-budget", "soon"), 2, "--time-budget"),
    "no time": (("--time-budget", "0"), 2, "--time-budget"),
    "time in days": (("--time-budget", "1d"), 2, "--time-budget"),
    "calibration size": (("--calibration-size", "15"), 2, "at least 16"),
    "no such data": (("--data", "nope.npz"), (3, 4), "nope.npz"),
    "no such module": (("--data", "nope:images"), 3, "no module 'nope'"),
    "name": (("--data", "name.npz"), 3, "'input'"),
    "shape": (("--data", "shape.npy"), 3, "4"),
    "too few": (("--data", "few.npy"), 3, "15"),
    "NaN": (("--data", "nan.npz"), 3, "NaN"),
    "text": (("--data", "type.npz"), 3, "type.npz"),
    "not a file of arrays": (("--data", "text.npz"), 3, "text.npz"),
}


@pytest.mark.parametrize(("args", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(folder, args, code, message, monkeypatch):
    """What is wrong gets its exit code and a message on stderr before anything is chosen, and nothing is written."""
    before = listing(folder)
    monkeypatch.setattr(recovery.Study, "__post_init__", lambda _: pytest.fail("work was done"))
    monkeypatch.setattr(pipeline, "chosen", lambda *_: pytest.fail("work was done"))
    result = run("compress", "m.onnx", *HALF, *args)
    assert result.exit_code in (code if isinstance(code, tuple) else (code,)), result.output
    assert result.stdout == ""
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert listing(folder) == before


@pytest.mark.parametrize("scale", [1e18, 1e30, 3e38])
@pytest.mark.parametrize("more", [(), ("--method", "l2", "--allocate", "global", "--recover", "moments")])
def test_inputs_that_are_too_large(folder, scale, more):
    """Inputs that make sums overflow are told as such, without a warning of numpy; nothing is written."""
    with np.load("calib.npz") as held:
        large = {n: np.clip(a.astype(np.float64) * scale, -3e38, 3e38).astype(np.float32) for n, a in held.items()}
    np.savez("large.npz", **large)
    before = listing(folder)
    result = run("compress", "m.onnx", *HALF, "--data", "large.npz", *more)
    assert result.exit_code == 3
    assert "what layer" in result.stderr
    assert "large.npz" in result.stderr
    assert "Warning" not in result.stderr
    assert listing(folder) == before


BLIND = ("--allocate", "global", "--method", "l1")
BARE = (*BLIND, "--recover", "none")
SOURCE = ("--data", "/nonexistent.npz")
IGNORED = {
    "compress": (("compress", *HALF, *BARE, *SOURCE, "--preprocess", "imagenet"), "--data, --preprocess"),
    "compress, made up": (
        ("compress", *HALF, "--recover", "none", "--input-range", "0,1", "--augment", "flip"),
        "--augment, --input-range",
    ),
    "compress, from weights": (
        ("compress", *HALF, "--recover", "merge", "--calibration-size", "64"),
        "--calibration-size",
    ),
    "plan": (("plan", *HALF, *BLIND, *SOURCE), "--data"),
    "apply": (("apply", "p.json", *SOURCE, "--calibration-size", "64"), "--data, --calibration-size"),
    "sparsify": (("sparsify", "--sparsity", "0.5", "--method", "magnitude", "--augment", "flip"), "--augment"),
    "int8": (("compress", *HALF, *BARE, *SOURCE, "--augment", "flip", "--int8", "--best-effort"), "--augment"),
    "fine-tuning": (("compress", *HALF, *BARE, *SOURCE, "--finetune", "calib.npz"), "--data"),
}


@pytest.mark.parametrize(("args", "named"), IGNORED.values(), ids=IGNORED)
def test_inputs_that_nothing_looks_at_are_refused(folder, args, named, monkeypatch):
    """--data and what belongs to it are usage errors where they would be ignored; the message names what uses them."""
    monkeypatch.setattr("onnxprune.finetuning.tune.require_torch", lambda: None)
    Path("p.json").write_text(dumps(onnxprune.make_plan("m.onnx", flops=0.9)))
    before, (command, *rest) = listing(folder), args
    result = run(command, "m.onnx", *rest)
    assert (result.exit_code, result.stdout) == (Exit.USAGE, "")
    assert f"{named} would be ignored" in result.stderr
    assert "--recover" in result.stderr or "--allocate greedy" in result.stderr
    assert listing(folder) == before


def test_data_that_only_train_or_measure_are_not_refused():
    """--finetune stands in for --data only where that is used, and the data of --max-drop are always used."""
    given = {"flops": 0.5, "finetune": "f.npz", "allocate": "global", "method": "l1", "preprocess": "unit"}
    for recover, wanted in (("none", (None, None)), ("auto", ("f.npz", "unit"))):
        found = tuning_options.Compression(**given, recover=recover)
        arguments = found.arguments()
        assert (arguments["data"], arguments["preprocess"]) == wanted
        assert found.tuning()["preprocess"] == "unit"
        CompressOptions(**arguments).check_inputs_used()
    blind = {"recover": "none", "allocate": "global", "method": "l1", "data": TEST}
    assert onnxprune.compress_within(FIXTURES / "vgg_legacy.onnx", max_drop=100, **blind).held


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"recover": "magic"}, UsageError),
        ({"allocate": "magic"}, UsageError),
        ({"augment": "magic"}, UsageError),
        ({"preprocess": "imagenet"}, UsageError),
        ({"calibration_size": 3}, UsageError),
        ({"memory": 0.0}, UsageError),
        ({"time_budget": -1.0}, UsageError),
        ({"data": np.zeros((3, 1, 8, 8), np.float32)}, DataError),
        ({"data": np.zeros((64, 3, 8, 8), np.float32)}, DataError),
        ({"data": 7}, DataError),
    ],
    ids=str,
)
def test_the_library_refuses_the_same(options, error):
    """A wrong option is an error of its class."""
    with pytest.raises(error) as caught:
        onnxprune.compress(MODEL, flops=0.5, **options)
    assert caught.value.code in (Exit.USAGE, Exit.INPUT)


INTERRUPTED = """
import os, signal, sys
from onnxprune import cli
from onnxprune.recover import {module} as stage
signal.signal(signal.SIGINT, signal.default_int_handler)
calls, work = [], stage.{function}
def interrupt(*args, **options):
    calls.append(1)
    if len(calls) == 3:
        print("third", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
    return work(*args, **options)
stage.{function} = interrupt
sys.argv = ["onnxprune", "compress", "m.onnx", "--flops", "0.5", "--data", "calib.npz", "--memory", "100kB",
            "--allocate", "global", "--save-plan", "p.json"]
cli.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="no such signal on Windows")
@pytest.mark.parametrize(
    ("module", "function"), [("sequence", "repair_layer"), ("statistics", "_rows")], ids=["repair", "selection"]
)
def test_interrupted_while_recovering(folder, module, function):
    """Ctrl-C in the middle returns 130 and leaves nothing: no result, no plan, no spilled activations."""
    (folder / "tmp").mkdir()
    before = listing(folder)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(module=module, function=function)],
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(folder / "tmp")},
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "third\n"), done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: interrupted")
    assert listing(folder) == before
    assert not [p for p in (folder / "tmp").iterdir() if p.name != ".ses"]  # which onnxruntime makes


def test_little_memory_is_enough():
    """With a hundredth of the memory, activations in temporary files, the network is repaired nearly as well."""
    small, large = (repaired(memory=memory).report.recovery for memory in (2e6, 2e8))
    assert small.shipped == "repaired"
    assert small.after.top1 > 0.9
    assert small.after.divergence < 0.1 * small.before.divergence
    assert large.after.top1 > 0.9


def test_a_target_out_of_reach_is_told_before_inputs_are_read():
    """With data, too, a hopeless target is an error before any work on them."""

    def never():
        raise AssertionError("the inputs were read")
        yield

    with pytest.raises(TargetError, match="cannot be reached"):
        onnxprune.compress(MODEL, flops=0.001, data=never)
    with pytest.raises(TargetError, match="cannot be reached"):
        onnxprune.make_plan(MODEL, flops=0.001, data=never)


def test_the_range_of_made_up_inputs():
    """Made-up inputs lie in the range that is given; with data, a range is a contradiction."""
    plan = onnxprune.make_plan(
        MODEL, flops=0.5, method="obs", allocate="global", input_range=(0, 1), calibration_size=64
    )
    assert (plan.settings["data"], plan.settings["input_range"]) == ("synthetic", [0, 1])
    analysis = onnxprune.analyze(MODEL)
    found = calibration(analysis, None, size=64, seed=0, input_range=(-3.0, 5.0))
    values = np.concatenate([b["input"] for b in found.batches])
    assert -3 <= values.min() < -2
    assert 4 < values.max() <= 5
    with pytest.raises(UsageError, match="--input-range"):
        onnxprune.compress(MODEL, flops=0.5, data=CALIB, input_range=(0, 1))


def test_memory_is_bounded():
    """Inputs, inner tensors and outputs of all inputs together take what `memory` allows, not what they would take."""
    rng = np.random.default_rng(0)
    model = proto("""g (float[N,1,96,96] x) => (float[N,24,96,96] y) <float[8,1,3,3] v, float[24,8,1,1] w> {
        h = Conv<pads=[1,1,1,1]>(x, v)
        a = Relu(h)
        y = Conv(a, w)
    }""")
    given = rng.standard_normal((96, 1, 96, 96)).astype(np.float32)
    options = {"flops": 0.5, "allocate": "global", "method": "l1", "align": 1}
    onnxprune.compress(model, data=given[:16], memory=8e6, **options)  # what is imported on first use does not count
    tracemalloc.start()
    try:
        result = onnxprune.compress(model, data=given, memory=8e6, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    outputs = 4 * 24 * 96 * 96 * len(given)
    assert peak < outputs / 2  # 28 of 85 MB
    assert result.report.recovery.shipped == "repaired"
