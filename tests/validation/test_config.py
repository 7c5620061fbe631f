"""Settings from TOML."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune.commands.gate_options import Validating
from onnxprune.errors import FileError, UsageError
from onnxprune.validation.config import KEYS, settings
from onnxprune.validation.result import ValidateOptions


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write pyproject.toml into an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return lambda text: Path("pyproject.toml").write_text(text)


def test_nothing_is_set(project):
    """Without pyproject.toml, or without the table in it, nothing is set."""
    assert settings(None) == {}
    project("[project]\nname = 'x'\n[tool.other]\na = 1\n")
    assert settings(None) == {}


def test_a_table(project):
    """Keys have hyphens or underscores; units are read with the options of the command line, which win."""
    project("[tool.onnxprune.validate]\nmax-drop = 1\nmin_agreement = 0.9\nmax-latency = '5ms'\nmax-size = '2MB'\n")
    found = settings(None)
    assert found == {"max_drop": 1, "min_agreement": 0.9, "max_latency": "5ms", "max_size": "2MB"}
    given = Validating(max_drop=2.0, max_latency="7us").arguments(found)
    assert (given["max_drop"], given["max_latency"], given["max_size"]) == (2.0, pytest.approx(7e-6), 2e6)
    ValidateOptions(**{n: v for n, v in given.items() if n != "min_agreement"})


def test_memory(project):
    """Memory is set as on the command line, which wins, and has a default."""
    assert Validating().arguments(settings(None))["memory"] == 1e9
    project("[tool.onnxprune.validate]\nmemory = '2MB'\n")
    assert Validating().arguments(settings(None))["memory"] == 2e6
    assert Validating(memory="3kB").arguments(settings(None))["memory"] == 3e3


def test_every_option_can_be_set():
    """What the table cannot set are only the files that a run reads its settings from and writes, and the output."""
    options = set(Validating.__dataclass_fields__)
    assert options - set(KEYS) == {"config", "junit", "markdown", "report", "as_json", "quiet"}


def test_a_file(project, tmp_path):
    """--config names another file, which must have the table; pyproject.toml is not read then."""
    project("[tool.onnxprune.validate]\nmax-drop = 1\n")
    (tmp_path / "gate.toml").write_text("[tool.onnxprune.validate]\nseed = 3\n")
    assert settings(Path("gate.toml")) == {"seed": 3}
    (tmp_path / "gate.toml").write_text("[tool.onnxprune]\n")
    with pytest.raises(UsageError, match=r"'gate.toml' has no table \[tool.onnxprune.validate\]"):
        settings(Path("gate.toml"))
    (tmp_path / "gate.toml").write_text("[tool.onnxprune]\nmax_drop = 1\n")
    with pytest.raises(UsageError, match=r"'max_drop'; it belongs in"):
        settings(Path("gate.toml"))
    with pytest.raises(FileError, match=r"there is no file 'none\.toml'"):
        settings(Path("none.toml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tool.onnxprune.validate]\nmax-dorp = 1\n", "unknown key 'max-dorp'; did you mean 'max-drop'"),
        ("[tool.onnxprune.validat]\nmax-drop = 1\n", "unknown key 'validat'; did you mean 'validate'"),
        ("[tool.onnxprune]\nmax-drop = 1\n", r"'max-drop'; it belongs in \[tool.onnxprune.validate\]"),
        ("[tool.onnxprune.validate]\nmax-drop = '1'\n", "'max-drop' must be a number, not '1'"),
        ("[tool.onnxprune.validate]\nmax-drop = true\n", "'max-drop' must be a number"),
        ("[tool.onnxprune.validate]\nmax-latency = 5\n", "'max-latency' must be a text with a unit, not 5"),
        ("[tool.onnxprune.validate]\nsamples = 5.5\n", "'samples' must be a whole number"),
        ("[tool.onnxprune]\nvalidate = 1\n", "'validate' is not a table"),
        ("[tool.onnxprune.validate\n", "is not TOML"),
        ("[tool.onnxprune.validate]\nzzz = 1\nmetric = 2\n", "'zzz'; known are max-drop.*'metric' must be a text"),
    ],
)
def test_what_is_wrong(project, text, words):
    """Unknown keys, with the nearest, and values of another type are usage errors that name the file, all at once."""
    project(text)
    with pytest.raises(UsageError, match=words) as found:
        settings(None)
    assert "pyproject.toml" in str(found.value)


def test_keys_are_options():
    """Every key is an option of the library and of the command line."""
    assert set(KEYS) <= set(ValidateOptions.__dataclass_fields__) & set(Validating.__dataclass_fields__)
