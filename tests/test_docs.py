"""What the pages state is so: options, choices, figures, exit codes, keys of the JSON, links."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.resources import files

import numpy as np
import onnxruntime
import pytest
import typer
from commands import done
from documentation import (
    ENV,
    FOLDER,
    PAGES,
    README,
    ROOT,
    SHIPPED,
    blocks,
    commands,
    options,
    page,
    rows_of_options,
    section,
    table,
)

import onnxprune
from onnxprune import recovery
from onnxprune.cli import app
from onnxprune.commands import record
from onnxprune.data import PRESETS
from onnxprune.errors import Exit
from onnxprune.report.tuning import TuneReport
from onnxprune.settings import ALLOCATIONS, methods
from onnxprune.validation.latency import Timing

COMMANDS = sorted(set(options()) - {""})

# ---- set-up -------------------------------------------------------------------------------------------------------


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


# ---- a page per command -------------------------------------------------------------------------------------------


def test_the_readme_links_every_page():
    """A page that is shipped is one click away from the README, which is short enough to be read."""
    assert set(SHIPPED) <= {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", README)}
    assert len(README.splitlines()) <= 350


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_per_command(name):
    """A page has the command's name, its options, its exit codes, and what to do next; the README's table links it."""
    text = page(name)
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (Options|Exit codes|Next)$", text, re.MULTILINE) == ["Options", "Exit codes", "Next"]
    assert f"[`{name}`]({FOLDER}{name}.md)" in [row[0] for row in table("", "Commands")]


@pytest.mark.parametrize("name", COMMANDS)
def test_options_of_a_command(name):
    """A page has a row for every option of its command, with its default, and no other."""
    stated = rows_of_options(name)
    assert set(stated) == options()[name]
    for parameter in typer.main.get_command(app).commands[name].params:
        option = next((o for o in parameter.opts if o.startswith("--")), None)
        if option is None:
            continue
        told, default = stated[option][1].strip("`"), parameter.default
        wanted = {"True": "on", "False": "off", "None": told}.get(str(default), str(default))
        assert told == wanted != "", option


@pytest.mark.parametrize("name", ["data", "latency"])
def test_options_that_are_shared(name):
    """What pages of a subject say of the defaults of options is what `compress` says."""
    stated, of_compress = rows_of_options(name), rows_of_options("compress")
    assert len(stated) > 3
    assert {o: row[1].strip("`") for o, row in stated.items()} == {o: of_compress[o][1].strip("`") for o in stated}


@pytest.mark.parametrize("name", COMMANDS)
def test_exit_codes_of_a_command(name):
    """The codes that a page lists are those of `errors.Exit`, and the codes of its examples are among them."""
    codes = {int(row[0]) for row in table(name, "Exit codes")}
    assert {0, 2} <= codes <= {e.value for e in Exit}
    assert {wanted for b in blocks(page(name)) if b.language == "sh" for c, wanted in commands(b.code)} <= codes


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_page(name):
    """`--help` ends with the page of the command, within 80 columns."""
    lines = done(name, "--help").stdout.rstrip().splitlines()
    assert lines[-1].split()[-1] == f"{FOLDER}{name}.md"
    assert max(map(len, lines)) <= 80


def test_pages_are_shipped():
    """The wheel takes the whole package, the pages in it, and the source archive does, too."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"] == {"packages": ["onnxprune"]}
    assert {"onnxprune", "README.md"} <= set(build["targets"]["sdist"]["include"])
    assert "exclude" not in build
    assert {f"{FOLDER}{p.name}" for p in (files("onnxprune") / "pages").iterdir()} == set(SHIPPED)


# ---- names and figures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PAGES if name != "CONTRIBUTING.md"])
def test_options_exist(name):
    """Every long option that a page names is one of the commands'."""
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", PAGES[name]))
    assert named <= set().union(*options().values())


def test_options_of_the_program():
    """The README names the options that no command has."""
    assert {o for o in options()[""] if o not in README} == {"--version"}


def test_every_method_is_named():
    """The README and the page on methods list the methods that there are."""
    row = next(" ".join(r) for r in table("", "Which option when") if "--method" in r[1])
    assert set(re.findall(r"`(\w+)`", row)) == set(methods())
    head = page("methods").partition("\n## ")[0]
    assert set(methods()) <= set(re.findall(r"`(\w+)`", head))


def test_every_repair_allocation_and_preset_is_named():
    """The pages on recovery, methods and data explain every choice."""
    named = [set(re.findall(r"`([\w-]+)`", row[0])) for row in table("recovery", "Repairs")]
    assert set().union(*named) == {"auto", "none", *recovery.METHODS}
    named = [set(re.findall(r"`(\w+)`", row[0])) for row in table("methods", "Allocations")]
    assert set().union(*named) == set(ALLOCATIONS)
    assert all(f"`{name}`" in section("data", "Preprocessing") for name in PRESETS)


def test_what_to_expect():
    """The accuracies of the page on recovery are those of the fixture, to within ten of its 500 test images."""
    rows = (r for r in table("recovery", "What to expect") if len(r) == 7)
    stated = {(r[0].strip("`"), float(r[2])): [float(x) for x in r[3:5]] for r in rows}
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
    """The table of the README has the codes of `errors.Exit`, by number and name."""
    assert [(int(code), name.upper()) for code, name, _ in table("", "Exit codes")] == [(e.value, e.name) for e in Exit]


def leaves(told):
    """Names of all that is inside the values of a JSON object; of lists, that of the first element."""
    for value in told:
        inner = value[:1] if isinstance(value, list) else [value]
        for each in (x for x in inner if isinstance(x, dict)):
            yield from each
            yield from leaves(each.values())


def assert_documented(told, part, own=(), skip=()):
    """A part of the page on JSON has a row for every key, and names what is in the values.

    own: keys whose members are names of the model or of the data; skip: keys that are explained elsewhere.
    """
    rows = [(re.findall(r"`(\w+)`", key), value) for key, value in table("json", part)]
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
        re.findall(r"`(\w+)`", section("json", "bench"))
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
    told = onnxprune.validate(model, model, data=fixtures / "digits_test.npz", max_drop=1.0).as_dict() | {"run": {}}
    assert_documented(told, "validate", skip=("outputs", "seconds"))


def test_json_keys_of_small_commands(tmp_path):
    """The tables have the keys that explain, diff, clean, report, handoff and absorb print, and name what is in them."""
    vit, vgg = str(ROOT / "fixtures" / "tiny_vit_legacy.onnx"), str(ROOT / "fixtures" / "vgg_legacy.onnx")

    def printed(*command):
        return json.loads(done(*command, "--json").stdout)

    explained = printed("explain", vit, "head.weight")
    frozen, free = explained["axes"]
    explained["axes"] = [free | {"causes": frozen["causes"]}]
    assert_documented(explained, "explain")
    assert_documented(printed("diff", vit, vgg), "diff")
    assert_documented(printed("clean", vgg, "-o", tmp_path / "clean.onnx"), "clean")
    assert_documented(printed("handoff", vgg, "-o", tmp_path / "bundle"), "handoff")
    weights = tmp_path / "bundle" / "weights.safetensors"
    assert_documented(printed("absorb", vgg, weights, "-o", tmp_path / "back.onnx"), "absorb")
    run = tmp_path / "run.json"
    done("validate", vgg, vgg, "--report", run)
    assert_documented(printed("report", run), "report")


def test_json_keys_of_a_run():
    """The table has the keys of `run`, and names what is in its environment and in a latency."""
    told = record.made(ROOT / "fixtures" / "vgg_legacy.onnx")["run"]
    assert_documented(told, "run", own=("sha256",))
    timing = Timing(1.0, 1.0, 1.0, 1.0, 1.0, 1, np.ones(1)).as_dict()
    assert set(timing) <= set(re.findall(r"`(\w+)`", section("json", "run")))


# ---- links --------------------------------------------------------------------------------------------------------


def anchors(path):
    """The anchors of the headings of a page; lines of code that begin with # are none."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", [*PAGES, "fixtures/README.md", "fixtures/cifar10/README.md"])
def test_links_lead_somewhere(name):
    """Links are to files that are there, relative to the page, and to headings that exist."""
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        file, _, heading = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), target
        assert not heading or heading in anchors(path), target


def test_changelog_has_this_version():
    """The newest entry of the changelog is the version of the package."""
    assert re.search(r"^## \[([^]]+)\]", PAGES["CHANGELOG.md"], re.MULTILINE)[1] == onnxprune.__version__
