"""The hand-off to other training code, and the way back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from commands import done, run
from graphs import proto

import onnxprune
from onnxprune.errors import FileError, ModelError
from onnxprune.finetuning import safetensors
from onnxprune.finetuning.bundle import write_weights

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "fixtures"
TEACHER, TRAIN = FIXTURES / "resnet_bn_dynamo.onnx", FIXTURES / "digits_calib.npz"
FILES = {"weights.safetensors", "map.json", "train.py", "README.md", "pruned.onnx", "teacher.onnx", "plan.json"}


@pytest.fixture(scope="module")
def cut():
    """A cut network and its plan."""
    return onnxprune.compress(TEACHER, flops=0.5, recover="none")


@pytest.fixture
def bundle(cut, tmp_path):
    """A bundle of it."""
    onnxprune.handoff(cut.model, tmp_path / "bundle", teacher=TEACHER, plan=cut.plan)
    return tmp_path / "bundle"


def arrays(model):
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def held(path):
    return safetensors.loads(path.read_bytes(), str(path))[0]


def test_what_a_bundle_holds(cut, bundle):
    """Models, plan, weights by initializer name, and a map with the kept indices of the original."""
    assert {p.name for p in bundle.iterdir()} == FILES
    assert onnx.load(bundle / "pruned.onnx") == cut.model
    assert onnx.load(bundle / "teacher.onnx") == onnx.load(TEACHER)
    assert onnxprune.api.read_plan(bundle / "plan.json") == cut.plan
    weights, told = held(bundle / "weights.safetensors"), json.loads((bundle / "map.json").read_text())
    original = arrays(onnxprune.clean(TEACHER))
    assert (told["inputs"], told["outputs"]) == (["input"], ["logits"])
    assert set(told["initializers"]) == set(weights) <= set(arrays(cut.model))
    for name, entry in told["initializers"].items():
        kept = original[name]
        for axis, indices in entry["kept"].items():
            kept = kept.take(indices, int(axis))
        np.testing.assert_array_equal(weights[name], kept)  # the bare cut: the original's values
        assert (entry["shape"], entry["dtype"]) == (list(kept.shape), str(kept.dtype))
    assert any(e["kept"] for e in told["initializers"].values())
    trained = {n for n, e in told["initializers"].items() if e["trained"]}
    assert "stem.0.conv.weight" in trained
    assert any("running_mean" in n for n in set(weights) - trained)


def test_without_teacher_and_plan(cut, tmp_path):
    """Both may be missing; the README then does not speak of them."""
    written = onnxprune.handoff(cut.model, tmp_path / "b")
    assert {p.name for p in written} == FILES - {"teacher.onnx", "plan.json"}
    page = (tmp_path / "b" / "README.md").read_text()
    assert "teacher" not in page
    assert "plan" not in page
    assert "on the labels" in page


def test_an_existing_bundle_is_kept(cut, bundle, tmp_path):
    """Files that are there are only replaced on request, and a failure leaves nothing new."""
    before = (bundle / "map.json").read_bytes()
    with pytest.raises(FileError, match="exists: use --force"):
        onnxprune.handoff(cut.model, bundle)
    assert (bundle / "map.json").read_bytes() == before
    onnxprune.handoff(cut.model, bundle, force=True)
    with pytest.raises(FileError, match="cannot write the folder"):
        onnxprune.handoff(cut.model, tmp_path / "none" / "b")


def test_the_plan_of_another_model(cut, tmp_path):
    """It is refused before anything is written."""
    with pytest.raises(ModelError, match="the plan is not that of this model: '"):
        onnxprune.handoff(cut.model, tmp_path / "b", plan=onnxprune.make_plan(TEACHER, flops=0.2))
    assert not (tmp_path / "b").exists()


def test_a_plan_or_a_teacher_of_another_architecture(cut, tmp_path):
    """So are those of a model with other names, or with other inputs."""
    plan = onnxprune.make_plan(FIXTURES / "vgg_legacy.onnx", flops=0.5)
    with pytest.raises(ModelError, match="the plan is not that of this model: it cuts '"):
        onnxprune.handoff(cut.model, tmp_path / "b", plan=plan)
    vit = FIXTURES / "tiny_vit_legacy.onnx"  # takes and gives the same
    with pytest.raises(ModelError, match="the plan is not that of the teacher: it cuts '"):
        onnxprune.handoff(cut.model, tmp_path / "b", teacher=vit, plan=cut.plan)
    with pytest.raises(ModelError, match=r"the plan is not that of the teacher: it keeps index .* of '"):
        onnxprune.handoff(cut.model, tmp_path / "b", teacher=cut.model, plan=cut.plan)
    other = proto("g (float[N,3] x) => (float[N,3] y) <float[3,3] w> { y = MatMul(x, w) }")
    with pytest.raises(ModelError, match="the teacher must be the original of the model"):
        onnxprune.handoff(cut.model, tmp_path / "b", teacher=other)
    assert not (tmp_path / "b").exists()


def test_there_and_back(cut, bundle):
    """Weights that did not change change nothing; others change exactly themselves."""
    same = onnxprune.absorb(cut.model, bundle / "weights.safetensors")
    assert same.model == cut.model
    assert (same.changed, same.missing) == ({}, ())
    weights = held(bundle / "weights.safetensors")
    name = "stem.0.conv.weight"
    new = weights[name].copy()
    new[0] += 0.5 * np.abs(new).max()
    back = onnxprune.absorb(cut.model, {name: new})
    assert back.changed == {name: pytest.approx(0.5)}
    assert name not in back.missing
    assert back.missing
    was, now = arrays(cut.model), arrays(back.model)
    assert [n for n in was if not np.array_equal(was[n], now[n])] == [name]
    np.testing.assert_array_equal(now[name], new)
    assert back.model.graph.node == cut.model.graph.node


W = "stem.0.conv.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: {"stem.0.conv.weigth": w[W]},
            r"there is no weight 'stem.0.conv.weigth' \(is it 'stem.0.conv.weight'\?\)",
        ),
        (lambda w: {W: w[W][1:]}, r"has the shape \[\d+, 1, 3, 3\] instead of"),
        (lambda w: {W: w[W].astype(np.float64)}, "is float64 instead of float32"),
        (lambda w: {W: np.full_like(w[W], np.nan)}, "has 108 values that are not finite"),
        (lambda w: {W: w[W][1:], "other": w[W]}, r"(?s)shape.*; there is no weight 'other'"),
        (lambda w: {}, "holds no weights"),
    ],
    ids=["name", "shape", "type", "NaN", "two problems", "empty"],
)
def test_what_does_not_fit(cut, bundle, change, message):
    """Names, shapes, types and values are checked, all at once."""
    with pytest.raises(ModelError, match=message):
        onnxprune.absorb(cut.model, change(held(bundle / "weights.safetensors")))


def test_a_bundle_of_another_model(cut, bundle):
    """A bundle says which model it was made of, in the weights and beside them."""
    other = onnxprune.compress(TEACHER, flops=0.5, recover="none", method="random").model
    with pytest.raises(ModelError, match="was made of another model"):
        onnxprune.absorb(other, bundle / "weights.safetensors")
    write_weights(bundle / "weights.safetensors", held(bundle / "weights.safetensors"))  # as training code would
    with pytest.raises(ModelError, match="was made of another model"):
        onnxprune.absorb(other, bundle / "weights.safetensors")
    onnxprune.absorb(cut.model, bundle / "weights.safetensors")


def test_int8_weights_keep_their_type(tmp_path):
    """Weights that are stored as int8 go out and come back as int8."""
    model = proto("""g (float[N,4] x) => (float[N,3] y) <int8[4,3] q, float s = {0.1}> {
        w = DequantizeLinear(q, s)
        y = MatMul(x, w)
    }""")
    onnxprune.handoff(model, tmp_path / "b")
    weights = held(tmp_path / "b" / "weights.safetensors")
    assert weights["q"].dtype == np.int8
    back = onnxprune.absorb(model, {"q": weights["q"] // 2})
    np.testing.assert_array_equal(arrays(back.model)["q"], weights["q"] // 2)


def test_the_commands(cut, tmp_path):
    """`handoff` and `absorb` do the same, and tell it as text or JSON."""
    onnx.save(cut.model, small := tmp_path / "small.onnx")
    told = json.loads(done("handoff", small, "--teacher", TEACHER, "-o", tmp_path / "b", "--json").stdout)
    assert set(told["files"]) == FILES - {"plan.json"}
    assert "README.md there says how" in done("handoff", small, "-o", tmp_path / "c").stdout
    weights = held(tmp_path / "b" / "weights.safetensors")
    write_weights(tmp_path / "b" / "weights.safetensors", {W: weights[W] * 2})
    line = ("absorb", small, tmp_path / "b" / "weights.safetensors")
    told = json.loads(done(*line, "-o", tmp_path / "t.onnx", "--json").stdout)
    assert told["changed"] == {W: 1.0}
    np.testing.assert_array_equal(arrays(onnx.load(tmp_path / "t.onnx"))[W], weights[W] * 2)
    text = done(*line).stdout
    assert "1 weights changed, 0 did not.\nMost: 'stem.0.conv.weight', by 1 of its largest value." in text
    assert (tmp_path / "small.tuned.onnx").exists()
    assert run(*line).exit_code == 4, "it exists"
    assert run("absorb", small, TRAIN, "-o", tmp_path / "u.onnx").exit_code == 3


def test_the_script_as_a_user_runs_it(cut, bundle, tmp_path):
    """train.py of the bundle trains as its README says, and `absorb` takes what it wrote."""
    pytest.importorskip("torch")
    line = [sys.executable, bundle / "train.py", TRAIN, "--epochs", "2", "--lr", "0.003"]
    finished = subprocess.run(list(map(str, line)), capture_output=True, text=True, cwd=tmp_path, check=False)
    assert finished.returncode == 0, finished.stderr
    first, second = (float(x.split("loss ")[1]) for x in finished.stdout.splitlines()[:2])
    assert second < first
    back = onnxprune.absorb(cut.model, bundle / "weights.safetensors")
    assert len(back.changed) > 20
    assert back.missing == ()


X = np.random.default_rng(1).standard_normal((256, 4)).astype(np.float32)
ENDS_IN_SOFTMAX = """g (float[N,4] x) => (float[N,3] y, int64[N] best) <float[4,3] w> {
    h = MatMul(x, w)
    y = Softmax <axis = 1> (h)
    best = ArgMax <axis = 1, keepdims = 0> (y)
}"""


def other_weights(model):
    """A copy of it with weights of which the answers are not those of the model."""
    new = np.random.default_rng(7).standard_normal((4, 3)).astype(np.float32)
    return onnxprune.absorb(model, {"w": new}).model


def answers(model):
    """The classes that a model finds."""
    return onnxruntime.InferenceSession(model.SerializeToString()).run(["best"], {"x": X})[0]


def run_script(folder, data, *line):
    """The script of a bundle, on some arrays."""
    np.savez(folder / "data.npz", **data)
    line = [sys.executable, folder / "train.py", folder / "data.npz", "--lr", 0.1, *line]
    return subprocess.run(list(map(str, line)), capture_output=True, text=True, check=False)


@pytest.mark.parametrize("labelled", [False, True], ids=["teacher", "labels"])
def test_the_script_on_probabilities(tmp_path, labelled):
    """Of a network that ends in a softmax, the script compares what is before it, and it leaves whole numbers alone."""
    pytest.importorskip("torch")
    model = proto(ENDS_IN_SOFTMAX)
    teacher = other_weights(model)
    wanted = answers(teacher)
    onnxprune.handoff(model, tmp_path / "b", teacher=None if labelled else teacher)
    data = {"x": X, "labels": wanted.astype(np.uint8)} if labelled else {"x": X}
    ran = run_script(tmp_path / "b", data, "--epochs", 20, "--batch", 32)
    assert ran.returncode == 0, ran.stderr
    back = onnxprune.absorb(model, tmp_path / "b" / "weights.safetensors").model
    assert (answers(model) == wanted).mean() < 0.8
    assert (answers(back) == wanted).mean() > 0.97


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"z": X, "u": X, "labels": np.zeros(256, int)}, "'x'"),
        ({"x": np.zeros((256, 4), np.uint8), "labels": np.zeros(256, int)}, "--preprocess"),
        ({"x": np.zeros((256, 5), np.float32), "labels": np.zeros(256, int)}, "[256,5]"),
        ({"x": X, "labels": np.zeros(255, int)}, "255"),
        ({"x": X}, "there is neither teacher.onnx nor an array 'labels'"),
        ({"x": X, "labels": np.r_[[1] * 255, 3]}, "a label is not one of the classes 0..2"),
        ({"x": X, "labels": np.full(256, 1.5)}, "a label is not one of the classes 0..2"),
        ({"x": X * np.float32(np.nan), "labels": np.zeros(256, int)}, "NaN"),
        ({"x": np.clip(X, -1, 1) * np.float32(3e38), "labels": np.zeros(256, int)}, "in epoch 1: try a smaller --lr"),
    ],
    ids=["names", "type", "shape", "count", "no labels", "out of range", "no whole numbers", "NaN", "loss"],
)
def test_what_the_script_refuses(tmp_path, data, message):
    """It says in one line what is wrong with the data, ends where the loss is not finite, and leaves the weights."""
    pytest.importorskip("torch")
    onnxprune.handoff(proto(ENDS_IN_SOFTMAX), tmp_path / "b")
    before = (tmp_path / "b" / "weights.safetensors").read_bytes()
    ran = run_script(tmp_path / "b", data, "--batch", 32)
    assert ran.returncode == 1
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert (tmp_path / "b" / "weights.safetensors").read_bytes() == before


def test_the_script_without_a_file(tmp_path):
    """A source that is not there is named in one line; one array alone may have any name, or none."""
    pytest.importorskip("torch")
    onnxprune.handoff(proto(ENDS_IN_SOFTMAX), tmp_path / "b", teacher=proto(ENDS_IN_SOFTMAX))
    np.save(tmp_path / "x.npy", X)
    line = [sys.executable, str(tmp_path / "b" / "train.py"), "--epochs", "1"]
    absent, array = (
        subprocess.run([*line, str(tmp_path / name)], capture_output=True, text=True, check=False)
        for name in ("absent.npz", "x.npy")
    )
    assert absent.returncode == 1
    assert "absent.npz" in absent.stderr
    assert "Traceback" not in absent.stderr
    assert array.returncode == 0, array.stderr


def test_the_script_on_two_inputs(tmp_path):
    """The arrays of a file come in any order."""
    pytest.importorskip("torch")
    text = """g (float[N,4] x, float[N,5] u) => (float[N,3] y) <float[4,3] w, float[5,3] v> {
        h = MatMul(x, w)
        k = MatMul(u, v)
        y = Add(h, k)
    }"""
    onnxprune.handoff(proto(text), tmp_path / "b", teacher=proto(text))
    ran = run_script(tmp_path / "b", {"u": np.ones((64, 5), np.float32), "x": X[:64]}, "--epochs", 1)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(("ours", "theirs"), [("N", "4"), ("2", "3"), ("4", "N")])
def test_the_script_on_models_of_other_batches(tmp_path, ours, theirs):
    """The student and the teacher may each take a number of samples of their own at once."""
    pytest.importorskip("torch")
    student, teacher = (proto(ENDS_IN_SOFTMAX.replace("[N", f"[{n}")) for n in (ours, theirs))
    onnxprune.handoff(student, tmp_path / "b", teacher=teacher)
    ran = run_script(tmp_path / "b", {"x": X}, "--epochs", 1, "--batch", 32)
    assert ran.returncode == 0, ran.stderr
    few = run_script(tmp_path / "b", {"x": X[:1]}, "--epochs", 1)
    assert (few.returncode, "Traceback" in few.stderr) == (1, False)


def test_the_script_without_torch(tmp_path):
    """It names what to install."""
    onnxprune.handoff(proto(ENDS_IN_SOFTMAX), tmp_path / "b")
    np.savez(tmp_path / "data.npz", x=X)
    hide = f"import sys, runpy\nsys.modules['torch'] = None\nsys.argv = ['train.py', {str(tmp_path / 'data.npz')!r}]\n"
    hide += f"runpy.run_path({str(tmp_path / 'b' / 'train.py')!r}, run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.strip() == "the script needs torch: pip install 'onnxprune[finetune]'"
