"""The page of `bench`, and latencies on other pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnxprune.drawing import hump, whisker
from onnxprune.report.html import parts as p
from onnxprune.report.latency import duration
from onnxprune.report.layout import percent, si

Told = Mapping[str, Any]
_TAIL = 95  # the quantile at which distributions end: further ones are other programs' doing
_SHOWN = 400  # layers of a profile
_STATES = {"faster": "good", "slower": "bad", "inconclusive": "doubt"}


def bench(told: Told) -> p.Page:
    """Verdict, latencies, speed-ups, kernels, where the time goes, accuracy, and how it was measured."""
    rows = told["rows"]
    last = next((r for r in reversed(rows) if r["speedup"]), None)
    title = " beside ".join(told["models"])
    date = p.dated(told)
    state = _STATES.get(last["verdict"], "") if last else ""
    environment = {k: v for k, v in told["environment"].items() if k != "session"}
    sections = [*compared(told), p.run(told, environment)]
    return p.Page("bench", title, _verdict(last, rows), list(_tiles(last or rows[0], told)), sections, state, date)


def _verdict(last: Told | None, rows: Sequence[Told]) -> str:
    if last is None:
        return f"The median latency is {p.interval(rows[0]['median'], duration)}."
    span = p.interval(last["speedup"], lambda v: f"{v:.3f}")
    words = {"no difference": "no different from", "inconclusive": "not shown to be faster or slower than"}
    how = words.get(last["verdict"], f"{last['verdict']} than")
    return f"{last['model']} is {how} {rows[0]['model']}: {span} times as fast, with 95 % confidence."


def _tiles(row: Told, told: Told) -> Iterator[p.Tile]:
    if row["speedup"]:
        yield p.Tile(
            f"{row['speedup']['point']:.2f}x", "speed-up over the first model", _STATES.get(row["verdict"], "")
        )
    yield p.Tile(duration(row["median"]["point"]), "median latency")
    yield p.Tile(si(told["models"][row["model"]]["bytes"], "B"), "size of the file")
    if not row["speedup"]:
        yield p.Tile(f"{row['throughput']:.3g}", "samples per second")


def compared(told: Told, refused: str = "") -> list[p.Section]:
    """The sections of a benchmark, `int8` of a compression included."""
    letters = {name: _letter(i) for i, name in enumerate(told["models"])}
    rows = told["rows"]
    lines = [f"{letters[n]}: {n} ({si(m['bytes'], 'B')})" for n, m in told["models"].items()]
    cases = {(r["threads"], r["batch"]) for r in rows}
    told_rows = [
        (_case(letters[r["model"]], r, len(cases) > 1), r["seconds"], r["median"], r["throughput"], r["memory"])
        for r in rows
    ]
    blocks: list[p.Block] = [p.Lines(lines), *latencies(told_rows), _speedups(rows, letters, len(cases) > 1)]
    notes = [f"Note: {n}." for n in told["notes"]] + ([f"{refused}."] if refused else [])
    found = [p.Section("latency", "Latency", [*blocks, p.Lines(notes)])]
    return p.shown(*found, _int8(told), _accuracies(told, letters), _kernels(told, letters), _profile(told, letters))


def _letter(i: int) -> str:
    return chr(ord("A") + i) if i < 26 else f"M{i + 1}"


def _case(letter: str, row: Told, several: bool) -> str:
    return f"{letter}, {row['threads']} threads, batch {row['batch']}" if several else letter


# ---- latency ------------------------------------------------------------------------------------------------------


def latencies(rows: Sequence[tuple[str, Told, Told, float | None, int | None]]) -> list[p.Block]:
    """Distributions with the interval of the median, and percentiles: (label, timing, median, samples/s, memory)."""
    drawn = all("quantiles" in t for _, t, *_ in rows)
    low = min(t["quantiles"][0] for _, t, *_ in rows) if drawn else 0.0
    high = max(max(t["quantiles"][_TAIL], m["high"]) for _, t, m, *_ in rows) if drawn else 0.0
    titles = (("p50", False), ("p90", False), ("p99", True), ("first", True), ("load", True), ("runs", True))
    columns = [
        p.Column("", text=True),
        *([p.Column("distribution", text=True)] if drawn else []),
        *(p.Column(t, extra=extra) for t, extra in titles),
        p.Column("samples/s", extra=True),
        p.Column("memory", extra=True),
    ]
    cells = []
    for label, t, median, throughput, memory in rows:
        told = f"latencies of {label}: median {p.interval(median, duration)}"
        pair = (median["low"], median["high"])
        shape = (
            [p.Cell(picture=hump(t["quantiles"], low, high, pair, told))]
            if drawn and high > low
            else [p.Cell()] * drawn
        )
        times = [p.time(t[k]) for k in ("p50", "p90", "p99", "first", "load")]
        speed = p.number(throughput, None if throughput is None else si(float(f"{throughput:.3g}")))
        cells.append([p.Cell(label), *shape, *times, p.number(t["n"]), speed, p.count(memory, "B")])
    words = (
        f"Distributions from {duration(low)} to {duration(high)}, on a logarithmic axis, without the slowest "
        f"{100 - _TAIL} %; lines: the median, or the ends of its 95 % interval."
    )
    return [p.Table("latencies", columns, cells), p.Lines([words] if drawn else [])]


def speedups(rows: Sequence[tuple[str, Told, str]]) -> p.Table:
    """Speed-ups with their intervals beside 1: (label, interval, verdict)."""
    low = min(0.9, *(x["low"] for _, x, _ in rows))
    high = max(1.1, *(x["high"] for _, x, _ in rows))
    columns = (
        p.Column("", text=True),
        p.Column("beside 1 (dashed)", text=True),
        p.Column("times as fast"),
        p.Column("95 % interval", text=True),
        p.Column("verdict", text=True),
    )
    cells = [
        [
            p.Cell(label),
            p.Cell(picture=whisker(x["point"], x["low"], x["high"], (low, high), f"{label}: {x['point']:.3f}")),
            p.number(x["point"], f"{x['point']:.3f}"),
            p.Cell(f"{x['low']:.3f} to {x['high']:.3f}"),
            p.Cell(verdict, state=_STATES.get(verdict, "")),
        ]
        for label, x, verdict in rows
    ]
    return p.Table("speedups", columns, cells)


def _speedups(rows: Sequence[Told], letters: Mapping[str, str], several: bool) -> p.Table:
    first = next(iter(letters.values()))
    return speedups(
        [
            (
                _case(letters[r["model"]] if r["speedup"] else f"{first} again", r, several),
                r["speedup"] or r["noise"],
                r["verdict"] or "noise floor",
            )
            for r in rows
        ]
    )


# ---- int8, accuracy, kernels, layers ------------------------------------------------------------------------------


def _int8(told: Told) -> p.Section | None:
    if not told.get("int8"):
        return None
    cells = [(x["name"], x["speedup"], x["verdict"]) for x in told["int8"]]
    return p.Section("int8", "int8 beside floats", [speedups(cells)])


def _accuracies(told: Told, letters: Mapping[str, str]) -> p.Section | None:
    found = {n: m for n, m in told["models"].items() if m.get("agreement")}
    if not found:
        return None
    columns = (p.Column("", text=True), p.Column("metric"), p.Column("drop", text=True), p.Column("same answers"))
    rows = []
    for name, m in found.items():
        metric, same = m["metric"], m["agreement"].get("top1", m["agreement"].get("cosine"))
        value = p.number(metric["candidate"], f"{metric['candidate']:.4g}") if metric else p.Cell("-")
        span = p.interval(metric["drop"], lambda v: f"{v:.2f}") if metric else "-"
        rows.append([p.Cell(letters[name]), value, p.Cell(span), p.share(same["point"] if same else None)])
    return p.Section("accuracy", "Beside the first model", [p.Table("accuracy", columns, rows)])


def _kernels(told: Told, letters: Mapping[str, str]) -> p.Section | None:
    lines = [
        f"{letters[n]}: {m['kernels']['blocked']} of {m['kernels']['convs']} convolutions run in blocks of channels."
        for n, m in told["models"].items()
        if m["kernels"]["convs"]
    ]
    columns = (p.Column("", text=True), p.Column("convolution", text=True), p.Column("why not in blocks", text=True))
    rows = [
        [p.Cell(letters[n]), p.name(c["node"]), p.Cell("; ".join(filter(None, (c["why"], c["fix"]))))]
        for n, m in told["models"].items()
        for c in m["kernels"]["others"][:_SHOWN]
    ]
    if not lines:
        return None
    return p.Section(
        "kernels", "Kernels", [p.Lines(lines), *([p.Table("kernels", columns, rows, sorts=True)] if rows else [])]
    )


def _profile(told: Told, letters: Mapping[str, str]) -> p.Section | None:
    """Seconds per layer of every model, the slowest of the first first."""
    times = {n: {x["node"]: x for x in m["layers"]} for n, m in told["models"].items() if m["layers"]}
    if not times:
        return None
    order = list(dict.fromkeys(node for found in times.values() for node in found))
    columns = [p.Column("layer", text=True), p.Column("op", text=True, extra=True)]
    for n in times:
        columns += [p.Column(letters[n]), p.Column("", text=True), p.Column(f"{letters[n]}'s share", extra=True)]
    rows = [_layer(node, list(times.values())) for node in order[:_SHOWN]]
    words = "Layers with what is fused into them. The profiler takes time, too: these are not the latencies above."
    left = len(order) - len(rows)
    after = f"{left:,} quicker layers are left out; the JSON has all." if left else ""
    table = p.Table("profile", columns, rows, sorts=True, after=after)
    return p.Section("profile", "Where the time goes", [p.Lines([words]), table])


def _layer(node: str, times: Sequence[Mapping[str, Told]]) -> list[p.Cell]:
    op = next(found[node]["op"] for found in times if node in found)
    cells = [p.name(node), p.Cell(op)]
    for found in times:
        x = found.get(node)
        cells += (
            [p.time(x["seconds"]), p.bar(x["share"]), p.Cell(percent(x["share"]), x["share"])]
            if x
            else [p.Cell("-")] * 3
        )
    return cells
