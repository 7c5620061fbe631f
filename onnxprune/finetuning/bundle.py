"""The hand-off to any training code, and the way back: weights by initializer name, into the same graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune import files, runtime
from onnxprune.errors import ModelError, UsageError
from onnxprune.finetuning import safetensors
from onnxprune.finetuning.page import readme
from onnxprune.finetuning.trainable import check_signature, trainable, with_weights
from onnxprune.graph import FLOATS, Array, from_proto, values
from onnxprune.plan import Plan, dumps, loads
from onnxprune.stored import serialised

Source = str | Path | onnx.ModelProto
VERSION = 1
MAP, WEIGHTS = "map.json", "weights.safetensors"
SCRIPT = Path(__file__).with_name("script.py")
_SHOWN = 10  # problems that one error lists
_KEY = "onnxprune_model"


@dataclass(frozen=True, slots=True)
class Absorbed:
    """A model with other weights.

    changed: largest change of a weight, relative to its largest value before, by initializer; same: those whose values
    did not change; missing: weights of the model that the file did not have, which stay.
    """

    model: onnx.ModelProto
    changed: dict[str, float]
    same: tuple[str, ...]
    missing: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"changed": self.changed, "same": list(self.same), "missing": list(self.missing)}


def handoff(
    model: Source,
    output: str | Path,
    *,
    teacher: Source | None = None,
    plan: Plan | str | Path | None = None,
    force: bool = False,
) -> list[Path]:
    """Write a folder with all that training code needs: `pruned.onnx`, `teacher.onnx`, `plan.json`, the weights by
    initializer name, `map.json` (shape, type, kept indices of each), a training script for torch, and a README.

    teacher, plan: left out where they are not given. force: whether files that are there may be replaced. Returns the
    files. Raises FileError, PlanError for a file that is no plan, ModelError where the plan or the teacher does not
    belong to the model.
    """
    proto = _read(model)
    original = None if teacher is None else _read(teacher)
    if original is not None:
        check_signature(proto, original)
    decided = loads(files.read_bytes(plan)) if isinstance(plan, str | Path) else plan
    arrays = _arrays(proto)
    contents: dict[str, Any] = {
        WEIGHTS: safetensors.dumps(arrays, {_KEY: files.digest(proto)}),
        MAP: [(json.dumps(_map(proto, original, decided, arrays), indent=1) + "\n").encode()],
        "train.py": [files.read_text(SCRIPT).encode()],
        "README.md": [readme(original is not None, decided is not None).encode()],
        "pruned.onnx": serialised(proto),
    }
    if original is not None:
        contents["teacher.onnx"] = serialised(original)
    if decided is not None:
        contents["plan.json"] = [dumps(decided).encode()]
    folder = Path(output)
    files.write_folder(folder, contents, force=force)
    return [folder / name for name in contents]


def absorb(model: Source, weights: str | Path | Mapping[str, Array]) -> Absorbed:
    """Put trained weights back into a pruned model; the graph, its names, opset and signature stay.

    weights: a safetensors file, or arrays, by initializer name; those it does not have stay as they are. Raises
    ModelError, all problems at once, for unknown names, other shapes or element types, NaN and infinity, and a bundle
    that was made of another model.
    """
    proto = _read(model)
    if isinstance(weights, Mapping):
        arrays, name = {k: np.asarray(a) for k, a in weights.items()}, "the weights"
    else:
        name = str(weights)
        arrays, metadata = safetensors.loads(files.read_bytes(weights), name)
        _check_origin(proto, metadata, Path(weights))
    held = _arrays(proto)
    problems = [p for n, a in arrays.items() for p in _problems(n, a, held)]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ModelError(f"'{name}' does not fit the model: {'; '.join(problems[:_SHOWN])}{more}")
    if not arrays:
        raise ModelError(f"'{name}' holds no weights")
    new = {n: a for n, a in arrays.items() if not np.array_equal(a, held[n])}
    changed = {n: _change(held[n], a) for n, a in new.items()}
    trained = trainable(from_proto(proto))
    same, missing = (n for n in arrays if n not in new), (n for n in trained if n not in arrays)
    return Absorbed(with_weights(proto, new), changed, tuple(same), tuple(missing))


def _read(model: Source) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        files.check_model(model)
        return model
    if not isinstance(model, str | Path):
        raise UsageError(f"a model must be a path or a ModelProto, not {type(model).__name__}")
    return files.read_model(model)


def _arrays(proto: onnx.ModelProto) -> dict[str, Array]:
    """Initializers that training code may hold: weights, and all other floats (statistics, for example)."""
    model = from_proto(proto)
    trained = set(trainable(model))
    found = {n: values(t) for n, t in model.constants().items()}
    return {n: a for n, a in found.items() if a is not None and (n in trained or a.dtype in FLOATS)}


def _map(
    proto: onnx.ModelProto, teacher: onnx.ModelProto | None, plan: Plan | None, arrays: Mapping[str, Array]
) -> dict[str, Any]:
    trained = set(trainable(from_proto(proto)))
    keep = {} if plan is None else plan.keep
    _check_plan(keep, arrays)
    if teacher is not None:
        _check_original(keep, _arrays(teacher))
    entries = {
        n: {
            "shape": list(a.shape),
            "dtype": str(a.dtype),
            "trained": n in trained,
            "kept": {str(axis): indices for axis, indices in keep.get(n, {}).items()},
        }
        for n, a in arrays.items()
    }
    return {
        "version": VERSION,
        "model": files.digest(proto),
        "teacher": None if teacher is None else files.digest(teacher),
        "inputs": [s.name for s in runtime.input_specs(proto)],
        "outputs": [o.name for o in proto.graph.output],
        "initializers": entries,
    }


def _axes(
    keep: Mapping[str, Mapping[int, list[int]]], arrays: Mapping[str, Array]
) -> list[tuple[str, tuple[int, ...], int, list[int]]]:
    """Initializer, its shape, axis and indices of what a plan keeps of these arrays."""
    return [(n, arrays[n].shape, axis, kept) for n in keep if n in arrays for axis, kept in keep[n].items()]


def _check_plan(keep: Mapping[str, Mapping[int, list[int]]], arrays: Mapping[str, Array]) -> None:
    """Raise ModelError where a plan keeps another number of positions than the model has, or has none of its names."""
    if keep and not any(n in arrays for n in keep):
        raise ModelError(f"the plan is not that of this model: it cuts '{next(iter(keep))}', which the model lacks")
    wrong = [
        f"'{n}' is {list(shape)}, the plan keeps {len(kept)} along axis {axis}"
        for n, shape, axis, kept in _axes(keep, arrays)
        if axis >= len(shape) or shape[axis] != len(kept)
    ]
    if wrong:
        raise ModelError(f"the plan is not that of this model: {'; '.join(wrong[:_SHOWN])}")


def _check_original(keep: Mapping[str, Mapping[int, list[int]]], arrays: Mapping[str, Array]) -> None:
    """Raise ModelError where a plan cuts nothing that the teacher has, or keeps what lies beyond its ends."""
    if keep and arrays and not any(n in arrays for n in keep):
        raise ModelError(f"the plan is not that of the teacher: it cuts '{next(iter(keep))}', which the teacher lacks")
    wrong = [
        f"it keeps index {max(kept)} along axis {axis} of '{n}', which is {list(shape)}"
        for n, shape, axis, kept in _axes(keep, arrays)
        if axis >= len(shape) or shape[axis] <= max(kept, default=-1)
    ]
    if wrong:
        raise ModelError(f"the plan is not that of the teacher: {'; '.join(wrong[:_SHOWN])}")


def _check_origin(proto: onnx.ModelProto, metadata: Mapping[str, str], path: Path) -> None:
    """Raise ModelError where the file, or the bundle that it lies in, says that it was made of another model."""
    made_of = metadata.get(_KEY)
    beside = path.parent / MAP
    if made_of is None and beside.is_file():
        try:
            made_of = json.loads(files.read_bytes(beside)).get("model")
        except (ValueError, AttributeError) as error:
            raise ModelError(f"'{beside}' is damaged: {error}") from error
    if made_of is not None and made_of != files.digest(proto):
        raise ModelError(f"the bundle of '{path}' was made of another model: give the one that `handoff` was given")


def _problems(name: str, array: Array, held: Mapping[str, Array]) -> list[str]:
    """What is wrong with one array."""
    if name not in held:
        near = get_close_matches(name, list(held), 1)
        return [f"there is no weight '{name}'{f' (is it {near[0]!r}?)' if near else ''}"]
    old, found = held[name], []
    if array.shape != old.shape:
        found.append(f"'{name}' has the shape {list(array.shape)} instead of {list(old.shape)}")
    if array.dtype != old.dtype:
        found.append(f"'{name}' is {array.dtype} instead of {old.dtype}")
    if not found and array.dtype in FLOATS and not np.isfinite(array.astype(np.float64)).all():
        bad = int((~np.isfinite(array.astype(np.float64))).sum())
        if not np.array_equal(array, old, equal_nan=True):
            found.append(f"'{name}' has {bad} values that are not finite")
    return found


def _change(old: Array, new: Array) -> float:
    a, b = old.astype(np.float64), new.astype(np.float64)
    return float(np.abs(b - a).max() / max(float(np.abs(a).max()), 1e-12))


def write_weights(path: str | Path, arrays: Mapping[str, Array]) -> None:
    """Write weights by initializer name as a safetensors file, which is replaced where it exists."""
    files.write_bytes(path, b"".join(safetensors.dumps(arrays, {})), force=True)
