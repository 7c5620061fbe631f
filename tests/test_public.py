"""The public names of the package."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import onnxprune

HEAVY = ("numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "scipy", "sklearn")
FUNCTIONS = (
    "compress",
    "analyze",
    "make_plan",
    "apply_plan",
    "clean",
    "explain",
    "diff",
    "rule",
    "criterion",
    "validate",
    "redundancy",
    "sparsify",
    "finetune",
    "handoff",
    "absorb",
    "search",
    "benchmark",
)


def heavy_after(code):
    """Which heavy modules a fresh interpreter has loaded after running some code."""
    code = f"import sys\n{code}\nsys.stderr.write(' '.join(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stderr.split()


@pytest.mark.parametrize("name", onnxprune.__all__)
def test_every_public_name_is_there(name):
    """All names of `__all__` resolve, and `dir` lists them."""
    assert getattr(onnxprune, name) is not None
    assert name in dir(onnxprune)


def test_no_module_hides_a_function():
    """With every module of the package imported, the public functions are still functions."""
    for module in pkgutil.walk_packages(onnxprune.__path__, "onnxprune."):
        needs_torch = module.name.startswith("onnxprune.student") and not find_spec("torch")
        if not module.name.endswith("__main__") and not needs_torch:
            importlib.import_module(module.name)
    assert all(type(getattr(onnxprune, name)).__name__ == "function" for name in FUNCTIONS)
    modules = {m.name for m in pkgutil.iter_modules(onnxprune.__path__)}
    assert modules.intersection(onnxprune.__all__) == {"errors"}


def test_the_pipeline_names_all_that_is_public():
    """Everything that the package takes from api.py, and what else programs call there, is in its `__all__`."""
    api = importlib.import_module("onnxprune.api")
    of_api = {name for name in onnxprune.__all__ if hasattr(api, name) and name in (*FUNCTIONS, "Result")}
    assert of_api | {"Options", "cleaned", "overview", "read_plan"} <= set(api.__all__)
    assert all(hasattr(api, name) for name in api.__all__)


def test_unknown_name():
    """A misspelt name is an AttributeError that says it."""
    with pytest.raises(AttributeError, match="'onnxprune' has no attribute 'prune'"):
        onnxprune.prune  # noqa: B018


def test_version_is_that_of_the_project():
    """The package and pyproject.toml state the same version."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert onnxprune.__version__ == project["version"]


def test_import_is_light():
    """Importing the package, its errors and its command line loads nothing heavy."""
    assert heavy_after("import onnxprune.cli; onnxprune.errors.Exit") == []
    assert "onnx" in heavy_after("import onnxprune; onnxprune.compress")


@pytest.mark.parametrize("args", [["--help"], ["compress", "--help"], ["--version"]], ids=" ".join)
def test_help_is_light(args):
    """Help and version load nothing heavy."""
    run = f"from onnxprune.cli import app\ntry:\n    app({args})\nexcept SystemExit as e:\n    assert e.code == 0"
    assert heavy_after(run) == []


def test_own_rule_wins_over_the_built_in():
    """A rule registered first thing after the import is not overwritten when the built-in ones are loaded."""
    code = """
import onnxprune
@onnxprune.rule("Relu")
def mine(t, X):
    return X.view
from onnxprune import api
from onnxprune.rules import RULES
assert RULES["", "Relu"] is mine
assert RULES["", "Tanh"] is not mine
"""
    assert "onnx" in heavy_after(code)
