"""`onnxprune validate` on the command line, and in CI."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import xmlschema
from commands import done, run

import onnxprune
from onnxprune import files
from onnxprune.commands import gate_options
from onnxprune.errors import FileError

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "fixtures"
TEST = FIXTURES / "digits_test.npz"
SCHEMA = xmlschema.XMLSchema10(Path(__file__).with_name("report") / "junit.xsd")
GATE = ("validate", "m.onnx", "small.onnx", "--data", TEST)
IN_ACTIONS = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": "summary.md"}


@pytest.fixture(scope="module")
def smaller():
    """A network cut to half, not repaired: far worse."""
    return onnxprune.compress(FIXTURES / "vgg_legacy.onnx", flops=0.5, recover="none").model


@pytest.fixture
def folder(tmp_path, monkeypatch, smaller):
    """A working folder with a model and a smaller one, as on no CI."""
    monkeypatch.chdir(tmp_path)
    for name in IN_ACTIONS:
        monkeypatch.delenv(name, raising=False)
    Path("m.onnx").write_bytes((FIXTURES / "vgg_legacy.onnx").read_bytes())
    onnx.save(smaller, "small.onnx")
    return tmp_path


@pytest.mark.parametrize(
    ("goals", "code"),
    [
        ([], 0),
        (["--max-drop", "90"], 0),
        (["--max-drop", "1"], 1),
        (["--max-size", "1kB"], 1),
        (["--max-size", "1MB", "--max-drop", "90"], 0),
        (["--min-agreement", "0.999"], 1),
        (["--max-size", "1"], 2),
        (["--max-drop", "150"], 2),
        (["--max-drop", "-1"], 2),
        (["--max-latency", "5"], 2),
        (["--min-agreement", "98"], 2),
        (["--metric", "acuracy"], 2),
        (["--verdict", "point", "--inconclusive", "pass"], 2),
        (["--report", "r.htm"], 2),
        (["--output-name", "nothing"], 2),
        (["--config", "none.toml"], 4),
    ],
)
def test_exit_codes(folder, goals, code):
    """0 where all goals are met or there are none, 1 where one is not, else the code of the error."""
    result = run(*GATE, *goals)
    assert result.exit_code == code, result.output
    assert bool(result.stderr) == bool(code)
    assert ("Verdict" in result.stdout or "no verdict" in result.stdout) == (code < 2)


def test_doubt(folder):
    """An interval that holds the goal fails, unless it may pass; the point estimate knows no doubt."""
    same = ("validate", "m.onnx", "m.onnx", "--data", TEST, "--max-drop", "0.3")
    result = run(*same)
    assert result.exit_code == 1
    assert "--max-drop: inconclusive" in result.stderr
    assert "INCONCLUSIVE" in done(*same, "--inconclusive", "pass").stdout
    assert "Verdict: pass" in done(*same, "--verdict", "point").stdout


def test_json(folder):
    """--json prints what the library returns, also where the gate is shut; --report writes it."""
    result = run(*GATE, "--max-drop", "1", "--json", "--report", "r.json")
    printed, written = json.loads(result.stdout), json.loads(Path("r.json").read_text())
    assert result.exit_code == 1
    assert printed == written
    want = onnxprune.validate("m.onnx", "small.onnx", data=TEST, max_drop=1.0).as_dict()
    assert printed.pop("run")["command"].startswith("onnxprune validate m.onnx small.onnx ")
    assert {**printed, "seconds": 0} == {**want, "seconds": 0}


def test_files_are_written_again(folder):
    """Reports replace older ones without --force, whatever the verdict; models and data are not touched."""
    before = {p: p.read_bytes() for p in (Path("m.onnx"), Path("small.onnx"), TEST)}
    for _ in range(2):
        run(*GATE, "--max-drop", "1", "--junit", "j.xml", "--markdown", "m.md", "--report", "r.json", "-q")
    assert ElementTree.parse("j.xml").getroot().find("testsuite").get("failures") == "1"
    assert Path("m.md").read_text().count("### m.onnx beside small.onnx") == 1
    assert before == {p: p.read_bytes() for p in before}
    assert {p.name for p in folder.iterdir()} == {"m.onnx", "small.onnx", "j.xml", "m.md", "r.json"}


@pytest.mark.parametrize(
    ("options", "code", "outcomes"),
    [
        (["--max-drop", "90"], 0, [[]]),
        (["--max-drop", "1", "--max-size", "1MB"], 1, [["failure"], []]),
        (["--max-drop", "1", "--metric", "acuracy"], 2, [["error"]]),
        (["--max-drop", "1", "--data", "labels.npz"], 3, [["error"]]),
        (["--max-size", "2XB"], 2, [["error"]]),
        (["--config", "none.toml"], 4, [["error"]]),
    ],
    ids=["pass", "fail", "usage", "data", "option", "file"],
)
def test_junit_of_every_end(folder, options, code, outcomes):
    """What the command writes is what the schema allows, also where an error ends it: no older file is left to pass."""
    np.savez("labels.npz", input=np.load(TEST)["input"], labels=np.full(3, 99))
    Path("j.xml").write_text("older")
    result = run(*GATE, *options, "--junit", "j.xml")
    assert result.exit_code == code, result.output
    SCHEMA.validate("j.xml")
    cases = ElementTree.parse("j.xml").getroot().findall("testsuite/testcase")
    assert [[outcome.tag for outcome in case] for case in cases] == outcomes
    if code > 1:
        assert cases[0].find("error").text in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--junit", "m.onnx"], 2, "is the input 'm.onnx' too"),
        (["--markdown", "small.onnx"], 2, "is the input 'small.onnx' too"),
        (["--junit", str(TEST)], 2, "too: name another file"),
        (["--junit", "a", "--markdown", "./a"], 2, "is the file of --junit too"),
        (["--junit", "none/a.xml"], 4, "there is no folder"),
    ],
)
def test_reports_that_cannot_be_written(folder, options, code, words):
    """A report over what is read, over another, or in no folder is refused before any work."""
    before = {p: p.read_bytes() for p in (Path("m.onnx"), Path("small.onnx"), TEST)}
    result = run(*GATE, *options)
    assert (result.exit_code, words in result.stderr) == (code, True), result.stderr
    assert result.stdout == ""
    assert before == {p: p.read_bytes() for p in before}


def test_settings_of_the_project(folder):
    """Goals and data come from pyproject.toml; the command line wins; a misspelt key is a usage error."""
    table = f"[tool.onnxprune.validate]\nmax-drop = 1\ndata = {str(TEST)!r}\nmax-size = '1MB'\n"
    Path("pyproject.toml").write_text(table)
    result = run("validate", "m.onnx", "small.onnx")
    assert result.exit_code == 1
    assert "max size 1 MB" in result.stdout
    assert "max drop 90.00 points" in done("validate", "m.onnx", "small.onnx", "--max-drop", "90").stdout
    Path("pyproject.toml").write_text(table.replace("max-drop", "max-dorp"))
    result = run("validate", "m.onnx", "small.onnx")
    assert (result.exit_code, "did you mean 'max-drop'" in result.stderr) == (2, True)


def test_in_github_actions(folder, monkeypatch):
    """Under GitHub Actions the summary grows by the report, and errors become annotations."""
    for name, value in IN_ACTIONS.items():
        monkeypatch.setenv(name, value)
    Path("summary.md").write_text("before\n")
    result = run(*GATE, "--max-drop", "1", "--json", "--markdown", "summary.md")
    assert result.exit_code == 1
    json.loads(result.stdout)
    summary = Path("summary.md").read_text()
    assert summary.startswith("before\n### ")
    assert summary.count("###") == 1
    assert re.search("^::error title=onnxprune validate --max-drop fail::small.onnx: drop", result.stderr, re.MULTILINE)


def test_a_summary_that_cannot_be_written(folder, monkeypatch):
    """A summary that cannot be written is known before any work, and never takes the place of a verdict."""
    for name, value in IN_ACTIONS.items():
        monkeypatch.setenv(name, value)
    Path("summary.md").mkdir()
    result = run(*GATE, "--max-drop", "1")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "cannot write 'summary.md'" in result.stderr
    Path("summary.md").rmdir()
    append = files.append_text

    def full(path, text):
        if text:
            raise FileError(f"cannot write '{path}': disk full")
        append(path, text)

    monkeypatch.setattr(files, "append_text", full)
    for limit, code in (("1", 1), ("90", 0)):
        result = run(*GATE, "--max-drop", limit)
        assert result.exit_code == code
        assert "Verdict" in result.stdout
        assert "the summary is missing: cannot write 'summary.md': disk full" in result.stderr


# ---- the files for CI ----------------------------------------------------------------------------------------------


def action_steps():
    """The shell scripts of the composite action, each with its environment."""
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    for step in re.split(r"^    - ", text, flags=re.MULTILINE)[1:]:
        env = dict(re.findall(r"^        (ONNXPRUNE_\w+): (.*)$", step, re.MULTILINE))
        script = re.search(r"^      run: \|\n((?:        .*\n|\n)+)", step, re.MULTILINE)[1]
        assert "shell: bash" in step
        yield env, re.sub("^        ", "", script, flags=re.MULTILINE)


def run_action(folder, inputs):
    """The validation step of the action, as a runner would run it."""
    names = re.findall(r"^  ([\w-]+):$", (ROOT / "action.yml").read_text().partition("\nruns:")[0], re.MULTILINE)
    assert set(inputs) <= set(names)
    (_, install), (env, script) = action_steps()
    assert install == 'python -m pip install --quiet "$GITHUB_ACTION_PATH"\n'
    given = {k: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: inputs.get(m[1], ""), v) for k, v in env.items()}
    assert not [v for v in given.values() if "${{" in v]
    path = os.pathsep.join((str(folder / "bin"), os.environ["PATH"]))
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / "bin" / "python").chmod(0o755)
    (folder / "step.sh").write_text(script)
    line = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "step.sh"]
    everything = os.environ | IN_ACTIONS | given | {"PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=folder, env=everything, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.name == "nt", reason="the action runs bash")
def test_the_action(folder):
    """The action passes its inputs on, spaces and all, and its step fails where a goal is missed."""
    Path("small.onnx").rename("a model.onnx")
    inputs = {"original": "m.onnx", "candidate": "a model.onnx", "data": str(TEST), "max-drop": "90"}
    result = run_action(folder, inputs | {"junit": "j.xml", "args": "--seed 3 --samples 100"})
    assert result.returncode == 0, result.stderr
    assert "on 100" in result.stdout
    assert Path("j.xml").exists()
    assert "**Verdict: pass" in Path("summary.md").read_text()
    shut = run_action(folder, inputs | {"max-drop": "1", "max-size": "10kB"})
    assert shut.returncode == 1
    assert len(re.findall("^::error ", shut.stderr, re.MULTILINE)) == 2


def test_the_action_has_the_options():
    """Every input of the action but `args` and the models is an option of the command."""
    inputs = re.findall(r"^  ([\w-]+):$", (ROOT / "action.yml").read_text().partition("\nruns:")[0], re.MULTILINE)
    (_, _), (env, script) = action_steps()
    named = re.search(r"for name in (.*);", script)[1].split()
    assert set(inputs) == {*named, "original", "candidate", "args"}
    assert set(env) == {f"ONNXPRUNE_{name.replace('-', '_')}" for name in inputs}
    fields = gate_options.Validating.__dataclass_fields__
    assert {name.replace("-", "_") for name in named} <= set(fields)


def test_the_hook(folder):
    """The pre-commit hook runs the command with its args and without file names, and stops a commit by exit code 1."""
    text = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    keys = dict(re.findall(r"^[ -] (\w+): (.*)$", text, re.MULTILINE))
    assert (keys["id"], keys["language"], keys["pass_filenames"]) == ("onnxprune-validate", "python", "false")
    assert re.search(keys["files"], "models/small.onnx")
    program, *words = shlex.split(keys["entry"])
    assert program == "onnxprune"
    args = ["m.onnx", "small.onnx", "--data", str(TEST), "--max-drop"]
    assert run(*words, *args, "90").exit_code == 0
    assert run(*words, *args, "1").exit_code == 1
