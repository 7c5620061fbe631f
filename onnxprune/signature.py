"""One list of options for several functions: each takes them as keyword arguments and receives them as one object."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Signature, signature
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, get_type_hints, overload

P = ParamSpec("P")
M = TypeVar("M")
N = TypeVar("N")
O = TypeVar("O")  # noqa: E741 - options
R = TypeVar("R")


class taking(Generic[P, O]):  # noqa: N801 - a decorator
    """Turn f(model, ..., options) into f(model, ..., *, ...) with the fields of a keyword-only dataclass in place of
    the last parameter, as `help` shows it.
    """

    def __init__(self, options: Callable[P, O]) -> None:
        self._options = options

    @overload
    def __call__(self, function: Callable[[M, O], R]) -> Callable[Concatenate[M, P], R]: ...
    @overload
    def __call__(self, function: Callable[[M, N, O], R]) -> Callable[Concatenate[M, N, P], R]: ...
    def __call__(self, function: Callable[..., R]) -> Callable[..., R]:
        options: Callable[..., O] = self._options
        *first, last = signature(function).parameters.values()

        @wraps(function)
        def taken(*args: Any, **kwargs: Any) -> R:
            named = {p.name: kwargs.pop(p.name) for p in first if p.name in kwargs}
            return function(*args, **named, **{last.name: options(**kwargs)})

        hints = get_type_hints(function, include_extras=True) | get_type_hints(options, include_extras=True)
        shown = [*first, *signature(options).parameters.values()]
        taken.__annotations__ = {p.name: hints[p.name] for p in shown} | {"return": hints["return"]}
        full = Signature([p.replace(annotation=hints[p.name]) for p in shown], return_annotation=hints["return"])
        taken.__signature__ = full  # type: ignore[attr-defined]
        return taken
