"""The inputs that selection and recovery look at: the user's, or synthetic ones where there are none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, Literal

import numpy as np

from onnxprune.analysis import Analysis
from onnxprune.clock import Progress
from onnxprune.cost import CostModel
from onnxprune.data import Data, Preprocess, fitting, open_data
from onnxprune.errors import DataError, UsageError
from onnxprune.graph import Array
from onnxprune.recover.accuracy import check_labels
from onnxprune.recover.program import Store
from onnxprune.recover.reference import samples
from onnxprune.runtime import InputSpec, input_specs

Feeds = dict[str, Array]
Augment = Literal["auto", "flip", "none"]
RATE = 1.5e10  # multiply-adds per second that plans of work assume; a constant, so that they do not depend on the day
_HELD = 0.2  # share of the inputs that no fit sees
_BATCH = 64
_SHARE = 0.25  # of the time that one pass over the inputs may take by that rate, which is a low one
_FEWEST = 64  # inputs that are used however long they take
_STORED = 1 / 8  # of the memory, for inputs; beyond it they lie in temporary files
_ENOUGH = 16  # inputs below which nothing can be fitted and checked


@dataclass(frozen=True, slots=True)
class Calibration:
    """Inputs in batches: first those that fits see, then `held` batches that they do not.

    labels: of the held inputs, where there are any; name: where they come from; samples: inputs taken; synthetic:
    whether they are made up; notes: what a report must say of them.
    """

    batches: tuple[Feeds, ...]
    held: int
    labels: Array | None
    name: str
    samples: int
    synthetic: bool
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """What the report shows."""
        return {"name": self.name, "samples": self.samples, "synthetic": self.synthetic, "notes": list(self.notes)}


def calibration(
    analysis: Analysis,
    source: Any,
    *,
    size: int,
    seed: int,
    preprocess: str | Preprocess | None = None,
    augment: Augment = "auto",
    input_range: tuple[float, float] | None = None,
    memory: float = 4e9,
    seconds: float = 600,
) -> Calibration:
    """Take `size` inputs at random from a source, as `data.open_data` reads them, or make them up where it is None.

    augment: "flip" adds mirrored copies of images to what fits see; "auto" does where images are small enough for the
    time. input_range: of inputs that are made up, guessed where it is None. memory: bytes; the batches are as
    large as it allows. Raises DataError for what does not fit the model, UsageError for mirrored copies of no image.
    """
    specs, store = input_specs(analysis.model.header), Store(memory * _STORED)
    batch = _batch(analysis, specs, memory)
    macs = CostModel(analysis).original.macs
    most = max(_FEWEST, int(_SHARE * seconds * RATE / max(macs, 1)))
    if source is None:
        batches, note = _synthetic(analysis, min(size, most), batch, seed, input_range, store)
        labels, name, notes = None, "synthetic inputs", [note]
    else:
        data = open_data(source, specs, preprocess=preprocess, minimum=_ENOUGH)
        batches, labels = _read(data, min(size, most), batch, seed, store)
        output = analysis.model.graph.outputs[0].name
        check_labels(labels, output, analysis.shapes.get(output))
        name, notes = data.name, list(data.notes)
    taken = sum(map(samples, batches))
    if taken >= most and size > most:
        notes.append(f"to keep to the time, {taken} calibration inputs are used, not {size}")
    batches = _divided(specs, batches)
    held = _held(batches)
    if augment == "flip" and not any(map(_is_image, batches[0].values())):
        raise UsageError("--augment flip: the model takes no images of three colours and at least 16 pixels a side")
    flips = augment == "flip" or (augment == "auto" and _worth_it(macs, specs, batches, taken, seconds))
    if flips and held:
        flipped = [_kept(b, store) for b in _flipped(batches[: len(batches) - held])]
        batches = [*batches[: len(batches) - held], *flipped, *batches[len(batches) - held :]]
        notes.append("mirrored copies of the images are used for fitting, too")
    if not held:
        notes.append("the model takes all inputs at once: fits are checked on the inputs that they have seen")
    if labels is not None and held:
        labels = labels[-sum(samples(b) for b in batches[-held:]) :]
    return Calibration(tuple(batches), held, labels, name, taken, source is None, tuple(notes))


def _batch(analysis: Analysis, specs: Sequence[InputSpec], memory: float) -> int:
    """Inputs per batch, so that all activations of a batch take an eighth of the memory."""
    inner = [shape for name, shape in analysis.shapes.items() if name not in analysis.model.constants()]
    traced = max((analysis.shapes.get(s.name, (1,))[0] for s in specs if analysis.shapes.get(s.name)), default=1)
    each = 4 * sum(prod(s) for s in inner) / max(traced, 1)
    return fitting(int(np.clip(memory / 8 / max(each, 1), 1, _BATCH)), specs)


def _kept(batch: Feeds, store: Store) -> Feeds:
    return {n: store.keep(a) for n, a in batch.items()}


def _read(data: Data, size: int, batch: int, seed: int, store: Store) -> tuple[list[Feeds], Array | None]:
    batches, labels = list[Feeds](), list[Array]()
    read = data.batches(batch, limit=size, seed=seed)
    for found in Progress("reading inputs: batch", data.number(batch, size)).over(read):
        batches.append(_kept(found.inputs, store))
        labels += [] if found.labels is None else [found.labels]
    count = sum(map(samples, batches))
    if count < _ENOUGH:
        raise DataError(f"{data.name} gives {count} inputs; recovery needs {_ENOUGH} at the very least")
    return batches, np.concatenate(labels) if labels else None


def _synthetic(
    analysis: Analysis, size: int, batch: int, seed: int, span: tuple[float, float] | None, store: Store
) -> tuple[list[Feeds], str]:
    from onnxprune.synthesize import synthesize

    made = synthesize(analysis.model, analysis.shapes, size, seed=seed, input_range=span)
    count = samples(made.inputs)
    feeds = [
        _kept({n: a[i : i + batch] for n, a in made.inputs.items()}, store)
        for i in range(0, count - count % batch or count, batch)
    ]
    return feeds, made.description


def _divided(specs: Sequence[InputSpec], batches: list[Feeds]) -> list[Feeds]:
    """The batches, one of them cut in two where the inputs begin that no fit sees, if the model takes any number."""
    total, seen = sum(map(samples, batches)), 0
    fixed = any(isinstance(s.dims[0], int) for s in specs if s.dims)
    for i, batch in enumerate([] if fixed else batches):
        first = total - ceil(_HELD * total) - seen
        if 0 < first < samples(batch):
            parts = ({n: a[:first] for n, a in batch.items()}, {n: a[first:] for n, a in batch.items()})
            return [*batches[:i], *parts, *batches[i + 1 :]]
        seen += samples(batch)
    return batches


def _held(batches: Sequence[Feeds]) -> int:
    """Batches at the end that hold about a fifth of the inputs, at least one; the only batch cannot be split."""
    total, found, held = sum(map(samples, batches)), 0, 0
    while held < len(batches) - 1 and found < ceil(_HELD * total):
        held, found = held + 1, found + samples(batches[-1 - held])
    return held


def _is_image(array: Array) -> bool:
    colours = array.ndim == 4 and np.issubdtype(array.dtype, np.floating) and 3 in (array.shape[1], array.shape[3])
    return bool(colours) and min(sorted(array.shape[1:])[1:]) >= 16


def _worth_it(macs: int, specs: Sequence[InputSpec], batches: Sequence[Feeds], taken: int, seconds: float) -> bool:
    """Whether the only input is images of three colours, and another pass over them is cheap."""
    cheap = 6 * taken * macs / RATE < 0.15 * seconds
    return len(specs) == 1 and _is_image(batches[0][specs[0].name]) and cheap


def _flipped(batches: Sequence[Feeds]) -> Iterator[Feeds]:
    """Images mirrored left to right; other inputs as they are."""

    def flip(array: Array) -> Array:
        if not _is_image(array):
            return array
        return np.ascontiguousarray(array[..., ::-1] if array.shape[1] == 3 else array[:, :, ::-1])

    return ({n: flip(a) for n, a in b.items()} for b in batches)
