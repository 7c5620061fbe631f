"""Options that are listed once and taken by several functions."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import pytest

from onnxprune.signature import taking


@dataclass(frozen=True, kw_only=True)
class Options:
    """Two of them."""

    depth: int = 3
    name: str = ""


@taking(Options)
def act(model: str, options: Options) -> str:
    """Say what was given."""
    return f"{model} {options.depth} {options.name}"


def test_options_arrive_as_one_object():
    """Keywords become the object, what is left out has its default, and the model may be named."""
    assert act("m", depth=1) == "m 1 "
    assert act(model="m", name="n") == "m 3 n"


def test_the_signature_is_the_whole_one():
    """Name, text and every option with type and default are shown, and options are keyword-only."""
    assert (act.__name__, act.__doc__) == ("act", "Say what was given.")
    assert str(inspect.signature(act)) == "(model: str, *, depth: int = 3, name: str = '') -> str"


@pytest.mark.parametrize("wrong", [lambda: act("m", deep=1), lambda: act("m", 1)], ids=["unknown", "positional"])
def test_wrong_options(wrong):
    """What no option is called, and an option without its name, is a TypeError."""
    with pytest.raises(TypeError):
        wrong()


@taking(Options)
def pair(model: str, plan: str, options: Options) -> str:
    """Two things and their options."""
    return f"{model} {plan} {options.depth}"


def test_two_things_before_the_options():
    """Each may come by place or by name."""
    assert pair("m", "p", depth=1) == pair("m", plan="p", depth=1) == pair(plan="p", model="m", depth=1) == "m p 1"
    assert str(inspect.signature(pair)) == "(model: str, plan: str, *, depth: int = 3, name: str = '') -> str"
