"""What a validation found: a table for the terminal, Markdown, and annotations of GitHub Actions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table

from onnxprune.report.latency import duration
from onnxprune.report.layout import lines, new_table, percent, sections, si
from onnxprune.validation.accuracy import Comparison
from onnxprune.validation.gate import Goal, option
from onnxprune.validation.intervals import Interval
from onnxprune.validation.result import Validation
from onnxprune.validation.speed import Speed

Row = tuple[str, str, str, str]
HEAD = ("", "original", "candidate", "difference")
CLEANED = "cleaned (p50)"  # latency of the cleaned original, and of the candidate, measured again beside it
AGREEMENT = ("beside the original", "candidate")
OUTPUTS = ("output", "same top-1", "cosine", "rel. error", "KL")
GOALS = ("goal", "measured", "verdict")
AGREEMENT_WORDS = {
    "top1": "same top-1 answer",
    "cosine": "cosine of the outputs",
    "relative_error": "relative error",
    "divergence": "KL divergence",
}
_INTERVALS = "In brackets: 95 % confidence intervals."
_WORDS = {"pass": "pass", "fail": "FAIL", "inconclusive": "INCONCLUSIVE"}


# ---- numbers -----------------------------------------------------------------------------------------------------


def figure(value: float, unit: str) -> str:
    """A number with its unit: points, x, s (as ms), B, % (of 0..1), or none."""
    if unit == "s":
        return duration(value)
    if unit == "B":
        return si(value, "B")
    if unit == "%":
        return percent(value)
    number = f"{value:.2f}" if unit else f"{value:.4g}"
    return f"{number}{' ' * (unit != 'x')}{unit}".rstrip()


def interval(found: Interval, unit: str) -> str:
    """A point estimate and its interval; what is exact has none."""
    if found.low == found.high:
        return figure(found.point, unit)
    low, high = (figure(v, unit).removesuffix(f" {unit}") for v in (found.low, found.high))
    return f"{figure(found.point, unit)} ({low} to {high})"


def bound(goal: Goal) -> str:
    """The goal as it is given: `max drop 1.00 points`."""
    return f"{goal.name.replace('_', ' ')} {figure(goal.bound, goal.unit)}"


# ---- tables ------------------------------------------------------------------------------------------------------


def _rows(v: Validation) -> Iterator[Row]:
    if v.metric is not None:
        unit = "%" if v.metric.rate else ""
        values = (figure(v.metric.original, unit), figure(v.metric.candidate, unit))
        yield (v.metric.metric, *values, f"drop {interval(v.metric.drop, 'points' if v.metric.rate else '')}")
    yield ("size", figure(v.sizes[0], "B"), figure(v.sizes[1], "B"), f"{percent(v.sizes[1] / max(v.sizes[0], 1))} kept")
    if v.speed is not None:
        pair = v.speed.paired
        yield (
            "latency (p50)",
            figure(pair.baseline.p50, "s"),
            figure(pair.candidate.p50, "s"),
            _times(v.speed.speedup),
        )
        if v.speed.cleaned is not None:
            pair = v.speed.cleaned
            times = (figure(pair.baseline.p50, "s"), figure(pair.candidate.p50, "s"))
            yield (CLEANED, *times, _times(pair.speedup))


def _agreement_rows(v: Validation) -> Iterator[tuple[str, str]]:
    for name, found in v.agreement.items():
        where = next((f" ('{o}')" for o, m in v.outputs.items() if m.get(name) == found), "")
        told = AGREEMENT_WORDS[name] + (where if len(v.outputs) > 1 else "")
        yield (told, interval(found, "%" if name == "top1" else ""))


def _output_rows(v: Validation) -> Iterator[Sequence[str]]:
    """Point estimates of every output, where there are several."""
    for output, found in v.outputs.items() if len(v.outputs) > 1 else ():
        yield (
            output,
            *(figure(found[n].point, "%" if n == "top1" else "") if n in found else "-" for n in AGREEMENT_WORDS),
        )


def _times(speedup: Interval) -> str:
    return f"speed-up {interval(speedup, 'x')}"


def _goal_rows(v: Validation) -> Iterator[tuple[str, str, str]]:
    for goal in v.goals:
        yield (bound(goal), f"{goal.what} {interval(goal.measured, goal.unit)}", _WORDS[goal.verdict])


def _remarks(v: Validation) -> Iterator[str]:
    if v.metric is not None:
        yield from _discordant(v.metric)
    if v.speed is not None:
        yield from _cleaning(v.speed)
    yield from (f"Note: {n}" for n in v.notes)


def _discordant(found: Comparison) -> Iterator[str]:
    if found.lost is not None:
        yield f"Only the original is right on {found.lost:,} samples, only the candidate on {found.gained:,}."


def _cleaning(speed: Speed) -> Iterator[str]:
    if speed.pruning is not None and speed.cleaning is not None:
        yield (
            f"Cleaning the original alone (`onnxprune clean`) makes it {speed.cleaning:.2f}x as fast; beside the "
            f"cleaned original, the candidate's speed-up is {interval(speed.pruning, 'x')}."
        )


def _title(v: Validation) -> str:
    where = "" if v.data is None else f", on {v.samples:,} samples of {v.data}"
    return f"{v.original} beside {v.candidate}{where}"


def _verdict(v: Validation) -> str:
    if v.verdict is None:
        return "No goals were given, so there is no verdict."
    doubtful = sum(g.verdict == "inconclusive" for g in v.goals)
    passed = f"{sum(g.verdict == 'pass' for g in v.goals)} of {len(v.goals)} goals met"
    why = next((g.reason for g in v.goals if g.reason), "the interval holds the goal")
    doubt = f", {doubtful} inconclusive: {why}" if doubtful else ""
    return f"Verdict: {_WORDS[v.verdict]} ({passed}{doubt})."


def text(v: Validation) -> RenderableType:
    """Tables that fit 80 columns."""
    sides: dict[Sequence[str], str] = {HEAD: "<>><", AGREEMENT: "<<", OUTPUTS: "<>>>>", GOALS: "<<<"}
    tables: dict[Sequence[str], list[Sequence[str]]] = {
        HEAD: list(_rows(v)),
        AGREEMENT: list(_agreement_rows(v)),
        OUTPUTS: list(_output_rows(v)),
        GOALS: list(_goal_rows(v)),
    }
    made = [_grid(head, sides[head], rows) for head, rows in tables.items() if rows]
    return sections(_title(v), *made, lines(*_remarks(v), _INTERVALS), _verdict(v))


def _grid(head: Sequence[str], sides: str, rows: Iterable[Sequence[str]]) -> Table:
    table = new_table(*zip(head, sides, strict=True))
    for row in rows:
        table.add_row(*row)
    return table


def markdown(v: Validation) -> str:
    """The same for a page: a heading, the verdict, the goals, the measurements, the remarks."""
    made = [f"### {_plain(_title(v))}", "", f"**{_verdict(v)}**"]
    if v.goals:
        made += ["", *_piped(GOALS, _goal_rows(v))]
    made += ["", *_piped(HEAD, _rows(v))]
    if v.agreement:
        made += ["", *_piped(AGREEMENT, _agreement_rows(v))]
    if len(v.outputs) > 1:
        made += ["", *_piped(OUTPUTS, _output_rows(v))]
    made += ["", *(f"- {_plain(r)}" for r in (*_remarks(v), _INTERVALS))]
    return "\n".join(made) + "\n"


def _piped(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    head = list(head)
    for row in (head, ["--"] * len(head), *rows):
        yield f"| {' | '.join(map(_plain, row))} |"


def _plain(cell: str) -> str:
    """Names may hold what Markdown reads as something else."""
    return re.sub(r"([\\|*_<>\[\]])", r"\\\1", cell).replace("\n", " ").replace("`", "'")


# ---- for CI ------------------------------------------------------------------------------------------------------


def told(goal: Goal) -> str:
    """One line on a goal."""
    side = "at most" if goal.name.startswith("max_") else "at least"
    found = f"{goal.what} is {interval(goal.measured, goal.unit)}; the goal is {side} {figure(goal.bound, goal.unit)}"
    return f"{found}; {goal.reason}" if goal.reason else found


def missed(v: Validation) -> str:
    """Why a gate does not let the candidate through."""
    fatal = {"fail"} if v.doubt == "pass" else {"fail", "inconclusive"}
    problems = [f"{option(g.name)}: {g.verdict}: {told(g)}" for g in v.goals if g.verdict in fatal]
    return f"the candidate '{v.candidate}' does not meet its goals: {'. '.join(problems)}"


def workflow_commands(v: Validation) -> Iterator[str]:
    """One workflow command of GitHub Actions for each goal that is not met; a warning where doubt may pass."""
    for goal in (g for g in v.goals if g.verdict != "pass"):
        kind = "warning" if v.passed or (goal.verdict == "inconclusive" and v.doubt == "pass") else "error"
        title = f"onnxprune validate {option(goal.name)} {goal.verdict}"
        yield f"::{kind} title={_escaped(title, ',:')}::{_escaped(f'{v.candidate}: {told(goal)}')}"


def _escaped(value: str, more: str = "") -> str:
    for character in f"%\r\n{more}":
        value = value.replace(character, f"%{ord(character):02X}")
    return value
