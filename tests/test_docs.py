"""What README.md and CONTRIBUTING.md show is what happens."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
import typer

import onnxprune
from onnxprune import recovery
from onnxprune.cli import app
from onnxprune.commands import record
from onnxprune.data import PRESETS
from onnxprune.errors import Exit
from onnxprune.report.tuning import TuneReport
from onnxprune.settings import ALLOCATIONS, methods
from onnxprune.validation.latency import Timing

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}
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
    for this, following in zip(found, [*found[1:], None], strict=True):
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
        assert bool(done.stderr) == bool(wanted)
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the fixtures, in which the commands of the README run in their order."""
    place = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "fixtures", place / "fixtures")
    return place


def section(heading, part=""):
    """Text of one section of the README, or of the part of it that has a heading of its own."""
    text = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return text.partition(f"\n### {part}\n")[2].partition("\n### ")[0] if part else text


def table(heading, part=""):
    """Cells of the tables of one section of the README, without their heads."""
    lines = section(heading, part).splitlines()
    bodies = re.findall(r"^\|--.*\n((?:\|.*\n)+)", "\n".join([*lines, ""]), re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for body in bodies for row in body.splitlines()]


def options():
    """Long options of every command, with their help."""
    group = typer.main.get_command(app)
    found = {
        name: {o for p in c.params for o in (*p.opts, *p.secondary_opts) if o[:2] == "--"}
        for name, c in group.commands.items()
    }
    return found | {"": {o for p in group.params for o in p.opts if o[:2] == "--"} | {"--help"}}


# ---- what runs ----------------------------------------------------------------------------------------------------


def test_commands_of_the_readme(folder):
    """Every command runs in the order of the page, exits as documented, and prints what is shown."""
    shells = [b for b in blocks(README) if b.language == "sh"]
    ran = {command[0] for b in shells for command, _ in commands(b.code)}
    assert ran == set(options()) - {""}, "every command has an example"
    for block in shells:
        if "onnxprune finetune" in block.code and not find_spec("torch"):
            continue  # it needs the extra
        printed = shell(block.code, folder)
        if block.shown is not None:
            assert_shown(block.shown, printed)
    assert (folder / "cut.onnx").read_bytes() == (folder / "replayed.onnx").read_bytes()
    assert (folder / "cut.onnx").read_bytes() != (folder / "small.onnx").read_bytes()


def test_python_of_the_readme(folder):
    """The python blocks run one after the other, and print what is shown."""
    shown = [b.shown for b in blocks(README) if b.language == "python"]
    printed = python("README.md", folder)
    assert len(shown) == len(printed) > 2
    for want, got in zip(shown, printed, strict=True):
        assert_shown(want or "", got)


def test_python_of_contributing(folder):
    """The examples of how to add an operator and a criterion run, and their tests pass."""
    assert "def test_" in PAGES["CONTRIBUTING.md"]
    python("CONTRIBUTING.md", folder)


def test_a_changed_output_is_noticed():
    """The comparison of outputs allows seconds, noise and left-out lines, and nothing else."""
    printed = "a\nb\nc 1.0e-07 relative\nTook 3.1 s: verify\n2.0.\n\nend\n"
    assert_shown("a\n...\nTook 0.1 s.\n\nend\n", printed)
    assert_shown("a\nb\nc 0.0e+00 relative\n...\n", printed)
    for wrong in ("a\nb\n", "b\n...\n", "a\n...\nTook 0.1 s.\n\nEND\n"):
        with pytest.raises(AssertionError, match="the page shows"):
            assert_shown(wrong, printed)


def test_a_changed_figure_is_noticed():
    """Figures of fits may differ a little, and in the spaces before them; their lines must be there."""
    printed = "same top-1 answer    19.4 %   100.0 %\nKL divergence           2.6   0.00489\n"
    assert_shown("same top-1 answer    20.4 %  99.0 %\nKL divergence           2.5   0.00512\n", printed)
    for wrong in ("same top-1 answer 19.4 % 80.0 %\nKL divergence 2.6 0.00489\n", "same top-1 answer 19.4 % 100.0 %\n"):
        with pytest.raises(AssertionError):
            assert_shown(wrong, printed)


# ---- what is stated -----------------------------------------------------------------------------------------------


def steps(line):
    """Commands of a line without the places of executables, quotes, output files and --force."""
    plain = re.sub(r'"?(\$work/\w+|\.venv)/bin/', "", line).replace('"', "")
    plain = re.sub(r"(\$work/\w+|\.venv)\b", "ENV", plain)
    return [re.sub(r" -o \S+| --force", "", part).strip() for part in plain.split("&&")]


def test_the_two_commands_are_what_ci_runs():
    """The set-up lines of the README are there to the letter, and CI runs their steps."""
    setup = [b.code.strip() for b in blocks(README) if b.code.startswith("python3 -m venv")]
    assert setup == [
        "python3 -m venv .venv && .venv/bin/pip install -q . && "
        ".venv/bin/onnxprune compress fixtures/resnet_bn_dynamo.onnx --flops 0.5 "
        "--data fixtures/digits_calib.npz -o small.onnx --force",
        "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/python -m pytest",
    ]
    ran = [step for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines() for step in steps(line)]
    user, developer = (steps(line) for line in setup)
    compress = "onnxprune compress fixtures/resnet_bn_dynamo.onnx --flops 0.5 --data fixtures/digits_calib.npz"
    assert user == ["python3 -m venv ENV", "pip install -q .", compress]
    assert [step for step in ran if step in {*user, *developer}] == user + developer[:2]
    check = (ROOT / "tools" / "check").read_text(encoding="utf-8")
    assert "tools/check" in ran[-1]
    assert '"$python" -m pytest' in check


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md"])
def test_options_exist(name):
    """Every long option that a page names is one of the commands'."""
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", PAGES[name]))
    assert len(named) > 5
    assert named <= set().union(*options().values())


def test_every_option_is_explained():
    """The README names every option that there is."""
    assert not {o for found in options().values() for o in found if o not in README} - {"--output", "--version"}


def test_every_method_is_named():
    """The README lists the methods that there are."""
    row = next(" ".join(r) for r in table("Which option when") if "--method" in r[1])
    assert set(re.findall(r"`(\w+)`", row)) == set(methods())


def test_every_repair_allocation_and_preset_is_named():
    """The section on recovery explains every choice of its options."""
    rows = {r[0].strip("`"): r[2] for r in table("Recovery") if r[0].startswith("`--")}
    assert set(recovery.METHODS) <= set(re.findall(r"`([\w-]+)`", rows["--recover"]))
    assert set(ALLOCATIONS) <= set(re.findall(r"`(\w+)`", rows["--allocate"]))
    assert all(f"`{name}`" in README for name in PRESETS)


def test_what_to_expect():
    """The accuracies that the README states are those of the fixture, to within ten of its 500 test images."""
    stated = {(r[0].strip("`"), float(r[2])): [float(x) for x in r[3:5]] for r in table("Recovery") if len(r) == 7}
    assert len({model for model, _ in stated}) > 2
    test, model = np.load(ROOT / "fixtures" / "digits_test.npz"), "vgg_legacy.onnx"

    def accuracy(proto):
        session = onnxruntime.InferenceSession(proto.SerializeToString())
        return float((session.run(None, {"input": test["input"]})[0].argmax(1) == test["labels"]).mean())

    for flops in (0.5, 0.2):
        path = ROOT / "fixtures" / model
        result = onnxprune.compress(path, flops=flops, data=ROOT / "fixtures" / "digits_calib.npz")
        found = [accuracy(onnxprune.apply_plan(path, result.plan).model), accuracy(result.model)]
        assert stated[model, flops] == pytest.approx(found, abs=0.02)


def test_exit_codes():
    """The table has the codes of `errors.Exit`, by number and name."""
    assert [(int(code), name.upper()) for code, name, _ in table("Exit codes")] == [(e.value, e.name) for e in Exit]


def leaves(told):
    """Names of all that is inside the values of a JSON object; of lists, that of the first element."""
    for value in told:
        inner = value[:1] if isinstance(value, list) else [value]
        for each in (x for x in inner if isinstance(x, dict)):
            yield from each
            yield from leaves(each.values())


def assert_documented(told, part, own=(), skip=()):
    """A part of the section on JSON has a row for every key, and names what is in the values.

    own: keys whose members are names of the model or of the data; skip: keys that are explained elsewhere.
    """
    rows = [(re.findall(r"`(\w+)`", key), value) for key, value in table("JSON", part)]
    assert {k for keys, _ in rows for k in keys} == set(told)
    inner = set(leaves(v for k, v in told.items() if k not in {*own, *skip}))
    assert inner <= {k for keys, value in rows for k in (*keys, *re.findall(r"`(\w+)`", value))}


def test_json_keys():
    """The tables have the keys of a report and of a plan, and name what is in them."""
    fixtures = ROOT / "fixtures"
    result = onnxprune.compress(
        fixtures / "vgg_legacy.onnx", flops=0.5, data=fixtures / "digits_test.npz", allocate="global"
    )
    told = json.loads(json.dumps(result.report.as_dict())) | {"output": "", "run": {}}
    assert_documented(told, "compress and apply", skip=("settings", "seconds", "plan", "recovery"))
    assert_documented(told["plan"], "The plan file", own=("keep", "settings"))
    assert_documented(told["recovery"], "recovery")


def test_json_keys_of_other_commands(tmp_path):
    """The tables have the keys that search, sparsify, analyze, bench and --max-drop print, and name what is in them."""
    model, data = str(ROOT / "fixtures" / "vgg_legacy.onnx"), str(ROOT / "fixtures" / "digits_test.npz")

    def printed(*command):
        line = [sys.executable, "-m", "onnxprune", *command, "--json"]
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=ENV, check=True)
        return json.loads(done.stdout)

    made = ("run", "settings", "seconds")
    quick = ("--allocate", "global", "--recover", "moments")
    drop = printed("compress", model, "--max-drop", "20", "--data", data, "-o", "drop.onnx", *quick)
    assert_documented(drop["max_drop"], "max_drop", skip=("final",))
    assert_documented(printed("analyze", model, "--redundancy"), "analyze")
    found = printed("search", model, "--flops", "0.5", "--method", "l2", "-o", "curve")
    assert_documented(found, "search", skip=made)
    sparse = printed("sparsify", model, "--sparsity", "0.8", "--budget", "1", "--data", data, "-o", "sparse.onnx")
    assert_documented(sparse, "sparsify", own=("skipped",), skip=(*made, "magnitude", "evolved", "data"))
    bench = printed("bench", model, "--profile", "--int8", "--data", data, "--seconds", "1")
    bench["models"] = list(bench["models"].values())
    for told in bench["models"]:
        told["nodes"] = []
    for row in bench["rows"]:
        row["seconds"] = []
    assert_documented(bench, "bench", skip=(*made, "environment"))
    assert set(bench["environment"]) - {"python", "onnxruntime"} <= set(
        re.findall(r"`(\w+)`", section("JSON", "bench"))
    )


def test_json_keys_of_finetune():
    """The table has the keys of a fine-tuning, and names what is in them."""
    epoch = {"epoch": 0, "loss": None, "held_loss": 1.0, "agreement": 1.0, "seconds": 0.0}
    counts = (1, 1, 1, {}, (epoch,), 0, "", False, False, {}, 1, {"before": 0.0, "after": 0.0}, "cpu", 0)
    told = json.loads(json.dumps(TuneReport("", "", "", *counts).as_dict()))
    assert_documented(told | {"output": ""}, "finetune", skip=("settings", "shares"))


def test_json_keys_of_validate():
    """The table has the keys of a validation, and names what is in them."""
    fixtures = ROOT / "fixtures"
    model = fixtures / "vgg_legacy.onnx"
    told = onnxprune.validate(model, model, data=fixtures / "digits_test.npz", max_drop=1.0).as_dict()
    rows = [(re.findall(r"`(\w+)`", r[0]), r[1]) for r in table("Validation") if "--" not in r[0]]
    assert {key for keys, _ in rows for key in keys} == set(told)
    inner = {k for key in ("metric", "agreement", "size") for k in told[key]} | {*told["goals"][0]}
    assert inner <= {k for keys, value in rows for k in (*keys, *re.findall(r"`(\w+)`", value))}


def test_json_keys_of_a_run():
    """The table has the keys of `run`, and names what is in its environment and in a latency."""
    told = record.made(ROOT / "fixtures" / "vgg_legacy.onnx")["run"]
    rows = [(re.findall(r"`(\w+)`", r[0]), r[1]) for r in table("Reports")]
    assert {key for keys, _ in rows for key in keys} == set(told)
    named = set(re.findall(r"`(\w+)`", section("Reports")))
    timing = Timing(1.0, 1.0, 1.0, 1.0, 1.0, 1, np.ones(1)).as_dict()
    assert {*told["environment"], *timing} <= named


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    """Links are to files that are there, and to headings that exist."""
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        file, _, heading = target.partition("#")
        assert not file or (ROOT / file).exists(), target
        page = (ROOT / (file or name)).read_text(encoding="utf-8") if heading else ""
        anchors = {
            re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", page, re.M)
        }
        assert not heading or heading in anchors, target


def test_changelog_has_this_version():
    """The newest entry of the changelog is the version of the package."""
    assert re.search(r"^## \[([^]]+)\]", PAGES["CHANGELOG.md"], re.MULTILINE)[1] == onnxprune.__version__
