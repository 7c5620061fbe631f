"""Train pruned.onnx, beside this script, and write its weights: a plain loop to start from.

    python train.py train.npz --epochs 3
    onnxprune absorb pruned.onnx weights.safetensors -o tuned.onnx

train.npz holds arrays by input name, [samples, ...] as the model takes them; or whatever else onnxprune.open_data
reads. With teacher.onnx beside this script the target are its outputs; without it, an array `labels` in train.npz.
Needs onnxprune[finetune].
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
TEMPERATURE = 2.0


def batches(count: int, size: int, chunk: int, epoch: int) -> list[Any]:
    """Indices of the samples of every step of an epoch; chunk: the number of samples that the model takes at once."""
    order = np.random.default_rng(epoch).permutation(count)
    chunks = order[: count // chunk * chunk].reshape(-1, chunk)
    return [part.reshape(-1) for part in np.array_split(chunks, max(count // size, 1))]


def distance(made: Any, told: Any) -> Any:
    """KL divergence of rows of scores; of other outputs, the squared error."""
    from torch.nn import functional as nn

    if made.ndim != 2 or made.shape[1] < 2:
        return nn.mse_loss(made, told) / told.square().mean()
    p, q = nn.log_softmax(made / TEMPERATURE, 1), nn.log_softmax(told / TEMPERATURE, 1)
    return nn.kl_div(p, q, reduction="batchmean", log_target=True) * TEMPERATURE**2


def network(name: str) -> tuple[Any, list[str]]:
    """A model as a torch module, and its outputs: of a softmax, what it is given."""
    import onnx

    from onnxprune.finetuning.features import scores_tensor
    from onnxprune.student import Network

    proto = onnx.load(HERE / name)
    module = Network(proto)
    return module, [scores_tensor(proto, output) for output in module.outputs]


def samples(source: str, preprocess: str | None, chunk: int) -> tuple[dict[str, Any], Any]:
    """All inputs as pruned.onnx takes them, by name, and the labels (None where there are none); they are in memory.

    Raises DataError for what does not fit the model, for NaN, and for fewer samples than the model takes at once.
    """
    import onnx

    from onnxprune.data import open_data
    from onnxprune.runtime import input_specs

    data = open_data(source, input_specs(onnx.load(HERE / "pruned.onnx")), preprocess=preprocess, minimum=chunk)
    read = list(data.batches(1024))
    inputs = {name: np.concatenate([b.inputs[name] for b in read]) for name in read[0].inputs}
    return inputs, np.concatenate([b.labels for b in read]) if data.labelled else None


def crossed(scores: Any, labels: Any) -> Any:
    """Cross entropy of rows of scores."""
    import torch
    from torch.nn import functional as nn

    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= scores.shape[1]:
        sys.exit(f"a label is not one of the classes 0..{scores.shape[1] - 1}")
    return nn.cross_entropy(scores, torch.from_numpy(labels.astype(np.int64)))


def train(source: str, preprocess: str | None, epochs: int, size: int, rate: float) -> Any:
    """The trained module."""
    import torch

    student, ours = network("pruned.onnx")
    teacher, theirs = network("teacher.onnx") if (HERE / "teacher.onnx").exists() else (None, [])
    chunk = math.lcm(student.batch or 1, (teacher and teacher.batch) or 1)
    data, labels = samples(source, preprocess, chunk)
    if teacher is None and labels is None:
        sys.exit("there is neither teacher.onnx nor an array 'labels': nothing to train towards")
    optimizer, count = torch.optim.Adam(student.parameters(), rate), len(next(iter(data.values())))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches(count, size, chunk, 0)))
    for epoch in range(epochs):
        losses = []
        for rows in batches(count, size, chunk, epoch):
            feeds = {name: torch.from_numpy(array[rows]) for name, array in data.items()}
            made = student(feeds, ours)
            if teacher is not None:
                with torch.no_grad():
                    told = teacher(feeds, theirs)
                pairs = [(made[a], told[b]) for a, b in zip(ours, theirs, strict=True)]
                loss = sum(distance(a, b) for a, b in pairs if a.is_floating_point())
            else:
                loss = crossed(made[ours[0]], labels[rows])
            if not torch.isfinite(loss):
                sys.exit(f"the loss is {loss.item()} in epoch {epoch + 1}: try a smaller --lr")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        sys.stdout.write(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.4g}\n")
    return student


def main() -> None:
    """Read the arguments, train, write weights.safetensors."""
    parser = argparse.ArgumentParser(description="Train pruned.onnx and write its weights.")
    parser.add_argument("data", help="an .npz file: arrays by input name, and `labels` if there are any")
    parser.add_argument("--preprocess", help="how pixels become inputs, as of `onnxprune finetune`")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    given = parser.parse_args()
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        sys.exit("the script needs torch: pip install 'onnxprune[finetune]'")
    from onnxprune.errors import OnnxpruneError
    from onnxprune.finetuning.bundle import write_weights

    try:
        student = train(given.data, given.preprocess, given.epochs, given.batch, given.lr)
    except OnnxpruneError as error:
        sys.exit(f"error: {error}")
    write_weights(HERE / "weights.safetensors", student.arrays())
    sys.stdout.write("wrote weights.safetensors\n")


if __name__ == "__main__":
    main()
