"""`sparsify` in the library and on the command line: zeros, what stays the same, what is compared, what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import done, run
from graphs import proto
from onnx import numpy_helper
from rich.console import Console

import onnxprune
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.report import sparsity as report_text
from onnxprune.runtime import session
from onnxprune.sparse.result import gzip_bytes

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODEL, CALIB, TEST = (FIXTURES / n for n in ("resnet_bn_legacy.onnx", "digits_calib.npz", "digits_test.npz"))
SEEN = {"data": CALIB, "calibration_size": 128}
QUICK = SEEN | {"budget": 20}
METHODS = {"magnitude": {"method": "magnitude"}, "evolve": {"method": "evolve", "budget": 20}}
DENSE = """g (float[N,8] x) => (float[N,4] y) <float[8,8] w, float[8] b, float[8,4] v> {
    h = Gemm(x, w, b)
    r = Relu(h)
    y = MatMul(r, v)
}"""


def weights(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def flat(report):
    """The words of the report as text."""
    console = Console(file=io.StringIO(), width=80)
    console.print(report_text.sparsity(report, "out.onnx"))
    return " ".join(console.file.getvalue().split())


def accuracy(model):
    with np.load(TEST) as data:
        logits = next(iter(session(model).run({"input": data["input"]}).values()))
        return float((logits.argmax(1) == data["labels"]).mean())


@pytest.fixture(scope="module")
def both():
    """The network at 80 % zeros, by magnitude and evolved."""
    return {name: onnxprune.sparsify(MODEL, sparsity=0.8, **SEEN, **how) for name, how in METHODS.items()}


def test_every_layer_has_the_share_of_zeros(both):
    """Each tensor loses at least its share and not a weight more than that needs, as the report says."""
    for result in both.values():
        found = weights(result.model)
        for row in result.report.masked.tensors:
            zeros = int((found[row.name] == 0).sum())
            assert zeros == row.zeros == int(np.ceil(0.8 * row.weights - 1e-9))
        assert result.report.sparsity == pytest.approx(0.8, abs=0.01)


def test_nothing_else_changes(both):
    """Names, shapes, types, nodes, opset and interface are those of the cleaned original; the file is no larger."""
    before, after = onnxprune.clean(MODEL), both["evolve"].model
    assert [n.SerializeToString() for n in before.graph.node] == [n.SerializeToString() for n in after.graph.node]
    assert {k: (a.shape, a.dtype) for k, a in weights(before).items()} == {
        k: (a.shape, a.dtype) for k, a in weights(after).items()
    }
    assert (before.opset_import, before.ir_version) == (after.opset_import, after.ir_version)
    assert (list(before.graph.input), list(before.graph.output)) == (list(after.graph.input), list(after.graph.output))
    assert both["evolve"].report.gzip == (gzip_bytes(before), gzip_bytes(after))
    assert gzip_bytes(after) < 0.5 * gzip_bytes(before)


def test_magnitude_is_told_beside_the_search(both):
    """Both networks are compared on held-out inputs; the closer one is written; no layer's error has grown."""
    plain, masked = both["magnitude"].report.masked, both["evolve"].report.masked
    assert plain.magnitude == masked.magnitude
    assert (plain.evolved, plain.shipped) == (None, "magnitude")
    assert (masked.shipped == "evolved") == (masked.evolved.divergence < masked.magnitude.divergence)
    assert all(row.evolved_error <= row.magnitude_error + 1e-9 for row in masked.tensors)
    assert masked.errors()["evolved"] < masked.errors()["magnitude"]


def test_a_tie_is_by_magnitude():
    """One candidate is the masks by magnitude: then they are what was written."""
    masked = onnxprune.sparsify(MODEL, sparsity=0.8, **(QUICK | {"budget": 1})).report.masked
    assert masked.evolved == masked.magnitude
    assert masked.shipped == "magnitude"


@pytest.mark.parametrize("recover", ["auto", "none"])
@pytest.mark.parametrize("value", [0.0, 1 / 3])
def test_layers_whose_inputs_do_not_vary_have_no_error(value, recover):
    """On constant inputs no error is a share of rounding: those of layers that see no variance are not told."""
    with np.load(CALIB) as data:
        rows = {"input": np.full_like(data["input"][:128], value)}
    options = QUICK | {"data": rows, "budget": 3}
    masked = onnxprune.sparsify(MODEL, sparsity=0.8, recover=recover, **options).report.masked
    known = [t for t in masked.tensors if t.magnitude_error is not None]
    assert all(0 <= e < 2 for t in known for e in (t.magnitude_error, t.evolved_error))
    unknown = [t for t in masked.tensors if t.magnitude_error is None]
    assert all("varies" in t.reason and t.evolved_error is None for t in unknown)
    assert (masked.tensors[-1] in unknown) == (recover == "auto")  # the mean over an image: the same for all
    assert (masked.tensors[0] in unknown) == (value == 0)


def test_where_no_layer_varies():
    """Without any error the masks are those by magnitude, and the report has none."""
    rows = {"x": np.zeros((64, 8), np.float32)}
    text = "g (float[N,8] x) => (float[N,4] y) <float[8,4] w> { y = MatMul(x, w) }"
    report = onnxprune.sparsify(proto(text), sparsity=0.5, data=rows, budget=5).report
    assert report.masked.errors() == {}
    assert report.masked.shipped == "magnitude"
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["layer_error"] == {}
    assert "mean error" not in flat(report)


@pytest.mark.parametrize("method", ["magnitude", "evolve"])
def test_labels_that_are_no_classes_are_refused(method):
    """Labels that the output has no score for are an error, not an accuracy of 0."""
    with np.load(TEST) as data:
        rows = {"input": data["input"], "labels": data["labels"] + 1}
    with pytest.raises(DataError, match=r"is 10, .*classes 0 to 9"):
        onnxprune.sparsify(MODEL, sparsity=0.5, **(SEEN | METHODS[method] | {"data": rows}))


def test_the_refit_is_worth_it(both):
    """On the test images the refitted network beats the one whose weights were left as they are, with equal zeros."""
    raw = onnxprune.sparsify(MODEL, sparsity=0.8, method="magnitude", recover="none", **SEEN)
    assert accuracy(both["magnitude"].model) > accuracy(raw.model) + 0.2
    before, after = weights(onnxprune.clean(MODEL)), weights(raw.model)
    assert all(np.isin(after[n], [0]).sum() + (after[n] == before[n]).sum() >= after[n].size for n in after)


def test_runs_repeat():
    """The same arguments give the same bytes; another seed tries other masks."""
    first, again, other = (
        onnxprune.sparsify(MODEL, sparsity=0.9, seed=s, recover="none", **QUICK).report for s in (0, 0, 1)
    )
    plain = [t.evolved_error for t in first.masked.tensors]
    assert plain == [t.evolved_error for t in again.masked.tensors]
    assert first.masked == again.masked
    assert plain != [t.evolved_error for t in other.masked.tensors]


@pytest.mark.parametrize("optimiser", ["annealing", "economics"])
def test_other_optimisers(optimiser):
    """Each optimiser lowers the mean error of the layers."""
    errors = onnxprune.sparsify(
        MODEL, sparsity=0.9, optimiser=optimiser, recover="none", **QUICK
    ).report.masked.errors()
    assert errors["evolved"] < 0.9 * errors["magnitude"]


def test_global_share():
    """With one threshold for all tensors, the share is that of all together, and tensors differ."""
    report = onnxprune.sparsify(MODEL, sparsity=0.8, method="magnitude", scope="global").report
    shares = [t.sparsity for t in report.masked.tensors]
    assert report.sparsity == pytest.approx(0.8, abs=0.001)
    assert max(shares) - min(shares) > 0.1
    assert (report.data, report.masked.magnitude) == (None, None)  # nothing is run where nobody asks for it


def test_pattern():
    """In 2:4, two of every four consecutive inputs of each output stay; layers of other widths are left, with why."""
    result = onnxprune.sparsify(MODEL, pattern="2:4", **QUICK)
    found, rows = weights(result.model), result.report.masked.tensors
    left = [row for row in rows if row.reason]
    assert [row.weights for row in left] == [16 * 9]  # reads the one channel of the image
    assert "no multiple of 4" in left[0].reason
    for row in (row for row in rows if not row.reason):
        weight = found[row.name].reshape(found[row.name].shape[0], found[row.name].shape[1], -1)
        kept = (weight != 0).reshape(len(weight), -1, 4, weight.shape[2]).sum(2)
        assert kept.max() == 2
        assert row.sparsity == 0.5


def test_keep_leaves_layers_alone():
    """Layers that --keep names keep all their weights; a pattern that names none is an error."""
    name = next(t.name for t in onnxprune.sparsify(MODEL, sparsity=0.5, method="magnitude").report.masked.tensors)
    result = onnxprune.sparsify(MODEL, sparsity=0.5, method="magnitude", keep=name)
    row = result.report.masked.tensors[0]
    assert (row.name, row.reason) == (name, f"--keep {name}")
    assert np.array_equal(weights(result.model)[name], weights(onnxprune.clean(MODEL))[name])
    with pytest.raises(UsageError, match="nothing_like_it"):
        onnxprune.sparsify(MODEL, sparsity=0.5, method="magnitude", keep=("nothing_like_it",))


def test_without_data_inputs_are_made_up():
    """Without --data the search looks at synthetic inputs, and the report says so."""
    result = onnxprune.sparsify(proto(DENSE), sparsity=0.5, budget=20)
    assert result.report.data["synthetic"]
    assert result.report.sparsity == 0.5


INTEGERS = """g (float[N,8] x) => (float[N,4] y) <int8[8,4] q, float[4] scale, int8[4] zero> {
    w = DequantizeLinear(q, scale, zero)
    y = MatMul(x, w)
}"""
BLOCKS = """g (float[N,8] x) => (float[N,4] y) <int8[8,4] q, float[2,4] scale> {
    w = DequantizeLinear <axis = 0, block_size = 4> (q, scale)
    y = MatMul(x, w)
}"""


@pytest.mark.parametrize("method", ["magnitude", "evolve"])
def test_integers_become_zero_points(method):
    """Behind a DequantizeLinear the integers of zeroed weights are the zero points; the real weights are 0."""
    result = onnxprune.sparsify(proto(INTEGERS), sparsity=0.75, recover="none", **METHODS[method])
    found = weights(result.model)
    assert found["q"].dtype == np.int8
    assert int((found["q"] == found["zero"]).sum()) >= 24
    assert result.report.masked.tensors[0].zeros >= 24


def test_what_cannot_be_treated_is_told():
    """Weights that are quantised in blocks are refused with the reason; so is a model without a weight."""
    with pytest.raises(ModelError, match="quantised in blocks"):
        onnxprune.sparsify(proto(BLOCKS, opset=21), sparsity=0.5, method="magnitude")
    with pytest.raises(ModelError, match="2 layers: its 8 inputs are no multiple of 7"):
        onnxprune.sparsify(proto(DENSE), pattern="3:7", method="magnitude")
    with pytest.raises(UsageError, match=r"--keep leaves nothing to set to zero \(2 layers: --keep \*\)"):
        onnxprune.sparsify(proto(DENSE), sparsity=0.5, keep="*")
    with pytest.raises(UsageError, match=r"--keep w; .*: its 8 inputs are no multiple of 7"):
        onnxprune.sparsify(proto(DENSE), pattern="3:7", keep="w")
    with pytest.raises(ModelError, match="no Conv, Gemm or MatMul"):
        onnxprune.sparsify(
            proto("g (float[N,8] x) => (float[N,8] y) { y = Relu(x) }"), sparsity=0.5, method="magnitude"
        )


@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_floats(dtype):
    """Weights of other precisions keep their type."""
    text = DENSE.replace("float[", f"{dtype}[")
    result = onnxprune.sparsify(proto(text), sparsity=0.5, budget=20)
    assert {a.dtype for a in weights(result.model).values()} == {np.dtype("float64" if dtype == "double" else dtype)}
    assert result.report.sparsity == 0.5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "one of --sparsity and --pattern"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "one of --sparsity and --pattern"),
        ({"sparsity": 0.0}, "above 0 and below 1"),
        ({"sparsity": 1.0}, "above 0 and below 1"),
        ({"sparsity": float("nan")}, "above 0 and below 1"),
        ({"pattern": "4:2"}, "N below M"),
        ({"sparsity": 0.5, "method": "luck"}, "evolve, magnitude"),
        ({"sparsity": 0.5, "scope": "row"}, "tensor, global"),
        ({"sparsity": 0.5, "optimiser": "luck"}, "evolution, annealing, economics"),
        ({"sparsity": 0.5, "recover": "luck"}, "auto, none, least-squares"),
        ({"sparsity": 0.5, "budget": 0}, "at least one candidate"),
        ({"pattern": "2:4", "scope": "global"}, "--scope global belongs to --sparsity"),
        ({"sparsity": 0.5, "method": "magnitude", "optimiser": "annealing"}, "--optimiser belongs to --method evolve"),
        ({"sparsity": 0.5, "method": "magnitude", "budget": 300}, "--budget belongs to --method evolve"),
        ({"sparsity": 0.5, "calibration_size": 2}, "at least 16"),
    ],
)
def test_bad_options_are_told(options, told):
    """What is wrong whatever the model is a usage error that says what would be right."""
    with pytest.raises(UsageError, match=told):
        onnxprune.sparsify("there is no such file.onnx", **options)


# ---- the command line ------------------------------------------------------------------------------------------------


def test_command(tmp_path):
    """The command writes beside the model, prints zeros, bytes and both methods within 80 columns, claims no speed."""
    model = tmp_path / "net.onnx"
    model.write_bytes(MODEL.read_bytes())
    shown = done("sparsify", model, "--sparsity", 0.8, "--data", TEST, "--calibration-size", 128, "--budget", 10)
    assert (tmp_path / "net.sparse.onnx").exists()
    onnx.checker.check_model(onnx.load(tmp_path / "net.sparse.onnx"), full_check=True)
    text = shown.stdout
    assert max(map(len, text.splitlines())) <= 80
    words = ("80.0 %", "gzip", "no faster", "magnitude", "evolved", "Written: the masks", "accuracy (original")
    assert not [w for w in words if w not in text]
    again = run("sparsify", model, "--sparsity", 0.8, "--method", "magnitude")
    assert again.exit_code == 4
    assert "--force" in again.stderr
    quiet = done("sparsify", model, "--sparsity", 0.8, "--method", "magnitude", "--force", "--quiet")
    assert quiet.stdout == ""


def test_json(tmp_path):
    """--json prints one object with stable keys and both networks."""
    out = tmp_path / "small.onnx"
    shown = done(
        "sparsify",
        MODEL,
        "--pattern",
        "2:4",
        "--data",
        CALIB,
        "--calibration-size",
        64,
        "--budget",
        5,
        "-o",
        out,
        "--json",
    )
    told = json.loads(shown.stdout)
    assert set(told) == {
        *("model", "settings", "sparsity", "gzip", "data", "layer_error", "magnitude", "evolved", "shipped", "metric"),
        *("budget", "tensors", "skipped", "notes", "seconds", "output"),
    }
    assert told["settings"]["pattern"] == "2:4"
    assert set(told["magnitude"]) == set(told["evolved"])


def test_magnitude_without_data_says_that_nothing_was_measured(tmp_path):
    """Magnitude alone needs no inputs: nothing is run, and the report says what would measure."""
    shown = done("sparsify", MODEL, "--sparsity", 0.5, "--method", "magnitude", "-o", tmp_path / "small.onnx")
    assert "nothing was measured" in shown.stdout
    assert "looked at" not in shown.stdout
    assert "change most" not in shown.stdout


def test_reasons_are_told_once(tmp_path):
    """Layers that are left for one reason share a line."""
    shown = done(
        "sparsify",
        FIXTURES / "mobile_dynamo.onnx",
        "--pattern",
        "2:4",
        "--method",
        "magnitude",
        "-o",
        tmp_path / "s.onnx",
    )
    assert shown.stdout.count("no multiple of 4") == 1
    assert "and 4 more: its 1 inputs are no multiple of 4" in shown.stdout
