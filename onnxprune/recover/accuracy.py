"""Top-1 accuracy of networks on labelled inputs, and which labels can be taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.errors import DataError
from onnxprune.graph import Array


def accuracy(labels: Array | None, networks: Mapping[str, Sequence[Mapping[str, Array]]]) -> dict[str, float] | None:
    """Accuracy of each network by name, 0..1, by its first output; None without class numbers [n] or scores
    [n, classes].

    networks: outputs batch by batch, as dicts name -> [samples, ...].
    """
    if labels is None or not _are_classes(labels):
        return None
    found = dict[str, float]()
    for title, batches in networks.items():
        parts = [np.asarray(b[next(iter(b))]) for b in batches]
        if not _are_scores(parts[0].shape) or sum(map(len, parts)) != len(labels):
            return None
        scores = np.concatenate(parts)
        found[title] = float((scores.argmax(1) == labels).mean())
    return found


def check_labels(labels: Array | None, output: str, shape: Sequence[int] | None) -> None:
    """Raise DataError for class numbers that the scores of the first output, of this shape if it is known, have not."""
    if labels is None or shape is None or not (_are_classes(labels) and _are_scores(shape)):
        return
    wrong = (labels < 0) | (labels >= shape[1])
    if wrong.any():
        raise DataError(
            f"{int(wrong.sum())} of {len(labels)} labels are no class of the model: one is {labels[wrong][0]}, but the "
            f"output {output!r} has the classes 0 to {shape[1] - 1}; correct the labels, or leave them out"
        )


def unused(labels: Array | None, metric: Mapping[str, float] | None) -> tuple[str, ...]:
    """What to note of labels that gave no accuracy; nothing where they did, or there are none."""
    if labels is None or metric is not None:
        return ()
    shape = ", ".join(map(str, ("n", *labels.shape[1:])))
    wanted = "accuracy takes one class number per input, and an output with one row of scores"
    return (f"the labels, {labels.dtype} [{shape}], were not used: {wanted}; `validate --metric` can use others",)


def _are_classes(labels: Array) -> bool:
    return labels.ndim == 1 and bool(np.issubdtype(labels.dtype, np.integer))


def _are_scores(shape: Sequence[int]) -> bool:
    return len(shape) == 2 and shape[1] > 1
