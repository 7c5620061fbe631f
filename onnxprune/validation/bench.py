"""Several models beside each other: latency, memory, where the time goes and which kernels run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxprune.data import open_data
from onnxprune.errors import UsageError
from onnxprune.files import file_bytes
from onnxprune.graph import Array
from onnxprune.runtime import CPU, default_threads, input_specs
from onnxprune.validation.environment import environment
from onnxprune.validation.feeds import Shapes, made_up
from onnxprune.validation.intervals import Interval
from onnxprune.validation.kernels import ConvKernel, Kernels, blocked, fell_off
from onnxprune.validation.latency import How, Source, Timing, Verdict, loaded, measure, verdict
from onnxprune.validation.memory import peak_memory
from onnxprune.validation.profile import NodeTime, profile, ran_on

_LOG = logging.getLogger("onnxprune")


@dataclass(frozen=True, slots=True)
class Row:
    """One model with one number of threads and one batch.

    median: latency in seconds. speedup: over the first model, which has none. noise: the first model against itself.
    throughput: samples per second at the median. memory: bytes; None where the system does not tell.
    """

    model: str
    threads: int
    batch: int
    timing: Timing
    median: Interval
    speedup: Interval | None
    noise: Interval
    verdict: Verdict | None
    throughput: float
    memory: int | None

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        plain = {k: getattr(self, k) for k in ("model", "threads", "batch", "verdict", "throughput", "memory")}
        intervals = {k: getattr(self, k) and getattr(self, k).as_dict() for k in ("median", "speedup", "noise")}
        return plain | intervals | {"seconds": self.timing.as_dict()}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What `benchmark` found; all by model name where not a row.

    layers: time per node, with `profile`. fell_off: convolutions that the first model runs in blocked layout and this
    one does not. nodes: how many nodes each execution provider really ran.
    """

    rows: tuple[Row, ...]
    size: dict[str, int]
    kernels: dict[str, Kernels]
    fell_off: dict[str, tuple[ConvKernel, ...]]
    nodes: dict[str, dict[str, int]]
    layers: dict[str, tuple[NodeTime, ...]]
    environment: dict[str, Any]
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        models = {
            name: {
                "bytes": size,
                "kernels": self.kernels[name].as_dict(),
                "fell_off": [c.node for c in self.fell_off[name]],
                "nodes": self.nodes[name],
                "layers": [row.as_dict() for row in self.layers.get(name, ())],
            }
            for name, size in self.size.items()
        }
        rows = [row.as_dict() for row in self.rows]
        return {"rows": rows, "models": models, "environment": self.environment, "notes": list(self.notes)}


def benchmark(
    models: Source | Sequence[Source],
    *,
    threads: int | Sequence[int] = 1,
    batch: int | Sequence[int] | None = None,
    provider: str = CPU,
    precision: float = 0.02,
    seconds: float = 20.0,
    profile: bool = False,
    memory: bool = True,
    data: Any = None,
    preprocess: str | None = None,
    input_shapes: Shapes | None = None,
    seed: int = 0,
) -> Benchmark:
    """Measure models beside each other, the first being the baseline, for every number of threads and every batch.

    models: paths or protos (not changed). threads: of one operator. batch: first dimension of the inputs where it is
    symbolic. provider: an execution provider of onnxruntime. precision: width of the speed-up's interval, relative to
    it, at which a measurement ends; seconds: time cap of each. profile: also time every node. memory: also measure peak
    memory. data, preprocess: inputs as `compress` takes them (random unless given); input_shapes: sizes that the models
    leave open. Raises UsageError, ModelError for a model that fails, DataError for data that do not fit.
    """
    sources = [models] if isinstance(models, str | Path | ModelProto) else list(models)
    counts = [threads] if isinstance(threads, int) else list(threads)
    batches = [batch] if isinstance(batch, int) or batch is None else list(batch)
    _check(sources, counts, batches, precision, seconds)
    protos = dict(zip(_names(sources), map(loaded, sources), strict=True))
    inputs = {b: _feeds(protos, b, data, preprocess, input_shapes, seed) for b in batches}
    first = inputs[batches[0]]
    _LOG.info("kernels")
    kernels = {name: blocked(p) for name, p in protos.items()}
    base = next(iter(kernels.values()))
    rows: list[Row] = []
    for size in batches:
        for count in counts:
            how = How(count, provider, precision, seconds, seed)
            rows += _configuration(protos, inputs[size], how, memory)
    return Benchmark(
        rows=tuple(rows),
        size={name: file_bytes(p) for name, p in protos.items()},
        kernels=kernels,
        fell_off={name: fell_off(base, k) for name, k in kernels.items()},
        nodes={name: ran_on(p, first[name], counts[0], provider) for name, p in protos.items()},
        layers=_layers(protos, first, counts[0], provider) if profile else {},
        environment=environment(counts[0], provider),
        notes=tuple(_notes(rows, counts, precision, data is None)),
    )


def _check(
    sources: Sequence[Source],
    threads: Sequence[int],
    batches: Sequence[int | None],
    precision: float,
    seconds: float,
) -> None:
    if not (sources and threads and batches):
        raise UsageError("give at least one model, one number of threads and one batch size")
    How(min(threads), "", precision, seconds).check()
    if wrong := [b for b in batches if b is not None and b < 1]:
        raise UsageError(f"--batch {wrong[0]}: give at least 1")


def _names(sources: Sequence[Source]) -> list[str]:
    """What the models are called: paths as given, with a number where one is given twice."""
    names = [s.graph.name or "model" if isinstance(s, ModelProto) else str(s) for s in sources]
    return [n if names.count(n) == 1 else f"{n} ({names[: i + 1].count(n)})" for i, n in enumerate(names)]


def _feeds(
    protos: Mapping[str, ModelProto],
    batch: int | None,
    data: Any,
    preprocess: str | None,
    shapes: Shapes | None,
    seed: int,
) -> dict[str, dict[str, Array]]:
    """Inputs of every model: those of the data, or random ones, which are the same where the inputs are."""
    random = {name: made_up(p, batch, shapes, seed) for name, p in protos.items()} if data is None else {}
    return random or {name: _real(p, batch or 1, data, preprocess) for name, p in protos.items()}


def _real(proto: ModelProto, batch: int, data: Any, preprocess: str | None) -> dict[str, Array]:
    opened = open_data(data, input_specs(proto), preprocess=preprocess, minimum=batch)
    return next(iter(opened.batches(batch))).inputs


def _configuration(
    protos: Mapping[str, ModelProto], inputs: Mapping[str, Mapping[str, Array]], how: How, memory: bool
) -> list[Row]:
    """Rows of all models with one number of threads and one batch."""
    _LOG.info("measuring with %s threads", how.threads)
    peak = {
        n: peak_memory(p, inputs[n], threads=how.threads, provider=how.provider) for n, p in protos.items() if memory
    }
    found = measure(list(protos.values()), list(inputs.values()), how)
    rows, noise = [], found.noise
    for i, name in enumerate(protos):
        batch = next((len(a) for a in inputs[name].values() if a.ndim), 1)
        timing, speedup = found.timing(i), found.speedup(i) if i else None
        said = verdict(speedup, noise) if speedup else None
        throughput = batch / timing.p50
        rows.append(
            Row(name, how.threads, batch, timing, found.median(i), speedup, noise, said, throughput, peak.get(name))
        )
    return rows


def _layers(
    protos: Mapping[str, ModelProto], inputs: Mapping[str, Mapping[str, Array]], threads: int, provider: str
) -> dict[str, tuple[NodeTime, ...]]:
    _LOG.info("profiling")
    return {n: profile(p, inputs[n], threads=threads, provider=provider) for n, p in protos.items()}


def _notes(rows: Sequence[Row], threads: Sequence[int], precision: float, random: bool) -> list[str]:
    notes = ["inputs are random numbers"] if random else []
    if max(threads) > default_threads():
        notes.append(f"{max(threads)} threads on {default_threads()} CPUs: they wait for each other")
    wide = [r for r in rows if r.speedup and (r.speedup.high - r.speedup.low) / r.speedup.point > precision]
    if wide:
        notes.append(
            f"the time cap ended {len(wide)} of {len(rows)} measurements before the precision of {precision:.1%} was "
            "reached: give more --seconds, or a quieter machine"
        )
    noisy = [r.noise for r in rows if r.noise.low > 1.01 or r.noise.high < 0.99]
    if noisy:
        notes.append(
            f"the baseline differs from itself by {abs(noisy[0].point - 1):.1%}: differences below do not count"
        )
    return notes
