"""Torch-Pruning without training on a CIFAR ResNet given as ONNX, written as ONNX. Prints one line of JSON.

Usage (in its own environment): python torch_pruning_recovery.py MODEL CALIBRATION KEEP OUT [--bn] [--global]

The network (option-A shortcuts, normalisations folded) is rebuilt in torch with the weights of MODEL, and its outputs
compared with onnxruntime's. Group L2 magnitude decides; only inner channels of the blocks leave, since the shortcuts'
shifted channels would be coupled wrongly. The pruning ratio is bisected until the kept share of the MACs is nearest to
KEEP, be it a little more.
--bn: normalisations are put behind all convolutions, with the statistics of the calibration images (the function stays
the same); after the cut their statistics are measured again. --global: one ranking of all layers instead of one ratio.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional

warnings.filterwarnings("ignore")
MOST = 0.9  # largest share of a layer's filters that may leave; the product's floor is the same
STEPS = 12  # of the bisection


class Block(nn.Module):
    """Two 3x3 convolutions and the option-A shortcut: every second pixel, new channels are zeros on both sides."""

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d) -> None:
        super().__init__()
        self.conv1, self.conv2 = first, second
        self.bn1: nn.Module = nn.Identity()
        self.bn2: nn.Module = nn.Identity()
        self.step = first.stride[0]
        self.sides = (second.out_channels - first.in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, c + 2 sides, h / step, w / step]"""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.step > 1:
            x = functional.pad(x[:, :, :: self.step, :: self.step], (0, 0, 0, 0, self.sides, self.sides))
        return functional.relu(y + x)


class ResNet(nn.Module):
    """Stem, blocks, global average, linear."""

    def __init__(self, convolutions: list[nn.Conv2d], linear: nn.Linear) -> None:
        super().__init__()
        self.stem, self.bn = convolutions[0], nn.Identity()
        pairs = zip(convolutions[1::2], convolutions[2::2], strict=True)
        self.blocks = nn.Sequential(*(Block(first, second) for first, second in pairs))
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, 32, 32] -> [n, 10]"""
        y = self.blocks(functional.relu(self.bn(self.stem(x))))
        logits: Tensor = self.linear(y.mean((2, 3)))
        return logits


def rebuild(model: onnx.ModelProto) -> ResNet:
    """The torch module with the weights of the ONNX file, whose convolutions come in the order of execution."""
    weights = {t.name: torch.tensor(onnx.numpy_helper.to_array(t)) for t in model.graph.initializer}
    convolutions = []
    for node in (n for n in model.graph.node if n.op_type == "Conv"):
        weight, bias = (weights[i] for i in node.input[1:])
        strides = next(a.ints[0] for a in node.attribute if a.name == "strides")
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, strides, 1)
        layer.weight.data, layer.bias.data = weight, bias  # type: ignore[union-attr]
        convolutions.append(layer)
    gemm = next(n for n in model.graph.node if n.op_type == "Gemm")
    linear = nn.Linear(*weights[gemm.input[1]].shape[::-1])
    linear.weight.data, linear.bias.data = (weights[i] for i in gemm.input[1:])
    return ResNet(convolutions, linear).eval()


@torch.no_grad()
def insert_normalisations(network: ResNet, images: Tensor) -> None:
    """Put a normalisation behind each convolution that does nothing yet: scale and shift are what it takes away."""
    pairs = [(network.stem, network, "bn")]
    pairs += [(getattr(b, f"conv{i}"), b, f"bn{i}") for b in network.blocks for i in (1, 2)]
    outputs: dict[nn.Module, Tensor] = {}
    hooks = [c.register_forward_hook(lambda m, _, y: outputs.__setitem__(m, y)) for c, _, _ in pairs]
    network(images)
    for hook in hooks:
        hook.remove()
    for layer, owner, name in pairs:
        y = outputs[layer].double()
        normalisation = nn.BatchNorm2d(layer.out_channels).eval()
        mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False)
        normalisation.running_mean, normalisation.running_var = mean.float(), variance.float()
        normalisation.weight.data = (variance + normalisation.eps).sqrt().float()
        normalisation.bias.data = mean.float()
        setattr(owner, name, normalisation)


@torch.no_grad()
def estimate_again(network: nn.Module, images: Tensor) -> None:
    """Replace the normalisations' statistics by those of the images, in one batch."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(images)
    network.eval()


@torch.no_grad()
def macs(network: nn.Module) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image."""
    counts: list[int] = []

    def count(layer: Any, _: Any, y: Tensor) -> None:
        counts.append(y[0].numel() * layer.weight[0].numel())

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    network(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return sum(counts)


def prune(network: ResNet, ratio: float, together: bool) -> ResNet:
    """A copy without this share of the inner channels."""
    smaller = copy.deepcopy(network)
    pruner = tp.pruner.BasePruner(
        smaller,
        torch.zeros(1, 3, 32, 32),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        max_pruning_ratio=MOST,
        global_pruning=together,
        ignored_layers=[smaller.stem, smaller.linear, *(b.conv2 for b in smaller.blocks)],
    )
    pruner.step()
    return smaller


def nearest(network: ResNet, keep: float, together: bool) -> tuple[ResNet, float, float]:
    """The pruned network, the ratio and the share of MACs, the nearest to `keep`."""
    whole, low, high = macs(network), 0.0, 1.0
    best = network, 0.0, 1.0
    for _ in range(STEPS):
        ratio = (low + high) / 2
        smaller = prune(network, ratio, together)
        kept = macs(smaller) / whole
        best = min(best, (smaller, ratio, kept), key=lambda x: abs(x[2] - keep))
        low, high = (low, ratio) if kept <= keep else (ratio, high)
    return best


@torch.no_grad()
def check(network: nn.Module, path: str, images: Tensor) -> float:
    """Largest difference to onnxruntime relative to the largest output; raises when over 1e-4."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    error = float(np.abs(network(images).numpy() - expected).max() / np.abs(expected).max())
    if error > 1e-4:
        raise SystemExit(f"the rebuilt network differs from {path} by {error:.1e}")
    return error


def export(network: nn.Module, path: str) -> None:
    """Write the network as ONNX with a dynamic batch."""
    axes = {"input": {0: "N"}, "logits": {0: "N"}}
    example = (torch.zeros(1, 3, 32, 32),)
    torch.onnx.export(
        network,
        example,
        path,
        dynamo=False,
        opset_version=17,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes=axes,
    )


def main() -> None:
    """Rebuild, check, prune, estimate, write and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("keep", type=float)
    parser.add_argument("out")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bn", action="store_true")
    parser.add_argument("--global", dest="together", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    images = torch.from_numpy(np.load(args.calibration)["input"][: args.images])
    network = rebuild(onnx.load(args.model))
    errors = [check(network, args.model, images[:64])]
    if args.bn:
        insert_normalisations(network, images)
        errors.append(check(network, args.model, images[:64]))
    start = time.perf_counter()
    smaller, ratio, kept = nearest(network, args.keep, args.together)
    pruned = time.perf_counter()
    if args.bn:
        estimate_again(smaller, images)
    done = time.perf_counter()
    export(smaller, args.out)
    errors.append(check(smaller, args.out, images[:64]))
    seconds = {"prune": pruned - start, "re-estimate": done - pruned}
    found = {"version": f"torch-pruning {version('torch-pruning')}, torch {torch.__version__}", "errors": errors}
    widths = [b.conv1.out_channels for b in smaller.blocks]
    print(json.dumps(found | {"ratio": ratio, "kept": kept, "seconds": seconds, "widths": widths}))


if __name__ == "__main__":
    main()
