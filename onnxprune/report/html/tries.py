"""What was tried on the way to a result: pairs of thresholds, optimisers, the bisection of --max-drop, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.drawing import Axis, Mark, Series, plot
from onnxprune.report.html import parts as p
from onnxprune.report.layout import percent

Told = Mapping[str, Any]


def tried(found: Told | None) -> p.Section | None:
    """What `--allocate pairs` or `evolve` tried."""
    if found is None:
        return None
    return p.Section(
        "tried", "What the search tried", _pairs(found) if found["allocate"] == "pairs" else _evolved(found)
    )


def _pairs(found: Told) -> list[p.Block]:
    candidates = found["candidates"]
    names = ("distance", "norm", "rate", "by_distance", "kl", "repaired", "naswot")
    titles = ("distance", "norm", "rate", "by distance", "divergence", "repaired", "NASWOT", "MACs kept", "time")
    rows = [
        [
            p.Cell("chosen" if i == found["chosen"] else "", state="good"),
            *(_figure(c[n]) for n in names),
            p.share(c["kept"]),
            p.time(c["seconds"]),
        ]
        for i, c in enumerate(candidates)
    ]
    words = f"{len(candidates)} pairs of thresholds for distance and norm, ranked by {found['proxy']}. Rate: the share "
    words += "that streams which several layers write may lose."
    columns = [p.Column("", text=True), *map(p.Column, titles)]
    return [p.Lines([words]), *_scatter(found), p.Table("tried", columns, rows, sorts=True)]


def _figure(value: float | None) -> p.Cell:
    return p.number(value, None if value is None else f"{value:.4g}")


def _scatter(found: Told) -> list[p.Block]:
    """The share that leaves for its distance across, divergence upwards; the chosen pair in a ring."""
    by = "kl" if any(c["kl"] is not None for c in found["candidates"]) else "naswot"
    chosen = found["chosen"]
    marks = [
        Mark(
            c["by_distance"],
            c[by],
            f"distance {c['distance']:.3g}, norm {c['norm']:.3g}",
            c["repaired"] is not None,
            i == chosen,
        )
        for i, c in enumerate(found["candidates"])
        if c[by] is not None
    ]
    if len(marks) < 2:
        return []
    x = Axis.around("classes that leave for their distance", [m.x for m in marks], lambda v: f"{100 * v:.0f} %")
    y = Axis.around("divergence" if by == "kl" else "NASWOT", [m.y for m in marks], lambda v: f"{v:.3g}")
    words = "Pairs by what leaves for its distance; filled where they were repaired, too, in a ring: the one taken."
    return [p.Chart(plot([Series("pairs", sorted(marks, key=lambda m: m.x))], x, y), words)]


def _evolved(found: Told) -> list[p.Block]:
    better = sum(g["after"] < g["before"] for g in found["groups"])
    taken = "it was taken" if found["chosen"] == "optimised" else "the criterion's own choice was taken"
    words = (
        f"{found['optimiser'].capitalize()} chose again among the small filters of {len(found['groups'])} groups, and "
        f"found a smaller refit error in {better}. Divergence after a repair: {found['plain']:.3g} by the criterion "
        f"alone, {found['optimised']:.3g} optimised: {taken}."
    )
    rows = [[p.name(str(_label(g))), _figure(g["before"]), _figure(g["after"])] for g in found["groups"]]
    columns = (p.Column("group", text=True), p.Column("error before"), p.Column("after"))
    return [p.Lines([words]), p.Table("tried", columns, rows, sorts=True)]


def _label(group: Told) -> object:
    return next((v for k, v in group.items() if k not in {"before", "after"}), "")


def drop(found: Told | None) -> p.Section | None:
    """The bisection of `--max-drop`: drop against MACs, and the final figure."""
    if found is None:
        return None
    trials = [t for t in found["trials"] if t["drop"] is not None]
    best = min((t for t in trials if t["within"]), key=lambda t: t["kept"], default=None)
    columns = (
        p.Column("asked"),
        p.Column("MACs kept"),
        p.Column("drop"),
        p.Column("95 % interval", text=True),
        p.Column("within", text=True),
    )
    rows = [_trial(t) for t in sorted(found["trials"], key=lambda t: t["flops"])]
    blocks: list[p.Block] = []
    if len(trials) > 1:
        marks = [
            Mark(t["kept"], t["drop"]["point"], f"{percent(t['kept'])} of the MACs", t["within"], t is best)
            for t in trials
        ]
        x = Axis("multiply-accumulates that are kept", 0.0, 1.0, lambda v: f"{100 * v:.0f} %")
        y = Axis.around(f"drop of {found['final']['metric']}", [m.y for m in marks], lambda v: f"{v:.3g}")
        words = "Networks that were tried; filled where the drop is within the limit, in a ring: the one taken."
        blocks.append(p.Chart(plot([Series("trials", sorted(marks, key=lambda m: m.x))], x, y), words))
    final = found["final"]
    told = f"On {found['samples']['final']:,} inputs that nothing was chosen on, {final['metric']} drops by "
    told += p.interval(final["drop"], lambda v: f"{v:.2f}") + f"; the limit is {found['limit']:g}."
    blocks += [p.Table("trials", columns, rows, sorts=True), p.Lines([told], "good" if found["held"] else "bad")]
    return p.Section("drop", "The smallest network within the drop", blocks)


def _trial(t: Told) -> list[p.Cell]:
    d, shares = t["drop"], [p.share(t["flops"]), p.share(t["kept"])]
    if d is None:
        return [*shares, p.Cell("-"), p.Cell(t["failed"]), p.Cell("no")]
    span = p.Cell(f"{d['low']:.2f} to {d['high']:.2f}")
    return [*shares, p.number(d["point"], f"{d['point']:.2f}"), span, p.Cell("yes" if t["within"] else "no")]


def tunings(found: Sequence[Told]) -> list[p.Section]:
    """What training did, a section for each of several cuts."""
    if len(found) < 2:
        return [_tuning(each, "training", "Fine-tuning") for each in found]
    return [_tuning(t, f"training-{i}", f"Fine-tuning after cut {i}") for i, t in enumerate(found, 1)]


def _tuning(found: Told, key: str, title: str) -> p.Section:
    """Epoch by epoch."""
    columns = (p.Column("epoch"), p.Column("loss"), p.Column("held-out loss"), p.Column("agreement"), p.Column("time"))
    rows = [
        [
            p.number(e["epoch"]),
            _figure(e["loss"]),
            _figure(e["held_loss"]),
            p.share(e["agreement"]),
            p.time(e["seconds"]),
        ]
        for e in found["history"]
    ]
    words = f"{found['samples']:,} samples of {found['data']}; the weights of epoch {found['epoch']} were taken."
    stopped = f"Stopped: {found['stopped']}." if found["stopped"] else ""
    return p.Section(key, title, [p.Lines([words, stopped]), p.Table(f"epochs-{key}", columns, rows)])
