"""onnxruntime sessions on the CPU: made in one place, interruptible, with errors that name the node.

The only module that makes sessions. onnxruntime is imported inside the functions: it is slow to load.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from onnx import ModelProto, TensorProto, TensorShapeProto, ValueInfoProto, helper, numpy_helper

from onnxprune.errors import (
    DataError,
    FileError,
    ModelError,
    OnnxpruneError,
    ResourceError,
    UnsupportedError,
    UsageError,
)
from onnxprune.files import read_text
from onnxprune.graph import FLOATS, Array
from onnxprune.stored import reads, split_weights

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = [
    "InputSpec",
    "Run",
    "Session",
    "Timer",
    "default_threads",
    "inner_tensors",
    "input_specs",
    "providers",
    "random_inputs",
    "session",
    "timing",
    "trim",
    "version",
]

T = TypeVar("T")
CPU = "CPUExecutionProvider"
_SPECIAL = re.compile("bfloat16|float8")  # element types that numpy has from ml_dtypes only
_QUIET, _VERBOSE = 4, 2  # log severities: fatal only (errors come as exceptions), warnings too
_POLL = 0.2  # seconds; on Windows a wait without end does not see Ctrl-C
_NODE = (  # the forms in which onnxruntime names a node: (name, op)
    re.compile(r'In Node, \("(?P<name>[^"]*)", (?P<op>\w+)'),
    re.compile(r"Node ?\((?P<name>[^)]*)\) Op \((?P<op>\w+)\)"),
    re.compile(r"of operator \((?P<op>\w+)\) in node \((?P<name>[^)]*)\)"),
    re.compile(r"running (?P<op>\w+) node\. Name:'(?P<name>[^']*)'"),
    re.compile(r"implementation for (?P<op>\w+)\(\d+\) node with name '(?P<name>[^']*)'"),
)
_NOISE = (  # status codes, what `_NODE` found, places in onnxruntime's own source
    re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from \S+ failed:)?(This is an invalid model\. )?"),
    re.compile(r"^(Type Error: |.*(Status Message: | , Error | Op \(\w+\) ))"),
    re.compile(r"\S+\.(cc|h):\d+ ([^()]*\([^()]*\) ?(const )?)?(.* was false\. ?)?"),
)


class InputSpec(NamedTuple):
    """One graph input: name, numpy element type, dims (int, symbol, or None; None alone for an unknown rank)."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | str | None, ...] | None


class Session:
    """A model ready to run; see `session`. inputs, outputs: names in the order of the graph."""

    def __init__(self, inner: ort.InferenceSession) -> None:
        self._inner = inner
        self._types = {o.name: str(o.type) for o in inner.get_outputs()}
        self.inputs = [i.name for i in inner.get_inputs()]
        self.outputs = list(self._types)
        self.providers = [str(p) for p in inner.get_providers()]  # the last, the CPU, takes the rest

    def bind(self, feeds: Mapping[str, Array]) -> Run:
        """A run on these inputs again and again: arrays are handed over once, and results stay where they are."""
        self._check(feeds)
        values, names, inner = {n: _to_value(a) for n, a in feeds.items()}, self.outputs, self._inner
        return lambda options: inner.run_with_ort_values(names, values, options)

    def end_profiling(self) -> Path:
        """Stop profiling and return the file that onnxruntime wrote."""
        return Path(self._inner.end_profiling())

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the model and return the outputs named, or all, as arrays by name.

        feeds: an array for every input. Ctrl-C stops the run. Raises DataError when the arrays do not fit the inputs,
        ModelError when a node fails, ResourceError when memory is short.
        """
        names = self.outputs if outputs is None else list(outputs)
        self._check(feeds)
        bits = any(_SPECIAL.search(self._types.get(n, "")) for n in names)
        bits = bits or any(_SPECIAL.match(a.dtype.name) for a in feeds.values())
        run = self._run_values if bits else self._run_arrays
        return _guarded(lambda: _interruptible(lambda options: run(feeds, names, options)))

    def _check(self, feeds: Mapping[str, Array]) -> None:
        missing, unknown = [i for i in self.inputs if i not in feeds], [i for i in feeds if i not in self.inputs]
        if missing or unknown:
            raise DataError(f"the inputs are {self.inputs}: missing {missing}, unknown {unknown}")

    def _run_arrays(self, feeds: Mapping[str, Array], names: list[str], options: ort.RunOptions) -> dict[str, Array]:
        return dict(zip(names, self._inner.run(names, dict(feeds), options), strict=True))

    def _run_values(self, feeds: Mapping[str, Array], names: list[str], options: ort.RunOptions) -> dict[str, Array]:
        values = {name: _to_value(array) for name, array in feeds.items()}
        found = self._inner.run_with_ort_values(names, values, options)
        return {name: _to_array(value) for name, value in zip(names, found, strict=True)}


def _to_value(array: Array) -> ort.OrtValue:
    """Hand an array to onnxruntime, without a copy; types that it does not take from numpy go as their bits."""
    from onnxruntime import OrtValue

    array = np.ascontiguousarray(array) if array.ndim else array
    if _SPECIAL.match(array.dtype.name):
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        return OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(f"u{array.itemsize}"), kind)
    return OrtValue.ortvalue_from_numpy(array)


def _to_array(value: ort.OrtValue) -> Array:
    """Array of a result; the types that `numpy()` does not know are copied out by address."""
    dtype = helper.tensor_dtype_to_np_dtype(value.element_type())
    if not _SPECIAL.match(dtype.name):
        array: Array = value.numpy()
        return array
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, dtype).reshape(value.shape())


def session(
    model: ModelProto | bytes | Path,
    *,
    optimize: bool = False,
    threads: int | None = None,
    extra: Sequence[str] = (),
    weights: Mapping[str, Array] | None = None,
    verbose: bool = False,
    provider: str = CPU,
    profile: Path | None = None,
    optimized: Path | None = None,
) -> Session:
    """Make a session, on the CPU unless a provider is named; what the provider does not take runs on the CPU.

    model: a proto (not changed; of any size, since its weights are handed over in memory), its bytes or its file.
    weights: arrays of the initializers that the proto leaves out as external data, as `graph.Model.split` gives them.
    optimize: fuse and fold as in production (default: run the graph as it is written).
    threads: of one operator; default: the CPUs that this process may use. extra: inner tensors of a proto to give as
    outputs too. verbose: let onnxruntime print warnings. profile: how the name of the file begins that `end_profiling`
    writes; optimized: a file for the graph as onnxruntime runs it. Raises ModelError when onnxruntime does not load the
    model, UsageError when it does not have the provider.
    """
    options = _options(optimize, default_threads() if threads is None else threads, verbose)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if isinstance(model, bytes | Path):
        return _load(model if isinstance(model, bytes) else str(model), options, provider)
    if weights is None:
        light, moved = split_weights(model, "weights")
        read = {o.name for o in light.graph.output}.union(*(reads(n) for n in light.graph.node))
        weights = {t.name: numpy_helper.to_array(t) for t in moved if t.name in read}
        entries = {t.name: t for t in light.graph.initializer}
        for tensor in (t for t in moved if t.name not in read):  # onnxruntime drops what nobody reads, then misses it
            entries[tensor.name].CopyFrom(tensor)
    else:
        light = ModelProto()
        light.CopyFrom(model)
    light.graph.output.extend(ValueInfoProto(name=name) for name in extra)
    values = [_to_value(array) for array in weights.values()]  # must live until onnxruntime has its own copy
    if values:
        options.add_external_initializers(list(weights), values)
    return _load(light.SerializeToString(), options, provider)


def _load(content: bytes | str, options: ort.SessionOptions, provider: str) -> Session:
    import onnxruntime as ort

    if provider not in providers():
        known = ", ".join(providers())
        raise UsageError(f"--provider {provider!r}: this onnxruntime does not have it; it has {known}")
    wanted = list(dict.fromkeys((provider, CPU)))
    return Session(_guarded(lambda: ort.InferenceSession(content, options, providers=wanted)))


def providers() -> list[str]:
    """Execution providers of this onnxruntime."""
    from onnxruntime import get_available_providers

    return [str(p) for p in get_available_providers()]


def version() -> str:
    """Version of onnxruntime."""
    import onnxruntime as ort

    return str(ort.__version__)


def _options(optimize: bool, threads: int, verbose: bool) -> ort.SessionOptions:
    import onnxruntime as ort

    levels = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _VERBOSE if verbose else _QUIET
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning slows down everything beside us
    if not optimize:
        options.add_session_config_entry("session.disable_prepacking", "1")  # a second copy of the weights, for one run
    return options


def trim() -> None:
    """Give freed memory back to the system: glibc keeps what a session leaves behind, and the next one adds to it."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def default_threads() -> int:
    """CPUs that this process may use, by its affinity mask and its container's quota, at most ONNXPRUNE_THREADS."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cap = os.environ.get("ONNXPRUNE_THREADS", "")
    return max(1, min(cpus, _quota() or cpus, int(cap) if cap.isdigit() else cpus))


def _quota() -> int | None:
    """Whole CPUs of the cgroup quota (version 2, then 1), rounded up; None without a quota."""
    for paths in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join(read_text(f"/sys/fs/cgroup/{path}") for path in paths).split()
        except (FileError, ValueError):
            continue
        if quota.isdigit() and int(period):
            return -(-int(quota) // int(period))
    return None


Run = Callable[["ort.RunOptions"], object]
Timer = Callable[[Run], float]


def timing(work: Callable[[Timer], T]) -> T:
    """Give `work` a stopwatch: what it returns is returned.

    The stopwatch makes one run (see `Session.bind`) and returns its seconds. All of `work` happens in one thread, so
    that no run pays for starting one, and Ctrl-C ends it at once. Raises as `Session.run` does.
    """

    def watched(options: ort.RunOptions) -> T:
        def timer(run: Run) -> float:
            start = time.perf_counter()
            run(options)
            return time.perf_counter() - start

        return work(timer)

    return _guarded(lambda: _interruptible(watched))


def _interruptible(run: Callable[[ort.RunOptions], T]) -> T:
    """Run in a thread, so that Ctrl-C arrives here at once; the thread then ends at its next node."""
    from onnxruntime import RunOptions

    options = RunOptions()
    if threading.current_thread() is not threading.main_thread():  # Ctrl-C never arrives here
        return run(options)
    pool = ThreadPoolExecutor(1, "onnxruntime")
    try:
        future = pool.submit(run, options)
        while not future.done():
            wait([future], _POLL)
        return future.result()
    except BaseException:
        options.terminate = True
        raise
    finally:
        pool.shutdown(wait=False)


def _guarded(call: Callable[[], T]) -> T:
    """Translate onnxruntime's exceptions into ours."""
    try:
        return call()
    except _raised() as error:
        raise _translate(error) from error


@lru_cache(maxsize=1)
def _raised() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: its own exceptions, which have no common base, and some of Python's."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception)]
    return (RuntimeError, ValueError, MemoryError, *own)


def _translate(error: BaseException) -> OnnxpruneError:
    text = str(error)
    node = next((m for m in (form.search(text) for form in _NODE) if m), None)
    where = f" at node '{node['name']}' ({node['op']})".replace("node ''", "an unnamed node") if node else ""
    for noise in _NOISE:
        text = noise.sub("", text)
    reason = " ".join(text.split())[:400] or "no reason given"
    if isinstance(error, MemoryError) or "allocate memory" in text or "bad_alloc" in text:
        return ResourceError(f"onnxruntime ran out of memory{where}: {reason}")
    if "for input: " in text or "Unexpected input data type" in text:
        return DataError(f"an array does not fit the model's input: {reason}")
    if "NOT_IMPLEMENTED" in str(error) or "Numpy type" in text or "Numpy_type" in text:
        return UnsupportedError(f"onnxruntime cannot run the model on the CPU{where}: {reason}")
    return ModelError(f"onnxruntime refuses the model{where}: {reason}")


def input_specs(proto: ModelProto) -> list[InputSpec]:
    """The graph inputs that are not initializers; raises UnsupportedError for one that is not a tensor."""
    weights = {t.name for t in proto.graph.initializer} | {t.values.name for t in proto.graph.sparse_initializer}
    return [_spec(i) for i in proto.graph.input if i.name not in weights]


def _spec(value: ValueInfoProto) -> InputSpec:
    kind = value.type.tensor_type.elem_type
    if not value.type.HasField("tensor_type") or kind == TensorProto.UNDEFINED:
        what = value.type.WhichOneof("value") or "value of unknown type"
        raise UnsupportedError(f"input '{value.name}' is a {what}, not a tensor with an element type")
    shape = value.type.tensor_type.shape if value.type.tensor_type.HasField("shape") else None
    return InputSpec(value.name, helper.tensor_dtype_to_np_dtype(kind), None if shape is None else _dims(shape))


def _dims(shape: TensorShapeProto) -> tuple[int | str | None, ...]:
    """Some exporters write 0 or -1 where a dim is not fixed."""
    return tuple(d.dim_value if d.dim_value > 0 else d.dim_param or None for d in shape.dim)


def random_inputs(proto: ModelProto, shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Array]:
    """An array for every input: floats from the normal distribution (0, 1), integers 0 or 1, booleans.

    shapes: at least of the inputs whose dims are not all fixed; other names are ignored. The same seed gives the same
    arrays. Raises UsageError when a shape is missing or does not fit, UnsupportedError for other element types.
    """
    rng = np.random.default_rng(seed)
    return {s.name: _random(s, _shape(s, shapes.get(s.name)), rng) for s in input_specs(proto)}


def _shape(spec: InputSpec, given: tuple[int, ...] | None) -> tuple[int, ...]:
    fixed = tuple(d for d in spec.dims or () if isinstance(d, int))
    if given is None and spec.dims is not None and len(fixed) == len(spec.dims):
        return fixed
    text = "unknown" if spec.dims is None else ",".join(str(d or "?") for d in spec.dims)
    if given is None:
        raise UsageError(
            f"the shape of input '{spec.name}' is {text}: give its sizes with --input-shape {spec.name}:..."
        )
    if min(given, default=1) < 0 or not _fits(spec.dims, given):
        raise UsageError(f"the shape {list(given)} does not fit input '{spec.name}', whose shape is {text}")
    return given


def _fits(dims: tuple[int | str | None, ...] | None, given: tuple[int, ...]) -> bool:
    if dims is None:
        return True
    return len(dims) == len(given) and all(d == g for d, g in zip(dims, given, strict=True) if isinstance(d, int))


def _random(spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if spec.dtype in FLOATS:
        return np.asarray(rng.standard_normal(shape), spec.dtype)
    if spec.dtype == np.bool_ or np.issubdtype(spec.dtype, np.integer):
        return np.asarray(rng.integers(0, 2, shape), spec.dtype)
    raise UnsupportedError(f"input '{spec.name}' has the element type {spec.dtype}, which has no random values")


def inner_tensors(proto: ModelProto) -> list[str]:
    """Names of all node outputs of the graph that are not graph outputs already."""
    known = {o.name for o in proto.graph.output}
    return [o for n in proto.graph.node for o in n.output if o and o not in known]
