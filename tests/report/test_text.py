"""Reports as text: what they say, and that it fits 80 columns."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import onnxprune
from onnxprune import api
from onnxprune.plan import Plan
from onnxprune.report import LayerChange, text
from onnxprune.verify import Verification

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODELS = ("resnet_bn_legacy", "tiny_vit_dynamo")


def printed(renderable, width=80):
    """Text as a program reads it through a pipe."""
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False, emoji=False)
    console.print(renderable)
    return console.file.getvalue()


def flat(renderable):
    """Printed words, however the lines were broken."""
    return " ".join(printed(renderable).split())


@pytest.fixture(scope="module")
def report():
    return onnxprune.compress(FIXTURES / "resnet_bn_legacy.onnx", flops=0.5, recover="none").report


@pytest.mark.parametrize("name", MODELS)
def test_every_report_fits_80_columns(name, capsys):
    """No line of any report is wider than 80 columns, and building the reports prints nothing."""
    model = FIXTURES / f"{name}.onnx"
    analysis = api.analyze(model)
    result = onnxprune.compress(model, flops=0.5, recover="none")
    reports = [
        text.compression(result.report, "a/long/path/" * 8),
        text.prediction(result.plan, model, "plan.json"),
        text.analysis(api.overview(model)),
        text.cleaning(model, "clean.onnx", analysis.notes),
        text.difference(onnxprune.diff(model, result.model), model, "small.onnx"),
        *(text.explanation(onnxprune.explain(analysis, tensor)) for tensor in analysis.trace.trace.views),
    ]
    assert len(reports) > 50
    lines = [line.rstrip() for r in reports for line in printed(r).splitlines()]
    assert max(map(len, lines)) <= 80
    assert capsys.readouterr() == ("", "")


def test_compression_says_what_happened(report):
    """Costs before and after, the kept share, the verification, the output's name and what to do next."""
    told = flat(text.compression(report, "small.onnx"))
    before, after, kept = (d["macs"] for d in (report.as_dict()[k] for k in ("original", "compressed", "kept")))
    assert f"MACs {text.si(before)} {text.si(after)} {text.percent(kept)}" in told
    assert f"{report.removed} of {report.classes} classes removed; 10 filters are frozen" in told
    assert "10 graph output: it is a result of the model" in told
    assert "Verified: the cut equals the masked original up to" in told
    assert "Warning" not in told
    assert "onnxprune diff" in told
    assert "small.onnx" in told


def test_layers_most_cut_come_first(report):
    """The table of layers is sorted by the share that is kept, and whole layers are not in it."""
    layers = tuple(LayerChange(f"layer{i}", "Conv", (8, 8), (8, n), (80, 10 * n)) for i, n in enumerate((8, 4, 1, 6)))
    told = flat(text.compression(replace(report, layers=layers), "small.onnx"))
    order = [told.find(f"layer{i}") for i in (2, 1, 3)]
    assert order == sorted(order)
    assert -1 not in order
    assert "layer0" not in told
    assert "3 of 3 cut layers (4 in all)" in told


def test_long_tables_are_cut_short(report):
    """At most ten layers are shown, and how many there are is said."""
    layers = tuple(LayerChange(f"node-{i}", "Conv", (8, 8), (8, 4), (80, 40)) for i in range(25))
    told = flat(text.compression(replace(report, layers=layers), "small.onnx"))
    assert told.count("node-") == 10
    assert "10 of 25 cut layers (25 in all)" in told


def test_untouched_model_says_so(report):
    """Where nothing was removed there is no table of layers and no warning."""
    same = Verification(0.0, False, "passed", ("y",), "as stored")
    layers = (LayerChange("conv", "Conv", (8, 8), (8, 8), (80, 80)),)
    told = flat(text.compression(replace(report, layers=layers, removed=0, verification=same), "small.onnx"))
    assert "No layer was cut." in told
    assert "Warning" not in told


def test_vacuous_verification_is_a_warning(report):
    """If masking changes nothing the check says little, and the reader is told."""
    vacuous = replace(report, verification=replace(report.verification, masked_differs=False))
    assert "Warning: masking what was removed" in flat(text.compression(vacuous, "o.onnx"))


def test_products_of_activations_have_dashes_for_widths(report):
    """They have no filters that could be counted, before a cut and after it."""
    view = api.overview(FIXTURES / "tiny_vit_legacy.onnx")
    assert "/blocks/blocks.0/attn/MatMul MatMul - - 13.9 k" in flat(text.analysis(view))
    cut = replace(report, layers=(LayerChange("qk", "MatMul", None, None, (80, 40)),))
    assert "qk MatMul - - 50.0 %" in flat(text.compression(cut, "o.onnx"))


def test_notes_are_told(report):
    """The note on a loosely met target, the cleaning's notes and the precision of the check are all shown."""
    half = replace(report.verification, precision="float32, widened from half precision")
    noted = replace(report, note="because of X", notes=("did Y",), verification=half)
    told = flat(text.compression(noted, "o.onnx"))
    assert "Note: because of X" in told
    assert "Model: did Y" in told
    assert "in float32, widened from half precision" in told


def test_seconds_below_notice_are_left_out(report):
    """The total counts every stage; only those that take time are named."""
    told = flat(text.compression(replace(report, seconds={"read": 0.01, "verify": 1.5}), "o.onnx"))
    assert "Took 1.5 s: verify 1.5." in told


def test_names_with_brackets_are_left_as_they_are(report):
    """Names of nodes are not taken for markup or emoji, and long ones are folded, not cut off."""
    name = "/blocks[0]/[bold]:smile:" + "x" * 60
    layers = (LayerChange(name, "Conv", (8, 8), (8, 4), (80, 40)),)
    lines = printed(text.compression(replace(report, layers=layers), "o.onnx")).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("/blocks"))
    assert "".join(line.split()[0] for line in lines[start:] if line.strip()).startswith(name)


def test_missed_target_of_a_plan_is_told():
    """A plan made with --best-effort that keeps more than was asked for says so."""
    predicted = {"macs": 300, "params": 20, "bytes": 99, "kept": {"macs": 0.3, "params": 0.5, "bytes": 0.5}}
    plan = Plan("digest", {"w": {0: [1]}, "v": {1: [1], 2: [0]}}, {"flops": 0.1}, predicted)
    told = flat(text.prediction(plan, "m.onnx", "plan.json"))
    assert "the target 0.1 of --flops is out of reach" in told
    assert "Slices 3 axes of 2 parameters." in told
    assert "out of reach" not in flat(text.prediction(replace(plan, settings={"flops": 0.3}), "m.onnx", "plan.json"))


def test_analysis_tells_layers_classes_and_groups():
    """Layers with their share, classes, groups of layers that share a fate, and what is frozen."""
    told = flat(text.analysis(api.overview(FIXTURES / "resnet_bn_legacy.onnx")))
    assert "971 k MACs" in told
    assert "/stage3/conv2/conv/Conv, /stage3/shortcut/conv/Conv" in told
    assert "10 graph output: it is a result of the model" in told
    assert "inexact" not in told
    assert "48 are inexact" in flat(text.analysis(api.overview(FIXTURES / "tiny_vit_dynamo.onnx")))


def test_model_without_shared_filters_says_so():
    """A plain chain has no two layers with the same filters."""
    assert "No two layers share" in flat(text.analysis(api.overview(FIXTURES / "vgg_legacy.onnx")))


def test_explanation_tells_paths_and_repeats_nothing():
    """A bias refers to the filters it goes with; a frozen axis shows where its path ends."""
    analysis = api.analyze(FIXTURES / "vgg_legacy.onnx")
    first = next(n.name for n in analysis.model.graph.nodes if n.op == "Conv")
    told = flat(text.explanation(onnxprune.explain(analysis, first)))
    assert "none frozen goes with features.0.0.weight axis 0, see above" in told
    assert "index 0 takes with it: features.0.0.bias axis 0: 0 features.0.2.weight axis 1: 0" in told
    last = flat(text.explanation(onnxprune.explain(analysis, "logits")))
    assert "10 frozen: graph output logits: it is a result of the model" in last


def test_difference_of_equal_models_is_one_line():
    """Nothing to tell is told in one line."""
    model = FIXTURES / "vgg_legacy.onnx"
    told = printed(text.difference(onnxprune.diff(model, model), "a.onnx", "b.onnx"))
    assert told == "a.onnx and b.onnx do not differ.\n"


@pytest.mark.parametrize(
    ("number", "told"),
    [(0, "0"), (512, "512"), (999.4, "999.4"), (1000, "1 k"), (999_999, "1 M"), (4_089_184_256, "4.09 G")],
)
def test_si(number, told):
    """Three digits and a decimal prefix; rounding never gives 1000 k."""
    assert text.si(number) == told


def test_si_with_unit():
    """The unit follows the prefix, and nothing but the number where there is neither."""
    assert [text.si(n, "B") for n in (5, 102_480)] == ["5 B", "102 kB"]
