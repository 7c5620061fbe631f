"""Train the tiny networks of fixtures/, export them to ONNX, and write their data and their table of facts.

python tools/make_fixtures.py [--out fixtures] [--only NAME]    train and export; needs torch and onnxscript
python tools/make_fixtures.py --check [--out fixtures]          measure the files again and compare; no torch
"""

from __future__ import annotations

import argparse
import copy
import difflib
import functools
import logging
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

SEED = 0
EPOCHS = 60
LONGER = {"tiny_vit": 100}  # has no convolutions' prior to start from
LEGACY_OPSET = 17
MAX_BYTES = 300_000
MIN_ACCURACY = 0.95
MAX_DIFFERENCE = 1e-4  # logits, onnxruntime against torch
MIN_MARGIN = 1e-3  # between the two largest logits: accuracies must not hang on another CPU's rounding
COMMAND = "python tools/make_fixtures.py"


@dataclass(frozen=True)
class Fixture:
    """One network of the table: which weights, what it is for, and the batch size of each export (0: dynamic)."""

    weights: str
    legacy_batch: int
    dynamo_batch: int
    about: str


FIXTURES = {
    "resnet_bn": Fixture(
        "resnet",
        0,
        0,
        "residual, BatchNormalization nodes kept; shortcuts: identity, option A "
        "(padded channels), strided 1x1 convolution",
    ),
    "resnet_folded": Fixture("resnet", 1, 0, "the weights of resnet_bn with BN folded into the convolutions"),
    "vgg": Fixture("vgg", 0, 1, "convolutions, max pooling, Flatten of 2x2 pixels per channel, two linear layers"),
    "mobile": Fixture("mobile", 1, 0, "depthwise separable layer, inverted residuals, ReLU6 (Clip)"),
    "dense": Fixture("dense", 0, 1, "DenseNet concatenation, BN before the convolutions"),
    "senet": Fixture("senet", 0, 0, "squeeze-and-excitation with a Sigmoid gate, HardSwish"),
    "tiny_vit": Fixture("tiny_vit", 0, 1, "class token, fused qkv, multi-head attention, LayerNorm, GELU MLP"),
}
METADATA = {"resnet_bn_legacy": {"task": "digits"}}  # every other file has none


# --- data ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    """The fixed split; images are float32 [n, 1, 8, 8] in -1..1, labels int64 [n]."""

    train: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    calib: NDArray[np.float32]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def load_digits() -> Digits:
    """Split scikit-learn's digits by SEED: 1,297 for training, 512 of them for calibration too, 500 for testing."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    pixels, labels = datasets.load_digits(return_X_y=True)
    images = (pixels / 8 - 1).astype(np.float32).reshape(-1, 1, 8, 8)
    train, test, train_labels, test_labels = train_test_split(
        images, labels.astype(np.int64), test_size=500, stratify=labels, random_state=SEED
    )
    return Digits(train, train_labels, train[:512], test, test_labels)


def write_data(out: Path, digits: Digits) -> None:
    """Write the calibration and test arrays; their keys are the models' input name, and `labels`."""
    np.savez_compressed(out / "digits_calib.npz", input=digits.calib)
    np.savez_compressed(out / "digits_test.npz", input=digits.test, labels=digits.test_labels)


# --- training (torch) ----------------------------------------------------------------------------------------------


@functools.cache
def trained(weights: str) -> torch.nn.Module:
    """Train one network of fixture_networks.py on the training images, from SEED."""
    import torch
    import torch.nn.functional as F  # noqa: N812
    from fixture_networks import BUILDERS

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    digits = load_digits()
    images, labels = torch.from_numpy(digits.train), torch.from_numpy(digits.train_labels)
    network = BUILDERS[weights]().train()
    epochs, batches = LONGER.get(weights, EPOCHS), len(images) // 64
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images))[: batches * 64].view(batches, 64):
            loss = F.cross_entropy(network(shifted(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return network.eval()


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Move the batch by at most one pixel in each direction; background enters."""
    import torch

    y, x = torch.randint(3, (2,)).tolist()
    return torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)[:, :, y : y + 8, x : x + 8]


# --- export (torch) ------------------------------------------------------------------------------------------------


def export_legacy(network: torch.nn.Module, batch: int, keep_bn: bool) -> onnx.ModelProto:
    """Export with the TorchScript exporter."""
    import torch
    from torch.onnx import TrainingMode

    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        torch.onnx.export(
            network,
            (torch.zeros(batch or 2, 1, 8, 8),),
            file.name,
            dynamo=False,
            opset_version=LEGACY_OPSET,
            training=TrainingMode.PRESERVE if keep_bn else TrainingMode.EVAL,
            do_constant_folding=not keep_bn,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes=None if batch else {"input": {0: "batch"}, "logits": {0: "batch"}},
        )
        return onnx.load(file.name)


def export_dynamo(network: torch.nn.Module, batch: int, keep_bn: bool) -> onnx.ModelProto:
    """Export with today's default exporter and its default opset."""
    import torch
    from onnxscript import optimizer

    # it reports every package that it does without
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    program = torch.onnx.export(
        network,
        (torch.zeros(batch or 2, 1, 8, 8),),
        dynamo=True,
        optimize=not keep_bn,
        verbose=False,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=None if batch else ({0: "batch"},),
    )
    if program is None:
        raise SystemExit("the dynamo exporter returned nothing")
    if keep_bn:  # the exporter's own optimisation without its rewrite rules, one of which folds BN
        optimizer.fold_constants(program.model)
        optimizer.remove_unused_nodes(program.model)
    return program.model_proto


def exported(name: str, exporter: str) -> onnx.ModelProto:
    """Train if need be, export, and strip what depends on this machine (paths, stack traces)."""
    from fixture_networks import fold_batch_norms

    fixture = FIXTURES[name]
    network = trained(fixture.weights)
    if name == "resnet_folded":
        network = fold_batch_norms(copy.deepcopy(network))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about their own future
        if exporter == "legacy":
            model = export_legacy(network, fixture.legacy_batch, name == "resnet_bn")
        else:
            model = export_dynamo(network, fixture.dynamo_batch, name == "resnet_bn")
    strip(model)
    onnx.helper.set_model_props(model, METADATA.get(f"{name}_{exporter}", {}))
    return model


def strip(model: onnx.ModelProto) -> None:
    """Remove every doc string and metadata entry, in place."""
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")


# --- measuring (onnxruntime) ---------------------------------------------------------------------------------------


def run(model: bytes, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [n, 10] of a serialized model, in the batch size it was exported with."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]
    step = batch if isinstance(batch, int) else len(images)
    return np.concatenate([session.run(None, {"input": images[i : i + step]})[0] for i in range(0, len(images), step)])


def verified(name: str, exporter: str, digits: Digits) -> bytes:
    """Export, check against torch and the limits above, and serialize; raise SystemExit naming every fault."""
    import torch

    model = exported(name, exporter)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    logits = run(content, digits.test)
    with torch.no_grad():
        expected = trained(FIXTURES[name].weights)(torch.from_numpy(digits.test)).numpy()
    difference = float(np.abs(logits - expected).max())
    accuracy = float((logits.argmax(1) == digits.test_labels).mean())
    second, first = np.sort(logits, axis=1)[:, -2:].T
    margin = float((first - second).min())
    faults = {
        f"accuracy {accuracy:.3f} is below {MIN_ACCURACY}": accuracy < MIN_ACCURACY,
        f"logits differ from torch's by {difference:.2g}": not difference <= MAX_DIFFERENCE,
        f"the two largest logits of an image are only {margin:.2g} apart": margin < MIN_MARGIN,
        f"{len(content)} bytes, allowed are {MAX_BYTES}": len(content) > MAX_BYTES,
        "external data": any(onnx.external_data_helper.uses_external_data(t) for t in model.graph.initializer),
        "BatchNormalization is missing": name == "resnet_bn" and not has_bn(model),
        "BatchNormalization is present": name == "resnet_folded" and has_bn(model),
    }
    if found := [fault for fault, present in faults.items() if present]:
        raise SystemExit(f"{name}, {exporter} exporter: {'; '.join(found)}; nothing written for it")
    print(
        f"  {exporter}: {len(content)} bytes, accuracy {accuracy:.3f}, max difference from torch {difference:.1e}, "
        f"smallest margin {margin:.1e}",
        flush=True,
    )
    return content


def has_bn(model: onnx.ModelProto) -> bool:
    """Whether a BatchNormalization node is left in the graph."""
    return any(node.op_type == "BatchNormalization" for node in model.graph.node)


# --- the table -----------------------------------------------------------------------------------------------------

README = """\
# Fixtures

Tiny networks trained on scikit-learn's digits (1,797 grey images of 8x8 pixels, 10 classes), made by

    {command}

with seed {seed}; `{command} --check` measures them again, without torch.
The bytes are the same on every run with one CPU and one torch version (these: {torch}); another CPU may train slightly
different weights.

| file | exporter | opset | batch | parameters | bytes | test accuracy |
|--|--|--|--|--|--|--|
{table}

Parameters are the elements of all floating-point initializers and constants, accuracy is onnxruntime's on the 500
images of `digits_test.npz`.

{about}

The data: `digits_test.npz` (`input` float32 [500, 1, 8, 8], `labels` int64 [500]) and `digits_calib.npz` (`input`
float32 [512, 1, 8, 8], no labels; taken from the 1,297 training images). The split is stratified. Every model takes
`input` = pixels (0..16) / 8 - 1 and returns `logits` [batch, 10]. `digits_calib.npz` is for `--data`, `digits_test.npz`
for measuring: do not choose anything by it. What cuts with and without recovery leave of some of these networks is in
[recovery.md](../onnxprune/pages/recovery.md#what-to-expect).

Doc strings and metadata were stripped after export; only `resnet_bn_legacy.onnx` has metadata, `task` = `digits`, for
testing that it survives.

[cifar10/](cifar10/README.md) holds three larger networks trained on photographs, made by `tools/train_nets.py`; the
tests that run over every fixture leave them out.
"""


def row(path: Path, test: NDArray[np.float32], labels: NDArray[np.int64]) -> str:
    """One line of the table, measured from the file."""
    model = onnx.load(path)
    exporter = path.stem.rpartition("_")[2]
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    accuracy = (run(path.read_bytes(), test).argmax(1) == labels).mean()
    cells = (
        path.name,
        exporter,
        model.opset_import[0].version,
        batch.dim_value or "dynamic",
        parameters(model),
        path.stat().st_size,
        f"{accuracy:.3f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def parameters(model: onnx.ModelProto) -> int:
    """Elements of all floating-point initializers and Constant nodes."""
    constants = [a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute]
    tensors = [t for t in (*model.graph.initializer, *constants) if t.data_type == onnx.TensorProto.FLOAT]
    return sum(int(np.prod(t.dims)) for t in tensors)


def readme(out: Path) -> str:
    """The text of README.md, measured from the files in `out`."""
    with np.load(out / "digits_test.npz") as data:
        test, labels = data["input"], data["labels"]
    names = [f"{name}_{exporter}.onnx" for name in FIXTURES for exporter in ("legacy", "dynamo")]
    paths = [path for name in names if (path := out / name).exists()]
    producers = {onnx.load(path).producer_version.partition("+")[0] for path in paths}
    return README.format(
        command=COMMAND,
        seed=SEED,
        torch=", ".join(sorted(producers)),
        table="\n".join(row(path, test, labels) for path in paths),
        about="\n".join(f"- `{name}`: {fixture.about}" for name, fixture in FIXTURES.items()),
    )


# --- commands ------------------------------------------------------------------------------------------------------


def make(out: Path, names: list[str]) -> int:
    """Train, export and verify the named networks, then write the data and the README."""
    digits = load_digits()
    out.mkdir(parents=True, exist_ok=True)
    write_data(out, digits)
    for name in names:
        start = time.perf_counter()
        trained(FIXTURES[name].weights)
        print(f"{name}: trained in {time.perf_counter() - start:.1f} s", flush=True)
        for exporter in ("legacy", "dynamo"):
            (out / f"{name}_{exporter}.onnx").write_bytes(verified(name, exporter, digits))
    (out / "README.md").write_text(readme(out), encoding="utf-8")
    return 0


def check(out: Path) -> int:
    """Compare README.md with what the files measure now; print the difference and return 1 if there is one."""
    stated = (out / "README.md").read_text(encoding="utf-8").splitlines()
    difference = list(difflib.unified_diff(stated, readme(out).splitlines(), "stated", "measured", n=0, lineterm=""))
    print("\n".join(difference) or f"{out}: all files are as README.md states")
    return 1 if difference else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("fixtures"), help="folder to write to or to check")
    parser.add_argument("--only", choices=FIXTURES, help="make only this network")
    parser.add_argument("--check", action="store_true", help="measure the files again and compare with README.md")
    options = parser.parse_args(arguments)
    if options.check:
        return check(options.out)
    return make(options.out, [options.only] if options.only else list(FIXTURES))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
