"""What a command prints with --json as one HTML page. Pure: the page is a function of that object alone."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from onnxprune.drawing import plain
from onnxprune.errors import DataError
from onnxprune.report.html.bench import bench
from onnxprune.report.html.compress import compress
from onnxprune.report.html.parts import Page
from onnxprune.report.html.search import search
from onnxprune.report.html.validate import validate

if TYPE_CHECKING:
    from jinja2 import Environment

Told = Mapping[str, Any]
# By the keys that only one of the commands prints.
_KINDS: dict[str, tuple[frozenset[str], Callable[[Told], Page]]] = {
    "compress": (frozenset({"original", "compressed", "layers", "plan"}), compress),
    "validate": (frozenset({"original", "candidate", "goals"}), validate),
    "search": (frozenset({"measure", "points"}), search),
    "bench": (frozenset({"rows", "models", "environment"}), bench),
}


def kind(told: Any) -> str | None:
    """Which command printed an object: compress (apply as well), validate, search, bench; None for anything else."""
    keys = set(told) if isinstance(told, Mapping) else set()
    return next((name for name, (needed, _) in _KINDS.items() if needed <= keys), None)


def page(told: Told) -> str:
    """The page of an object that compress, apply, validate, search or bench print with --json.

    One file without any link to elsewhere. Raises DataError for another object, or one in which something is missing.
    """
    found = kind(told)
    if found is None:
        raise DataError(
            "this is no JSON object of onnxprune: give what compress, apply, validate, search or bench print"
        )
    try:
        made = _KINDS[found][1](told)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(
            f"this JSON object of `onnxprune {found}` is incomplete or of another version ({what}); run it again"
        ) from error
    script, style = (_source(name) for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template("page.html").render(page=made, script=script, style=style, digest=digest)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("onnxprune", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: plain(value) if type(value) is str else value,  # Markup is another type
    )


def _source(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]
