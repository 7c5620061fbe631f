"""The page of `compress` and `apply`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnxprune.report.html import parts as p
from onnxprune.report.html.bench import compared
from onnxprune.report.html.groups import groups
from onnxprune.report.html.layers import layers
from onnxprune.report.html.tries import drop, tried, tunings
from onnxprune.report.layout import percent, si

_COSTS = (("MACs", "macs", ""), ("parameters", "params", ""), ("size", "bytes", "B"))
_AGREEMENT = {"cut": "before", "repaired": "after", "trained": "trained"}  # networks: their keys
_METHODS = {"joint": "joint refits"}
Told = Mapping[str, Any]


def compress(told: Told) -> p.Page:
    """Verdict, costs, agreement, layers, groups, recovery, what was tried, and how it was made."""
    state, verdict = _verdict(told)
    sections = p.shown(
        _costs(told),
        _quality(told["recovery"]),
        drop(told.get("max_drop")),
        layers(told["layers"], told["coupling"], told["recovery"]),
        groups(told.get("groups", []), told["layers"]),
        tried(told["tried"]),
        *tunings(told.get("tuning", [])),
        *(compared(told["int8"], told.get("refused", "")) if told.get("int8") else ()),
        _making(told),
        p.run(told),
    )
    command = str((told.get("run") or {}).get("command", "")).split(" ")[1:2]
    title = str(told["model"]) + (f" → {told['output']}" if "output" in told else "")
    date = p.dated(told)
    return p.Page(command[0] if command else "compress", title, verdict, list(_tiles(told)), sections, state, date)


# ---- verdict ------------------------------------------------------------------------------------------------------


def _final(recovery: Told | None) -> Told | None:
    """Agreement of what was written."""
    if not recovery or recovery["after"] is None:
        return None
    found: Told = recovery[_AGREEMENT[recovery["shipped"]]]
    return found


def _verdict(told: Told) -> tuple[str, str]:
    """State and sentence, the gravest matter first."""
    kept = f"{percent(told['kept']['macs'])} of the multiply-accumulates are left"
    if told.get("refused"):
        return "bad", f"Written in floats: {told['refused']}."
    if limit := told.get("max_drop"):
        if limit["held"]:
            return "good", f"{kept}; on the inputs kept aside, the drop is within {limit['limit']:g}."
        return "bad", f"{kept}, but on the inputs kept aside the drop exceeds {limit['limit']:g}."
    if not told["recovery"] and told.get("tuning"):
        return "doubt", f"{kept}. The bare cut was trained, as told below. Measure it on a test set before use."
    return _judged(kept, told["recovery"], _final(told["recovery"]))


def _judged(kept: str, recovery: Told | None, final: Told | None) -> tuple[str, str]:
    """What the repair says of the network."""
    if not recovery:
        return "doubt", f"{kept}. A bare cut, which was not repaired: fine-tune it before use."
    if final is None:
        return "doubt", f"{kept}. Repaired from the weights alone; how well it answers was not measured."
    doubts = (
        (recovery["at_chance"], "bad", "It is at chance level: it answers no better than one constant answer."),
        (recovery["data"]["synthetic"], "doubt", "No data were given: the inputs, and its figures, are made up."),
        (
            recovery["shipped"] == "cut",
            "doubt",
            "The repair did not help on held-out inputs: the bare cut was written.",
        ),
    )
    for applies, state, why in doubts:
        if applies:
            return state, f"{kept}. {why}"
    same = "" if final["top1"] is None else f" and gives the original's answer on {percent(final['top1'])} of them"
    ends = "Measure it on a test set before use."
    return "", f"{kept}. It was compared with the original on {final['samples']:,} held-out inputs{same}. {ends}"


def _tiles(told: Told) -> Iterator[p.Tile]:
    yield p.Tile(percent(told["kept"]["macs"]), f"of the MACs: {_pair(told, 'macs', '')}")
    yield p.Tile(percent(told["kept"]["bytes"]), f"of the size: {_pair(told, 'bytes', 'B')}")
    recovery, final = told["recovery"], _final(told["recovery"])
    made_up = " (made-up inputs)" if final and recovery["data"]["synthetic"] else ""
    if told.get("max_drop"):
        found = told["max_drop"]["final"]
        yield p.Tile(f"{found['drop']['point']:.2f}", f"drop of {found['metric']} on inputs kept aside")
    elif final is None and told.get("tuning"):
        tuning = told["tuning"][-1]
        taken = next(e for e in tuning["history"] if e["epoch"] == tuning["epoch"])
        yield p.Tile(percent(taken["agreement"]), "same answers as the original on what training held out")
    elif final is None:
        yield p.Tile("?", "answers were not compared", "doubt")
    elif recovery["metric"]:
        now, then = recovery["metric"][recovery["shipped"]], recovery["metric"]["original"]
        yield p.Tile(percent(now), f"accuracy on held-out inputs; the original: {percent(then)}")
    elif final["top1"] is not None:
        yield p.Tile(percent(final["top1"]), f"same answers as the original{made_up}", "doubt" if made_up else "")
    else:
        yield p.Tile(f"{final['relative_error']:.3g}", f"relative error of the outputs{made_up}")


def _pair(told: Told, what: str, unit: str) -> str:
    return f"{si(told['original'][what], unit)} → {si(told['compressed'][what], unit)}"


# ---- sections -----------------------------------------------------------------------------------------------------


def _costs(told: Told) -> p.Section:
    columns = (p.Column("", text=True), p.Column("before"), p.Column("after"), p.Column("kept"))
    rows = [
        [p.Cell(title), *(p.count(told[w][n], unit) for w in ("original", "compressed")), p.share(told["kept"][n])]
        for title, n, unit in _COSTS
    ]
    found, coupling = told["verification"], told["coupling"]
    error = f"up to {found['relative_error']:.1e} relative"
    lines = [
        f"{coupling['removed']:,} of {coupling['classes']:,} classes removed; {coupling['frozen']:,} filters frozen.",
        f"Verified: the cut equals the masked original {error} ({found['precision']}); checker {found['checker']}.",
    ]
    if not found["masked_differs"] and coupling["removed"]:
        lines.append("Warning: masking what was removed does not change the outputs on random inputs.")
    reachable = told["reachable"]
    lines += [] if reachable is None else [f"The floors allow going down to {percent(reachable)}."]
    notes = [f"Note: {n}" for n in (told["note"], *told["notes"]) if n]
    return p.Section("result", "Before and after", [p.Table("costs", columns, rows), p.Lines(lines + notes)])


def _quality(recovery: Told | None) -> p.Section | None:
    """The cut and the repaired network beside the original."""
    if not recovery:
        return None
    how = _METHODS.get(recovery["method"], recovery["method"])
    notes = [f"Note: {n}" for n in recovery["notes"]]
    if recovery["data"] is None or recovery["before"] is None:
        lines = [f"Recovered by {how} from the weights alone; nothing was measured.", *notes]
        return p.Section("quality", "Answers", [p.Lines(lines)])
    data, before = recovery["data"], recovery["before"]
    source = f"{data['samples']:,} " + ("made-up inputs" if data["synthetic"] else f"inputs of {data['name']}")
    lead = f"Recovered by {how} on {source}; compared with the original on {before['samples']:,} that no fit saw."
    networks = [n for n in _AGREEMENT if recovery[_AGREEMENT[n]] is not None]
    columns = (p.Column("", text=True), *map(p.Column, networks))
    blocks: list[p.Block] = [p.Lines([lead]), p.Table("answers", columns, list(_answers(recovery, networks)))]
    warned = data["synthetic"] and "No data were given: the inputs are made up, and so are these figures."
    blocks.append(p.Lines([warned or ""], "doubt"))
    blocks.append(p.Lines([*(f"Note: {n}" for n in data["notes"]), *notes]))
    return p.Section("quality", "Answers", blocks)


def _answers(recovery: Told, networks: Sequence[str]) -> Iterator[Sequence[p.Cell]]:
    found = [recovery[_AGREEMENT[n]] for n in networks]
    if found[0]["top1"] is not None:
        yield [p.Cell("same top-1 answer"), *(p.share(a["top1"]) for a in found)]
        yield [p.Cell("that of a constant answer"), *(p.share(a["chance"]) for a in found)]
        yield [p.Cell("KL divergence, nats"), *(p.number(a["divergence"], f"{a['divergence']:.3g}") for a in found)]
    yield [p.Cell("relative error"), *(p.number(a["relative_error"], f"{a['relative_error']:.3g}") for a in found)]
    if recovery["metric"]:
        m = recovery["metric"]
        yield [p.Cell(f"accuracy (original {percent(m['original'])})"), *(p.share(m[n]) for n in networks)]


def _making(told: Told) -> p.Section:
    text = (p.Column("option", text=True), p.Column("value", text=True))
    time = p.seconds(told["seconds"])
    blocks: list[p.Block] = [time] if time else []
    return p.Section(
        "making", "Options and time", [*blocks, p.Table("options", text, list(p.settings(told["settings"])))]
    )
