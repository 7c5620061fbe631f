"""Export torchvision and timm architectures with seeded random weights to ONNX (needs torch, torchvision and timm).

The weights are random but lively: a network fresh from its constructor has dead branches (zero-initialised gains,
layer scales of 1e-6, all-zero biases) in which a wrong cut would not show. The files stay exactly as the exporters
write them. Every result, failures included, is a row of OUT_DIR/manifest.json; running again continues.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import math
import os
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, Bottleneck
from zoo_list import (
    DYNAMIC_DYNAMO,
    SEGMENTATION,
    TORCHVISION,
    Exporter,
    Record,
    Source,
    architectures,
    read_manifest,
    write_manifest,
)

LEGACY_OPSET = 17
MAX_RELATIVE_ERROR = 1e-4  # against torch; with more, the export is wrong or the network too chaotic to test a cut on
TINY = 1e-3  # a parameter that nowhere exceeds this contributes nothing


def main(argv: list[str] | None = None) -> int:
    """Export what the command line asks for, and return 0 if every export worked, else 1."""
    args = parse_arguments(argv)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    exporters: tuple[Exporter, ...] = ("legacy", "dynamo") if args.exporter == "both" else (args.exporter,)
    names = [n for n in architectures() if fnmatch.fnmatch(n, args.only)]
    if not names:
        print(f"no architecture matches {args.only!r}", file=sys.stderr)
        return 2
    manifest = read_manifest(args.out_dir)
    for name in names:
        for record in export_all(name, exporters, args.out_dir, manifest):
            manifest[record.file] = record
            write_manifest(args.out_dir, manifest)
            print(describe(record), flush=True)
        gc.collect()
    failed = [r for r in manifest.values() if r.error and r.name in names and r.exporter in exporters]
    print(f"{len(manifest)} files in the manifest, {len(failed)} of this selection failed", file=sys.stderr)
    return 1 if failed else 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="a shell pattern of architecture names")
    parser.add_argument("--exporter", choices=["legacy", "dynamo", "both"], default="both")
    return parser.parse_args(argv)


def describe(record: Record) -> str:
    """Return the progress line of one export."""
    what = record.error or f"opset {record.opset}, {record.bytes / 1e6:.1f} MB, error {record.relative_error:.1e}"
    return f"{record.file:45s} {record.seconds:6.1f} s  {what}"


def export_all(
    name: str, exporters: tuple[Exporter, ...], out_dir: Path, manifest: dict[str, Record]
) -> Iterator[Record]:
    """Export one architecture with each exporter whose file is still missing."""
    source: Source = "torchvision" if name in TORCHVISION else "timm"
    todo = [Record(f"{name}.{e}.onnx", name, source, e) for e in exporters]
    todo = [r for r in todo if not is_done(r, out_dir, manifest)]
    if not todo:
        return
    model: nn.Module | str
    try:
        torch.manual_seed(zlib.crc32(name.encode()))  # the same weights, whatever else is exported in this run
        model, size = build(name)
        enliven(model, size)
    except Exception as error:  # noqa: BLE001 (any library may fail in any way; one failure must not stop the rest)
        model, size = one_line(error), 0
    for record in todo:
        yield record_export(model, size, record, out_dir)


def is_done(record: Record, out_dir: Path, manifest: dict[str, Record]) -> bool:
    """Tell whether the file of the record exists and was checked."""
    known = manifest.get(record.file)
    return known is not None and known.error is None and (out_dir / record.file).exists()


def record_export(model: nn.Module | str, size: int, record: Record, out_dir: Path) -> Record:
    """Export, check and move into place one file; a string instead of the model is the reason why there is none."""
    if isinstance(model, str):
        record.error = model
        return record
    part = out_dir / (record.file + ".part")
    start = time.perf_counter()
    try:
        record.published_gmacs = published_gmacs(record.name, size)
        record.input_shape = (1, 3, size, size)
        record.output_std, record.input_sensitivity = liveliness(model, size)
        export_and_check(model, record, part)
        record.bytes = part.stat().st_size
        part.replace(out_dir / record.file)
    except Exception as error:  # noqa: BLE001 (as above)
        record.error = one_line(error)
        part.unlink(missing_ok=True)
    record.seconds = round(time.perf_counter() - start, 1)
    return record


def one_line(error: Exception) -> str:
    """Return the kind of the error and the start of its message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# --- building lively models ------------------------------------------------------------------------------------------


class MainOutput(nn.Module):
    """Return only the main output of a segmentation network, which returns a dictionary."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return per-pixel class scores [N, classes, H, W]."""
        output: Tensor = self.network(x)["out"]
        return output


def build(name: str) -> tuple[nn.Module, int]:
    """Build an architecture in eval mode without downloading anything; also return its input size in pixels."""
    if name in SEGMENTATION:
        network = torchvision.models.get_model(name, weights=None, weights_backbone=None)
        return MainOutput(network).eval(), SEGMENTATION[name]
    if name in TORCHVISION:
        model = torchvision.models.get_model(name, weights=None, **constructor_options(name))
        return model.eval(), published_size(name)
    model = timm.create_model(name, pretrained=False)
    return model.eval(), timm_size(name)


def constructor_options(name: str) -> dict[str, bool]:
    """Return what a torchvision constructor needs besides its defaults."""
    return {"init_weights": False} if name in ("googlenet", "inception_v3") else {}  # the default is minutes slower


def timm_size(name: str) -> int:
    """Return the input size of a timm architecture in pixels."""
    size: tuple[int, int, int] = timm.get_pretrained_cfg_value(name, "input_size") or (3, 224, 224)
    return size[-1]


def published_size(name: str) -> int:
    """Return the input size at which torchvision publishes an architecture's cost."""
    settings = torchvision.models.get_model_weights(name).DEFAULT.transforms.keywords
    return int(settings.get("crop_size", settings.get("resize_size")))


def published_gmacs(name: str, size: int) -> float | None:
    """Return the MACs in 1e9 that torchvision publishes, if it does so for this input size."""
    if name not in TORCHVISION or published_size(name) != size:
        return None
    return float(torchvision.models.get_model_weights(name).DEFAULT.meta["_ops"])


@torch.no_grad()
def enliven(model: nn.Module, size: int) -> None:
    """Randomise in place every normalisation and every parameter that would leave a branch dead or constant."""
    done: set[int] = set()
    for module in model.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            end_of_branch = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            nn.init.zeros_(end_of_branch.weight)  # torchvision's `zero_init_residual`, which timm does by default
    for module in model.modules():
        if "Norm" in type(module).__name__:
            done |= randomise_norm(module)
    for name, parameter in model.named_parameters():
        if id(parameter) not in done:
            randomise_constant(name, parameter)
    hooks = [m.register_forward_pre_hook(settle) for m in model.modules() if isinstance(m, _BatchNorm)]
    model(random_images(4, size))
    for hook in hooks:
        hook.remove()


def randomise_norm(module: nn.Module) -> set[int]:
    """Draw gain and shift of one normalisation; return the ids of the parameters that were drawn.

    A gain of zero marks the end of a residual branch and becomes a small one, as in trained networks: with gains of 1,
    ResNet-152 amplifies rounding noise to 2e-4 of its output.
    """
    own = {k: p for k, p in module.named_parameters(recurse=False) if p.numel()}
    for key, parameter in own.items():
        if "bias" in key or "beta" in key:
            parameter.normal_(0, 0.2)
        elif parameter.abs().max() < TINY:
            parameter.uniform_(0.1, 0.4)
        else:
            parameter.uniform_(0.5, 1.5)
    return {id(p) for p in own.values()}


def randomise_constant(name: str, parameter: Tensor) -> None:
    """Draw a parameter that is tiny or the same everywhere; leave all others as their constructor drew them."""
    if parameter.abs().max() < TINY:
        draw_tiny(name, parameter)
    elif parameter.min() == parameter.max():
        parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 1.5))


def draw_tiny(name: str, parameter: Tensor) -> None:
    """Draw a gain between 0.3 and 0.9, a weight matrix that keeps the variance, or a bias or table of N(0, 0.2)."""
    leaf = name.rsplit(".", 1)[-1]
    is_table = any(word in name for word in ("bias", "pos", "token", "table"))
    if "gamma" in leaf or "scale" in name or ".ls" in name:
        parameter.uniform_(0.3, 0.9)
    elif parameter.ndim > 1 and not is_table:
        parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()))
    else:
        parameter.normal_(0, 0.2)


def settle(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Set running statistics near what arrives: N(0, 0.2) off in mean, times U(0.5, 1.5) in variance.

    Statistics drawn without regard to the data let a deep residual network grow by a factor per block, and its output
    would then hardly depend on the input.
    """
    assert isinstance(norm, _BatchNorm)
    if norm.running_mean is None or norm.running_var is None:
        return
    x = inputs[0].transpose(0, 1).flatten(1)  # [N, C, ...] -> [C, N * ...]
    if x.shape[0] != norm.num_features:
        x = inputs[0].flatten(0, -2).T
    mean, variance = x.mean(1), x.var(1)
    variance = variance.clamp(min=float(0.1 * variance.mean() + 1e-4))  # no channel that is amplified without end
    offset = torch.empty_like(mean).normal_(0, 0.2) * variance.sqrt()
    norm.running_mean.copy_(mean + offset)
    norm.running_var.copy_(variance * torch.empty_like(mean).uniform_(0.5, 1.5))


def random_images(count: int, size: int) -> Tensor:
    """Draw images [count, 3, size, size] of coarse blobs plus noise, each with a variance of about 1."""
    coarse = nn.functional.interpolate(torch.randn(count, 3, 9, 9), size=(size, size), mode="bicubic")
    return coarse + 0.4 * torch.randn(count, 3, size, size)


@torch.no_grad()
def liveliness(model: nn.Module, size: int) -> tuple[float, float]:
    """Return the standard deviation of the output and the share of it that depends on the input.

    Raises ValueError for an output that is not finite, constant, huge, or the same for two images.
    """
    output = model(random_images(2, size))
    std, sensitivity = float(output.std()), float((output[0] - output[1]).std() / (output.std() + 1e-30))
    if not torch.isfinite(output).all() or not 1e-3 < std < 1e4 or sensitivity < 1e-2:
        raise ValueError(f"the random network is not lively: output std {std:.3g}, input sensitivity {sensitivity:.3g}")
    return std, sensitivity


# --- exporting and checking ------------------------------------------------------------------------------------------


def export_and_check(model: nn.Module, record: Record, part: Path) -> None:
    """Export to a file and compare it with torch, with a dynamic batch where wanted and possible."""
    dynamic = record.exporter == "legacy" or record.name in DYNAMIC_DYNAMO
    try:
        attempt(model, record, part, dynamic=dynamic)
    except Exception:  # a batch size baked into the graph shows in many ways
        if not dynamic:
            raise
        attempt(model, record, part, dynamic=False)


def attempt(model: nn.Module, record: Record, part: Path, *, dynamic: bool) -> None:
    """Export once and fill in opset, batch and error; raise ValueError where the file disagrees with torch."""
    with quiet():
        EXPORTS[record.exporter](model, record.input_shape[-1], part, dynamic=dynamic)
    record.batch = "dynamic" if dynamic else "fixed"
    record.opset = next(o.version for o in onnx.load(part).opset_import if not o.domain)
    record.relative_error = max(compare(model, part, n, record.input_shape[-1]) for n in ((1, 2) if dynamic else (1,)))
    if not record.relative_error < MAX_RELATIVE_ERROR:
        raise ValueError(f"the export disagrees with torch: relative error {record.relative_error:.2g}")


def export_legacy(model: nn.Module, size: int, path: Path, *, dynamic: bool) -> None:
    """Export by tracing (TorchScript)."""
    axes = {"input": {0: "batch"}, "output": {0: "batch"}} if dynamic else None
    torch.onnx.export(
        model,
        (random_images(1, size),),
        path,
        dynamo=False,
        opset_version=LEGACY_OPSET,
        input_names=["input"],
        output_names=["output"],
        dynamic_axes=axes,
    )


def export_dynamo(model: nn.Module, size: int, path: Path, *, dynamic: bool) -> None:
    """Export by torch.export, today's default."""
    torch.onnx.export(
        model,
        (random_images(2 if dynamic else 1, size),),  # a batch of 1 would be taken for a constant
        path,
        dynamo=True,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic else None,
        external_data=False,
        verbose=False,
    )


EXPORTS = {"legacy": export_legacy, "dynamo": export_dynamo}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and prints of the exporters."""
    with warnings.catch_warnings(), Path(os.devnull).open("w") as sink:
        warnings.simplefilter("ignore")
        before, sys.stdout = sys.stdout, sink
        try:
            yield
        finally:
            sys.stdout = before


@torch.no_grad()
def compare(model: nn.Module, path: Path, batch: int, size: int) -> float:
    """Return the largest difference between onnxruntime and torch, relative to torch's largest output."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    images = random_images(batch, size)
    expected = model(images).numpy()
    actual = np.asarray(session.run(None, {"input": images.numpy()})[0])
    if actual.shape != expected.shape:
        raise ValueError(f"the export returns shape {actual.shape}, torch {expected.shape}")
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    sys.exit(main())
