"""Benchmarks as tables and text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table

from onnxprune.report.layout import lines, new_table, percent, sections, si
from onnxprune.report.names import short
from onnxprune.validation.bench import Benchmark, Row
from onnxprune.validation.intervals import Interval
from onnxprune.validation.kernels import ConvKernel
from onnxprune.validation.profile import REORDER, NodeTime
from onnxprune.validation.result import Validation

_LAYERS, _FALLEN = 10, 8  # shown before "n more"


def benchmark(found: Benchmark) -> RenderableType:
    """Latency, memory, kernels and, where profiled, layers of all models."""
    names = {name: chr(ord("A") + i % 26) for i, name in enumerate(found.size)}
    return sections(
        lines(*(f"{letter}: {name} ({si(found.size[name], 'B')})" for name, letter in names.items())),
        _latencies(found.rows, names),
        _speedups(found.rows, names),
        _accuracies(found.accuracy, names) if found.accuracy else "",
        lines(*_int8(found, names)),
        lines(*_kernels(found, names)),
        *(_profile(found.layers, names) if found.layers else ()),
        lines(*_setting(found), *(f"Note: {note}." for note in found.notes)),
    )


def _latencies(rows: Sequence[Row], names: dict[str, str]) -> Table:
    titles = ("p50", "p90", "p99", "samples/s", "first", "load", "memory")
    made = new_table(*_varying(rows), *((title, ">") for title in titles))
    for r in rows:
        t = r.timing
        times = [duration(x) for x in (t.p50, t.p90, t.p99)]
        memory = "-" if r.memory is None else si(r.memory, "B")
        rest = (si(float(f"{r.throughput:.3g}")), duration(t.first), duration(t.load), memory)
        made.add_row(*_which(r, rows, names[r.model]), *times, *rest)
    return made


def _speedups(rows: Sequence[Row], names: dict[str, str]) -> Table:
    first = next(iter(names.values()))
    made = new_table(*_varying(rows), (f"{first} / it", ">"), ("95 %", "<"), ("verdict", "<"))
    for r in rows:
        shown = r.speedup or r.noise
        name = names[r.model] if r.speedup else f"{first} again"
        made.add_row(*_which(r, rows, name), f"{shown.point:.3f}", span(shown), r.verdict or "noise floor")
    return made


def _accuracies(found: dict[str, Validation], names: dict[str, str]) -> RenderableType:
    """Agreement with the first model, and the metric of all where there are labels."""
    first, metric = next(iter(names.values())), next(iter(found.values())).metric
    made = new_table(
        ("", "<"), (metric.metric if metric else "", ">"), (f"drop to {first}", ">"), ("same answers", ">")
    )
    if metric:
        made.add_row(first, _value(metric.original, metric.rate), "", "")
    for name, v in found.items():
        m, same = v.metric, v.agreement.get("top1", v.agreement["cosine"])
        drop = f"{m.drop.point:.2f} ({m.drop.low:.2f} .. {m.drop.high:.2f})" if m else ""
        made.add_row(names[name], _value(m.candidate, m.rate) if m else "", drop, percent(same.point))
    return made


def _value(value: float, rate: bool) -> str:
    return percent(value) if rate else f"{value:.4g}"


def _int8(found: Benchmark, names: dict[str, str]) -> Iterator[str]:
    for x in found.int8:
        gain = f"{x.speedup.point:.3f} ({span(x.speedup)})"
        told = f"int8 makes {names[x.name]} {gain} times as fast: {x.verdict}."
        yield told if x.pays else f"{told} It gains nothing here: keep the floats."
    if found.int8 and not found.environment["int8"]:
        yield "This processor has no instructions for int8 (VNNI or dot products)."


def _varying(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Columns that say which row it is: threads and batch where there are several."""
    several = [(title, ">") for title in ("threads", "batch") if len({getattr(r, title) for r in rows}) > 1]
    return [("", "<"), *several]


def _which(row: Row, rows: Sequence[Row], name: str) -> list[str]:
    return [name, *(str(getattr(row, title)) for title, _ in _varying(rows)[1:])]


def span(interval: Interval) -> str:
    """Both ends of an interval of ratios."""
    return f"{interval.low:.3f} .. {interval.high:.3f}"


def duration(seconds: float) -> str:
    """Seconds with three digits and a unit."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= size:
            return f"{seconds / size:#.3g}".rstrip(".") + f" {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _kernels(found: Benchmark, names: dict[str, str]) -> Iterator[str]:
    for name, kernels in found.kernels.items():
        if kernels.convs:
            yield f"{names[name]}: {kernels.blocked} of {len(kernels.convs)} convolutions run in blocks of channels."
        fallen = found.fell_off[name]
        if fallen:
            yield f"Warning: {len(fallen)} of them left the blocks, which the first model's have:"
        others = kernels.others if kernels.blocked or any(c.fix for c in kernels.others) else ()
        shown = fallen or [c for c in others if c.fix]
        yield from _reasons(shown)


def _reasons(convs: Sequence[ConvKernel]) -> Iterator[str]:
    for c in convs[:_FALLEN]:
        yield f"  {short(c.node)}: {c.why}" + (f"; {c.fix}" if c.fix else "")
    if len(convs) > _FALLEN:
        yield f"  and {len(convs) - _FALLEN} more; --json has all."


def _profile(layers: dict[str, tuple[NodeTime, ...]], names: dict[str, str]) -> Iterator[RenderableType]:
    """The slowest layers of the first model, and what the others take for those of the same name."""
    made = new_table(("layer", "<"), ("op", "<"), *((f"{x}", ">") for n in names for x in (names[n], "share")))
    by_name = [{r.node: r for r in rows} for rows in layers.values()]
    order = list(dict.fromkeys(r.node for rows in layers.values() for r in rows))
    slowest = sorted(order, key=lambda n: -max(found[n].share for found in by_name if n in found))
    for node in slowest[:_LAYERS]:
        cells = [c for found in by_name for c in _cells(found.get(node))]
        op = "" if node == REORDER else next(found[node].op for found in by_name if node in found)
        made.add_row(short(node), op, *cells)
    totals = [c for rows in layers.values() for c in (duration(sum(r.seconds for r in rows)), "")]
    made.add_row("all", "", *totals)
    yield made
    yield (
        f"{min(len(order), _LAYERS)} of {len(order)} layers, with what is fused into them; --json has all. The "
        "profiler takes time, too: these are not the latencies above."
    )


def _cells(row: NodeTime | None) -> tuple[str, str]:
    return ("-", "") if row is None else (duration(row.seconds), percent(row.share))


def _setting(found: Benchmark) -> Iterator[str]:
    e = found.environment
    load = "" if e["load"] is None else f", load {e['load'][0]:.2f}"
    governor = f", governor {e['governor']}" if e["governor"] else ""
    yield f"{e['cpu']}, {e['cpus']} CPUs{governor}{load}; onnxruntime {e['onnxruntime']}, no spinning."
    ran = {where: count for nodes in found.nodes.values() for where, count in nodes.items()}
    if set(ran) == {e["provider"]}:
        yield f"Every node ran on {e['provider']}."
    else:
        told = "; ".join(
            f"{name}: " + ", ".join(f"{count} nodes on {where}" for where, count in nodes.items())
            for name, nodes in found.nodes.items()
        )
        yield f"Warning: {e['provider']} did not run everything. {told}."
    threads, batches = {r.threads for r in found.rows}, {r.batch for r in found.rows}
    same = [f"{n} thread" + "s" * (n > 1) for n in threads if len(threads) == 1]
    same += [f"batch {n}" for n in batches if len(batches) == 1]
    fewest = min(r.timing.n for r in found.rows)
    yield "; ".join([*same, f"{fewest} rounds or more of all models, in random order."])
