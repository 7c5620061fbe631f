"""Data that Python code makes: functions, generators, loaders, and calibration readers of onnxruntime."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Protocol, TypeGuard

import numpy as np

from onnxprune.data.inputs import match
from onnxprune.errors import DataError, OnnxpruneError, ResourceError
from onnxprune.graph import Array
from onnxprune.runtime import InputSpec

KEPT = 1 << 30  # bytes that are kept of what can be read only once
_FUNCTION = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")
_FORMS = "an array, a dict of arrays by input name, or a pair (inputs, labels)"
_END = object()
Item = tuple[dict[str, Array], Array | None]


class CalibrationReader(Protocol):
    """What onnxruntime.quantization calls a CalibrationDataReader: feeds one after the other, then None."""

    def get_next(self) -> Mapping[str, Array] | None: ...


@contextmanager
def foreign() -> Iterator[None]:
    """Say of an exception that it comes from the user's code."""
    try:
        yield
    except OnnxpruneError:
        raise
    except Exception as error:
        raise DataError(f"the code that gives the data raised {type(error).__name__}: {error}") from error


def names_function(source: str) -> bool:
    """Whether a text has the form module:function."""
    return _FUNCTION.fullmatch(source) is not None


def load_function(source: str) -> Callable[[], object]:
    """Import `module:function`, also from the current folder. Raises DataError."""
    name, _, attribute = source.partition(":")
    name = name.removesuffix(".py")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # it stays: the function may import its neighbours when it runs
    importlib.invalidate_caches()
    try:
        with foreign():
            module = importlib.import_module(name)
    except DataError as error:
        missing = error.__cause__.name if isinstance(error.__cause__, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            raise DataError(f"there is no module '{missing}', neither in '{Path.cwd()}' nor installed") from error
        raise
    function: Callable[[], object] | None = getattr(module, attribute, None)
    if not callable(function):
        raise DataError(f"the module '{name}' ({module.__file__}) has no function '{attribute}'")
    return function


def is_array(value: object) -> TypeGuard[Array]:
    """Whether numpy can take it: arrays, and tensors of other libraries."""
    return hasattr(value, "__array__")


def is_reader(value: object) -> TypeGuard[CalibrationReader]:
    """Whether a value, not its class, can be asked for feeds."""
    return hasattr(value, "get_next") and not isinstance(value, type)


def is_whole(value: object) -> bool:
    """Whether a value holds all samples at once."""
    return is_array(value) or isinstance(value, Mapping) or (isinstance(value, tuple) and len(value) == 2)


def named(item: object, inputs: Sequence[InputSpec]) -> Item:
    """Arrays by input name, and labels, of one of the forms that code may give. Raises DataError."""
    labels: object = None
    if isinstance(item, tuple | list) and len(item) == 2:
        item, labels = item
    if is_array(item):
        item = {"": item}
        if len(inputs) > 1:
            names = ", ".join(f"'{s.name}'" for s in inputs)
            raise DataError(f"one array for a model with the inputs {names}: give a dict of arrays by input name")
    if not isinstance(item, Mapping) or not all(map(is_array, item.values())):
        raise DataError(f"expected {_FORMS}; got {_kind(item)}")
    arrays, inside = match(item, inputs)
    labels = inside if labels is None else labels
    return {k: np.asarray(a) for k, a in arrays.items()}, None if labels is None else np.asarray(labels)


def _kind(item: object) -> str:
    if isinstance(item, Mapping):
        return f"a dict with {', '.join(sorted({type(v).__name__ for v in item.values()}))}"
    return f"{type(item).__name__}"


def replayable(source: object) -> Callable[[], Iterator[object]]:
    """What starts a pass over a source: a reader, or something to iterate.

    Readers with `rewind` are rewound; what can be read only once is kept for the next pass, up to `KEPT` bytes.
    Raises DataError for anything else.
    """
    if is_reader(source):
        rewind = getattr(source, "rewind", None)
        return _rewinding(source, rewind) if callable(rewind) else _Kept(_drain(source))
    if isinstance(source, Iterable):
        with foreign():
            once = iter(source) is source
        return _Kept(_pass(source)) if once else lambda: _pass(source)
    raise DataError(f"expected {_FORMS}, something that yields these, or a reader with get_next(); got {_kind(source)}")


def calling(function: Callable[[], object]) -> tuple[object, Callable[[], Iterator[object]]]:
    """Call a function: what it gives, and what starts passes over that; the first needs no second call."""

    def call() -> object:
        with foreign():
            return function()

    given = call()
    unread = [given]
    return given, lambda: _pass(unread.pop() if unread else call())


def _pass(source: object) -> Iterator[object]:
    """One pass over what a function gave, or over an iterable."""
    if is_reader(source):
        yield from _drain(source)
    elif not isinstance(source, Iterable) or isinstance(source, str | bytes):
        raise DataError(f"expected {_FORMS}, or something that yields these; got {_kind(source)}")
    else:
        with foreign():
            items = iter(source)
        while (item := _next(items)) is not _END:
            yield item


def _next(items: Iterator[object]) -> object:
    with foreign():
        return next(items, _END)


def _drain(reader: CalibrationReader) -> Iterator[object]:
    """Feeds until None or, as onnxruntime has it, until an empty dict."""
    while True:
        with foreign():
            item = reader.get_next()
        if item is None or (isinstance(item, Mapping) and not item):
            return
        yield item


def _rewinding(reader: CalibrationReader, rewind: Callable[[], object]) -> Callable[[], Iterator[object]]:
    passes = [0]

    def start() -> Iterator[object]:
        passes[0] += 1
        mine = passes[0]
        with foreign():
            rewind()
        for item in _drain(reader):
            if passes[0] != mine:
                raise DataError("the reader was rewound while it was being read: finish one pass before the next")
            yield item

    return start


class _Kept:
    """Passes over an iterator that gives each item once."""

    def __init__(self, items: Iterator[object]) -> None:
        self._items = items
        self._seen: list[object] = []
        self._bytes = 0

    def __call__(self) -> Iterator[object]:
        place = 0
        while place < len(self._seen) or self._advance():
            yield self._seen[place]
            place += 1

    def _advance(self) -> bool:
        item = next(self._items, _END)
        if item is _END:
            return False
        self._bytes += _size(item)
        if self._bytes > KEPT:
            raise ResourceError(
                f"they can be read only once, and have more than the {KEPT:,} bytes that are kept of such data: "
                "give the reader a rewind(), or a function that starts anew"
            )
        self._seen.append(deepcopy(item))  # readers may fill the same array again
        return True


def _size(item: object) -> int:
    parts = item.values() if isinstance(item, Mapping) else item if isinstance(item, tuple | list) else ()
    return int(getattr(item, "nbytes", 0)) + sum(map(_size, parts))
