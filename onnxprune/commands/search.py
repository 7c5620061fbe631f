"""The command `search`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxprune import options as o
from onnxprune.commands import record
from onnxprune.errors import FileError, UsageError
from onnxprune.signature import taking
from onnxprune.terminal import progress, show, show_json

_search = o.panel("Search")


Targets = Annotated[str, _search("F,F,...", "Fractions of the FLOPs to keep, e.g. 0.2,0.35,0.5,0.75.", "--flops")]
Methods = Annotated[list[str] | None, _search("NAME", "A method to try, as in compress; may be repeated.", "--method")]
Val = Annotated[str | None, _search("SOURCE", "Inputs, best with labels, that candidates are compared on.")]
Metric = Annotated[str | None, _search("NAME", "What is measured on the labels of --val, as in validate.")]
Jobs = Annotated[int, _search("N", "Candidates at a time.")]
Backend = Annotated[str, _search("NAME", "What runs them: loky (processes), dask, ray.")]
Scheduler = Annotated[str | None, _search("ADDRESS", "Of the dask or ray cluster.")]
Resume = Annotated[
    bool, _search(None, "Take finished candidates from an earlier run into the same folder.", "--resume")
]
Folder = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="The folder to write; MODEL.search by default.")
]


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What is tried, and what it is compared by."""

    flops: Targets
    method: Methods = None
    val: Val = None
    metric: Metric = None
    recover: o.Recover = "auto"


@dataclass(frozen=True, kw_only=True)
class Search(o.Shares, Trials, o.Inputs):
    """All options of `search`."""

    jobs: Jobs = 1
    backend: Backend = "loky"
    scheduler: Scheduler = None
    resume: Resume = False
    output: Folder = None
    force: o.Force = False
    report: o.ReportPage = None
    as_json: o.AsJson = False
    quiet: o.Quiet = False

    def arguments(self) -> dict[str, Any]:
        """The same as keyword arguments of `onnxprune.search`."""
        names = ("val", "metric", "recover", "jobs", "backend", "scheduler")
        lists = {"flops": fractions(self.flops), "methods": self.method or ()}
        return self.inputs() | self.shares() | {name: getattr(self, name) for name in names} | lists


def fractions(text: str) -> list[float]:
    """Numbers with commas between them. Raises UsageError."""
    try:
        return [float(x) for x in text.split(",") if x.strip()]
    except ValueError:
        raise UsageError(f"--flops {text!r}: give fractions with commas between them, such as 0.2,0.5") from None


@taking(Search)
def search(model: o.Source, given: Search) -> None:
    """Compress by several methods to several sizes and show what each is worth: the curve, and who is never beaten.

    Writes a folder with search.json, curve.svg, a journal for --resume and the plan of every candidate: `onnxprune
    apply MODEL FOLDER/NAME.plan.json` makes any of them.
    """
    with progress(given.quiet):
        from onnxprune import files, frontier
        from onnxprune.report import search as text

        folder, arguments = given.output or o.beside(model, ".search"), given.arguments()
        record.check_page(given.report, (model,), given.data, given.val)
        journal = _checked(folder, given.resume, given.force)
        replaced = [] if given.resume else _earlier(journal)
        found = frontier.search(model, journal=journal, resume=given.resume, **arguments)
        told = text.as_dict(found) | {"output": str(folder)} | record.made(model, given.data, given.val)
        written = {"search.json": json.dumps(told, indent=2) + "\n", "curve.svg": text.curve(found)}
        plans = {f"{p.name}.plan.json": json.dumps(p.plan) + "\n" for p in found.points if p.plan is not None}
        folder.mkdir(exist_ok=True)
        for name in (n for n in replaced if n not in plans):
            (folder / name).unlink(missing_ok=True)
        for name, content in (written | plans).items():
            files.write_text(folder / name, content, force=True)
        record.write_page(told, given.report)
    if given.as_json:
        show_json(told)
    elif not given.quiet:
        show(text.frontier(found, model, folder, given.command(looking=given.recover != "none")))


def _checked(folder: Path, resume: bool, force: bool) -> Path:
    """The journal of a folder that may be written. Raises FileError where something would be lost, or cannot be."""
    if folder.exists() and not folder.is_dir():
        raise FileError(f"'{folder}' is a file: name a folder with -o")
    if not folder.parent.is_dir():
        raise FileError(f"there is no folder '{folder.parent}' to make '{folder.name}' in")
    mine = [folder / name for name in ("journal.jsonl", "search.json", "curve.svg", *_plans(folder))]
    blocked = [p for p in mine if p.is_dir()]
    if blocked:
        raise FileError(f"'{blocked[0]}' is a folder: name another one with -o")
    if any(p.exists() for p in mine) and not (resume or force):
        raise FileError(f"'{folder}' has an earlier search: --resume goes on with it, --force starts anew")
    return mine[0]


def _plans(folder: Path) -> list[str]:
    """The plans that a folder holds already."""
    return [p.name for p in folder.glob("*.plan.json")] if folder.is_dir() else []


def _earlier(journal: Path) -> list[str]:
    """The plans of the search that --force replaces, by its journal: others in the folder are somebody else's."""
    from onnxprune import files

    try:
        lines = [json.loads(line) for line in files.read_text(journal).splitlines()]
        return [Path(f"{line['name']}.plan.json").name for line in lines if "name" in line]
    except (FileError, ValueError, TypeError):
        return []
