"""Settings of `validate` from `[tool.onnxprune.validate]` in a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.files import read_text

PROJECT = "pyproject.toml"
_NUMBER, _COUNT, _TEXT, _MEASURE = "a number", "a whole number", "a text", "a text with a unit"
KEYS = {
    "max_drop": _NUMBER,
    "min_agreement": _NUMBER,
    "min_speedup": _NUMBER,
    "max_latency": _MEASURE,
    "max_size": _MEASURE,
    "data": _TEXT,
    "preprocess": _TEXT,
    "metric": _TEXT,
    "output_name": _TEXT,
    "samples": _COUNT,
    "verdict": _TEXT,
    "inconclusive": _TEXT,
    "latency_seconds": _NUMBER,
    "memory": _MEASURE,
    "seed": _COUNT,
}
_TYPES: dict[str, type | tuple[type, ...]] = {_NUMBER: (int, float), _COUNT: int, _TEXT: str, _MEASURE: str}


def settings(path: Path | None) -> dict[str, Any]:
    """What a file sets, under the names of the library; units are not yet read.

    path: must hold the table; None takes pyproject.toml in the working folder, if it is there and holds it. Raises
    FileError, and UsageError with all problems: unknown keys, with the nearest, and values of another type.
    """
    if path is None and not Path(PROJECT).is_file():
        return {}
    name = str(path or PROJECT)
    try:
        content = tomllib.loads(read_text(name))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"'{name}' is not TOML: {error}") from error
    ours = _table(content.get("tool", {}), "onnxprune", name)
    outside = list(_unknown(ours, ["validate"], "tool.onnxprune"))
    if path is not None and "validate" not in ours and not outside:
        raise UsageError(f"'{name}' has no table [tool.onnxprune.validate]")
    found = {key.replace("-", "_"): value for key, value in _table(ours, "validate", name).items()}
    if problems := [*outside, *_problems(found)]:
        raise UsageError(f"'{name}': {'; '.join(problems)}")
    return found


def _table(content: object, key: str, name: str) -> dict[str, Any]:
    found = content.get(key, {}) if isinstance(content, dict) else {}
    if not isinstance(found, dict):
        raise UsageError(f"'{name}': '{key}' is not a table")
    return found


def _unknown(found: Mapping[str, Any], known: list[str], where: str) -> Iterator[str]:
    for key in found:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
            if "validate" in known and key.replace("-", "_") in KEYS:
                hint = "it belongs in [tool.onnxprune.validate]"
            yield f"[{where}] has the unknown key '{key}'; {hint}"


def _problems(found: Mapping[str, Any]) -> Iterator[str]:
    shown = {key.replace("_", "-"): value for key, value in found.items()}
    yield from _unknown(shown, [k.replace("_", "-") for k in KEYS], "tool.onnxprune.validate")
    for key, value in shown.items():
        kind = KEYS.get(key.replace("-", "_"))
        if kind is not None and (isinstance(value, bool) or not isinstance(value, _TYPES[kind])):
            yield f"'{key}' must be {kind}, not {value!r}"
