"""Fine-tuning on the digits: what it gains, how it stops, and how it goes on."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import proto
from rich.console import Console

import onnxprune
from onnxprune.errors import DataError, FileError, ModelError, UnsupportedError, UsageError, VerificationError
from onnxprune.finetuning import tune as tuning
from onnxprune.finetuning.settings import TuneOptions
from onnxprune.report.tuning import tuning as as_text

FIXTURES = Path(__file__).parents[2] / "fixtures"
TEACHER, TRAIN = FIXTURES / "senet_dynamo.onnx", FIXTURES / "digits_calib.npz"
TEST = np.load(FIXTURES / "digits_test.npz")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Images with labels: half of those that are not for testing what is trained on them."""
    path = tmp_path_factory.mktemp("data") / "train.npz"
    np.savez(path, input=TEST["input"][:250], labels=TEST["labels"][:250])
    return path


def accuracy(model, start=0):
    """Share of right answers on the test images from `start` on."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return float((session.run(None, {"input": TEST["input"][start:]})[0].argmax(1) == TEST["labels"][start:]).mean())


def weights(model):
    """Bytes of all initializers."""
    return {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}


def words(report):
    """The report as text, without line ends."""
    console = Console(file=io.StringIO(), width=100, markup=False)
    console.print(as_text(report, "out.onnx"))
    return " ".join(console.file.getvalue().split())


def tune(model, **options):
    return onnxprune.finetune(
        model, **{"teacher": TEACHER, "data": TRAIN, "epochs": 2, "batch": 32, "lr": 3e-3} | options
    )


# ---- what it gains ------------------------------------------------------------------------------------------------


def test_distillation_beats_its_start(torch, cut):
    """A cut network at chance level has more than half of the test images right after four epochs, without labels."""
    assert accuracy(cut) < 0.2
    tuned = tune(cut, epochs=4, lr=0.01)
    assert accuracy(tuned.model) > 0.5
    report = tuned.report
    assert report.history[-1]["held_loss"] < 0.7 * report.history[0]["held_loss"]
    assert [e["epoch"] for e in report.history] == [0, 1, 2, 3, 4]
    assert report.stopped == ""
    assert max(report.proof.values()) < 1e-5
    assert set(report.shares) == {"teacher", "augment", "forward", "backward", "statistics", "evaluation"}


def test_the_teacher_is_worth_more_than_the_labels_alone(torch, labelled):
    """At equal steps, distillation with labels beats training on the labels only, on images that neither has seen; the
    margin, a point in the mean of two seeds, is half of what was measured.
    """
    teacher = FIXTURES / "tiny_vit_legacy.onnx"
    start = onnxprune.compress(teacher, flops=0.2, data=TRAIN, allocate="global").model
    found = {}
    for alpha in (0.0, 0.9):
        options = {"teacher": teacher, "data": labelled, "labels": True, "alpha": alpha, "epochs": 6, "patience": 9}
        runs = [tune(start, **options, take="last", seed=seed) for seed in (0, 1)]
        assert all(len(r.report.history) == 7 for r in runs)
        found[alpha] = np.mean([accuracy(r.model, 250) for r in runs])
    assert found[0.9] > found[0.0] + 0.01 > accuracy(start, 250) + 0.01


@pytest.mark.parametrize("name", ["resnet_folded_legacy", "resnet_bn_dynamo"])
def test_normalised_by_batch(torch, name):
    """Where the graph is one of convolutions, also for one sample at a time, they are normalised by batch while
    training; from a bare cut, more is gained in the same steps than with what was exported.
    """
    teacher = FIXTURES / f"{name}.onnx"
    start = onnxprune.compress(teacher, flops=0.2, data=TRAIN, allocate="global", align=1, recover="none").model
    report = {n: tune(start, teacher=teacher, epochs=4, norm=n, lr=0.01).report for n in ("batch", "frozen")}
    assert report["frozen"].normalised == 0
    assert report["batch"].normalised == 9  # of 12: in the last stage, a batch gives too few values
    assert report["batch"].history[-1]["held_loss"] < report["frozen"].history[-1]["held_loss"]
    assert report["batch"].history[0]["held_loss"] == pytest.approx(report["frozen"].history[0]["held_loss"], rel=1e-3)
    assert max(report["batch"].proof.values()) < 1e-4


def test_the_graph_stays(torch, cut):
    """Only weights change: nodes, names, operator set and signature are those of the cut model, which is not touched."""
    before = cut.SerializeToString()
    tuned = tune(cut, epochs=1).model
    assert cut.SerializeToString() == before
    assert weights(tuned) != weights(cut)
    assert weights(tuned).keys() == weights(cut).keys()
    for model in (one := onnx.ModelProto(), two := onnx.ModelProto()):
        model.CopyFrom(tuned if model is one else cut)
        model.graph.ClearField("initializer")
    assert one == two


def test_the_same_seed_gives_the_same_bytes(torch, cut):
    """Training is deterministic on the CPU; another seed gives other weights."""
    first, second, other = (tune(cut, seed=s, limit=128).model for s in (1, 1, 2))
    assert first == second
    assert weights(first) != weights(other)


def test_the_feature_before_the_classifier(torch):
    """With beta, the tensor before the classifier is compared, too: of the channels that the plan kept."""
    result = onnxprune.compress(TEACHER, flops=0.2, recover="none", align=1)
    with_plan = tune(result.model, beta=1.0, plan=result.plan, limit=128)
    assert weights(with_plan.model) != weights(tune(result.model, limit=128).model)
    with pytest.raises(UsageError, match="give the plan with --plan"):
        tune(result.model, beta=1.0)
    other = onnxprune.make_plan(TEACHER, flops=0.5, align=1)
    with pytest.raises(UsageError, match="the plan does not say"):
        tune(result.model, beta=1.0, plan=other)


def test_sgd_and_squared_errors(torch, cut):
    """SGD works as well, and any output can be compared by its squared error."""
    report = tune(cut, optimizer="sgd", lr=0.05, loss="mse").report
    assert report.history[-1]["held_loss"] < report.history[0]["held_loss"]


def test_accuracy_where_there_are_labels(torch, cut, labelled):
    """With labels, every epoch tells the accuracy on what was held out, as onnxruntime has it, and the original's."""
    network = onnx.load(TEACHER)
    with np.load(labelled) as found:
        told = {n: found[n] for n in ("input", "labels")}
    told["labels"] = (told["labels"] + (np.arange(250) % 3 == 0)) % 10  # a third is wrong
    report = tune(cut, data=told, labels=True, epochs=1).report
    held = np.sort(np.random.default_rng([0, 0]).permutation(250)[: report.held])
    for model, share in ((network, report.teacher_accuracy), (cut, report.history[0]["accuracy"])):
        session = onnxruntime.InferenceSession(model.SerializeToString())
        answers = session.run(None, {"input": told["input"][held]})[0].argmax(1)
        assert share == pytest.approx((answers == told["labels"][held]).mean())
    assert 0.5 < report.teacher_accuracy < 0.9
    assert "accuracy" in report.history[1]
    text = words(report)
    assert f"The original answers {report.teacher_accuracy:.1%} of these as labelled." in text
    assert f"{report.history[1]['accuracy']:.1%}" in text
    plain = tune(cut, epochs=1, limit=64).report
    assert plain.teacher_accuracy is None
    assert "accuracy" not in plain.history[0]
    assert "as labelled" not in words(plain)


def test_the_last_epoch_on_request(torch, cut):
    """take="last" gives the weights of the last epoch, also where an earlier one was better."""
    assert tune(cut, epochs=2, take="last", limit=128).report.epoch == 2


# ---- how it stops, and goes on ------------------------------------------------------------------------------------


def interrupting(after):
    """Ctrl-C at the end of an epoch."""

    def stop(epoch, _):
        if epoch == after:
            raise KeyboardInterrupt

    return stop


def test_resumed_is_uninterrupted(torch, cut, tmp_path):
    """A run that is interrupted and resumed gives the bytes of one that was not."""
    options = {"teacher": TEACHER, "data": TRAIN, "epochs": 4, "batch": 32, "lr": 3e-3, "views": 2, "augment": "shift"}
    options |= {"limit": 200, "take": "last"}
    whole = tuning.tune(cut, TuneOptions(**options))
    place = tmp_path / "c"
    first = tuning.tune(cut, TuneOptions(**options, checkpoint=place), interrupting(3))
    assert first.report.interrupted
    assert first.report.stopped == "interrupted in epoch 4"
    second = tuning.tune(cut, TuneOptions(**options, checkpoint=place, resume=True))
    assert weights(second.model) == weights(whole.model)
    told = [{k: v for k, v in e.items() if k != "seconds"} for e in second.report.history]
    assert told == [{k: v for k, v in e.items() if k != "seconds"} for e in whole.report.history]
    with pytest.raises(ModelError, match="belongs to other models, data or options"):
        tuning.tune(cut, TuneOptions(**options | {"seed": 1}, checkpoint=place, resume=True))
    place.write_bytes(b"something else")
    with pytest.raises(ModelError, match="is not a safetensors file"):
        tuning.tune(cut, TuneOptions(**options, checkpoint=place, resume=True))
    with pytest.raises(FileError, match="there is no file"):
        tuning.tune(cut, TuneOptions(**options, checkpoint=tmp_path / "none", resume=True))


def test_a_checkpoint_knows_its_labels(torch, cut, labelled, tmp_path):
    """A run is not resumed on the same images with other labels."""
    data, place = tmp_path / "train.npz", tmp_path / "c"
    data.write_bytes(labelled.read_bytes())
    options = {"teacher": TEACHER, "data": data, "labels": True, "epochs": 3, "batch": 32, "checkpoint": place}
    assert tuning.tune(cut, TuneOptions(**options), interrupting(2)).report.interrupted
    np.savez(data, input=TEST["input"][:250], labels=np.roll(TEST["labels"][:250], 1))
    with pytest.raises(ModelError, match="belongs to other models, data or options"):
        tuning.tune(cut, TuneOptions(**options, resume=True))


@pytest.mark.parametrize("number", [0, 100, 249])
def test_a_checkpoint_knows_all_its_inputs(torch, cut, labelled, tmp_path, number):
    """A run is not resumed where a single input has changed."""
    data, place = tmp_path / "train.npz", tmp_path / "c"
    data.write_bytes(labelled.read_bytes())
    options = {"teacher": TEACHER, "data": data, "epochs": 3, "batch": 64, "checkpoint": place}
    assert tuning.tune(cut, TuneOptions(**options), interrupting(2)).report.interrupted
    with np.load(labelled) as held:
        arrays = dict(held)
    arrays["input"][number] *= 0.5
    np.savez(data, **arrays)
    with pytest.raises(ModelError, match="belongs to other models, data or options"):
        tuning.tune(cut, TuneOptions(**options, resume=True))


def test_ctrl_c_keeps_the_best(torch, cut):
    """After Ctrl-C the weights are the best so far, and the report says so."""
    seen = {}

    def stop(epoch, arrays):
        seen[epoch] = arrays
        if epoch == 2:
            raise KeyboardInterrupt

    options = TuneOptions(teacher=TEACHER, data=TRAIN, epochs=9, batch=32, lr=3e-3, take="last")
    tuned = tuning.tune(cut, options, stop)
    assert tuned.report.interrupted
    assert tuned.report.epoch == 2
    held = weights(tuned.model)
    assert all(held[n] == a.tobytes() for n, a in seen[2].items())


def test_a_loss_that_is_not_finite(torch, cut):
    """It ends the run, says where, and leaves the last good weights: here those of the start."""
    tuned = tune(cut, lr=1e30, limit=64, batch=8, clip=1e30)
    assert tuned.report.failed
    assert "epoch 1, step" in tuned.report.stopped
    assert "the first value that is not finite is at" in tuned.report.stopped
    assert "Try a smaller --lr than 1e+30" in tuned.report.stopped
    assert weights(tuned.model) == weights(cut)


def test_a_held_out_loss_that_is_not_finite(torch, cut):
    """So does one that shows only after an epoch: here the one step of it ruins the weights."""
    tuned = tune(cut, lr=1e30, limit=64, batch=64, clip=1e30)
    assert tuned.report.failed
    assert tuned.report.stopped.startswith("the loss on held-out data was nan after epoch 1; the first value that is")
    assert "Try a smaller --lr than 1e+30" in tuned.report.stopped
    assert weights(tuned.model) == weights(cut)


def test_early_stop(torch):
    """Where nothing is gained on held-out data, it stops after `patience` epochs, with the start's weights."""
    model = onnx.load(TEACHER)
    report = tune(model, epochs=9, patience=2, limit=64).report
    assert report.stopped == "no better on held-out data since epoch 0"
    assert len(report.history) == 3
    assert report.epoch == 0


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0, "views": 9}, r"--epochs must be at least 1; --views 9: give 1 to 8"),
        ({"lr": -1.0}, "--lr -1.0: give a number above 0"),
        ({"alpha": 0.5}, "add --labels"),
        ({"alpha": 2.0, "labels": True}, r"--alpha 2.0 is not a share"),
        ({"optimizer": "lbfgs"}, "--optimizer 'lbfgs' is not known; choose one of: adam, sgd"),
        ({"temperature": 0.0}, "--temperature must be above 0"),
        ({"data": None}, "needs --data"),
        ({"resume": True}, "needs the checkpoint"),
        ({"limit": 1}, "--limit must be at least 2"),
        ({"plan": "plan.json"}, "--plan belongs to --beta, which is not given"),
        ({"labels": True, "alpha": 1.0}, "--alpha 1 leaves --labels no weight"),
        ({"loss": "mse", "temperature": 3.0}, "--loss mse has no --temperature"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, dict) else "",
)
def test_options_are_checked(options, message):
    """Wrong options are an error before anything is read, all at once; torch is not needed for it."""
    with pytest.raises(UsageError, match=message):
        tune("missing.onnx", **options)


def test_data_are_checked(torch, cut, labelled):
    """Labels that are missing or out of range, and too few samples, are errors."""
    with pytest.raises(DataError, match="has no labels: leave out --labels"):
        tune(cut, labels=True)
    with pytest.raises(DataError, match="label 17 of sample 3 is out of range"):
        tune(cut, labels=True, data={"input": TEST["input"][:20], "labels": np.r_[0, 1, 2, 17, [1] * 16]})
    with pytest.raises(DataError, match="gives 5 samples; fine-tuning needs 8"):
        tune(cut, data=TEST["input"][:5])


def test_nothing_to_train(torch):
    """A model in which no layer reads an initializer is refused: there is nothing that training could change."""
    model = proto("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    with pytest.raises(UnsupportedError, match=r"no initializer .* `onnxprune clean`"):
        tune(model, teacher=model, data=np.ones((16, 4), np.float32))


def test_sizes_that_the_model_leaves_open(torch):
    """Where the graph does not say how large images are, it is proved with those of the data."""
    model = proto("""g (float[N,3,H,W] x) => (float[N,4] y) <float[2,3,3,3] w, float[2] b, float[72,4] f> {
        h = Conv(x, w, b)
        k = Flatten(h)
        y = MatMul(k, f)
    }""")
    images = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)
    assert max(tune(model, teacher=model, data=images, epochs=1).report.proof.values()) < 1e-5


def test_another_teacher(torch, cut):
    """A teacher with other inputs or outputs is refused: it is not the original."""
    other = proto("g (float[N,3] x) => (float[N,3] y) <float[3,3] w> { y = MatMul(x, w) }")
    with pytest.raises(ModelError, match=r"the inputs of the model are input float32, those of the teacher x.*outputs"):
        tune(cut, teacher=other)


def test_the_proof_can_fail(torch, cut):
    """A module that is not the graph is noticed before it is trained."""
    from onnxprune.student import Network

    network = Network(cut)
    with torch.no_grad():
        next(iter(network.weights.values())).add_(0.1)
    with pytest.raises(VerificationError, match="torch and onnxruntime differ by"):
        tuning.prove(network, cut, {"input": (2, 1, 8, 8)}, 0)


# ---- without torch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["finetune", "compress"])
def test_without_torch(command, tmp_path):
    """Where torch is not installed, one message names the one command; the core works without it."""
    hide = "import sys\nimport importlib.util as u; found = u.find_spec\n"
    hide += "u.find_spec = lambda name, *a: None if name == 'torch' else found(name, *a)\n"
    hide += "sys.modules['torch'] = None\nfrom onnxprune.cli import main\nmain()"
    model, data = FIXTURES / "vgg_legacy.onnx", str(TRAIN)
    line = {"finetune": ["--teacher", model, "--data", data], "compress": ["--flops", "0.5", "--finetune", data]}[
        command
    ]
    run = [sys.executable, "-c", hide, command, model, *line, "-o", tmp_path / "o.onnx"]
    done = subprocess.run(list(map(str, run)), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'onnxprune[finetune]'" in done.stderr
    assert not list(tmp_path.iterdir())
    core = ["compress", str(model), "--flops", "0.5", "--recover", "none", "-o", str(tmp_path / "o.onnx")]
    assert command == "finetune" or subprocess.run([sys.executable, "-c", hide, *core], check=False).returncode == 0
