"""What the pages show is what happens: every command and every line of python on them is run."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import pytest
from documentation import FOLDER, PAGES, ROOT, SHIPPED, assert_shown, blocks, commands, options, page, python, shell

RUN = ("README.md", *SHIPPED)
OF_SHELL = [name for name in RUN if any(b.language == "sh" for b in blocks(PAGES[name]))]
OF_PYTHON = [name for name in RUN if any(b.language == "python" for b in blocks(PAGES[name]))]


@pytest.fixture
def folder(tmp_path):
    """A folder with the fixtures: every page runs by itself."""
    shutil.copytree(ROOT / "fixtures", tmp_path / "fixtures", ignore=shutil.ignore_patterns("cifar10"))
    return tmp_path


@pytest.mark.parametrize("name", OF_SHELL)
def test_commands_of_a_page(name, folder):
    """Every command runs in the order of the page, exits as documented, and prints what is shown."""
    for block in (b for b in blocks(PAGES[name]) if b.language == "sh"):
        if "onnxprune finetune" in block.code and not find_spec("torch"):
            continue  # it needs the extra
        printed = shell(block.code, folder)
        if block.shown is not None:
            assert_shown(block.shown, printed)


@pytest.mark.parametrize("name", OF_PYTHON)
def test_python_of_a_page(name, folder):
    """The python blocks run one after the other, and print what is shown."""
    shown = [b.shown for b in blocks(PAGES[name]) if b.language == "python"]
    printed = python(name, folder)
    assert len(shown) == len(printed)
    for want, got in zip(shown, printed, strict=True):
        assert_shown(want or "", got)


@pytest.mark.parametrize("name", sorted(set(options()) - {""}))
def test_every_command_has_an_example(name):
    """The page of a command runs that command."""
    assert f"{FOLDER}{name}.md" in OF_SHELL
    ran = [c for b in blocks(page(name)) if b.language == "sh" for c, wanted in commands(b.code) if wanted == 0]
    assert name in {command[0] for command in ran}


def test_python_of_contributing(tmp_path):
    """The examples of how to add an operator and a criterion run, and their tests pass."""
    assert "def test_" in PAGES["CONTRIBUTING.md"]
    python("CONTRIBUTING.md", tmp_path)


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
