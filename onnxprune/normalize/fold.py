"""Constant folding: nodes that read only initializers are evaluated, and their results become initializers.

What stays: random ops, subgraphs, other domains, quantisation, and Conv / Gemm / MatMul / ... (folding them would
change the model's MACs). Nothing is evaluated before its size is known: 147 bytes can ask for a terabyte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxprune.errors import DataError, ModelError
from onnxprune.graph import FLOATS, Array, Constant, Model, Node, Tensor, dtype_of, is_constant, shape_of, values
from onnxprune.normalize.edit import SAFE, drop, elements, has_body, is_standard, protected, replace, to_constant
from onnxprune.runtime import session
from onnxprune.shapes import skeleton
from onnxprune.shapes.symbolic import Facts, interpret

_STAY = {
    *("Constant", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    *("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"),
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "DeformConv", "RNN", "LSTM", "GRU", "Attention"),
    *("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"),
}
_ALWAYS = 1024  # bytes; results up to this size do not count, so that shape arithmetic folds in a model of any size
_WEIGHT = 1024  # elements; a float initializer above it is a weight, and sharing it is meant
_AT_MOST_INPUT = {"NonZero", "Compress", "Unique"}  # sizes that depend on the data, but are bounded by it
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError)


def fold_constants(model: Model, cap: int) -> int:
    """Evaluate nodes whose inputs are all constant.

    cap: bytes that all initializers together may reach by folding; a model that is larger already does not grow.
    """
    nodes = _foldable(model)
    if nodes:
        nodes = _affordable(model, nodes, interpret(skeleton(model, nodes)), cap)
        nodes = _merge(_untied(nodes, protected(model)))
    if not nodes:
        return 0
    folded, results = _evaluate(model, nodes)
    for tensor in _frontier(folded):
        to_constant(tensor, results[tensor.name])
    drop(model, folded)
    return len(folded)


def _foldable(model: Model) -> list[Node]:
    """Nodes that read constants only, directly or through each other."""
    keep = protected(model)
    nodes: list[Node] = []
    ready: set[int] = set()
    for node in model.graph.nodes:
        inputs = [t for t in node.inputs if t.name]
        readable = inputs and all(id(t) in ready or (is_constant(t) and dtype_of(t) is not None) for t in inputs)
        if readable and _may_fold(model, node) and keep.isdisjoint(t.name for t in node.outputs):
            nodes.append(node)
            ready.update(id(t) for t in node.outputs)
    return nodes


def _may_fold(model: Model, node: Node) -> bool:
    return is_standard(node) and node.op not in _STAY and not has_body(model, node)


def _affordable(model: Model, nodes: Sequence[Node], facts: Facts, cap: int) -> list[Node]:
    """The nodes whose results have a known size and fit, in graph order.

    The rule looks at the present state only, so that folding a folded model finds nothing more to do.
    """
    total = sum(_nbytes(t) for t in model.constants().values())
    limit = max(cap, total)
    sizes: dict[int, int] = {}  # of the results so far, by id of the tensor
    chosen: list[Node] = []
    for node in nodes:
        results = _result_bytes(node, facts)
        if results is None or any(not is_constant(t) and id(t) not in sizes for t in node.inputs if t.name):
            continue
        last = [t for t in node.inputs if t.name and len(t.outputs) == 1]
        freed = sum(_nbytes(t) if is_constant(t) else sizes[id(t)] for t in last)
        if sum(results) <= _ALWAYS or total + sum(results) - freed <= limit:
            total += sum(results) - freed
            sizes.update(zip(map(id, node.outputs), results, strict=True))
            chosen.append(node)
    return chosen


def _result_bytes(node: Node, facts: Facts) -> list[int] | None:
    """Bytes of each output; None where one is not known or of a kind that must not be touched."""
    if node.op in _AT_MOST_INPUT:
        bound = 8 * sum(elements(t) * max(1, len(shape_of(t))) for t in node.inputs if is_constant(t))
        return [bound for _ in node.outputs]
    sizes: list[int] = []
    for tensor in node.outputs:
        kind, dims = facts.types.get(tensor.name), facts.shapes.get(tensor.name, (None,))
        if tensor.name and (kind is None or kind.tensor_type.elem_type not in SAFE):
            return None
        numbers = [d for d in dims if isinstance(d, int)]
        if tensor.name and len(numbers) < len(dims):
            return None
        sizes.append(prod(numbers) * _itemsize(kind) if tensor.name and kind is not None else 0)
    return sizes


def _itemsize(kind: onnx.TypeProto) -> int:
    return helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type).itemsize


def _nbytes(constant: Constant) -> int:
    dtype = dtype_of(constant)
    return elements(constant) * (1 if dtype is None else dtype.itemsize)


def _is_weight(tensor: Tensor) -> bool:
    return is_constant(tensor) and dtype_of(tensor) in FLOATS and elements(tensor) > _WEIGHT


def _untied(nodes: list[Node], keep: frozenset[str]) -> list[Node]:
    """Leave out what would part a weight from another use of it: Transpose(W) beside Gather(W) in a tied embedding."""
    while True:
        inside = {id(n) for n in nodes}
        made = {id(t) for n in nodes for t in n.outputs}
        fine = [
            n
            for n in nodes
            if all(is_constant(t) or id(t) in made for t in n.inputs if t.name)
            and not any(_is_weight(t) and (t.name in keep or _used_outside(t, inside)) for t in n.inputs)
        ]
        if len(fine) == len(nodes):
            return nodes
        nodes = fine


def _used_outside(tensor: Tensor, inside: set[int]) -> bool:
    return any(id(n) not in inside for n in tensor.outputs)


def _merge(nodes: list[Node]) -> list[Node]:
    """Compute the same thing from the same weight once, so that layers that share it still do (ALBERT has 12)."""
    first: dict[object, Node] = {}
    from_weight: set[int] = set()
    kept: list[Node] = []
    for node in nodes:
        if any(_is_weight(t) or id(t) in from_weight for t in node.inputs) and not _has_tensor(node):
            key = (node.op, str(node.attrs), len(node.outputs), tuple(id(t) for t in node.inputs))
            if key in first:
                for old, new in zip(node.outputs, first[key].outputs, strict=True):
                    replace(old, new)
                continue
            first[key] = node
            from_weight.update(id(t) for t in node.outputs)
        kept.append(node)
    return kept


def _has_tensor(node: Node) -> bool:
    return any(is_constant(v) for v in node.attrs.values())


def _frontier(nodes: Iterable[Node]) -> list[Tensor]:
    """Results that other nodes read."""
    inside = {id(n) for n in nodes}
    return [t for n in nodes for t in n.outputs if t.name and _used_outside(t, inside)]


def _evaluate(model: Model, nodes: list[Node]) -> tuple[list[Node], dict[str, Array]]:
    """Results of the frontier by onnxruntime; what it cannot run, node by node, by the reference implementation."""
    proto, wanted = skeleton(model, nodes), _frontier(nodes)
    names = list(dict.fromkeys(t.name for t in wanted))
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    feeds = _feeds(nodes, {i.name for i in proto.graph.input})
    try:
        return nodes, session(proto, threads=1).run(feeds) if names else {}
    except (ModelError, DataError):
        return _by_reference(model, nodes)


def _feeds(nodes: Iterable[Node], names: set[str]) -> dict[str, Array]:
    found = {t.name: values(t) for n in nodes for t in n.inputs if t.name in names and is_constant(t)}
    return {name: array for name, array in found.items() if array is not None}


def _by_reference(model: Model, nodes: list[Node]) -> tuple[list[Node], dict[str, Array]]:
    known = {t.name: values(t) for n in nodes for t in n.inputs if is_constant(t)}
    done: list[Node] = []
    for node in nodes:
        names = [t.name for t in node.inputs if t.name]
        if all(n in known for n in names):
            outputs = _attempt(model, node, {n: known[n] for n in names})
            known.update(outputs)
            done += [node] if outputs else []
    return done, {name: a for name, a in known.items() if a is not None}


def _attempt(model: Model, node: Node, feeds: dict[str, Array | None]) -> dict[str, Array]:
    """Outputs of one node; empty where the reference implementation fails too: then the node stays."""
    proto = skeleton(model, [node])
    names = [t.name for t in node.outputs if t.name]
    proto.graph.ClearField("initializer")
    proto.graph.input.extend(onnx.ValueInfoProto(name=n) for n in feeds if n not in {i.name for i in proto.graph.input})
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    try:
        with np.errstate(all="ignore"):
            return dict(zip(names, ReferenceEvaluator(proto).run(None, feeds), strict=True))
    except _FAILURES:
        return {}
