"""Train small VGG-, DenseNet-BC- and MobileNetV2-style networks on CIFAR-10 JPEG q75 from scratch, and export them.

python tools/train_nets.py DATA OUT [--only NAME ...] [--epochs N]     train, export, measure on the test images
python tools/train_nets.py DATA OUT --check                            measure the files again; no torch

DATA is a folder with cifar10_train_jpegbytes.npz and cifar10_test_jpegbytes.npz (keys jpeg, offsets, y: the 50,000 and
10,000 images of CIFAR-10, compressed as JPEG of quality 75). Training takes about a quarter of an hour per network on
one core; it sees the training images only, the last epoch is kept, and nothing is selected. Needs torch, onnxscript
and Pillow. The input is (pixel / 255 - mean) / deviation, both ImageNet's.
"""

from __future__ import annotations

import argparse
import io
import itertools
import logging
import math
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

SEED = 0
BATCH = 64
PAD = 4  # pixels that images are shifted by, at most
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
MAX_DIFFERENCE = 1e-3  # logits, onnxruntime against torch


@dataclass(frozen=True)
class Setting:
    """How one network is trained; half: whether products are taken in bfloat16, which is faster where a CPU can."""

    epochs: int
    rate: float
    half: bool


SETTINGS = {
    "vgg": Setting(6, 0.06, half=True),
    "mobilenet": Setting(3, 0.1, half=False),
    "densenet": Setting(5, 0.1, half=True),
}


# --- data ------------------------------------------------------------------------------------------------------------


def decoded(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [n, 32, 32, 3] and labels [n] of a packed JPEG file."""
    from PIL import Image

    with np.load(path) as packed:
        data, offsets, labels = packed["jpeg"].tobytes(), packed["offsets"], packed["y"].astype(np.int64)
    files = (io.BytesIO(data[start:end]) for start, end in itertools.pairwise(offsets))
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]), labels


def normalised(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[n, h, w, 3] uint8 -> float32 [n, 3, h, w]."""
    scaled = (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def moved(padded: NDArray[np.uint8], chosen: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The chosen images, each shifted by up to PAD pixels and mirrored by chance; padded: [n, 40, 40, 3]."""
    size, (dy, dx) = np.arange(32), rng.integers(0, 2 * PAD + 1, (2, len(chosen), 1))
    columns = np.where(rng.random((len(chosen), 1)) < 0.5, size, size[::-1]) + dx
    picked: NDArray[np.uint8] = padded[chosen[:, None, None], (size + dy)[:, :, None], columns[:, None, :]]
    return picked


# --- networks --------------------------------------------------------------------------------------------------------


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[torch.nn.Module]:
    """A convolution without bias, then batch normalisation."""
    from torch import nn

    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def vgg() -> torch.nn.Module:
    """Pairs of 3x3 convolutions of 24, 48, 96 and 128 filters, max pooling, two linear layers behind a Flatten."""
    from torch import nn

    layers: list[nn.Module] = []
    inputs = 3
    for width in (24, 48, 96, 128):
        layers += [*conv_bn(inputs, width), nn.ReLU(), *conv_bn(width, width), nn.ReLU(), nn.MaxPool2d(2)]
        inputs = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * inputs, 128), nn.ReLU(), nn.Linear(128, 10))


def densenet(growth: int = 12, layers: int = 5, bottleneck: int = 4) -> torch.nn.Module:
    """DenseNet-BC of three blocks on 16x16 pixels: bottlenecks of 4 * growth, transitions that halve the channels."""
    import torch
    from torch import nn

    class Layer(nn.Module):
        """BN, ReLU, 1x1, BN, ReLU, 3x3; the result is appended to the input."""

        def __init__(self, inputs: int) -> None:
            super().__init__()
            hidden = bottleneck * growth
            reduce, grow = nn.Conv2d(inputs, hidden, 1, bias=False), nn.Conv2d(hidden, growth, 3, padding=1, bias=False)
            self.layers = nn.Sequential(
                nn.BatchNorm2d(inputs), nn.ReLU(), reduce, nn.BatchNorm2d(hidden), nn.ReLU(), grow
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, self.layers(x)], 1)

    width = 2 * growth
    modules: list[nn.Module] = [nn.Conv2d(3, width, 3, 2, 1, bias=False)]
    for block in range(3):
        if block:
            half = nn.Conv2d(width, width // 2, 1, bias=False)
            modules += [nn.BatchNorm2d(width), nn.ReLU(), half, nn.AvgPool2d(2)]
            width //= 2
        modules += [Layer(width + growth * i) for i in range(layers)]
        width += growth * layers
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    return nn.Sequential(*modules, nn.BatchNorm2d(width), nn.ReLU(), *head)


def mobilenet(expand: int = 4) -> torch.nn.Module:
    """MobileNetV2 in small, on 16x16 pixels: inverted residuals, ReLU6."""
    from torch import nn

    class Inverted(nn.Module):
        """Expand, filter depthwise, project; a shortcut where the shapes allow it."""

        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            hidden = inputs * expand
            wide = [*conv_bn(inputs, hidden, 1), nn.ReLU6(), *conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6()]
            self.layers = nn.Sequential(*wide, *conv_bn(hidden, outputs, 1))
            self.residual = stride == 1 and inputs == outputs

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layers(x)
            return x + y if self.residual else y

    modules: list[nn.Module] = [*conv_bn(3, 24, 3, 2), nn.ReLU6()]
    inputs = 24
    for outputs, count, stride in ((24, 2, 1), (40, 2, 2), (64, 3, 2), (96, 1, 1)):
        for i in range(count):
            modules.append(Inverted(inputs, outputs, stride if i == 0 else 1))
            inputs = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)]
    return nn.Sequential(*modules, *conv_bn(inputs, 256, 1), nn.ReLU6(), *head)


BUILDERS = {"vgg": vgg, "mobilenet": mobilenet, "densenet": densenet}


# --- training (torch) ------------------------------------------------------------------------------------------------


def trained(name: str, images: NDArray[np.uint8], labels: NDArray[np.int64], epochs: int) -> torch.nn.Module:
    """Train one network from SEED: SGD with momentum under a one-cycle schedule, the last step's weights."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    rng, setting = np.random.default_rng(SEED), SETTINGS[name]
    network = BUILDERS[name]().to(memory_format=torch.channels_last).train()
    steps = len(images) // BATCH
    optimizer = torch.optim.SGD(network.parameters(), momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, setting.rate, total_steps=epochs * steps, pct_start=0.25)
    padded, start = np.pad(images, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)), mode="reflect"), time.perf_counter()
    for epoch in range(epochs):
        total = 0.0
        for chosen in rng.permutation(len(images))[: steps * BATCH].reshape(steps, BATCH):
            x = torch.from_numpy(normalised(moved(padded, chosen, rng))).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=setting.half):
                logits = network(x).float()
            loss = F.cross_entropy(logits, torch.from_numpy(labels[chosen]), label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        wall, cpu = (time.perf_counter() - start) / 60, time.process_time() / 60
        loss_text = f"mean loss {total / steps:.3f}"
        print(f"{name}: epoch {epoch + 1}/{epochs}, {loss_text}, {wall:.1f} min, {cpu:.1f} min of CPU", flush=True)
    return network.to(memory_format=torch.contiguous_format).eval()


def exported(network: torch.nn.Module) -> onnx.ModelProto:
    """Export with torch's default exporter, dynamic batch; what depends on this machine is stripped."""
    import torch

    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, 32, 32),),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
        )
    if program is None:
        raise SystemExit("the exporter returned nothing")
    model = program.model_proto  # made anew by every access
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    return model


# --- measuring (onnxruntime) -----------------------------------------------------------------------------------------


def logits_of(model: bytes, images: NDArray[np.float32], batch: int = 250) -> NDArray[np.float32]:
    """Logits [n, 10] of a serialized model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    parts = range(0, len(images), batch)
    return np.concatenate([session.run(None, {"image": images[i : i + batch]})[0] for i in parts])


def measured(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    """One line of facts: parameters, bytes and top-1 on the test images, with its standard error."""
    model = onnx.load(path)
    hits = logits_of(path.read_bytes(), normalised(images)).argmax(1) == labels
    parameters = sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    error = 100 * hits.std() / math.sqrt(len(hits))
    size = f"opset {model.opset_import[0].version}, {parameters} parameters, {path.stat().st_size} bytes"
    return f"{path.name}: {size}, top-1 {100 * hits.mean():.2f} +- {error:.2f} % on {len(hits)} test images"


def make(name: str, data: Path, out: Path, epochs: int) -> None:
    """Train, export, compare with torch and write one network."""
    import torch

    images, labels = decoded(data / "cifar10_train_jpegbytes.npz")
    network = trained(name, images, labels, epochs)
    model = exported(network)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    few = normalised(images[:256])
    with torch.no_grad():
        difference = float(np.abs(network(torch.from_numpy(few)).numpy() - logits_of(content, few)).max())
    if not difference <= MAX_DIFFERENCE:
        raise SystemExit(f"{name}: logits of the export differ from torch's by {difference:.2g}; nothing written")
    (out / f"cifar10_{name}.onnx").write_bytes(content)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the packed JPEG files")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--only", nargs="+", choices=BUILDERS, default=list(BUILDERS), help="networks")
    parser.add_argument("--epochs", type=int, help="instead of each network's own number")
    parser.add_argument("--check", action="store_true", help="measure what is there")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in [] if given.check else given.only:
        make(name, given.data, given.out, given.epochs or SETTINGS[name].epochs)
    test = decoded(given.data / "cifar10_test_jpegbytes.npz")
    for name in given.only:
        print(measured(given.out / f"cifar10_{name}.onnx", *test), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
