"""The decision as a file: kept indices per parameter axis, in the coordinates of the cleaned model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from onnxprune.analysis import Analysis, Axis, Mask
from onnxprune.errors import PlanError

VERSION = 1
Keep = dict[str, dict[int, list[int]]]
Json = dict[str, Any]
_FIELDS = {"version", "model", "keep", "settings", "predicted", "frozen"}
_SHOWN = 5  # problems listed in one error


@dataclass(frozen=True, slots=True)
class Plan:
    """What is kept of a model.

    model: sha256 of the cleaned model; keep: parameter -> axis -> kept indices, ascending, for every axis that is
    sliced; settings: the options that led here; predicted: the cost to expect; frozen: {name, op, reason} of what
    cannot be removed.
    """

    model: str
    keep: Keep
    settings: Json = field(default_factory=dict)
    predicted: Json = field(default_factory=dict)
    frozen: list[dict[str, str]] = field(default_factory=list)


def make_plan(analysis: Analysis, kept: Mask, model_digest: str, settings: Json, predicted: Json) -> Plan:
    """Write down a choice of classes, [classes + 1] bool with `kept[0]` true."""
    keep = {name: {a: i.tolist() for a, i in axes.items()} for name, axes in analysis.kept_axes(kept).items()}
    reasons = dict.fromkeys((f.name, f.op, f.reason) for f in analysis.frozen)
    frozen = [{"name": name, "op": op, "reason": reason} for name, op, reason in reasons]
    return Plan(model_digest, keep, dict(settings), dict(predicted), frozen)


def as_json(plan: Plan) -> Json:
    """The plan as the JSON object that `dumps` writes; axes are strings."""
    keep = {name: {str(axis): axes[axis] for axis in sorted(axes)} for name, axes in plan.keep.items()}
    head = {"version": VERSION, "model": plan.model, "keep": keep}
    return head | {"settings": plan.settings, "predicted": plan.predicted, "frozen": plan.frozen}


def dumps(plan: Plan) -> str:
    """JSON text for a review, one line per sliced axis and per frozen parameter; the same plan gives the same text."""
    raw = as_json(plan)
    texts = {name: _text(value) for name, value in raw.items()}
    texts["keep"] = "{" + _block(f"{_text(name)}: {_axes(axes)}" for name, axes in raw["keep"].items()) + "}"
    texts["frozen"] = "[" + _block(_text(entry) for entry in plan.frozen) + "]"
    return "{\n  " + ",\n  ".join(f'"{name}": {text}' for name, text in texts.items()) + "\n}\n"


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _block(lines: Iterator[str]) -> str:
    text = ",\n    ".join(lines)
    return f"\n    {text}\n  " if text else ""


def _axes(axes: dict[str, list[int]]) -> str:
    return "{" + ",\n      ".join(f'"{axis}": {_text(indices)}' for axis, indices in axes.items()) + "}"


def loads(text: str | bytes) -> Plan:
    """Read a plan. Raises PlanError where the text is not one, with the place in it."""
    try:
        raw = json.loads(text, object_pairs_hook=_without_repetition, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # json's own errors and wrong encodings are ValueErrors
        raise PlanError(f"the plan is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise PlanError(f"the plan must be a JSON object, not {type(raw).__name__}")
    version = raw.get("version")
    if version != VERSION or isinstance(version, bool):
        raise PlanError(f"plan version {version!r} is not known; this program reads version {VERSION}")
    _expect(set(raw) <= _FIELDS, f"unknown members: {', '.join(sorted(set(raw) - _FIELDS))}")
    _expect(isinstance(raw.get("model"), str), '"model" must be the sha256 of the cleaned model')
    for name in ("settings", "predicted"):
        _expect(isinstance(raw.get(name, {}), dict), f'"{name}" must be an object')
    settings, predicted = raw.get("settings", {}), raw.get("predicted", {})
    return Plan(raw["model"], _keep(raw.get("keep")), settings, predicted, _frozen(raw.get("frozen", [])))


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not a JSON number")


def _without_repetition(pairs: list[tuple[str, Any]]) -> Json:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in seen if seen.count(n) > 1)!r} appears twice in one object")
    return result


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise PlanError(f"malformed plan: {message}")


def _keep(raw: object) -> Keep:
    if not isinstance(raw, dict):
        raise PlanError('malformed plan: "keep" must be an object: parameter -> axis -> kept indices')
    keep: Keep = {}
    for name, axes in raw.items():
        _expect(isinstance(axes, dict) and bool(axes), f'"keep" of {name!r} must be an object: axis -> kept indices')
        for axis, indices in axes.items():
            number = axis.isascii() and axis.isdigit() and str(int(axis[:9])) == axis
            _expect(number, f'"keep" of {name!r}: {axis!r} is not the number of an axis')
            whole = isinstance(indices, list) and all(type(i) is int for i in indices)
            _expect(whole, f'"keep" of {name!r}, axis {axis}: the indices must be a list of integers')
            keep.setdefault(name, {})[int(axis)] = indices
    return keep


def _frozen(raw: object) -> list[dict[str, str]]:
    good = isinstance(raw, list) and all(
        isinstance(f, dict) and set(f) == {"name", "op", "reason"} and all(isinstance(v, str) for v in f.values())
        for f in raw
    )
    _expect(good, '"frozen" must be a list of {name, op, reason}')
    assert isinstance(raw, list)
    return raw


def kept_classes(plan: Plan, analysis: Analysis, model_digest: str) -> Mask:
    """Classes that a plan keeps, [classes + 1] bool.

    Raises PlanError where the plan is of another model or asks for what cannot be: unknown parameters or axes, indices
    out of range or order, frozen positions removed, a class torn apart, nothing left on an axis.
    """
    if plan.model != model_digest:
        raise PlanError(
            f"the plan was made for another model: its sha256 is {plan.model[:12]}..., this one's (cleaned) is "
            f"{model_digest[:12]}...; make a new plan with the `plan` command"
        )
    axes = {(a.param, a.axis): a for a in analysis.axes}
    listed = {(name, axis): indices for name, by_axis in plan.keep.items() for axis, indices in by_axis.items()}
    _raise([p for (name, axis), indices in listed.items() for p in _unfit(analysis, axes, name, axis, indices)])
    stays = {key: _mask(a, listed.get(key)) for key, a in axes.items()}
    kept = np.ones(analysis.classes + 1, np.bool_)
    for key, axis in axes.items():
        kept[axis.classes[~stays[key]]] = False
    kept[0] = True
    _raise([p for key, axis in axes.items() for p in _frozen_or_torn(analysis, axis, stays, kept)])
    if any(not kept[part].any() for part in analysis.parts):
        raise PlanError("the plan leaves nothing of a tensor that a Split, Slice or Gather selects")
    return kept


def _raise(problems: list[str]) -> None:
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise PlanError("the plan does not fit the model:\n  " + "\n  ".join(problems[:_SHOWN]) + more)


def _mask(axis: Axis, indices: list[int] | None) -> Mask:
    mask = np.full(len(axis.classes), indices is None)
    if indices is not None:
        mask[indices] = True
    return mask


def _unfit(
    analysis: Analysis, axes: dict[tuple[str, int], Axis], name: str, axis: int, indices: list[int]
) -> Iterator[str]:
    """What is wrong with one entry of `keep`, taken by itself."""
    constants = analysis.model.constants()
    place = f"{name!r} axis {axis}"
    if name not in constants:
        yield f"{name!r} is not a parameter of the model"
    elif axis >= len(constants[name].shape):
        yield f"{place} does not exist: the parameter has {len(constants[name].shape)} axes"
    else:
        size = int(constants[name].shape[axis])
        if not indices:
            yield f"{place}: nothing is left"
        elif min(indices) < 0 or max(indices) >= size:
            yield f"{place}: index {min(indices) if min(indices) < 0 else max(indices)} is outside 0..{size - 1}"
        elif any(a >= b for a, b in pairwise(indices)):
            yield f"{place}: the indices must ascend without repetition"
        elif (name, axis) not in axes and len(indices) < size:
            yield f"{place} cannot be sliced: {_reason(analysis, name, axis)}"


def _reason(analysis: Analysis, name: str, axis: int) -> str:
    found = next((f for f in analysis.frozen if f.name == name and f.axis == axis), None)
    return f"{found.op}: {found.reason}" if found else "it couples with nothing that can be removed"


def _frozen_or_torn(analysis: Analysis, axis: Axis, stays: dict[tuple[str, int], Mask], kept: Mask) -> Iterator[str]:
    """Positions that the plan treats differently from their class."""
    mask, place = stays[axis.param, axis.axis], f"{axis.param!r} axis {axis.axis}"
    frozen = np.flatnonzero(~mask & (axis.classes == 0))
    if len(frozen):
        yield f"{place} index {frozen[0]} is frozen: {_reason(analysis, axis.param, axis.axis)}"
    torn = np.flatnonzero(mask & ~kept[axis.classes])
    if len(torn):
        partner = _removed_member(analysis, int(axis.classes[torn[0]]), stays)
        yield f"{place} index {torn[0]} is kept and {partner} is removed, but they can only go together"


def _removed_member(analysis: Analysis, number: int, stays: dict[tuple[str, int], Mask]) -> str:
    for axis in analysis.axes:
        found = np.flatnonzero((axis.classes == number) & ~stays[axis.param, axis.axis])
        if len(found):
            return f"{axis.param!r} axis {axis.axis} index {found[0]}"
    raise AssertionError(f"class {number} has no removed member")
