"""Two models beside each other: what is measured, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from sklearn import metrics as sk
from validation.models import inputs, labels, linear, two

import onnxprune
from onnxprune import runtime
from onnxprune.errors import DataError, FileError, ModelError, ResourceError, UnsupportedError, UsageError

FIXTURES = Path(__file__).parents[2] / "fixtures"
TEST = FIXTURES / "digits_test.npz"
validate = onnxprune.validate


def predicted(model, x):
    return x @ numpy_helper.to_array(model.graph.initializer[0])


# ---- what is measured ----------------------------------------------------------------------------------------------


def test_accuracy(pair):
    """With labels of a classifier the metric is top-1 of both on the same samples, and the drop is their difference."""
    good, bad, x, y = pair
    found = validate(good, bad, data=(x, y))
    right = [predicted(m, x).argmax(1) == y for m in (good, bad)]
    assert found.metric.metric == "accuracy"
    assert (found.metric.original, found.metric.candidate) == pytest.approx([r.mean() for r in right])
    assert (found.metric.lost, found.metric.gained) == ((right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum())
    assert found.metric.drop.point == pytest.approx(100 * (right[0].mean() - right[1].mean()))
    assert found.metric.drop.low < found.metric.drop.point < found.metric.drop.high
    assert (found.samples, found.verdict, found.passed) == (200, None, True)


def test_agreement(pair):
    """Without labels, the outputs are compared: same answers, cosine, relative error and divergence."""
    good, bad, x, _ = pair
    found = validate(good, bad, data=x)
    a, b = (predicted(m, x).astype(float) for m in (good, bad))
    p, q = (np.exp(s) / np.exp(s).sum(1, keepdims=True) for s in (a, b))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    want = {
        "top1": (a.argmax(1) == b.argmax(1)).mean(),
        "cosine": cosine.mean(),
        "relative_error": np.linalg.norm(a - b) / np.linalg.norm(a),
        "divergence": (p * np.log(p / q)).sum(1).mean(),
    }
    assert found.metric is None
    assert {n: i.point for n, i in found.agreement.items()} == pytest.approx(want, rel=1e-5)
    assert all(i.low < i.point < i.high for i in found.agreement.values())


def test_a_model_beside_itself():
    """A model equals itself, but rates keep an interval: what was not drawn may differ."""
    found = validate(FIXTURES / "vgg_legacy.onnx", FIXTURES / "vgg_legacy.onnx", data=TEST, max_drop=1.0)
    assert (found.metric.lost, found.metric.gained, found.metric.drop.point) == (0, 0, 0)
    assert found.metric.drop.high == pytest.approx(100 * 3.8415 / 503.8415, rel=1e-4)
    assert found.agreement["top1"].point == 1 > found.agreement["top1"].low > 0.99
    assert found.verdict == "pass"
    strict = validate(FIXTURES / "vgg_legacy.onnx", FIXTURES / "vgg_legacy.onnx", data=TEST, max_drop=0.5)
    assert (strict.verdict, strict.passed) == ("inconclusive", False)


@pytest.mark.parametrize("name", ["f1_macro", "balanced_accuracy", "roc_auc", "average_precision", "log_loss", "top2"])
def test_other_metrics(pair, name):
    """Other metrics are those of scikit-learn on all samples, with the worse model losing."""
    good, bad, x, y = pair
    found = validate(good, bad, data=(x, y), metric=name).metric
    scores = predicted(bad, x).astype(float)
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    want = {
        "f1_macro": lambda: sk.f1_score(y, p.argmax(1), average="macro"),
        "balanced_accuracy": lambda: sk.balanced_accuracy_score(y, p.argmax(1)),
        "roc_auc": lambda: sk.roc_auc_score(y, p, multi_class="ovr"),
        "average_precision": lambda: sk.average_precision_score(y, p),
        "log_loss": lambda: sk.log_loss(y, p),
        "top2": lambda: sk.top_k_accuracy_score(y, p, k=2),
    }[name]()
    assert found.candidate == pytest.approx(want, rel=1e-5)
    assert found.drop.low < found.drop.point < found.drop.high
    assert found.drop.point > 0


def test_hardly_any_sample_differs(pair):
    """Where only one sample differs, resampling sees little: the interval is at least what none would leave."""
    good, _, x, y = pair
    near = linear(noise=0.02)
    assert (predicted(near, x).argmax(1) != predicted(good, x).argmax(1)).sum() == 1
    drop = validate(good, near, data=(x, y), metric="f1_macro").metric.drop
    least = 100 * 3.84 / (200 + 3.85)
    assert drop.low <= drop.point - least < drop.point + least <= drop.high


def test_values():
    """Errors of a regression are compared in their own units: more is worse."""
    good, bad, x = two(), two(noise=0.3), inputs()
    arrays = {"a": x, "b": inputs(seed=2)}
    y = (arrays["a"] + arrays["b"]) @ numpy_helper.to_array(good.graph.initializer[0]) + 0.1
    found = validate(good, bad, data=(arrays, y), metric="mse").metric
    assert (found.output, found.rate, found.higher) == ("y", False, False)
    assert found.original == pytest.approx(0.01, rel=1e-3)
    assert found.drop.point == pytest.approx(found.candidate - found.original)
    r2 = validate(good, bad, data=(arrays, y), metric="r2").metric
    assert r2.drop.point == pytest.approx(r2.original - r2.candidate)
    assert r2.drop.low < r2.drop.point < r2.drop.high


def test_several_outputs():
    """The metric reads the first output that fits the labels, or the one that is named; all are compared."""
    good, bad = two(), two(noise=0.3)
    arrays = {"a": inputs(), "b": inputs(seed=2)}
    y = np.arange(200) % 4
    assert validate(good, bad, data=(arrays, y)).metric.output == "y"
    assert validate(good, bad, data=(arrays, y), output_name="z").metric.output == "z"
    with pytest.raises(UsageError, match=r"--output-name 'w' is none of the outputs .*: y, z"):
        validate(good, bad, data=(arrays, y), output_name="w")


def test_own_metric_of_several_outputs():
    """A function gets the arrays by name of a model with several outputs, of all samples at once."""
    seen = []

    def metric(outputs, targets):
        seen.append({n: a.shape for n, a in outputs.items()} | {"targets": targets.shape})
        return float((outputs["y"].argmax(1) == targets).mean())

    arrays = {"a": inputs(50), "b": inputs(50, 2)}
    found = validate(two(), two(0.3), data=(arrays, np.arange(50) % 4), metric=metric)
    assert seen[0] == {"y": (50, 4), "z": (50, 6), "targets": (50,)}
    assert found.metric.original == validate(two(), two(), data=(arrays, np.arange(50) % 4)).metric.original


@pytest.mark.parametrize(
    ("body", "bound"), [("h = MatMul(x, w)\n y = Sigmoid(h)", 0.5), ("y = MatMul(x, w)", 0.0)], ids=["sigmoid", "logit"]
)
def test_one_score_per_sample(body, bound):
    """A single score is class 1 above 0, or above a half where it comes out of a sigmoid."""
    model = linear(outputs="float[N,1] y", body=body, shape="6,1")
    x = inputs()
    y = (x @ numpy_helper.to_array(model.graph.initializer[0]) > 0)[:, 0]
    flipped = np.where(np.arange(200) < 20, ~y, y)
    assert validate(model, model, data=(x, flipped), metric="accuracy").metric.original == pytest.approx(0.9)
    assert validate(model, model, data=(x, y.astype(int)), metric="f1").metric.original == 1
    assert validate(model, model, data=(x, y.astype(int)), metric="roc_auc").metric.original == 1


def test_class_numbers():
    """A model that gives class numbers is compared by them."""
    model = linear(outputs="int64[N] y", body="h = MatMul(x, w)\n y = ArgMax<axis = 1, keepdims = 0>(h)")
    plain, x = linear(), inputs()
    found = validate(model, model, data=(x, labels(plain, x)), metric="accuracy")
    assert found.metric.original == validate(plain, plain, data=(x, labels(plain, x))).metric.original
    assert found.agreement["top1"].point == 1


def test_batches_do_not_matter(pair):
    """A model of a fixed batch gives the same as one that takes any number of samples."""
    good, bad, x, y = pair
    fixed = [onnx.ModelProto.FromString(m.SerializeToString()) for m in (good, bad)]
    for model in fixed:
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = 1
    one, other = validate(*fixed, data=(x, y)), validate(good, bad, data=(x, y))
    assert one.metric == other.metric
    mixed = validate(good, fixed[1], data=(x, y))
    assert mixed.metric == other.metric


def test_samples(pair):
    """At most so many samples are run, spread over the data."""
    good, bad, x, y = pair
    assert validate(good, bad, data=(x, y), samples=50).metric == validate(good, bad, data=(x[::4], y[::4])).metric


def test_goals_and_json(pair):
    """All goals are judged, in one object that JSON takes, with the keys that programs rely on."""
    good, bad, x, y = pair
    found = validate(good, bad, data=(x, y), max_drop=50.0, min_agreement=0.99, max_size=1e3)
    assert {g.name: g.verdict for g in found.goals} == {"max_drop": "pass", "min_agreement": "fail", "max_size": "pass"}
    assert found.verdict == "fail"
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert set(told) == {
        *("original", "candidate", "data", "samples", "verdict", "goals", "metric", "agreement", "size", "latency"),
        *("outputs", "notes", "seconds"),
    }
    assert set(told["goals"][0]) == {"name", "bound", "measured", "unit", "what", "verdict", "reason"}
    assert set(told["metric"]) == {
        *("metric", "output", "higher", "rate", "original", "candidate", "drop", "lost", "gained"),
        *("chance", "at_chance"),
    }
    assert told["size"]["candidate"] == bad.ByteSize()


def test_point(pair):
    """With `point`, the point estimate decides."""
    good, bad, x, y = pair
    drop = validate(good, bad, data=(x, y)).metric.drop.point
    just, below = (validate(good, bad, data=(x, y), max_drop=drop + d, verdict="point") for d in (0.0, -0.01))
    assert (just.verdict, below.verdict) == ("pass", "fail")
    assert validate(good, bad, data=(x, y), max_drop=drop).verdict == "inconclusive"


def test_repeatable(pair):
    """The same command gives the same numbers."""
    good, bad, x, y = pair
    one, other = (validate(good, bad, data=(x, y), metric="log_loss") for _ in range(2))
    assert (one.metric, one.agreement) == (other.metric, other.agreement)


def test_labels_that_say_nothing_are_told():
    """Labels that are no classes of an output do not stop the comparison of outputs, but are mentioned."""
    found = validate(linear(), linear(noise=0.1), data=(inputs(), np.zeros((200, 7), np.float32)))
    assert found.metric is None
    assert found.agreement
    assert any("name a --metric" in n for n in found.notes)


def test_outputs_without_rows_are_left_out():
    """Outputs that are not one row per sample are left out, and mentioned; without any other that is an error."""
    model = linear(
        outputs="float[N,4] y, float[6] s", body="y = MatMul(x, w)\n s = ReduceMean<axes = [0], keepdims = 0>(x)"
    )
    found = validate(model, model, data=inputs())
    assert "'s' float32 [6]" in found.notes[-1]
    only = linear(outputs="float[4] y", body="h = MatMul(x, w)\n y = ReduceMean<axes = [0], keepdims = 0>(h)")
    with pytest.raises(UnsupportedError, match="no output has one row"):
        validate(only, only, data=inputs())


def test_infinite_scores():
    """Scores that a model masks with infinity are compared like any others, and JSON takes what comes of it."""
    model = linear(
        outputs="float[N,4] y",
        body="h = MatMul(x, w)\n m = Constant<value_floats = [0.0, 0.0, 0.0, -inf]>()\n y = Add(h, m)",
    )
    found = validate(model, model, data=(inputs(), np.arange(200) % 3))
    assert found.agreement["top1"].point == found.agreement["cosine"].point == 1
    assert found.agreement["divergence"].point == found.agreement["relative_error"].point == 0
    json.dumps(found.as_dict(), allow_nan=False)


# ---- what cannot be ------------------------------------------------------------------------------------------------


def test_other_signatures(pair):
    """Models of other inputs and outputs are refused, with all differences at once."""
    good, _, x, _ = pair
    other = linear(outputs="float[N,4] q", body="q = MatMul(v, w)", inputs="float[N,6] v")
    with pytest.raises(ModelError, match="input 'x' is missing; the input 'v' is new; the output 'y' is missing"):
        validate(good, other, data=x)
    wide = linear(inputs="float[N,7] x", shape="7,4")
    with pytest.raises(ModelError, match=r"input 'x' is float32 \[N,6\] in the original and float32 \[N,7\]"):
        validate(good, wide)
    shaped = linear(outputs="float[N,3] y", shape="6,3")
    with pytest.raises(ModelError, match=r"gives other outputs .* 'y' is float32 \[200,3\], not float32 \[200,4\]"):
        validate(good, shaped, data=x)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (np.full(200, 4), "the label of sample 0 is 4; the output 'y' has the classes 0 to 3"),
        (np.where(np.arange(200) == 77, -1, 0), "the label of sample 77 is -1"),
        (np.zeros(200, np.float32), "not class numbers: store them as integers"),
        (np.eye(4, dtype=int)[np.arange(200) % 4], r"labels.argmax\(1\)"),
        (np.zeros((200, 2, 2), int), r"the labels are int64 \[200,2,2\]"),
        (np.zeros(100, int), "the numbers of samples"),
    ],
)
def test_wrong_labels(pair, y, words):
    """Labels of another range, type or shape are refused before a metric is made of them."""
    good, bad, x, _ = pair
    with pytest.raises(DataError, match=words):
        validate(good, bad, data=(x, y), max_drop=1.0, metric="accuracy")


@pytest.mark.parametrize(
    ("data", "words"),
    [(inputs(), "has no labels"), (inputs()[:0], "it is empty"), (inputs()[:1], "2"), (inputs() * np.nan, "NaN")],
)
def test_data_that_do_not_do(pair, data, words):
    """Data without labels, without samples, with one sample or with NaN are errors where a drop is asked for."""
    good, bad, _, _ = pair
    with pytest.raises(DataError, match=words):
        validate(good, bad, data=data, max_drop=1.0)


def test_values_that_are_not_numbers():
    """Labels with NaN are an error that names the sample."""
    y = np.where(np.arange(200)[:, None] == 50, np.nan, np.zeros((200, 4)))
    with pytest.raises(DataError, match="the label of sample 50 is NaN"):
        validate(linear(), linear(), data=(inputs(), y), metric="mse")


def test_a_metric_that_fails(pair):
    """A function that raises or gives NaN is an error that names it."""
    good, bad, x, y = pair

    def raising(outputs, targets):
        raise KeyError("boxes")

    def undefined(outputs, targets):
        return float("nan")

    with pytest.raises(DataError, match="--metric raising raised KeyError: 'boxes'"):
        validate(good, bad, data=(x, y), metric=raising)
    with pytest.raises(DataError, match="--metric undefined gives nan for the original and nan for the candidate"):
        validate(good, bad, data=(x, y), metric=undefined)


def test_too_few_of_a_class(pair):
    """A metric that most resamples leave undefined has no interval, which is said."""
    _, _, x, _ = pair
    one = np.zeros(20, int)
    one[0] = 1
    model = linear(outputs="float[N,2] y", shape="6,2")

    def first(outputs, targets):
        return float("nan") if targets.sum() != 1 else 0.5

    with pytest.raises(DataError, match="no interval: more samples, of all classes"):
        validate(model, model, data=(x[:20], one), metric=first)


def test_a_model_that_gives_nan(pair):
    """A candidate that gives NaN is refused, with the output and the sample."""
    good, _, x, y = pair
    model = linear(outputs="float[N,4] y", body="h = MatMul(x, w)\n s = Sqrt(x)\n t = ReduceSum(s)\n y = Add(h, t)")
    with pytest.raises(ModelError, match="the candidate 'g' gives NaN in output 'y', for sample 0"):
        validate(good, model, data=(x, y))


def test_a_model_that_fails(pair):
    """A candidate that fails at run time is named in the error."""
    good, _, x, y = pair
    shaped = "h = MatMul(x, w)\n n = Constant<value_ints = [5, 4]>()\n y = Reshape(h, n)"
    with pytest.raises(ModelError, match=r"the candidate 'g': onnxruntime refuses the model at .*Reshape"):
        validate(good, linear(body=shaped), data=(x, y))


def test_memory(pair):
    """Outputs that a metric needs all at once are kept up to a limit."""
    good, bad, x, y = pair
    with pytest.raises(ResourceError, match="--metric roc_auc needs the outputs of all samples at once"):
        validate(good, bad, data=(x, y), metric="roc_auc", memory=2000)
    assert validate(good, bad, data=(x, y), metric="accuracy", memory=1).metric


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_drop": 1.0, "metric": "f1"}, "--max-drop, --metric: give --data"),
        ({"min_agreement": 0.9}, "--min-agreement: give --data"),
        ({"data": TEST, "metric": "acuracy"}, "did you mean 'accuracy'"),
        ({"data": TEST, "samples": 1}, "--samples 1"),
        ({"latency_seconds": 0.0}, "--latency-seconds 0"),
    ],
)
def test_options_that_contradict(given, words):
    """What cannot be measured with what is given is a usage error, before any work."""
    with pytest.raises(UsageError, match=words):
        validate(FIXTURES / "vgg_legacy.onnx", FIXTURES / "vgg_legacy.onnx", **given)


def test_drop_without_a_metric():
    """A drop of labels that are no classes is asked for a metric."""
    with pytest.raises(DataError, match=r"--max-drop needs a metric: .*name a --metric"):
        validate(linear(), linear(), data=(inputs(), np.zeros((200, 7), np.float32)), max_drop=1.0)


def test_no_model(tmp_path):
    """A file that is not there is an error that names it."""
    with pytest.raises(FileError, match="there is no file"):
        validate(FIXTURES / "vgg_legacy.onnx", tmp_path / "none.onnx")


def test_one_pass(pair, monkeypatch):
    """Each model runs every sample exactly once."""
    good, bad, x, y = pair
    seen = []
    run = runtime.Session.run
    monkeypatch.setattr(runtime.Session, "run", lambda s, f, n=None: seen.append(len(f["x"])) or run(s, f, n))
    validate(good, bad, data=(x, y), metric="roc_auc")
    assert sum(seen) == 2 * len(x)
