"""Methods by name: budgets, bounds, partners, and options that contradict each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import proto
from onnx import numpy_helper

import onnxprune
from onnxprune import criteria
from onnxprune.errors import UsageError
from onnxprune.settings import CompressOptions, methods

FIXTURES = Path(__file__).parents[1] / "fixtures"
CALIB = FIXTURES / "digits_calib.npz"
NETWORKS = sorted(p.name for p in FIXTURES.glob("*.onnx"))
SMALL = {"calibration_size": 64, "time_budget": 1.0, "recover": "none", "data": CALIB}
RESNET = FIXTURES / "resnet_bn_dynamo.onnx"


@pytest.mark.parametrize("method", ["cluster", "diversity:absolute,outgoing", "hybrid", "evolve"])
@pytest.mark.parametrize("name", NETWORKS)
def test_budgets_are_met(name, method):
    """Every method keeps at most the target, and within 2 % of it or says why not; the cut equals the masked original."""
    weights_alone = {"recover": "none"}
    few = SMALL | {"calibration_size": 16}
    options = {"evolve": few | {"budget": 4}, "hybrid": few}.get(method, weights_alone)
    report = onnxprune.compress(FIXTURES / name, flops=0.5, align=1, method=method, **options).report
    kept = report.compressed.macs / report.original.macs
    assert kept <= 0.5
    assert kept > 0.49 or report.note
    assert report.verification.relative_error < 1e-4


@pytest.mark.parametrize("method", ["hybrid", "evolve"])
def test_a_search_repeats(method):
    """The same seed gives the same choice; what was tried is in the report and has the choice."""
    first, second = (onnxprune.compress(RESNET, flops=0.4, method=method, **SMALL) for _ in range(2))
    assert first.plan.keep == second.plan.keep
    tried = first.report.tried
    if method == "hybrid":
        chosen = tried["candidates"][tried["chosen"]]
        assert chosen["kept"] == first.report.compressed.macs / first.report.original.macs
        repaired = [c["repaired"] for c in tried["candidates"] if c["repaired"] is not None]
        assert chosen["repaired"] == min(repaired)
        rates = {c["rate"] for c in tried["candidates"]}
        tested = {c["rate"] for c in tried["candidates"] if c["repaired"] is not None}
        assert len(tested) == min(len(rates), len(repaired))
        assert all(np.isfinite(c["kl"]) and np.isfinite(c["naswot"]) for c in tried["candidates"])
    else:
        assert tried["chosen"] == ("optimised" if tried["optimised"] < tried["plain"] else "plain")
        assert all(g["after"] <= g["before"] for g in tried["groups"])


def test_the_proxy_decides():
    """With `naswot` the pair with the largest score is taken; with `none` no inputs are looked at."""
    found = onnxprune.compress(RESNET, flops=0.4, method="hybrid", proxy="naswot", **SMALL).report.tried
    scores = [c["naswot"] for c in found["candidates"]]
    assert scores[found["chosen"]] == max(scores)
    blind = onnxprune.compress(RESNET, flops=0.4, method="hybrid", proxy="none", recover="none").report
    assert "calibrate" not in blind.seconds
    assert {c["kl"] for c in blind.tried["candidates"]} == {None}


def test_streams_that_stay_are_not_held_back():
    """Where nothing may leave the stream, all pairs are of other thresholds."""
    given = (SMALL | {"proxy": "naswot"}, {"proxy": "none", "recover": "none"})
    runs = [onnxprune.compress(FIXTURES / "tiny_vit_legacy.onnx", flops=0.3, method="hybrid", **g) for g in given]
    looked_at, all_of_them = (len(run.report.tried["candidates"]) for run in runs)
    assert looked_at == all_of_them > 10


def test_few_pairs_are_repaired_in_little_time():
    """The time planned for a repair counts its fits, which outweigh the forward passes of a small network."""
    options = SMALL | {"time_budget": 5.0, "calibration_size": 256}
    tried = onnxprune.compress(FIXTURES / "vgg_legacy.onnx", flops=0.4, method="hybrid", **options).report.tried
    repaired = [c for c in tried["candidates"] if c["repaired"] is not None]
    assert 2 <= len(repaired) < len(tried["candidates"]) / 2


def test_rates_bound_layers():
    """No group loses more than the rate; a pattern bounds the filters of the layers that it names alone."""

    def shares(**options):
        result = onnxprune.compress(RESNET, flops=0.4, align=1, method="cluster", recover="none", **options)
        outs = {x.node: x.outputs for x in result.report.layers if x.outputs and x.outputs[0] > 10}
        return {name: after / before for name, (before, after) in outs.items()}

    free, bound = shares(), shares(max_rate=0.5)
    assert min(free.values()) < 0.5 <= min(bound.values())
    lowest = min(free, key=free.__getitem__)
    named = shares(max_rate=[f"{lowest}=0.25"])
    assert named[lowest] >= 0.75
    assert min(named.values()) < 0.5


@pytest.mark.parametrize("method", [None, "hybrid", "evolve"])
def test_inputs_without_content(method):
    """Inputs of zeros tell nothing, and stop nothing."""
    data = {"input": np.zeros((64, 1, 8, 8), np.float32)}
    result = onnxprune.compress(RESNET, flops=0.5, method=method, data=data)
    assert result.report.compressed.macs <= 0.5 * result.report.original.macs


def test_a_proxy_that_tells_nothing_is_refused():
    """Where no candidate has a finite score, the error says what to do; one equal input repeated is such a case."""
    data = {"input": np.repeat(np.load(CALIB)["input"][:1], 64, 0)}
    options = {"flops": 0.5, "method": "hybrid", "proxy": "naswot", "recover": "none", "data": data}
    narrow = onnxprune.compress(RESNET, **options).report.tried  # a single input: all kernels are 1 x 1
    assert all(np.isfinite(c["naswot"]) for c in narrow["candidates"])
    linear = proto(
        "g (float[N,8] x) => (float[N,2] y) <float[8,16] w, float[16,2] v> {h = MatMul(x, w)\n y = MatMul(h, v)}"
    )
    data = {"x": np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)}
    with pytest.raises(UsageError, match="--proxy naswot tells none of the candidates from another"):
        onnxprune.compress(linear, **options | {"data": data})


def test_criteria_of_others_are_methods():
    """A criterion that is registered after the first use is a method like the others."""
    criteria.criterion("late")(lambda analysis, seed: np.arange(analysis.classes + 1.0))
    try:
        assert onnxprune.make_plan(RESNET, flops=0.5, method="late").settings["method"] == "late"
    finally:
        del criteria.registry._TABLE["late"]


TWINS = """g (float[N,3,6,6] x) => (float[N,2,6,6] y) <float[8,3,3,3] w, float[8] b, float[2,8,1,1] v> {
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu(c)
    y = Conv(r, v)
}"""


@pytest.mark.parametrize("method", ["cluster", "diversity"])
def test_merge_takes_the_partners_of_the_criterion(method, monkeypatch):
    """A filter that resembles another one as the criterion sees it leaves for it, and merging them changes nothing.

    For `diversity` it is half of the other; `cluster` compares norms in both directions, so that it is a copy there,
    read with another sign.
    """
    model = proto(TWINS)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name in ("w", "b"):
            array[5] = array[2] / (2 if method == "diversity" else 1)
        if tensor.name == "v" and method == "cluster":
            array[:, 5] = array[:, 2] * np.float32([1, -1]).reshape(2, 1, 1)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    asked = []
    real = criteria.rank
    monkeypatch.setattr(criteria, "rank", lambda *a, **k: asked.append(a[0]) or real(*a, **k))
    result = onnxprune.compress(model, flops=7 / 8, align=1, method=method, recover="merge")
    [kept] = [axes[0] for name, axes in result.plan.keep.items() if name == "w"]
    assert asked[-1] == method
    assert sorted(set(range(8)) - set(kept)) in ([2], [5])
    x = np.random.default_rng(0).standard_normal((4, 3, 6, 6)).astype(np.float32)
    outputs = [onnx.reference.ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (model, result.model)]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hybird"}, "did you mean 'hybrid'"),
        ({"method": "hybrid", "allocate": "greedy", "proxy": "kl"}, "--proxy belongs to --allocate pairs"),
        ({"method": "l2", "budget": 10}, "--budget belongs to --allocate evolve"),
        ({"method": "evolve", "optimiser": "luck"}, "--optimiser 'luck' is not known"),
        ({"method": "evolve", "budget": 0}, "--budget 0"),
        ({"method": "hybrid", "proxy": "guess"}, "--proxy 'guess' is not known"),
        ({"method": "l2", "allocate": "threshold"}, "--allocate threshold wants a criterion"),
        ({"method": "obs", "allocate": "pairs"}, "--allocate pairs wants a criterion"),
        ({"method": "evolve:absolute"}, "--method 'evolve:absolute'"),
        ({"method": "cluster:wards"}, "cluster has the options kmeans, not wards"),
        ({"max_rate": "1.5"}, "--max-rate '1.5'"),
        ({"max_rate": ["stem*=x"]}, "--max-rate 'stem[*]=x'"),
    ],
)
def test_contradictions_are_usage_errors(options, message):
    """What cannot be meant is refused whatever the model."""
    with pytest.raises(UsageError, match=message):
        CompressOptions(flops=0.5, **options).check()


def test_unknown_layers_of_a_rate():
    """A pattern of --max-rate that names nothing is told with its option."""
    with pytest.raises(UsageError, match=r"--max-rate 'wild[*]' names no layer"):
        onnxprune.make_plan(RESNET, flops=0.5, method="l2", max_rate="wild*=0.5")


@pytest.mark.parametrize("method", methods())
def test_every_method_has_a_criterion(method):
    """A name is a criterion, or stands for one."""
    criteria.check(CompressOptions(flops=0.5, method=method).criterion)
