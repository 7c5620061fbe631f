"""Reports as tables and text that fit 80 columns. Pure: renderables for rich, nothing is printed here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table

from onnxprune.difference import Change, Difference
from onnxprune.explanation import AxisFate, Cause, Explanation, Member
from onnxprune.plan import Plan
from onnxprune.report import LayerChange, Report
from onnxprune.report.layout import lines as _lines
from onnxprune.report.layout import new_table as _table
from onnxprune.report.layout import percent, si
from onnxprune.report.layout import sections as _sections
from onnxprune.report.names import short
from onnxprune.report.overview import GroupRow, Overview
from onnxprune.report.reached import reached
from onnxprune.report.recovery import recovery, told_accuracy
from onnxprune.report.tried import tried

_LAYERS, _REASONS, _GROUPS, _CHANGES, _MEMBERS, _NAMES, _MARKS = 10, 6, 10, 20, 10, 4, 2  # shown before "n more"
_SPENT = 0.05  # seconds; stages below it are not worth a word
_KINDS = {"flops": "macs", "params": "params", "size": "bytes"}
_NOTHING = "Nothing was removed, so nothing was recovered."
_COUNTS = (("MACs", "macs", ""), ("parameters", "params", ""), ("size", "bytes", "B"))


# ---- compress and apply -------------------------------------------------------------------------------------------


def compression(report: Report, output: str | Path, *, measured: bool = False, trained: bool = False) -> RenderableType:
    """What was removed, what could not be, how it was verified, and what to do next; measured: the caller tells the
    accuracy; trained: and what a training did after the cut.
    """
    bare = "Not recovered: the bare cut was trained, as told below." if trained else recovery(None)
    return _sections(
        f"{report.model} -> {output}",
        _costs(report),
        reached(report.latency),
        _cut_layers(report.layers),
        _frozen(report.frozen, f"{report.removed:,} of {report.classes:,} classes removed{_left_out(report)}"),
        tried(report.tried),
        _verified(report),
        (recovery(report.recovery) if report.recovery else bare) if report.removed else _NOTHING,
        _lines(
            f"Note: {report.note}" if report.note else "",
            "" if report.reachable is None else f"The floors allow going down to {percent(report.reachable)}.",
            *(f"Model: {n}" for n in report.notes),
            *(f"Note: {n}" for n in report.caveats),
        ),
        _time(report.seconds),
        _lines(
            "" if measured else told_accuracy(report.recovery),
            f"Next: `onnxprune diff {report.model} {output}` lists every change.",
        ),
    )


def _left_out(report: Report) -> str:
    """Inexact classes that were not admitted."""
    admitted = not report.inexact or report.settings.get("inexact")
    return "" if admitted else f" ({report.inexact:,} are inexact: only --inexact removes them)"


def _costs(report: Report) -> Table:
    table = _table(("", "<"), ("before", ">"), ("after", ">"), ("kept", ">"))
    kept = report.compressed.fractions(report.original)
    for title, name, unit in _COUNTS:
        before, after = getattr(report.original, name), getattr(report.compressed, name)
        table.add_row(title, si(before, unit), si(after, unit), percent(kept[name]))
    return table


def _cut_layers(layers: Sequence[LayerChange]) -> RenderableType:
    cut = sorted((x for x in layers if x.kept < 1), key=lambda x: (x.kept, x.macs[1] - x.macs[0]))
    if not cut:
        return "No layer was cut."
    table = _table(("layers cut most", "<"), ("op", "<"), ("inputs", ">"), ("outputs", ">"), ("MACs kept", ">"))
    for x in cut[:_LAYERS]:
        table.add_row(short(x.node), x.op, _arrow(x.inputs), _arrow(x.outputs), percent(x.kept))
    told = f"{min(len(cut), _LAYERS)} of {len(cut)} cut layers ({len(layers)} in all); --json has all."
    return _sections(table, told, gap=0)


def _arrow(widths: tuple[int, int] | None) -> str:
    if widths is None:
        return "-"
    before, after = widths
    return str(before) if before == after else f"{before} -> {after}"


def _frozen(reasons: Sequence[tuple[int, str]], lead: str) -> RenderableType:
    total = sum(n for n, _ in reasons)
    if not reasons:
        return f"{lead}; no filter is frozen."
    table = _table(("filters", ">"), ("frozen because", "<"))
    for n, reason in reasons[:_REASONS]:
        table.add_row(f"{n:,}", reason)
    if len(reasons) > _REASONS:
        table.add_row(f"{sum(n for n, _ in reasons[_REASONS:]):,}", f"{len(reasons) - _REASONS} other reasons")
    return _sections(f"{lead}; {total:,} filters are frozen:", table, gap=0)


def _verified(report: Report) -> str:
    v = report.verification
    precision = "" if v.precision == "as stored" else f", in {v.precision}"
    error = f"{v.relative_error:.1e} relative{precision}"
    told = f"Verified: the cut equals the masked original up to {error}; checker {v.checker}."
    if v.masked_differs or not report.removed:
        return told
    return (
        f"{told}\nWarning: masking what was removed does not change the outputs on random inputs, so that this check "
        "says little. The removed filters may be dead, or the outputs constant: try the model on real data."
    )


def _time(seconds: dict[str, float]) -> str:
    stages = ", ".join(f"{name} {s:.1f}" for name, s in seconds.items() if s >= _SPENT)
    return f"Took {sum(seconds.values()):.1f} s" + (f": {stages}." if stages else ".")


# ---- plan and clean -----------------------------------------------------------------------------------------------


def prediction(plan: Plan, model: str | Path, output: str | Path) -> RenderableType:
    """What a plan promises."""
    table = _table(("", "<"), ("after", ">"), ("kept", ">"))
    for title, name, unit in _COUNTS:
        table.add_row(title, si(plan.predicted[name], unit), percent(plan.predicted["kept"][name]))
    axes = sum(map(len, plan.keep.values()))
    missed = [
        f"Note: the target {wanted:g} of --{option} is out of reach; this is the nearest."
        for option, name in _KINDS.items()
        if (wanted := plan.settings.get(option)) is not None and plan.predicted["kept"][name] > wanted
    ]
    return _sections(
        f"{model} -> {output}",
        table,
        _lines(
            f"Slices {axes:,} axes of {len(plan.keep):,} parameters.",
            *missed,
            f"Note: {plan.predicted['note']}" if "note" in plan.predicted else "",
            *(f"Note: {n}" for n in plan.predicted.get("notes", ())),
        ),
        f"Next: `onnxprune apply {model} {output}` writes the smaller model.",
    )


def cleaning(model: str | Path, output: str | Path, notes: Sequence[str]) -> RenderableType:
    """What normalisation did."""
    return _lines(f"{model} -> {output}", *(f"  {n}" for n in notes or ["nothing to clean"]))


# ---- analyze ------------------------------------------------------------------------------------------------------


def analysis(view: Overview) -> RenderableType:
    """Layers, cost, coupled classes, layers that share a fate, what is frozen and why."""
    cost = view.cost
    largest = f", at most {view.largest:,} filters in one" if view.classes else ""
    inexact = f"; {view.inexact:,} are inexact: only --inexact removes them" if view.inexact else ""
    return _sections(
        f"{view.model}: {si(cost.macs)} MACs, {si(cost.params)} parameters, {si(cost.bytes, 'B')}",
        _layer_table(view),
        _shared_fates(view.groups),
        _frozen(view.frozen, f"{view.filters:,} filters in {view.classes:,} classes{largest}{inexact}"),
        _lines(*(f"Model: {n}" for n in view.notes)),
        f"Next: `onnxprune explain {view.model} LAYER` says what goes with a layer, or why it cannot.",
    )


def _layer_table(view: Overview) -> Table:
    head = (("layer", "<"), ("op", "<"), ("in", ">"), ("out", ">"), ("frozen", ">"), ("MACs", ">"), ("share", ">"))
    table = _table(*head)
    for x in view.layers:
        widths = ("-" if n is None else str(n) for n in (x.inputs, x.outputs))
        table.add_row(x.node, x.op, *widths, str(x.frozen or ""), si(x.macs), percent(x.share))
    return table


def _shared_fates(groups: Sequence[GroupRow]) -> RenderableType:
    shared = sorted((g for g in groups if len(g.producers) > 1), key=lambda g: -len(g.producers))
    if not shared:
        return "No two layers share filters that must go together."
    table = _table(("layers", ">"), ("classes", ">"), ("width", ">"), ("share a fate", "<"))
    for g in shared[:_GROUPS]:
        table.add_row(str(len(g.producers)), str(g.classes), str(g.width), _some(g.producers))
    more = f"{len(shared) - _GROUPS} more such groups; --json has all." if len(shared) > _GROUPS else ""
    return _sections(table, more, gap=0)


# ---- explain ------------------------------------------------------------------------------------------------------


def explanation(told: Explanation) -> RenderableType:
    """The fate of every axis of a node, parameter or activation."""
    title = f"{told.name}: {told.kind}" + (f" ({told.op})" if told.op else "")
    first: dict[tuple[Member, ...], AxisFate] = {}
    fates = [_fate(axis, first.setdefault(axis.members, axis)) for axis in told.axes]
    return _sections(title, told.note, *fates)


def _fate(fate: AxisFate, first: AxisFate) -> RenderableType:
    """One axis; `first`: the axis above that shares its fate, or the axis itself."""
    role = {"out": " (filters)", "in": " (inputs)"}.get(fate.role, "")
    if not fate.frozen:
        state = f"in {fate.classes:,} classes, none frozen"
    elif fate.removable:
        state = f"{fate.removable:,} in {fate.classes:,} classes, {fate.frozen:,} frozen"
    else:
        state = "all frozen"
    return Group(
        f"{_axis(fate)}{role}: {fate.positions:,} positions, {state}",
        *(_indented(2, f"inexact: {reason}") for reason in fate.inexact[:_MARKS]),
        *([_indented(2, f"and {len(fate.inexact) - _MARKS} more such nodes")] if len(fate.inexact) > _MARKS else []),
        *(_goes_with(fate, first) if fate.removable else ()),
        *(line for cause in fate.causes for line in _cause(cause)),
    )


def _axis(fate: AxisFate) -> str:
    return f"{fate.tensor} axis {' and '.join(map(str, fate.axes))}"


def _goes_with(fate: AxisFate, first: AxisFate) -> Iterable[RenderableType]:
    itself = Member(fate.tensor, fate.axes[0], (fate.typical,))
    members = [m for m in fate.members if m != itself or len(fate.axes) > 1]
    if first is not fate:
        yield _indented(2, f"goes with {_axis(first)}, see above")
        return
    yield _indented(2, f"index {fate.typical} takes {'with it:' if members else 'nothing with it'}")
    yield from (_indented(4, f"{m.parameter} axis {m.axis}: {_indices(m)}") for m in members[:_MEMBERS])
    if len(members) > _MEMBERS:
        yield _indented(4, f"and {len(members) - _MEMBERS} more; --json has all")


def _indices(member: Member) -> str:
    shown = ", ".join(map(str, member.indices[:_NAMES]))
    return shown if len(member.indices) <= _NAMES else f"{shown}, ... ({len(member.indices)} in all)"


def _cause(cause: Cause) -> Iterable[RenderableType]:
    last = f"; {cause.other}" if cause.other else ""
    steps = [f"{step.op} {step.node}".strip() + f": {step.why}" for step in cause.path]
    if len(steps) < 2:
        yield _indented(2, f"{cause.positions:,} frozen: {steps[0] if steps else 'no parameter holds them'}{last}")
        return
    yield _indented(2, f"{cause.positions:,} frozen like index {cause.index}:")
    for step, told in zip(cause.path, steps, strict=True):
        yield _indented(4, step.position)
        yield _indented(6, told + (last if step is cause.path[-1] else ""))


# ---- diff ---------------------------------------------------------------------------------------------------------


def difference(change: Difference, before: str | Path, after: str | Path) -> RenderableType:
    """What changed between two models."""
    if not change:
        return f"{before} and {after} do not differ."
    sections = [
        ("size", change.size),
        ("width", change.widths),
        ("element type", change.types),
        ("value", change.values),
        ("parameter", change.parameters),
        ("node", change.nodes),
        ("attribute", change.attributes),
        ("input", change.inputs),
        ("output", change.outputs),
        ("version", change.versions),
        ("metadata", change.metadata),
    ]
    return _sections(f"{before} -> {after}", *(_change_table(title, changes) for title, changes in sections))


def _change_table(title: str, changes: Sequence[Change]) -> RenderableType:
    if not changes:
        return ""
    table = _table((title, "<"), ("before", "<"), ("after", "<"))
    for c in changes[:_CHANGES]:
        table.add_row(c.name, _value(c.before), _value(c.after))
    more = f"{len(changes) - _CHANGES:,} more; --json has all." if len(changes) > _CHANGES else ""
    return _sections(table, more, gap=0)


def _value(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


# ---- pieces -------------------------------------------------------------------------------------------------------


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMES]) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")


def _indented(spaces: int, line: str) -> Padding:
    """A line that stays indented where it wraps."""
    return Padding(line, (0, 0, 0, spaces))
