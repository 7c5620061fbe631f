"""The training loop: seeded, resumable between epochs to the last bit, and stopped without loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxprune import runtime
from onnxprune.clock import Progress
from onnxprune.errors import ModelError
from onnxprune.finetuning import checkpoint
from onnxprune.finetuning.samples import Arrays, Rows, Samples, Teacher
from onnxprune.finetuning.settings import TuneOptions
from onnxprune.student.loss import Objective
from onnxprune.student.network import Network
from onnxprune.student.norms import estimate, normalise

_WARM_UP = 0.1  # share of the steps, at most one epoch
_MOMENTUM = 0.9
_MEASURED = 8  # most batches that show what the layers give
_RESUMED = ("epoch", "history", "best_epoch", "images", "shares", "stopped")  # of a course, in a checkpoint
Weights = dict[str, Tensor]
OnEpoch = Callable[[int, Mapping[str, Any]], None]


@dataclass
class Course:
    """Where a training stands.

    history: per epoch `epoch`, `loss`, `held_loss`, `agreement`, `seconds`; the first entry is the start, epoch 0.
    best: weights of the epoch with the lowest loss on what was set aside; stopped: why it ended early, or "".
    """

    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best: Weights = field(default_factory=dict)
    stopped: str = ""
    failed: bool = False
    interrupted: bool = False
    shares: dict[str, float] = field(default_factory=dict)
    images: int = 0


class Training:
    """One training of a network, which is changed; see `run`."""

    def __init__(
        self, network: Network, objective: Objective, samples: Samples, teacher: Teacher, options: TuneOptions, key: str
    ) -> None:
        self.network, self.objective, self.samples, self.teacher = network, objective, samples, teacher
        self.options, self._key = options, key
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network.channels_last().to(self.device)
        few = math.lcm(2, network.batch or 1)
        network.take_any_number(self._feeds(samples.batch(samples.train[:few], None)))
        chunk = math.lcm(network.batch or 1, teacher.chunk or 1)
        self._size = max(min(options.batch, len(samples.train)) // chunk, 1) * chunk
        self._steps = -(-len(samples.train) // self._size)
        enough = 1 if options.resume else _MEASURED  # one tells which layers; the statistics come with the checkpoint
        self.normalised = normalise(network, self._some(0, enough)) if options.norm == "batch" else 0
        self._optimizer = _optimizer(network, options)
        self._course = Course()
        self._clock = _Clock(self._course.shares)

    def _some(self, number: int, most: int = _MEASURED) -> Iterator[dict[str, Tensor]]:
        """Batches of an epoch's view that show what the layers give."""
        order = np.random.default_rng([self.options.seed, 3, number]).permutation(len(self.samples.train))
        for start in range(0, min(most, len(order) // self._size) * self._size, self._size):
            rows = self.samples.train[order[start : start + self._size]]
            yield self._feeds(self.samples.batch(rows, number % self.options.views))

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def run(self, on_epoch: OnEpoch | None = None) -> Course:
        """Train to the end, to an early stop, Ctrl-C or a loss that is not finite; the network then has the best
        weights so far, or with `take="last"` those of the last epoch.

        on_epoch: is called after every epoch with its number and the weights as arrays.
        """
        course, options = self._course, self.options
        if options.resume:
            self._load()
        self._told = Progress("step", self._steps * options.epochs, done=self._steps * course.epoch)
        try:
            with _threads():
                if not course.history:
                    self._start()
                while course.epoch < options.epochs and not course.stopped:
                    self._epoch(course)
                    if on_epoch is not None:
                        on_epoch(course.epoch, self.network.arrays())
                    if not course.failed:
                        self._save()
        except KeyboardInterrupt:
            course.stopped, course.interrupted = f"interrupted in epoch {course.epoch + 1}", True
            if not course.best:
                raise
        chosen = course.best if options.take == "best" or course.stopped else None
        if chosen:
            self._restore(chosen)
        self.network.eval()
        return course

    def _start(self) -> None:
        with self._clock("teacher"):
            self._held_answers()
        self._course.history.append(_entry(0, None, self._judge(), 0.0))
        self._course.best = self._weights()

    def _epoch(self, course: Course) -> None:
        began, number = time.perf_counter(), course.epoch
        view = number % self.options.views
        told = Progress(f"view {view + 1}: answers of the teacher, batch", self._steps)
        with self._clock("teacher"):
            answers = self.teacher.know(self.samples, view, self._size, told.step)
        self.network.train()
        order = np.random.default_rng([self.options.seed, 2, number]).permutation(len(self.samples.train))
        losses, note = list[float](), ""
        for step in range(self._steps):
            self._told.step(f" (epoch {number + 1} of {self.options.epochs}{note})")
            places = order[step * self._size : (step + 1) * self._size]
            loss, agreement = self._step(places, view, answers, number * self._steps + step)
            losses.append(loss)
            if not math.isfinite(loss):
                at = f"the loss was {loss} in epoch {number + 1}, step {step + 1} of {self._steps}"
                self._fail(at, self.samples.batch(self.samples.train[places], view))
                return
            note = f", loss {np.mean(losses[-50:]):.4g}, agreement {agreement:.1%}"
        if self.normalised:
            with self._clock("statistics"):
                estimate(self.network, self._some(number))
        found = self._judge()
        held = found["held_loss"]
        if not math.isfinite(held):
            first = self.samples.batch(self.samples.held[: self._size], None)
            self._fail(f"the loss on held-out data was {held} after epoch {number + 1}", first)
            return
        course.epoch += 1
        course.images += len(order)
        course.history.append(_entry(course.epoch, float(np.mean(losses)), found, time.perf_counter() - began))
        self._rank(held)

    def _rank(self, held: float) -> None:
        """Keep the best; stop when there was none for long."""
        course = self._course
        if held < course.history[course.best_epoch]["held_loss"]:
            course.best_epoch, course.best = course.epoch, self._weights()
        elif course.epoch - course.best_epoch >= self.options.patience and course.epoch < self.options.epochs:
            course.stopped = f"no better on held-out data since epoch {course.best_epoch}"

    def _step(self, places: Rows, view: int, answers: Arrays, step: int) -> tuple[float, float]:
        clock, rows = self._clock, self.samples.train[places]
        with clock("augment"):
            feeds = self._feeds(self.samples.batch(rows, view))
            told = {n: self._tensor(a[places]) for n, a in answers.items()}
            labels = self._labels(rows)
        with clock("forward"):
            made = self.network(feeds, self.objective.wanted)
            loss = self.objective(made, told, labels)
        with clock("backward"):
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip)
            for group in self._optimizer.param_groups:
                group["lr"] = self.options.rate * self._schedule(step)
            value = float(loss.detach())
            if math.isfinite(value):
                self._optimizer.step()
            with torch.no_grad():
                return value, self.objective.agreement(made, told)

    def _schedule(self, step: int) -> float:
        """Share of the learning rate: rising linearly at first, then half a cosine down to 0."""
        total = self._steps * self.options.epochs
        warm = min(math.ceil(_WARM_UP * total), self._steps)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))

    def _fail(self, what: str, inputs: Arrays) -> None:
        where = self.network.first_not_finite(self._feeds(inputs))
        at = f"; the first value that is not finite is at {where}" if where else ""
        self._course.stopped = f"{what}{at}. Try a smaller --lr than {self.options.rate:g}"
        self._course.failed = True

    # ---- judging -----------------------------------------------------------------------------------------------------

    def _judge(self) -> dict[str, float]:
        """Loss, agreement and, where there are labels, accuracy on what was set aside."""
        self.network.eval()
        totals, held = dict[str, float](), self.samples.held
        with self._clock("evaluation"), torch.no_grad():
            answers = self._held_answers()
            for start in range(0, len(held), self._size):
                rows = held[start : start + self._size]
                made = self.network(self._feeds(self.samples.batch(rows, None)), self.objective.wanted)
                told = {n: self._tensor(a[start : start + len(rows)]) for n, a in answers.items()}
                labels = self._labels(rows)
                found = {"held_loss": float(self.objective(made, told, labels))}
                found["agreement"] = self.objective.agreement(made, told)
                if labels is not None:
                    found["accuracy"] = self.objective.accuracy(made, labels)
                totals = {n: totals.get(n, 0.0) + len(rows) * x for n, x in found.items()}
        return {n: x / len(held) for n, x in totals.items()}

    def teacher_accuracy(self) -> float | None:
        """Share of what was set aside that the teacher answers as labelled; None without labels."""
        labels = self._labels(self.samples.held)
        if labels is None:
            return None
        told = self._held_answers()
        return self.objective.accuracy({s: self._tensor(told[o]) for o, s in self.objective.scores.items()}, labels)

    def _held_answers(self) -> Arrays:
        if not hasattr(self, "_held"):
            self._held = self.teacher.all_answers(self.samples, self.samples.held, None, self._size)
        return self._held

    # ---- tensors -----------------------------------------------------------------------------------------------------

    def _tensor(self, array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _feeds(self, arrays: Arrays) -> dict[str, Tensor]:
        return {n: _image(torch.from_numpy(a)).to(self.device) for n, a in arrays.items()}

    def _labels(self, rows: Rows) -> Tensor | None:
        labels = self.samples.labels
        return None if labels is None else self._tensor(labels[rows].astype(np.int64))

    def _weights(self) -> Weights:
        return {n: x.detach().cpu().clone() for n, x in self.network.state_dict().items()}

    def _restore(self, weights: Weights) -> None:
        self.network.load_state_dict(weights)

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.options.checkpoint is None:
            return
        state = self._optimizer.state_dict()["state"]
        moments = {f"{i}/{n}": t.cpu() for i, held in state.items() for n, t in held.items() if t is not None}
        groups = {"weights": self._weights(), "best": self._course.best, "optimizer": moments}
        arrays = {g: {n: t.contiguous().numpy() for n, t in held.items()} for g, held in groups.items()}
        course = {n: getattr(self._course, n) for n in _RESUMED}
        checkpoint.write(self.options.checkpoint, arrays, {"key": self._key, "course": course})

    def _load(self) -> None:
        path = self.options.checkpoint
        assert path is not None
        arrays, state = checkpoint.read(path)
        if state["key"] != self._key:
            raise ModelError(
                f"the checkpoint '{path}' belongs to other models, data or options: repeat those of the run that was "
                "interrupted, or start anew without --resume"
            )
        groups = {g: {n: torch.tensor(a) for n, a in held.items()} for g, held in arrays.items()}
        self._restore(groups["weights"])
        moments: dict[int, Weights] = {}
        for name, value in groups.get("optimizer", {}).items():
            index, _, field = name.partition("/")
            moments.setdefault(int(index), {})[field] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
        self._course.best = groups["best"]
        for name in _RESUMED:
            setattr(self._course, name, state["course"][name])
        self._clock = _Clock(self._course.shares)


def _optimizer(network: Network, options: TuneOptions) -> torch.optim.Optimizer:
    weights = list(network.parameters())
    if options.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=options.rate, momentum=_MOMENTUM)
    return torch.optim.Adam(weights, lr=options.rate)


def _image(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()


def _entry(epoch: int, loss: float | None, found: Mapping[str, float], seconds: float) -> dict[str, Any]:
    return {"epoch": epoch, "loss": loss, **found, "seconds": round(seconds, 3)}


@contextmanager
def _threads() -> Iterator[None]:
    """As many threads as this process may use: torch looks at the machine, not at a container's share of it."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, runtime.default_threads()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Clock:
    """Adds up seconds by what they were spent on."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
