"""The library: what `compress`, `make_plan`, `apply_plan`, `analyze` and `clean` promise, on the trained fixtures."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import between, proto
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import api, couple, criteria, files, rules, runtime
from onnxprune.criteria import registry
from onnxprune.errors import DataError, FileError, ModelError, PlanError, TargetError, UsageError
from onnxprune.ops.matmul import gemm
from onnxprune.plan import as_json, dumps, loads

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS = sorted(path.stem for path in FIXTURES.glob("*.onnx"))
SOME = ("resnet_bn_legacy", "dense_dynamo", "mobile_dynamo", "tiny_vit_legacy")

each_model = pytest.mark.parametrize("name", MODELS)
some_models = pytest.mark.parametrize("name", SOME)


def path(name):
    """The file of a fixture."""
    return FIXTURES / f"{name}.onnx"


def load(name):
    """A fixture in memory."""
    return onnx.load(path(name))


@cache
def compressed(name, **options):
    """What the library makes of a fixture; not to be changed."""
    return onnxprune.compress(path(name), **({"flops": 0.5, "recover": "none"} | options))


@cache
def cleaned(name):
    """A fixture cleaned; not to be changed."""
    return onnxprune.clean(path(name))


def data(model):
    """The bytes of a model."""
    return model.SerializeToString(deterministic=True)


def shapes(model):
    """Shape of every initializer."""
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


def run(model, seed=0):
    """Outputs of a model for a seeded random image."""
    image = np.random.default_rng(seed).standard_normal((1, 1, 8, 8))
    kind = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    return runtime.session(model).run({"input": image.astype(kind)})["logits"]


# ---- sources and results ------------------------------------------------------------------------------------------


@some_models
def test_path_and_model_give_the_same(name):
    """A path, its text and the model in memory lead to the same bytes and the same plan."""
    results = [
        onnxprune.compress(source, flops=0.5, recover="none") for source in (path(name), str(path(name)), load(name))
    ]
    assert len({data(r.model) for r in results}) == 1
    assert len({dumps(r.plan) for r in results}) == 1


@some_models
def test_the_model_given_is_not_changed(name):
    """No function changes the model that it gets."""
    model = load(name)
    before = data(model)
    plan = onnxprune.make_plan(model, flops=0.5)
    onnxprune.apply_plan(model, plan)
    onnxprune.compress(model, params=0.5, recover="none")
    onnxprune.clean(model)
    onnxprune.explain(onnxprune.analyze(model), model.graph.initializer[0].name)
    onnxprune.diff(model, model)
    assert data(model) == before


@each_model
def test_a_plan_replayed_is_compress(name):
    """`make_plan`, written as text and applied to the original or to the cleaned model, gives what `compress` gives."""
    direct, plan = compressed(name), onnxprune.make_plan(path(name), flops=0.5)
    assert plan == direct.plan == loads(dumps(plan))
    assert plan.model == hashlib.sha256(data(cleaned(name))).hexdigest()
    for source in (path(name), cleaned(name)):
        replayed = onnxprune.apply_plan(source, loads(dumps(plan)))
        assert data(replayed.model) == data(direct.model)
        assert replayed.report.original == direct.report.original
        assert replayed.report.compressed == direct.report.compressed


@each_model
def test_the_report_states_what_was_written(name):
    """Costs are those of the cleaned and of the cut model, which is clean itself and analyses to the same cost."""
    result = compressed(name)
    report = result.report
    for model, cost in ((cleaned(name), report.original), (result.model, report.compressed)):
        assert cost.bytes == len(data(model))
        assert cost.params == sum(int(np.prod(s)) for s in shapes(model).values())
        assert api.overview(model).cost == cost
    assert data(onnxprune.clean(result.model)) == data(result.model)
    assert report.verification.relative_error <= 1e-5
    assert report.verification.masked_differs
    assert report.removed > 0


@each_model
def test_random_cuts_are_sound(name):
    """Whatever is removed, inexact classes included: the cut model equals the masked original, which differs."""
    found = compressed(name, method="random", flops=0.3, align=1, inexact=True, seed=1).report.verification
    assert found.relative_error <= 1e-5
    assert found.masked_differs
    assert found.checker == "passed"


def test_the_report_as_json():
    """The keys that programs rely on, with fractions 0..1 and the plan itself, survive a trip through JSON."""
    result = compressed("resnet_bn_legacy")
    told = json.loads(json.dumps(result.report.as_dict(), allow_nan=False))
    cost = {"macs", "params", "bytes"}
    assert set(told) == {
        *("model", "original", "compressed", "kept", "coupling", "verification", "layers", "notes", "note"),
        *("reachable", "settings", "seconds", "plan", "recovery", "tried", "groups", "latency"),
    }
    assert told["recovery"] is None
    assert set(told["original"]) == set(told["compressed"]) == set(told["kept"]) == cost
    assert set(told["coupling"]) == {"classes", "removed", "frozen", "inexact", "reasons"}
    assert set(told["verification"]) == {"relative_error", "masked_differs", "checker", "compared", "precision"}
    assert all(set(x) == {"node", "op", "inputs", "outputs", "macs", "frozen", "reason"} for x in told["layers"])
    assert all(0 < told["kept"][k] == told["compressed"][k] / told["original"][k] < 1 for k in cost)
    assert told["plan"] == as_json(result.plan)
    assert set(told["plan"]) == {"version", "model", "keep", "settings", "predicted", "frozen"}
    assert told["plan"]["predicted"]["macs"] == told["compressed"]["macs"]


@each_model
def test_keep_lists_the_parameters_that_are_sliced(name):
    """`keep` of a plan names exactly the parameter axes that lose positions, and their new sizes."""
    result = compressed(name)
    before, after = shapes(cleaned(name)), shapes(result.model)
    floats = {t.name for t in result.model.graph.initializer if t.data_type == TensorProto.FLOAT}
    sliced = {
        (n, axis): new
        for n in floats
        for axis, (old, new) in enumerate(zip(before[n], after[n], strict=True))
        if new != old
    }
    assert sliced == {(n, a): len(i) for n, axes in result.plan.keep.items() for a, i in axes.items()}


# ---- what stays ---------------------------------------------------------------------------------------------------


@each_model
def test_removing_nothing_is_clean(name):
    """A kept fraction of 1 gives the bytes of `clean`, and a plan that slices nothing."""
    result = onnxprune.compress(path(name), flops=1.0, recover="none")
    assert data(result.model) == data(cleaned(name))
    assert (result.plan.keep, result.report.removed) == ({}, 0)
    assert result.report.compressed == result.report.original


@each_model
def test_clean_is_idempotent_and_computes_the_same(name):
    """A cleaned model is clean, and gives the outputs of the original."""
    assert data(onnxprune.clean(cleaned(name))) == data(cleaned(name))
    assert np.allclose(run(cleaned(name)), run(load(name)), rtol=1e-5, atol=1e-5)


@each_model
def test_header_signature_and_names_stay(name):
    """Versions, metadata, inputs, outputs, and the names of nodes and tensors that survive are the original's."""
    before, after = load(name), onnx.ModelProto()
    after.CopyFrom(compressed(name).model)
    nodes = {n.output[0]: n for n in before.graph.node}
    kept = [(nodes[n.output[0]], n) for n in after.graph.node]
    assert all((a.name, a.op_type, a.output, a.domain) == (b.name, b.op_type, b.output, b.domain) for a, b in kept)
    names = {t.name for t in before.graph.initializer} | set(nodes)
    made = set(shapes(after)) - names
    assert made == set(shapes(cleaned(name))) - names, "the cut names no tensor anew"
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert after.graph.name == before.graph.name
    for model in (before, after):
        model.ClearField("graph")
    assert after == before


def test_metadata_survives():
    """What the exporter wrote into the metadata is there afterwards, and nothing is added."""
    model = compressed("resnet_bn_legacy").model
    assert [(p.key, p.value) for p in model.metadata_props] == [("task", "digits")]


# ---- targets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(n for n in criteria.NAMES if not criteria.needs_data(n)))
@each_model
def test_every_method_meets_the_target(name, method):
    """At any width, a half of the FLOPs is met within 2 % from below, or the report says why not."""
    kept = onnxprune.make_plan(path(name), flops=0.5, align=1, method=method).predicted["kept"]["macs"]
    assert kept <= 0.5
    assert kept > 0.98 * 0.5 or compressed(name, align=1, method=method).report.note


@pytest.mark.parametrize("target", ["params", "size"])
@each_model
def test_parameters_and_size(name, target):
    """A half of the parameters, or of the bytes of the cleaned file, is met within 2 % from below."""
    result = onnxprune.compress(path(name), **{target: 0.5}, align=1, recover="none")
    counts = {"params": lambda m: sum(int(np.prod(s)) for s in shapes(m).values()), "size": lambda m: len(data(m))}
    count = counts[target]
    assert 0.98 * 0.5 < count(result.model) / count(cleaned(name)) <= 0.5
    assert result.report.note == ""


@some_models
def test_kept_share_is_monotone(name):
    """A smaller target never keeps more."""
    targets = np.linspace(0.2, 1, 9)
    kept = [onnxprune.make_plan(path(name), flops=t, best_effort=True).predicted["macs"] for t in targets]
    assert kept == sorted(kept)
    assert len(set(kept)) > 5


@some_models
@pytest.mark.parametrize("align", [1, 4, 8])
def test_align(name, align):
    """The widths of layers that are cut are multiples of the number given."""
    result = onnxprune.compress(path(name), flops=0.6, align=align, best_effort=True, recover="none")
    cut = [x.outputs[1] for x in result.report.layers if x.outputs and x.outputs[0] != x.outputs[1]]
    assert all(width % align == 0 for width in cut)
    assert cut or align == 8


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("resnet_bn_legacy", "stage1.*"),
        ("resnet_bn_legacy", "/stage2/stage2.0/conv1/conv/Conv"),
        ("dense_dynamo", "*conv*weight"),
        ("tiny_vit_legacy", "*qkv*"),
    ],
)
def test_keep_protects(name, pattern):
    """The parameters that a pattern names, or whose node it names, keep their shapes; others are cut."""
    result = onnxprune.compress(path(name), flops=0.9, keep=[pattern], align=1, best_effort=True, recover="none")
    before, after = shapes(cleaned(name)), shapes(result.model)
    named = {i for n in cleaned(name).graph.node for i in n.input if fnmatchcase(n.name, pattern) and i in before}
    named |= {i for i in before if fnmatchcase(i, pattern)}
    free = onnxprune.make_plan(path(name), flops=0.5, align=1).keep
    assert named & set(free), "the pattern names nothing that would be cut"
    assert all(after[n] == before[n] for n in named)
    assert not named & set(result.plan.keep)
    assert result.plan.keep or "cannot be reached" in result.report.note


@pytest.mark.parametrize("name", ["tiny_vit_legacy", "tiny_vit_dynamo"])
def test_inexact(name):
    """What LayerNorm renormalises stays by default, and goes, verified, with `inexact`."""
    exact, inexact = (
        onnxprune.compress(path(name), flops=0.5, align=1, inexact=choice, recover="none") for choice in (False, True)
    )
    embedding = set(inexact.plan.keep) - set(exact.plan.keep)
    assert any(n.startswith("cls_token") or "norm" in n for n in embedding)
    assert exact.report.inexact == inexact.report.inexact == 48
    for report in (exact.report, inexact.report):
        assert report.verification.relative_error <= 1e-5
        assert report.verification.masked_differs
    assert inexact.report.reachable < exact.report.reachable


@some_models
def test_target_out_of_reach(name):
    """The error names the nearest target, which can be reached, and below which nothing can; best effort takes it."""
    with pytest.raises(TargetError, match="cannot be reached") as caught:
        onnxprune.make_plan(path(name), flops=0.001)
    nearest = float(re.search(r"nearest target is --flops ([0-9.]+)", str(caught.value))[1])
    reached = onnxprune.compress(path(name), flops=nearest, recover="none").report
    best = onnxprune.compress(path(name), flops=0.001, best_effort=True, recover="none").report
    assert nearest - 1e-4 <= reached.compressed.macs / reached.original.macs <= nearest
    assert best.compressed == reached.compressed
    assert best.note == str(caught.value)
    assert best.reachable == best.compressed.macs / best.original.macs
    with pytest.raises(TargetError):
        onnxprune.make_plan(path(name), flops=nearest - 2e-4)


def test_min_keep():
    """No group falls below its floor: of 16, 24 and 32 filters at least a half, and without a floor fewer."""
    for floor, least in ((0.5, 0.5), (0.0, 0.0)):
        layers = onnxprune.compress(
            path("resnet_bn_legacy"), flops=0.01, min_keep=floor, align=1, best_effort=True, recover="none"
        ).report.layers
        shares = [x.outputs[1] / x.outputs[0] for x in layers]
        assert min(shares) >= least
        assert (min(shares) < 0.1) == (floor == 0)
        assert all(x.outputs[1] for x in layers)


# ---- the same again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet_bn_legacy", "resnet_folded_dynamo", "tiny_vit_legacy"])
def test_node_order_does_not_matter(name):
    """Another order of the nodes leads to the same choice."""
    model, shuffled = load(name), load(name)
    rng, ready = random.Random(0), {t.name for t in model.graph.initializer} | {"input", ""}
    waiting = list(model.graph.node)
    shuffled.graph.ClearField("node")
    while waiting:
        node = rng.choice([n for n in waiting if ready.issuperset(n.input)])
        waiting.remove(node)
        ready.update(node.output)
        shuffled.graph.node.append(node)
    assert [n.output for n in shuffled.graph.node] != [n.output for n in model.graph.node]
    assert onnxprune.make_plan(shuffled, flops=0.5).keep == onnxprune.make_plan(model, flops=0.5).keep


def test_other_processes_write_the_same_bytes():
    """The bytes do not depend on the process or on the seed of its hashes."""
    code = """
import sys, hashlib, onnxprune
for path in sys.argv[1:]:
    model = onnxprune.compress(path, flops=0.5, recover="none").model
    print(hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest())
"""
    command = [sys.executable, "-c", code, *map(str, map(path, SOME))]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONHASHSEED": seed})
        for seed in "12"
    ]
    here = [hashlib.sha256(data(compressed(name).model)).hexdigest() for name in SOME]
    assert [child.communicate()[0].split() for child in children] == [here, here]


def test_seeds():
    """The seed decides what the method `random` removes, and nothing of what another method does."""
    keep = {
        (method, seed): onnxprune.make_plan(path("vgg_legacy"), flops=0.5, method=method, seed=seed).keep
        for method in ("random", "l1")
        for seed in (0, 1)
    }
    assert keep["random", 0] == onnxprune.make_plan(path("vgg_legacy"), flops=0.5, method="random").keep
    assert keep["random", 0] != keep["random", 1]
    assert keep["l1", 0] == keep["l1", 1]


def test_seed_of_the_check(monkeypatch):
    """The seed changes the inputs of the check, and nothing that is written."""
    feeds, make = [], runtime.random_inputs
    monkeypatch.setattr(runtime, "random_inputs", lambda *a, **k: feeds.append(make(*a, **k)) or feeds[-1])
    results = [onnxprune.apply_plan(path("senet_legacy"), compressed("senet_legacy").plan, seed=s) for s in (0, 1)]
    assert len({feed["input"].tobytes() for feed in feeds}) == 2
    assert all(r.report.verification.relative_error <= 1e-5 for r in results)
    assert len({data(r.model) for r in results}) == 1


# ---- other forms of models ----------------------------------------------------------------------------------------


def retyped(model, old, new):
    """A copy with tensors of another element type, of an operator set that knows bfloat16 everywhere."""
    out, dtype = onnx.ModelProto(), helper.tensor_dtype_to_np_dtype(new)
    out.CopyFrom(model)
    out.opset_import[0].version, out.ir_version = 22, 10
    out.graph.ClearField("value_info")
    attributes = [a for n in out.graph.node for a in n.attribute]
    for tensor in (*out.graph.initializer, *(a.t for a in attributes if a.type == a.TENSOR)):
        if tensor.data_type == old:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*out.graph.input, *out.graph.output):
        value.type.tensor_type.elem_type = new
    return out


def half(name, kind=TensorProto.FLOAT16):
    """A fixture in half precision."""
    return retyped(load(name), TensorProto.FLOAT, kind)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["resnet_bn_legacy", "mobile_legacy", "vgg_legacy"])
def test_half_precision(name, kind):
    """Weights of half precision stay so; the choice is that of float32, and the check runs in float32."""
    source = half(name, kind)
    onnx.checker.check_model(source, full_check=True)
    result, full = onnxprune.compress(source, flops=0.5, align=1, recover="none"), compressed(name, align=1)
    kinds = {t.data_type for t in result.model.graph.initializer}
    assert kind in kinds
    assert TensorProto.FLOAT not in kinds
    assert 0.49 < result.report.compressed.macs / result.report.original.macs <= 0.5
    assert result.report.compressed.macs == pytest.approx(full.report.compressed.macs, rel=0.02)
    assert result.report.verification.precision == "float32, widened from half precision"
    assert result.report.verification.relative_error <= 1e-5
    assert result.report.verification.masked_differs
    onnx.checker.check_model(result.model, full_check=True)


def test_half_precision_runs():
    """A cut float16 model runs in onnxruntime, and computes what it computes in float32 up to rounding."""
    cut = onnxprune.compress(half("resnet_bn_legacy"), flops=0.5, recover="none").model
    narrow, wide = run(cut), run(retyped(cut, TensorProto.FLOAT16, TensorProto.FLOAT))
    assert (narrow.dtype, wide.dtype) == (np.float16, np.float32)
    assert np.allclose(narrow, wide, rtol=0, atol=0.01 * np.abs(wide).max())


def test_bfloat16_values_are_not_rounded():
    """The kept bfloat16 weights are bits of the original."""
    source = half("vgg_legacy", TensorProto.BFLOAT16)
    result = onnxprune.compress(source, flops=0.5, recover="none")
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (onnxprune.clean(source), result.model)
    )
    for name, axes in result.plan.keep.items():
        want = before[name]
        for axis, indices in axes.items():
            want = want.take(indices, axis)
        assert after[name].dtype == ml_dtypes.bfloat16
        assert np.array_equal(after[name].view(np.uint16), want.view(np.uint16))


def test_external_data(tmp_path):
    """A model with external data gives what the model in one file gives, and can be written so again."""
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    source, output = tmp_path / "in" / "m.onnx", tmp_path / "out" / "m.onnx"
    onnx.save(load("vgg_legacy"), source, save_as_external_data=True, location="weights", size_threshold=0)
    before = {p.name: p.read_bytes() for p in source.parent.iterdir()}
    assert len(before["m.onnx"]) < 20_000
    result = onnxprune.compress(source, flops=0.5, recover="none")
    assert data(result.model) == data(compressed("vgg_legacy").model)
    assert {p.name: p.read_bytes() for p in source.parent.iterdir()} == before
    assert {p.name for p in files.write_model(result.model, output, source=source, limit=0)} == {
        "m.onnx",
        "m.onnx.data",
    }
    assert np.array_equal(run(files.read_model(output)), run(result.model))
    assert data(onnxprune.compress(output, flops=1, recover="none").model) == data(result.model)


@pytest.mark.parametrize("version", [3, 8])
def test_initializers_among_the_inputs(version):
    """Initializers leave the graph's inputs, for which IR 3 becomes 4; the report says so, and the rest is as ever."""
    source = load("resnet_bn_legacy")
    source.ir_version = version
    source.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in source.graph.initializer
    )
    result = onnxprune.compress(source, flops=0.5, recover="none")
    assert [i.name for i in result.model.graph.input] == ["input"]
    assert result.model.ir_version == max(version, 4)
    assert any("inputs" in note for note in result.report.notes)
    assert result.plan.keep == compressed("resnet_bn_legacy").plan.keep
    assert np.array_equal(run(result.model), run(compressed("resnet_bn_legacy").model))


# ---- extensions ---------------------------------------------------------------------------------------------------

FUSED = """g (float[5,3] x) => (float[5,2] y) <float[3,8] w, float[8,16] u, float[16] b, float[16,2] v> {
    h = MatMul(x, w)
    d = com.microsoft.FusedGemm <activation = "Relu"> (h, u, b)
    y = MatMul(d, v)
}"""


def test_a_rule_from_outside(monkeypatch):
    """An op without a rule freezes, and says so; a rule of a third party makes it prunable, exactly."""
    monkeypatch.setattr(rules, "RULES", dict(rules.RULES))
    monkeypatch.setattr(couple, "RULES", rules.RULES)
    model = proto(FUSED, domains=', "com.microsoft" : 1')
    found = onnxprune.analyze(model)
    assert found.classes == 0
    assert "no rule for the op FusedGemm of domain com.microsoft" in found.frozen[0].reason

    @onnxprune.rule("FusedGemm", domain="com.microsoft")
    def fused_gemm(t, A, B, C=None, *, transA=0, transB=0):
        """y = activation(a @ b + c)"""
        return gemm(t, A, B, C, transA=transA, transB=transB)

    result = onnxprune.compress(model, flops=0.5, align=1, recover="none")
    assert set(result.plan.keep) == {"w", "u", "b", "v"}
    assert result.report.verification.relative_error <= 1e-6
    assert result.report.verification.masked_differs


def test_a_criterion_from_outside(monkeypatch):
    """A criterion of a third party is a method by its name: here the filters of high numbers leave."""
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    monkeypatch.setattr(criteria, "NAMES", registry._TABLE.keys())

    @onnxprune.criterion("first")
    def first(analysis, seed):
        """Filters by their number, the first are best."""
        scores = np.zeros(analysis.classes + 1)
        for axis in analysis.groups:
            scores[axis.classes] = len(axis.classes) - np.arange(len(axis.classes))
        return scores

    plan = onnxprune.make_plan(proto(between("d = Relu(h)")), flops=0.5, method="first", align=1)
    assert plan.keep == {"w": {0: [0, 1]}, "b": {0: [0, 1]}, "v": {1: [0, 1]}}


# ---- what must fail -----------------------------------------------------------------------------------------------


@some_models
def test_plan_of_another_model(name):
    """A plan belongs to one model: a changed weight is another model."""
    plan = onnxprune.make_plan(path(name), flops=0.5)
    other = load(name)
    weight = next(t for t in other.graph.initializer if len(t.dims) > 1 and t.data_type == TensorProto.FLOAT)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))
    with pytest.raises(PlanError, match="another model"):
        onnxprune.apply_plan(other, plan)
    with pytest.raises(PlanError, match="another model"):
        onnxprune.apply_plan(path("senet_legacy"), plan)


REFUSED = {
    "no target": ({}, UsageError, "exactly one"),
    "two targets": ({"flops": 0.5, "params": 0.5}, UsageError, "exactly one"),
    "nothing to keep": ({"flops": 0.0}, UsageError, "above 0"),
    "more than there is": ({"size": 1.01}, UsageError, "at most 1"),
    "not a number": ({"params": float("nan")}, UsageError, "above 0"),
    "unknown method": ({"flops": 0.5, "method": "group_nrm"}, UsageError, "did you mean"),
    "alignment of 0": ({"flops": 0.5, "align": 0}, UsageError, "align"),
    "alignment in words": ({"flops": 0.5, "align": "eight"}, UsageError, "align"),
    "floor above 1": ({"flops": 0.5, "min_keep": 1.5}, UsageError, "min-keep"),
    "a pattern that names nothing": ({"flops": 0.5, "keep": ["nope"]}, UsageError, "'nope'"),
    "sizes of no input": ({"flops": 0.5, "input_shapes": {"data": (1, 1, 8, 8)}}, UsageError, "no such input"),
    "sizes that do not fit": ({"flops": 0.5, "input_shapes": {"input": (1, 3, 8, 8)}}, UsageError, "contradicts"),
}


@pytest.mark.parametrize(
    "function", [partial(onnxprune.compress, recover="none"), onnxprune.make_plan], ids=["compress", "make_plan"]
)
@pytest.mark.parametrize(("options", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_options(function, options, error, message):
    """A wrong option is one error that names it."""
    with pytest.raises(error, match=re.escape(message)):
        function(path("vgg_legacy"), **options)


def test_wrong_sources(tmp_path):
    """What is not a model is one error, whether in a file or in memory."""
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(FileError, match="no file"):
        onnxprune.analyze(tmp_path / "nope.onnx")
    with pytest.raises(ModelError, match="not an ONNX model"):
        onnxprune.analyze(tmp_path / "text.onnx")
    dangling = load("vgg_legacy")
    del dangling.graph.node[0]
    with pytest.raises(ModelError):
        onnxprune.analyze(dangling)
    poisoned = load("vgg_legacy")
    weight = next(t for t in poisoned.graph.initializer if t.data_type == TensorProto.FLOAT)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.nan, weight.name))
    with pytest.raises((ModelError, DataError), match="NaN"):
        onnxprune.compress(poisoned, flops=0.5, recover="none")


def test_a_selected_part_keeps_a_position():
    """A part of a Split that only a sum reads keeps its best channel, however little it weighs."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y) <int64[2] s = {2, 14}, int64[1] channels = {1}> {
        h = Conv(x, w)  a, b = Split<axis = 1>(h, s)  r = ReduceSum(a, channels)  d = Mul(b, r)  y = Conv(d, v)
    }""")
    rng = np.random.default_rng(0)
    w, v = (rng.standard_normal(s).astype(np.float32) for s in ((16, 3, 1, 1), (4, 14, 1, 1)))
    w[:2] *= 1e-3
    model.graph.initializer.extend([numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")])
    result = onnxprune.compress(model, flops=0.3, align=1, min_keep=0, recover="none")
    assert sum(i < 2 for i in result.plan.keep["w"][0]) == 1
