"""One list of options for several functions: each takes them as keyword arguments and receives them as one object."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Signature, signature
from typing import Concatenate, ParamSpec, TypeVar, get_type_hints

P = ParamSpec("P")
M = TypeVar("M")
O = TypeVar("O")  # noqa: E741 - options
R = TypeVar("R")


def taking(options: Callable[P, O]) -> Callable[[Callable[[M, O], R]], Callable[Concatenate[M, P], R]]:
    """Turn f(model, options) into f(model, *, ...) with the fields of a keyword-only dataclass, as `help` shows it."""

    def decorate(function: Callable[[M, O], R]) -> Callable[Concatenate[M, P], R]:
        @wraps(function)
        def taken(model: M, *args: P.args, **kwargs: P.kwargs) -> R:
            return function(model, options(*args, **kwargs))

        hints = get_type_hints(function, include_extras=True) | get_type_hints(options, include_extras=True)
        shown = [next(iter(signature(function).parameters.values())), *signature(options).parameters.values()]
        taken.__annotations__ = {p.name: hints[p.name] for p in shown} | {"return": hints["return"]}
        full = Signature([p.replace(annotation=hints[p.name]) for p in shown], return_annotation=hints["return"])
        taken.__signature__ = full  # type: ignore[attr-defined]
        return taken  # type: ignore[return-value]  # `model=` works too

    return decorate
