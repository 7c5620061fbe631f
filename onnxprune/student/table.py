"""The table of operators: each is a torch function of the inputs and attributes of its ONNX page, in today's form."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])
Function = Callable[..., object]
OPS: dict[tuple[str, str], Function] = {}


def op(*names: str, domain: str = "") -> Callable[[F], F]:
    """Register a function for operators: it takes tensors by position, attributes by name, and returns a tensor, or a
    tuple of them. Sizes, axes and bounds come as int64 tensors on the CPU. The latest registration wins.
    """

    def register(function: F) -> F:
        OPS.update({(domain, name): function for name in names})
        return function

    return register
