"""Several models beside each other: latency, memory, where the time goes and which kernels run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxprune.clock import Progress
from onnxprune.data import open_data
from onnxprune.errors import UsageError
from onnxprune.files import file_bytes
from onnxprune.graph import Array
from onnxprune.quantize import quantize
from onnxprune.runtime import CPU, default_threads, input_specs
from onnxprune.validation.bootstrap import ratio_interval
from onnxprune.validation.environment import environment
from onnxprune.validation.feeds import Shapes, made_up
from onnxprune.validation.intervals import Interval
from onnxprune.validation.kernels import ConvKernel, Kernels, blocked, fell_off
from onnxprune.validation.latency import How, Measured, Source, Timing, Verdict, loaded, measure, verdict
from onnxprune.validation.memory import peak_memory
from onnxprune.validation.profile import NodeTime, ran_on
from onnxprune.validation.profile import profile as profiled
from onnxprune.validation.result import Validation, validate

CALIBRATION_SIZE = 512  # inputs that int8 is calibrated on
_CALIBRATION_BATCH = 16
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
class Int8:
    """A model and what int8 makes of it.

    quantized: name of the int8 model, model: itself (ONNX, in memory). speedup: latency of the float model by that of
    the int8 one, with the first of the threads and batches; verdict: whether that is a gain.
    """

    name: str
    quantized: str
    model: ModelProto = field(repr=False)
    speedup: Interval
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """All but the model, as JSON holds it."""
        plain = {k: getattr(self, k) for k in ("name", "quantized", "verdict")}
        return plain | {"speedup": self.speedup.as_dict()}

    @property
    def pays(self) -> bool:
        """Whether int8 is faster; in doubt, whether it looks so."""
        return self.verdict == "faster" or (self.verdict == "inconclusive" and self.speedup.point > 1)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What `benchmark` found; all by model name where not a row.

    layers: time per node, with `profile`. fell_off: convolutions that the first model runs in blocked layout and this
    one does not. nodes: how many nodes each execution provider really ran. accuracy: of the models beside the first,
    with `int8`.
    """

    rows: tuple[Row, ...]
    size: dict[str, int]
    kernels: dict[str, Kernels]
    fell_off: dict[str, tuple[ConvKernel, ...]]
    nodes: dict[str, dict[str, int]]
    layers: dict[str, tuple[NodeTime, ...]]
    environment: dict[str, Any]
    notes: tuple[str, ...] = ()
    int8: tuple[Int8, ...] = ()
    accuracy: dict[str, Validation] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        models: dict[str, dict[str, Any]] = {
            name: {
                "bytes": size,
                "kernels": self.kernels[name].as_dict(),
                "fell_off": [c.node for c in self.fell_off[name]],
                "nodes": self.nodes[name],
                "layers": [row.as_dict() for row in self.layers.get(name, ())],
            }
            for name, size in self.size.items()
        }
        told = {"rows": [row.as_dict() for row in self.rows], "models": models, "environment": self.environment}
        told |= {"int8": [x.as_dict() for x in self.int8]} if self.int8 else {}
        for name, found in self.accuracy.items():
            models[name]["metric"] = found.metric and found.metric.as_dict()
            models[name]["agreement"] = {n: i.as_dict() for n, i in found.agreement.items()}
        return told | {"notes": list(self.notes)}


def benchmark(
    models: Source | Sequence[Source],
    *,
    threads: int | Sequence[int] = 1,
    batch: int | Sequence[int] | None = None,
    provider: str = CPU,
    precision: float = 0.02,
    seconds: float | None = None,
    profile: bool = False,
    memory: bool = True,
    int8: bool = False,
    data: Any = None,
    preprocess: str | None = None,
    calibration_size: int | None = None,
    input_shapes: Shapes | None = None,
    seed: int = 0,
) -> Benchmark:
    """Measure models beside each other, the first being the baseline, for every number of threads and every batch.

    models: paths or protos (not changed). threads: of one operator. batch: first dimension of the inputs where it is
    symbolic. provider: an execution provider of onnxruntime. precision: width of the speed-up's interval, relative to
    it, at which a measurement ends; seconds: time cap of each (15, or more where the minimum of rounds takes longer).
    profile: also time every node. memory: also measure peak memory. int8: also quantize every model, calibrated on
    `calibration_size` (512) inputs of the data, and compare outputs (accuracy where there are labels) with the first
    model's. data, preprocess: inputs as `compress` takes them (random unless given); input_shapes: sizes that the
    models leave open. Raises UsageError, ModelError for a model that fails, DataError for data that do not fit.
    """
    sources = [models] if isinstance(models, str | Path | ModelProto) else list(models)
    counts = [threads] if isinstance(threads, int) else list(threads)
    batches = [batch] if isinstance(batch, int) or batch is None else list(batch)
    if calibration_size is not None and not int8:
        raise UsageError("--calibration-size belongs to --int8, which is not given")
    given = Given(
        data, preprocess, CALIBRATION_SIZE if calibration_size is None else calibration_size, input_shapes, seed
    )
    _check(sources, counts, batches, How(min(counts, default=1), provider, precision, seconds, seed), given)
    protos = dict(zip(names(sources), map(loaded, sources), strict=True))
    return measured(
        protos, given, [How(n, provider, precision, seconds, seed) for n in counts], batches, profile, memory, int8
    )


@dataclass(frozen=True, slots=True)
class Given:
    """Inputs to measure with; `benchmark` says what each means."""

    data: Any = None
    preprocess: str | None = None
    calibration_size: int = CALIBRATION_SIZE
    shapes: Shapes | None = None
    seed: int = 0


def measured(
    protos: Mapping[str, ModelProto],
    given: Given,
    hows: Sequence[How],
    batches: Sequence[int | None] = (None,),
    profile: bool = False,
    memory: bool = True,
    int8: bool = False,
) -> Benchmark:
    """Measure models by name, in every way and with every batch; see `benchmark`."""
    quantized = _quantized(protos, given) if int8 else {}
    protos = {**protos, **{_in_int8(name): q for name, q in quantized.items()}}
    inputs = {b: _feeds(protos, b, given) for b in batches}
    how, first = hows[0], inputs[batches[0]]
    _LOG.info("kernels")
    kernels = {name: blocked(p) for name, p in protos.items()}
    base = next(iter(kernels.values()))
    accuracy = _accuracy(protos, given) if int8 else {}
    ways = [(h, b) for b in batches for h in hows]
    found = [(h, b, _rounds(protos, inputs[b], h)) for h, b in Progress("measurement", len(ways)).over(ways)]
    told = Progress("peak memory of model", len(ways) * len(protos))
    rows = [row for h, b, times in found for row in _rows(times, protos, inputs[b], h, told if memory else None)]
    return Benchmark(
        rows=tuple(rows),
        size={name: file_bytes(p) for name, p in protos.items()},
        kernels=kernels,
        fell_off={name: fell_off(base, k) for name, k in kernels.items()},
        nodes={name: ran_on(p, first[name], how.threads, how.provider) for name, p in protos.items()},
        layers=_layers(protos, first, how.threads, how.provider) if profile else {},
        environment=environment(how.threads, how.provider),
        notes=(*_notes(rows, [h.threads for h in hows], how.precision, given.data is None), *_fitted(accuracy, given)),
        int8=tuple(_gains(found[0][2], list(protos), quantized)),
        accuracy=accuracy,
    )


def _in_int8(name: str) -> str:
    return f"{name} in int8"


def _quantized(protos: Mapping[str, ModelProto], given: Given) -> dict[str, ModelProto]:
    """Every model in int8, calibrated on the same inputs."""
    if given.data is None:
        raise UsageError("--int8 needs --data: inputs like those of use, on which the ranges are measured")
    made = {}
    for name, proto in Progress("model", len(protos)).over(protos.items()):
        _LOG.info("quantizing %s", name)
        data = open_data(given.data, input_specs(proto), preprocess=given.preprocess)
        batches = data.batches(_CALIBRATION_BATCH, limit=given.calibration_size, seed=given.seed)
        told = Progress("quantizing: batch", data.number(_CALIBRATION_BATCH, given.calibration_size))
        made[name] = quantize(proto, (b.inputs for b in told.over(batches)))
    return made


def _gains(found: Measured, order: Sequence[str], quantized: Mapping[str, ModelProto]) -> Iterator[Int8]:
    for name, model in quantized.items():
        floats, ints = (found.times[:, 1 + order.index(n)] for n in (name, _in_int8(name)))
        speedup = ratio_interval(floats, ints, found.seed)
        yield Int8(name, _in_int8(name), model, speedup, verdict(speedup, found.noise))


def _accuracy(protos: Mapping[str, ModelProto], given: Given) -> dict[str, Validation]:
    """Every model beside the first, on all of the data."""
    _LOG.info("comparing outputs")
    first, *others = protos.items()
    return {
        name: validate(first[1], proto, data=given.data, preprocess=given.preprocess, seed=given.seed)
        for name, proto in Progress("outputs of model", len(others)).over(others)
    }


def _fitted(accuracy: Mapping[str, Validation], given: Given) -> Iterator[str]:
    """What the answers of models on inputs that they were fitted on are worth."""
    for samples in {v.samples for v in accuracy.values()}:
        yield (
            f"{min(samples, given.calibration_size):,} of the {samples:,} inputs whose answers are compared are those "
            "that int8, and a repair by `compress` on the same data, were fitted on: judge by `validate` on others"
        )


def _check(
    sources: Sequence[Source],
    threads: Sequence[int],
    batches: Sequence[int | None],
    how: How,
    given: Given,
) -> None:
    if given.preprocess is not None and given.data is None:
        raise UsageError("--preprocess says how to read --data, which is not given")
    if not (sources and threads and batches):
        raise UsageError("give at least one model, one number of threads and one batch size")
    how.check()
    if wrong := [b for b in batches if b is not None and b < 1]:
        raise UsageError(f"--batch {wrong[0]}: give at least 1")


def names(sources: Sequence[Source]) -> list[str]:
    """What the models are called: paths as given, with a number where one is given twice."""
    names = [s.graph.name or "model" if isinstance(s, ModelProto) else str(s) for s in sources]
    return [n if names.count(n) == 1 else f"{n} ({names[: i + 1].count(n)})" for i, n in enumerate(names)]


def _feeds(protos: Mapping[str, ModelProto], batch: int | None, given: Given) -> dict[str, dict[str, Array]]:
    """Inputs of every model: those of the data, or random ones, which are the same where the inputs are."""
    if given.data is None:
        return {name: made_up(p, batch, given.shapes, given.seed) for name, p in protos.items()}
    return {name: _real(p, batch or 1, given.data, given.preprocess) for name, p in protos.items()}


def _real(proto: ModelProto, batch: int, data: Any, preprocess: str | None) -> dict[str, Array]:
    opened = open_data(data, input_specs(proto), preprocess=preprocess, minimum=batch)
    return next(iter(opened.batches(batch))).inputs


def _rounds(protos: Mapping[str, ModelProto], inputs: Mapping[str, Mapping[str, Array]], how: How) -> Measured:
    _LOG.info("measuring with %d thread%s", how.threads, "s" * (how.threads > 1))
    return measure(list(protos.values()), list(inputs.values()), how)


def _rows(
    found: Measured,
    protos: Mapping[str, ModelProto],
    inputs: Mapping[str, Mapping[str, Array]],
    how: How,
    memory: Progress | None,
) -> Iterator[Row]:
    """Rows of all models with one number of threads and one batch; with their peak memory, if that has a progress."""
    noise = found.noise
    for i, (name, proto) in enumerate(protos.items()):
        batch = next((len(a) for a in inputs[name].values() if a.ndim), 1)
        timing, speedup = found.timing(i), found.speedup(i) if i else None
        said = verdict(speedup, noise) if speedup else None
        peak = None
        if memory is not None:
            memory.step()
            peak = peak_memory(proto, inputs[name], threads=how.threads, provider=how.provider)
        throughput = batch / timing.p50
        yield Row(name, how.threads, batch, timing, found.median(i), speedup, noise, said, throughput, peak)


def _layers(
    protos: Mapping[str, ModelProto], inputs: Mapping[str, Mapping[str, Array]], threads: int, provider: str
) -> dict[str, tuple[NodeTime, ...]]:
    _LOG.info("profiling")
    told = Progress("profile of model", len(protos)).over(protos.items())
    return {n: profiled(p, inputs[n], threads=threads, provider=provider) for n, p in told}


def _notes(rows: Sequence[Row], threads: Sequence[int], precision: float, random: bool) -> list[str]:
    notes = ["inputs are random numbers"] if random else []
    if max(threads) > default_threads():
        notes.append(f"{max(threads)} threads on {default_threads()} CPUs: they wait for each other")
    wide = [r for r in rows if r.speedup and (r.speedup.high - r.speedup.low) / r.speedup.point > precision]
    if wide:
        notes.append(
            f"the time cap ended {len(wide)} of {len(rows)} measurements before the precision of {precision:.1%} was "
            "reached: more `bench --seconds`, or a quieter machine, may reach it"
        )
    noisy = [r.noise for r in rows if r.noise.low > 1.01 or r.noise.high < 0.99]
    if noisy:
        notes.append(
            f"the baseline differs from itself by {abs(noisy[0].point - 1):.1%}: differences below do not count"
        )
    return notes
