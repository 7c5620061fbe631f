"""The pages of the documentation: what they show, and the means to run and to read it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from onnxprune.cli import app

ROOT = Path(__file__).parents[1]
FOLDER = "onnxprune/pages/"
SHIPPED = sorted(f"{FOLDER}{path.name}" for path in (ROOT / FOLDER).glob("*.md"))
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *SHIPPED)
}
README = PAGES["README.md"]
ENV = os.environ | {
    "COLUMNS": "80",
    "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
    "PYTHONWARNINGS": "error",
}
NEXT = "---- next block ----"
NOISE = (  # seconds, and float noise of the machine at hand
    (re.compile(r"^Took .*?\n\n", re.DOTALL | re.MULTILINE), "Took a while.\n\n"),
    (re.compile(r"[0-9.]+e[+-][0-9]+ relative"), "x relative"),
)
FITTED = re.compile(r"(?:same top-1 answer|KL divergence|relative error|accuracy \(original|.*: accuracy) .*\n")


class Block(NamedTuple):
    """A fenced block: its language, its text, and the `text` block that follows it at once, if any."""

    language: str
    code: str
    shown: str | None


def blocks(page):
    """All fenced blocks of a page but those that show an output, which belong to the block before."""
    found = list(re.finditer(r"^```(\w*)\n(.*?)^```\n", page, re.DOTALL | re.MULTILINE))
    for this, following in zip(found, [*found, None][1:], strict=True):
        adjoins = following is not None and following[1] == "text" and not page[this.end() : following.start()].strip()
        if this[1] != "text":
            yield Block(this[1], this[2], following[2] if adjoins else None)


def commands(code):
    """The onnxprune commands of a shell block, with the exit codes that comments state; of set-up, the last step."""
    for line in code.splitlines():
        command, _, comment = line.partition("  # exit code ")
        last = command.split("&&")[-1].strip().removeprefix(".venv/bin/")
        if last.startswith("onnxprune "):
            yield last.split()[1:], int(comment or 0)


def python(name, folder):
    """Run the python blocks of a page in one process, test functions included; what each printed."""
    code = [b.code for b in blocks(PAGES[name]) if b.language == "python"]
    tests = "\nfor name, value in list(globals().items()):\n    if name.startswith('test_'):\n        value()\n"
    text = f"\nprint({NEXT!r})\n".join(code) + tests
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, cwd=folder, env=ENV, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split(f"{NEXT}\n")


def shell(code, folder):
    """Run the commands of a shell block; what they printed on stdout."""
    printed = ""
    for command, wanted in commands(code):
        line = [sys.executable, "-m", "onnxprune", *(word.strip("'") for word in command)]
        done = subprocess.run(line, capture_output=True, text=True, cwd=folder, env=ENV, check=False)
        assert done.returncode == wanted, f"{command}: {done.stderr}"
        assert bool(done.stderr) == bool(wanted and command[0] != "diff")  # whose answer is the code
        printed += done.stdout
    return printed


def as_pattern(line):
    """The regular expression of a line that is shown; figures of a fit are captured, three dots stand for any lines."""
    if line == "...\n":
        return "(?:.*\n)+?"
    if FITTED.fullmatch(line):
        return " +([0-9.]+)".join(map(re.escape, re.split(" +[0-9.]+", line)))
    return re.escape(line)


def assert_shown(shown, printed):
    """A page shows what was printed, but for seconds and noise; a line of three dots stands for any lines.

    Figures of a fit may differ by 0.02 or a tenth: another CPU adds in another order.
    """
    for pattern, plain in NOISE:
        shown, printed = pattern.sub(plain, shown), pattern.sub(plain, printed)
    lines = shown.splitlines(keepends=True)
    found = re.fullmatch("".join(map(as_pattern, lines)), printed)
    assert found, f"the page shows\n{shown}\nthe program prints\n{printed}"
    stated = [float(x) for line in lines if FITTED.fullmatch(line) for x in re.findall(" +([0-9.]+)", line)]
    assert stated == pytest.approx([float(x) for x in found.groups()], rel=0.1, abs=0.02)


def page(name):
    """The text of a page of the package, by its name without the ending."""
    return PAGES[f"{FOLDER}{name}.md"]


def section(name, heading):
    """Text under one heading of a page of the package (of the README where `name` is empty), up to the next one."""
    text = page(name) if name else README
    return re.split(r"^## ", text.partition(f"\n## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def tables(text):
    """Heads and cells of the tables of a text."""
    for found in re.finditer(r"^(\|.*\n)\|--.*\n((?:\|.*\n)+)", f"{text}\n", re.MULTILINE):
        lines = [found[1].strip(), *found[2].splitlines()]
        head, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
        yield head, rows


def table(name, heading):
    """Cells of the tables under one heading, without their heads."""
    return [row for _, rows in tables(section(name, heading)) for row in rows]


def options():
    """Long options of every command, with their help."""
    group = typer.main.get_command(app)
    found = {
        name: {o for p in c.params for o in (*p.opts, *p.secondary_opts) if o[:2] == "--"}
        for name, c in group.commands.items()
    }
    return found | {"": {o for p in group.params for o in p.opts if o[:2] == "--"} | {"--help"}}


def rows_of_options(name):
    """The row of every option in the tables of options of a page: names, default and meaning."""
    every = (row for head, rows in tables(page(name)) if head == ["option", "default", "meaning"] for row in rows)
    return {option: row for row in every for option in re.findall(r"`(--[a-z0-9-]+)", row[0])}
