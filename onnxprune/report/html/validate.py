"""The page of `validate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from onnxprune.report.html import parts as p
from onnxprune.report.html.bench import latencies, speedups
from onnxprune.report.layout import percent
from onnxprune.report.validation import AGREEMENT_WORDS, figure

Told = Mapping[str, Any]
_STATES = {"pass": "good", "fail": "bad", "inconclusive": "doubt"}


def validate(told: Told) -> p.Page:
    """Verdict, goals, accuracy and agreement, latency, and how it was measured."""
    around = (told["latency"] or {}).get("paired", {}).get("environment", {})
    environment = {k: v for k, v in around.items() if k != "session"}
    sections = p.shown(_goals(told), _beside(told), _latency(told["latency"]), p.run(told, environment))
    title = f"{told['original']} beside {told['candidate']}"
    date = p.dated(told)
    state = _STATES.get(told["verdict"] or "", "")
    return p.Page("validate", title, _verdict(told), list(_tiles(told)), sections, state, date)


def _verdict(told: Told) -> str:
    met = sum(g["verdict"] == "pass" for g in told["goals"])
    where = (
        f" Measured on {told['samples']:,} samples of {told['data']}." if told["data"] else " Measured without data."
    )
    if told["verdict"] is None:
        return f"No goals were given: this only shows what was measured.{where}"
    words = {"pass": "Pass", "fail": "Fail", "inconclusive": "Inconclusive: the data cannot tell"}
    return f"{words[told['verdict']]}: {met} of {len(told['goals'])} goals met.{where}"


def _tiles(told: Told) -> Iterator[p.Tile]:
    metric, agreement, latency = told["metric"], told["agreement"], told["latency"]
    if metric:
        unit = "points" if metric["rate"] else ""
        yield p.Tile(figure(metric["drop"]["point"], unit), f"drop of {metric['metric']}", _goal(told, "max_drop"))
    elif agreement:
        name = "top1" if "top1" in agreement else "cosine"
        yield p.Tile(_rate(name, agreement[name]["point"]), AGREEMENT_WORDS[name], _goal(told, "min_agreement"))
    size = told["size"]
    yield p.Tile(percent(size["candidate"] / max(size["original"], 1)), "of the size", _goal(told, "max_size"))
    if latency:
        yield p.Tile(f"{latency['speedup']['point']:.2f}x", "speed-up", _goal(told, "min_speedup"))


def _goal(told: Told, name: str) -> str:
    return next((_STATES[g["verdict"]] for g in told["goals"] if g["name"] == name), "")


def _rate(name: str, value: float) -> str:
    return figure(value, "%" if name == "top1" else "")


def _goals(told: Told) -> p.Section | None:
    if not told["goals"]:
        return None
    columns = (p.Column("goal", text=True), p.Column("measured", text=True), p.Column("verdict", text=True))
    rows = [
        [
            p.Cell(f"{g['name'].replace('_', ' ')} {figure(g['bound'], g['unit'])}"),
            p.Cell(f"{g['what']} {p.interval(g['measured'], partial(figure, unit=g['unit']))}"),
            p.Cell(g["verdict"], state=_STATES[g["verdict"]]),
        ]
        for g in told["goals"]
    ]
    return p.Section("goals", "Goals", [p.Table("goals", columns, rows)])


def _beside(told: Told) -> p.Section:
    """The metric, agreement and size of both."""
    metric, size = told["metric"], told["size"]
    columns = (p.Column("", text=True), p.Column("original"), p.Column("candidate"), p.Column("difference", text=True))
    rows = [
        [
            p.Cell("size"),
            p.count(size["original"], "B"),
            p.count(size["candidate"], "B"),
            p.Cell(f"{percent(size['candidate'] / max(size['original'], 1))} kept"),
        ]
    ]
    lines = []
    if metric:
        unit = "%" if metric["rate"] else ""
        values = [p.number(metric[k], figure(metric[k], unit)) for k in ("original", "candidate")]
        points = "points" if metric["rate"] else ""
        rows.insert(
            0,
            [
                p.Cell(metric["metric"]),
                *values,
                p.Cell(f"drop {p.interval(metric['drop'], lambda v: figure(v, points))}"),
            ],
        )
        if metric["lost"] is not None:
            lines.append(
                f"Only the original is right on {metric['lost']:,} samples, only the candidate on {metric['gained']:,}."
            )
    agreement = [
        [p.Cell(AGREEMENT_WORDS[n]), p.Cell(p.interval(x, partial(_rate, n)))] for n, x in told["agreement"].items()
    ]
    blocks: list[p.Block] = [p.Table("beside", columns, rows)]
    if agreement:
        blocks.append(
            p.Table(
                "agreement", (p.Column("beside the original", text=True), p.Column("candidate", text=True)), agreement
            )
        )
        lines.append("In brackets: 95 % confidence intervals.")
    if len(told["outputs"]) > 1:
        blocks.append(_outputs(told["outputs"]))
    blocks.append(p.Lines([*lines, *(f"Note: {n}" for n in told["notes"])]))
    return p.Section("result", "Original and candidate", blocks)


def _outputs(found: Mapping[str, Told]) -> p.Table:
    """Each output beside the original's."""
    columns = (p.Column("output", text=True), *(p.Column(words) for words in AGREEMENT_WORDS.values()))
    rows = [
        [
            p.name(output),
            *(
                p.number(told[n]["point"], _rate(n, told[n]["point"])) if n in told else p.Cell("-")
                for n in AGREEMENT_WORDS
            ),
        ]
        for output, told in found.items()
    ]
    return p.Table("outputs", columns, rows)


def _latency(found: Told | None) -> p.Section | None:
    if not found:
        return None
    pair = found["paired"]
    base = pair["baseline"]
    # The interval of the original's median is not measured by itself: its own point stands for it.
    middle = {"point": base["p50"], "low": base["p50"], "high": base["p50"]}
    rows = [("original", base, middle, None, None), ("candidate", pair["candidate"], pair["median"], None, None)]
    if cleaned := found.get("cleaned"):
        base = cleaned["baseline"]
        middle = {"point": base["p50"], "low": base["p50"], "high": base["p50"]}
        rows.insert(1, ("cleaned original", base, middle, None, None))
    compared = [("original again", pair["noise"], "noise floor"), ("candidate", found["speedup"], pair["verdict"])]
    if found["pruning"]:
        compared.append(("candidate beside the cleaned original", found["pruning"], ""))
    return p.Section("latency", "Latency", [*latencies(rows), speedups(compared)])
