"""Whether a model in memory is well formed: versions, tensors, names, order of the nodes.

Pure: nothing here reads a file or runs the model, and no weight is kept in a second copy.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph import Array
from onnxprune.stored import BITS, kind_name, nbytes, stored_tensors, subgraphs, title

OPSETS = range(7, 27)  # what onnxruntime loads
IR_VERSIONS = range(3, 14)
MOST_PROBLEMS = 20

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_COMPLEX = frozenset({TensorProto.COMPLEX64, TensorProto.COMPLEX128})
# Their parameters are never bounds or masks, the two places where an Inf is meant.
_WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "BatchNormalization", "InstanceNormalization"}
    | {"LayerNormalization", "GroupNormalization", "RMSNormalization", "PRelu", "LSTM", "GRU", "RNN"}
)

_IMPOSTORS = (  # how files begin that are taken for a model
    (b"PK\x03\x04", "a zip archive (.npz, .pt or .keras?)"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x89HDF", "an HDF5 file (Keras?)"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer, not the model: run 'git lfs pull'"),
    (b"<ir_version", "ONNX text: convert it with onnx.parser.parse_model"),
    (b"<", "an HTML or XML page: the download failed"),
    (b"\x80\x02", "a Python pickle (a torch checkpoint?): export the model to ONNX"),
)


@dataclass(frozen=True)
class _Scope:
    """One list of nodes, and the names that enclosing lists define."""

    where: str
    body: GraphProto | onnx.FunctionProto
    outer: tuple[frozenset[str], ...]

    @cached_property
    def inputs(self) -> list[str]:
        return [i if isinstance(i, str) else i.name for i in self.body.input]

    @cached_property
    def outputs(self) -> list[str]:
        return [o if isinstance(o, str) else o.name for o in self.body.output]

    @cached_property
    def weights(self) -> list[str]:
        if not isinstance(self.body, GraphProto):
            return []
        return [t.name for t in self.body.initializer] + [t.values.name for t in self.body.sparse_initializer]

    @cached_property
    def own(self) -> frozenset[str]:
        made = (o for n in self.body.node for o in n.output if o)
        return frozenset((*self.inputs, *self.weights, *made))

    def sees(self, name: str) -> bool:
        return name in self.own or any(name in names for names in self.outer)


def _scopes(proto: ModelProto) -> Iterator[_Scope]:
    """The graph, its bodies at any depth, and the local functions with theirs."""
    queue = deque([_Scope("", proto.graph, ())])
    queue.extend(_Scope(f"in function '{f.name}': ", f, ()) for f in proto.functions)
    while queue:
        scope = queue.popleft()
        yield scope
        names = (*scope.outer, scope.own)
        for node in scope.body.node:
            queue.extend(_Scope(f"in a body of {title(node)}: ", body, names) for body in subgraphs(node))


def check_model(proto: ModelProto, name: str = "the model") -> None:
    """Raise ModelError with everything that is wrong in the structure of a model.

    proto: not changed, weights in memory; name: how messages call it. Accepts nodes that are merely out of order
    (see `sort_nodes`). Checks IR version and opset, sizes of tensors, NaN and Inf in floats, duplicate and dangling
    names (bodies see outer names), cycles.
    """
    if not proto.HasField("graph"):
        raise_problems(name, ["it has no graph: this is not an ONNX model"])
    raise_problems(
        name, [*_version_problems(proto), *_domain_problems(proto), *_tensor_problems(proto), *_name_problems(proto)]
    )


def raise_problems(name: str, problems: Sequence[str]) -> None:
    """Raise ModelError that lists the problems, if there are any."""
    if len(problems) == 1:
        raise ModelError(f"{name} cannot be used: {problems[0]}")
    if problems:
        rest = [f"and {len(problems) - MOST_PROBLEMS} more"] if len(problems) > MOST_PROBLEMS else []
        lines = "".join(f"\n  - {p}" for p in [*problems[:MOST_PROBLEMS], *rest])
        raise ModelError(f"{name} cannot be used, {len(problems)} problems:{lines}")


def _version_problems(proto: ModelProto) -> Iterator[str]:
    if proto.ir_version not in IR_VERSIONS:
        yield (
            f"its IR version is {proto.ir_version}, onnxruntime loads {IR_VERSIONS[0]} to {IR_VERSIONS[-1]}: "
            "export it again for an IR version in that range"
        )
    opsets = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    if not opsets:
        yield "it names no opset of the default domain: the file is cut off, or its exporter is broken"
    elif max(opsets) not in OPSETS:
        yield (
            f"its opset is {max(opsets)}, supported are {OPSETS[0]} to {OPSETS[-1]}: export it again with one of these "
            "(17 is a safe choice), or convert it with onnx.version_converter.convert_version"
        )


def _domain_problems(proto: ModelProto) -> Iterator[str]:
    imported = {o.domain for o in proto.opset_import} | {"", "ai.onnx"}
    missing = {n.domain: n for n in reversed(proto.graph.node) if n.domain not in imported}
    for domain, node in sorted(missing.items()):
        yield f"{title(node)} is of domain {domain!r}, of which the file imports no opset: export it again"


def _tensor_problems(proto: ModelProto) -> Iterator[str]:
    suspects: list[tuple[str, TensorProto]] = []
    for name, tensor in stored_tensors(proto):
        raw = tensor.raw_data if tensor.HasField("raw_data") else None  # protobuf copies at every access: ask once
        problem = _size_problem(tensor, raw)
        if problem:
            yield f"tensor '{name}' {problem}"
        elif tensor.data_type in _FLOATS and not np.isfinite(_floats(tensor, raw)).all():
            suspects.append((name, tensor))
    if suspects:
        parameters = {i for s in _scopes(proto) for n in s.body.node if n.op_type in _WEIGHTED for i in n.input}
        for name, tensor in suspects:
            yield from _nonfinite(name, numpy_helper.to_array(tensor), name in parameters)


def _floats(tensor: TensorProto, raw: bytes | None) -> Array:
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return numpy_helper.to_array(tensor) if raw is None else np.frombuffer(raw, dtype)


def _size_problem(tensor: TensorProto, raw: bytes | None) -> str:
    """What is wrong with the stored size of a tensor, or ''."""
    kind, dims = tensor.data_type, list(tensor.dims)
    if min(dims, default=0) < 0:
        return f"has a negative dimension in its shape {dims}"
    if tensor.data_location == TensorProto.EXTERNAL:
        return "has its data in another file, which is not loaded: pass the path of the model"
    if kind != TensorProto.STRING and kind not in BITS:
        return f"has the unknown element type {kind}"
    if raw is not None:
        have, want, unit = len(raw), nbytes(tensor), "bytes"
    else:
        have, want, unit = len(getattr(tensor, helper.tensor_dtype_to_field(kind))), _entries(tensor), "values"
    return "" if have == want else f"holds {have} {unit}, its shape {dims} of {kind_name(tensor)} needs {want}"


def _entries(tensor: TensorProto) -> int:
    """Length of the typed field (float_data, int32_data, ...) of a tensor without raw data."""
    if BITS.get(tensor.data_type, 8) < 8:
        return nbytes(tensor)
    size: int = math.prod(tensor.dims)
    return 2 * size if tensor.data_type in _COMPLEX else size


def _nonfinite(name: str, array: Array, parameter: bool) -> Iterator[str]:
    """NaN is always wrong; Inf is meant in bounds (one value) and in masks (nothing but 0 and Inf)."""
    nans = int(np.count_nonzero(np.isnan(array)))
    infs = int(np.count_nonzero(np.isinf(array)))
    zeros = array.size - np.count_nonzero(array)
    bound_or_mask = array.size == 1 or (zeros > 0 and zeros + infs == array.size)
    if nans or parameter or not bound_or_mask:
        counts = " and ".join(f"{n} {what}" for n, what in ((nans, "NaN"), (infs, "Inf")) if n)
        yield (
            f"tensor '{name}' of shape {list(array.shape)} has {counts} among {array.size} values: "
            "training diverged or the export failed; export it again from a sound checkpoint"
        )


def _name_problems(proto: ModelProto) -> Iterator[str]:
    if not proto.graph.node:
        yield "its graph has no nodes"
    if not proto.graph.output:
        yield "its graph has no outputs"
    for scope in _scopes(proto):
        for problem in (*_duplicates(scope), *_dangling(scope), *_cycle(scope)):
            yield scope.where + problem


def _duplicates(scope: _Scope) -> Iterator[str]:
    given = set(scope.inputs)  # an initializer may give an input its default value
    counts = Counter(scope.inputs)
    counts.update(w for w in scope.weights if w not in given)
    counts.update(o for n in scope.body.node for o in n.output if o)
    makers: dict[str, list[str]] = {name: [] for name, count in counts.items() if count > 1}
    claims = [(name, "an input") for name in scope.inputs] + [(name, "an initializer") for name in scope.weights]
    if makers:
        claims += [(o, title(n)) for n in scope.body.node for o in n.output]
    for name, maker in claims:
        if name in makers:
            makers[name].append(maker)
    for name, found in makers.items():
        yield f"tensor '{name}' is defined {len(found)} times: {', '.join(found[:4])}; names must be unique"


def _dangling(scope: _Scope) -> Iterator[str]:
    for node in scope.body.node:
        for name in dict.fromkeys(node.input):
            if name and not scope.sees(name):
                yield f"{title(node)} reads '{name}', which is no input, no initializer and no node's output"
    for name in scope.outputs:
        if not scope.sees(name):
            yield f"output '{name}' is made by no node"


def _cycle(scope: _Scope) -> Iterator[str]:
    nodes = list(scope.body.node)
    try:
        _order(nodes)
    except CycleError as error:
        yield f"the graph has a cycle: {' -> '.join(title(nodes[i]) for i in error.args[1])}"


def _order(nodes: Sequence[NodeProto]) -> list[int]:
    """Indices of the nodes in an order where all come after what they read; as they are if that holds already."""
    maker = {o: i for i, n in enumerate(nodes) for o in n.output if o}
    before = {i: {maker[r] for r in _reads(n) if r in maker} for i, n in enumerate(nodes)}
    if all(max(earlier, default=-1) < i for i, earlier in before.items()):
        return list(range(len(nodes)))
    return list(TopologicalSorter(before).static_order())


def _reads(node: NodeProto) -> set[str]:
    """Names that a node reads, by itself or inside its bodies."""
    names = set(node.input)
    stack = [(body, frozenset[str]()) for body in subgraphs(node)]
    while stack:
        body, outer = stack.pop()
        own = outer | _Scope("", body, ()).own
        names |= _unknown((i for n in body.node for i in n.input), own)
        names |= _unknown((o.name for o in body.output), own)
        stack += [(inner, own) for n in body.node for inner in subgraphs(n)]
    return names


def _unknown(names: Iterable[str], known: frozenset[str]) -> set[str]:
    return {name for name in names if name not in known}


def is_sorted(proto: ModelProto) -> bool:
    """Whether every node of a checked model comes after what it reads, in bodies and functions too."""
    orders = ((_order(list(scope.body.node)), len(scope.body.node)) for scope in _scopes(proto))
    return all(order == list(range(size)) for order, size in orders)


def sort_nodes(proto: ModelProto) -> bool:
    """Bring the nodes of a checked model into an order that runs, in place and deterministically.

    Returns whether anything moved: nodes that are in order stay as they are. Bodies and functions are sorted too.
    """
    moved = False
    for scope in list(_scopes(proto)):
        order = _order(list(scope.body.node))
        if order != list(range(len(order))):
            ranks = np.argsort(order).tolist()
            places = iter(ranks)  # `sort` asks for the keys once each, from first to last
            scope.body.node.sort(key=lambda _, places=places: next(places))
            moved = True
    return moved


def not_onnx(head: bytes) -> str:
    """What a file is, by its first bytes, that could not be read as a model."""
    if not head:
        return "is empty"
    for start, what in _IMPOSTORS:
        if head.startswith(start):
            return f"is not an ONNX model but {what}"
    if head[4:8] == b"ORTM":
        return "is in ORT format, which cannot be rewritten: use the .onnx file that it was made from"
    if head[0] == 0x08:  # the tag of ir_version, which exporters write first
        return "is cut off or damaged: fetch or export it again"
    return "is not an ONNX model"
