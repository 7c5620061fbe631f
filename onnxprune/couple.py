"""The interpreter: walk the nodes, apply the rules, account for every input atom, connect.

Sound by construction: an unknown op, a refusal, an unknown shape or a forgotten axis freezes. The classes are the
connected components of the ties; component of atom 0 is frozen. Cost is linear in the size of the graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from math import prod
from operator import is_
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import onnxprune.ops  # noqa: F401 - registers the rules
from onnxprune.analysis import Analysis, Axis, Element, Labels, Layer, Product
from onnxprune.errors import ModelError, VerificationError
from onnxprune.factors import EMPTY, Factor, Shape, View, along, lines, support, view
from onnxprune.graph import Array, Model, Node, Tensor, dtype_of, shape_of
from onnxprune.ops.versions import modern
from onnxprune.reasons import frozen_axes
from onnxprune.rules import RULES, Arg, Refuse, Rule, Tracer
from onnxprune.trace import IN, OUT, Trace, whole

_ROUNDS = 10
_LAYERS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
_MOVING = frozenset(  # a weight is still that weight after these: zeroing its slices silences them
    {"Cast", "DequantizeLinear", "Flatten", "Gather", "Identity", "QuantizeLinear", "Reshape", "Slice", "Split"}
    | {"Squeeze", "Transpose", "Unsqueeze"}
)
_SELECTING = frozenset({"Gather", "Slice", "Split"})  # their outputs can become empty while every parameter keeps some


def couple(model: Model, shapes: Mapping[str, Shape]) -> Analysis:
    """Couple the positions of every parameter axis of a cleaned model.

    shapes: concrete shape of every tensor; what is missing freezes the nodes that touch it.
    """
    trace = Trace(model, dict(shapes))
    _own(trace)
    for index, node in enumerate(model.graph.nodes):
        _visit(trace, node, index)
    _freeze_outputs(trace)
    classes = _separate(trace)
    return _analysis(trace, classes)


def _own(trace: Trace) -> None:
    """Atoms for every axis of every initializer whose positions could go."""
    for name, tensor in trace.model.constants().items():
        shape = shape_of(tensor)
        trace.shapes[name], trace.params[name] = shape, name
        if dtype_of(tensor) is not None and 0 not in shape:
            axes = {a: trace.fresh(n) for a, n in enumerate(shape) if n > 1}
            trace.owners.update({(name, a): atoms for a, atoms in axes.items()})
            trace.views[name] = tuple(along(atoms, a, len(shape)) for a, atoms in axes.items())
            trace.unread.add(name)


def _visit(trace: Trace, node: Node, index: int) -> None:
    names = [o.name for o in node.outputs]
    t = Tracer(trace, node, index, [trace.shapes.get(n) for n in names])
    args, attrs = _arguments(trace, node)
    args = _apart(t, args)
    try:
        result = _apply(t, node, args, attrs)
    except Refuse as refusal:
        result = [EMPTY] * len(names)
        t.freeze([f for a in args if a is not None for f in a.view], str(refusal))
    for name, factors in zip(names, result, strict=False):
        if name:
            trace.views[name] = _checked(t, name, factors)
            trace.parts += [f.reshape(-1) for f in trace.views[name] if node.op in _SELECTING and len(support(f)) == 1]
    read = [i.name for i in node.inputs if i.name]
    if read and node.op in _MOVING and all(n in trace.params for n in read):
        trace.params.update(dict.fromkeys(names, trace.params[read[0]]))
    _account(t, args)


def _arguments(trace: Trace, node: Node) -> tuple[list[Arg | None], dict[str, Any]]:
    standard = node.domain in (None, "", "ai.onnx")
    inputs, attrs = (
        modern(node, trace.model.opset)
        if standard
        else ([t if t.name else None for t in node.inputs], dict(node.attrs))
    )
    return [_argument(trace, i) for i in inputs], attrs


def _apart(t: Tracer, args: list[Arg | None]) -> list[Arg | None]:
    """The inputs with atoms of its own on every axis: the same ones twice would hide that the rule forgets one of the
    axes.

    Parameters keep theirs, for what the rule notes about them; what no other node has read meets none of the others.
    """
    names = [a.name for a in args if a is not None]
    alone = {n for n in t.trace.unread.intersection(names) if names.count(n) == 1}
    t.trace.unread.difference_update(names)
    rest = [(i, a) for i, a in enumerate(args) if a is not None and a.view and a.name not in alone]
    factors = [f for _, a in rest for f in a.view]
    if len(factors) < 2 or _distinct(t.trace, factors):
        return args
    out = list(args)
    for i, arg in sorted(rest, key=lambda item: not item[1].param):
        view = tuple(_renamed(t, f) for f in arg.view)
        out[i] = arg if all(map(is_, view, arg.view)) else replace(arg, view=view)
    _unmark(t.trace, factors)
    return out


def _distinct(trace: Trace, factors: list[Factor]) -> bool:
    """Whether no atom occurs twice."""
    atoms = np.concatenate([f.reshape(-1) for f in factors])
    number = np.arange(atoms.size, dtype=np.int32)
    trace.marked[atoms] = number
    distinct = bool((trace.marked[atoms] == number).all())  # of equal ones only the last is left
    trace.marked[atoms] = 0
    return distinct


def _unmark(trace: Trace, factors: Iterable[Factor]) -> None:
    for f in factors:
        trace.marked[f] = 0


def _renamed(t: Tracer, factor: Factor) -> Factor:
    """The factor, or one of fresh atoms tied to its own if another input or axis of the node has one of them."""
    marked = t.trace.marked
    met = marked[factor] > 0
    if not met.any() or not factor[met].any():
        marked[factor] = 1
        return factor
    atoms, where = np.unique(factor, return_inverse=True)
    fresh = t.fresh(atoms.size)
    t.trace.tie(fresh, atoms, t.label, "it reads the same positions twice")
    return fresh[where].reshape(factor.shape)


def _argument(trace: Trace, source: Tensor | Array | None) -> Arg | None:
    if source is None:
        return None
    if isinstance(source, np.ndarray):
        return Arg("", source.shape, EMPTY, "", source)
    shape = trace.shapes.get(source.name)
    held = trace.views.get(source.name, EMPTY)
    return Arg(source.name, shape if shape is not None else (), held, trace.params.get(source.name, ""), source)


def _apply(t: Tracer, node: Node, args: list[Arg | None], attrs: dict[str, Any]) -> list[View]:
    function = RULES.get(("" if node.domain in (None, "ai.onnx") else node.domain, node.op))
    if function is None:
        raise Refuse(f"there is no rule for the op {node.op}" + (f" of domain {node.domain}" if node.domain else ""))
    unknown = [a.name for a in args if a is not None and a.name and a.name not in t.trace.shapes]
    if unknown:
        raise Refuse(f"the shape of {unknown[0]} is not known")
    positional, variadic, keywords = _signature(function)
    if not variadic and len(args) > positional:
        args = args[:positional]
    try:
        result = function(t, *args, **{k: v for k, v in attrs.items() if k in keywords})
    except (ValueError, IndexError, TypeError) as error:
        shapes = ", ".join(f"{a.name} {list(a.shape)}" for a in args if a is not None and a.name)
        raise ModelError(
            f"node {t.label[1]!r} ({node.op}) does not fit its inputs ({shapes}): {error}. If onnxruntime runs the "
            "model, this is a bug of onnxprune: please report it"
        ) from error
    whole = isinstance(result, tuple) and all(isinstance(f, np.ndarray) for f in result)
    views: list[View] = [result] if whole else list(result or ())  # type: ignore[list-item, arg-type]
    forgotten = [o.name for o in node.outputs[len(views) :] if o.name]
    if forgotten:
        raise Refuse(f"its rule says nothing about output {forgotten[0]}")
    return views


@cache
def _signature(function: Rule) -> tuple[int, bool, frozenset[str]]:
    """(most inputs, whether any number, attribute names) that a rule takes."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    kinds = [p.kind for p in parameters]
    keywords = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    return kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD), inspect.Parameter.VAR_POSITIONAL in kinds, keywords


def _checked(t: Tracer, name: str, factors: View) -> View:
    """The view of an output, if the rule got its shape right; a position that is alone on its axes cannot leave."""
    shape = t.trace.shapes.get(name)
    result = view(factors)
    t.name(*result)
    if shape is None:
        t.freeze(result, f"the shape of {name} is not known")
        return EMPTY
    for f in result:
        if f.ndim != len(shape) or any(n not in (1, d) for n, d in zip(f.shape, shape, strict=True)):
            raise VerificationError(
                f"The rule of {t.node.op} (node {t.label[1]}) returned a factor of shape {f.shape} for {name} of shape "
                f"{shape}. This is a bug in the rule; report it, or protect the layer with --keep."
            )
    t.freeze([f for f in result if f.size == 1], f"nothing would be left of {name}")
    return tuple(f for f in result if f.size > 1)


def _account(t: Tracer, args: Iterable[Arg | None]) -> None:
    """Freeze whatever the rule neither carried nor named."""
    named = {id(whole(f)) for f in t.named}
    rest = [(a, f) for a in args if a is not None for f in a.view if id(whole(f)) not in named]
    if not rest:
        return
    for f in t.named:
        t.trace.marked[f] = 1
    for arg, f in rest:
        missed = f[t.trace.marked[f] == 0]
        if missed.size:
            t.freeze([missed], f"its rule does not let positions of axis {support(f)} of {arg.name} go")
            t.trace.marked[missed] = 1
    _unmark(t.trace, t.named)


def _freeze_outputs(trace: Trace) -> None:
    for tensor in trace.model.graph.outputs:
        for f in trace.views.get(tensor.name, EMPTY):
            trace.tie(f, 0, ("graph output", tensor.name), "it is a result of the model")
    for name in trace.model.captured:
        for f in trace.views.get(name, EMPTY):
            trace.tie(f, 0, ("subgraph", name), "the body of an If, Loop or Scan reads it")


# ---- closure -------------------------------------------------------------------------------------------------------


def components(trace: Trace) -> Labels:
    """[atoms] int32: an atom of the connected component that each belongs to; that of atom 0 is 0."""
    parent = trace.parent[: trace.count]
    pairs = [np.broadcast_arrays(a, b) for a, b in trace.links]
    none = np.zeros(1, np.int32)
    a, b = (parent[np.concatenate([none, *(p[i].reshape(-1) for p in pairs)])] for i in (0, 1))
    linked = np.zeros(trace.count, bool)
    linked[a] = linked[b] = True
    atoms, place = np.flatnonzero(linked), np.cumsum(linked) - 1  # few of all; they are numbered anew
    graph = coo_array((np.ones(a.size, np.int8), (place[a], place[b])), shape=(atoms.size, atoms.size))
    number = connected_components(graph, directed=False)[1]
    first = np.unique(number, return_index=True)[1]
    labels = np.arange(trace.count, dtype=np.int32)
    labels[atoms] = atoms[first[number]]
    return np.asarray(labels[parent])


def _separate(trace: Trace) -> Labels:
    """Close the ties; where a joint factor would lose a set of positions that is no rectangle, tie along all axes but
    one, and repeat.
    """
    joint = _joint(trace)
    labels = components(trace)
    for _ in range(_ROUNDS):
        bad = [f for f in joint if not _separable(labels[f])]
        if not bad:
            return labels
        for f in bad:
            rows = lines(f, _best_axis(labels[f]))
            trace.tie(rows[:, 1:], rows[:, :1], ("Reshape", ""), "only whole indices of one axis can be removed")
        labels = components(trace)
    for f in [f for f in joint if not _separable(labels[f])]:
        trace.tie(f, 0, ("Reshape", ""), "positions that are no rectangle of their axes")
    return components(trace)


def _joint(trace: Trace) -> list[Factor]:
    """Every distinct factor that varies along more than one axis."""
    found = {
        (f.__array_interface__["data"][0], f.shape): f for v in trace.views.values() for f in v if f.size > max(f.shape)
    }
    return list(found.values())


def _separable(classes: Labels) -> bool:
    """Whether the class depends on the index along one axis only."""
    return any((rows == rows[:, :1]).all() for rows in (lines(classes, a) for a in support(classes)))


def _best_axis(classes: Labels) -> int:
    """The axis along which most classes remain once all others are tied; the last of equals."""
    return max(support(classes), key=lambda axis: (_classes_left(lines(classes, axis)), axis))


def _classes_left(rows: Labels) -> int:
    """Components of the bipartite graph of rows and the labels in them, without the frozen one."""
    values, inverse = np.unique(rows, return_inverse=True)
    inverse = inverse.reshape(rows.shape) + len(rows)
    index = np.broadcast_to(np.arange(len(rows))[:, None], rows.shape)
    size = len(rows) + values.size
    graph = coo_array((np.ones(rows.size, np.int8), (index.reshape(-1), inverse.reshape(-1))), shape=(size, size))
    number, _ = connected_components(graph, directed=False)
    return int(number) - int(values[0] == 0)


# ---- analysis ------------------------------------------------------------------------------------------------------


def _analysis(trace: Trace, labels: Labels) -> Analysis:
    classes = _numbered(trace, labels)
    n = int(classes.max(initial=0))
    inexact = np.zeros(n + 1, bool)
    for atoms in trace.inexact:
        inexact[classes[atoms]] = True
    inexact[0] = False
    axes = tuple(_axes(trace, classes))
    owned: dict[str, list[Labels]] = {}
    for axis in axes:
        owned.setdefault(axis.param, []).append(axis.classes)
    group, groups = _groups(axes, n)
    return Analysis(
        model=trace.model,
        shapes=trace.shapes,
        classes=n,
        inexact=inexact,
        axes=axes,
        layers=tuple(_layers(trace, classes)),
        elements=tuple(_elements(trace.model, owned)),
        group=group,
        groups=groups,
        frozen=frozen_axes(trace, classes),
        notes=(*trace.model.notes, *_uncounted(trace)),
        trace=_Closed(trace, classes),
        parts=tuple(labels for labels in (classes[p] for p in trace.parts) if labels.all()),
    )


class _Closed:
    """The trace with its classes, for the stages that need more than the analysis shows."""

    def __init__(self, trace: Trace, classes: Labels) -> None:
        self.trace, self.classes = trace, classes


def _numbered(trace: Trace, labels: Labels) -> Labels:
    """Classes that hold a parameter's positions, numbered from 1 in graph order; everything else is frozen."""
    owned = labels[1 : 1 + sum(atoms.size for atoms in trace.owners.values())]
    first = np.full(trace.count, owned.size, np.int32)  # where each label is met first: the last one written stays
    first[owned[::-1]] = np.arange(owned.size, dtype=np.int32)[::-1]
    first[0] = owned.size
    seen = np.flatnonzero(first < owned.size)
    number = np.zeros(trace.count, np.int32)
    number[seen[np.argsort(first[seen])]] = np.arange(1, seen.size + 1)
    return number[labels]


def _axes(trace: Trace, classes: Labels) -> Iterable[Axis]:
    """Those with anything to remove."""
    most = trace.per_owner(np.maximum, classes)
    roles = trace.per_owner(np.bitwise_or, trace.roles)
    for (key, atoms), role, free in zip(trace.owners.items(), roles, most, strict=True):
        if free:
            yield Axis(*key, classes[trace.where(atoms)], "out" if role & OUT else "in" if role & IN else "with")


def _groups(axes: tuple[Axis, ...], n: int) -> tuple[Labels, tuple[Axis, ...]]:
    """Each class belongs to the first producer axis it occurs on, or else to the first axis."""
    order = [a for a in axes if a.role == "out"] + [a for a in axes if a.role != "out"]
    labels = np.concatenate([np.zeros(0, np.int32), *(a.classes for a in order)])
    number = np.repeat(np.arange(len(order)), [a.classes.size for a in order])
    first = np.full(n + 1, len(order))
    first[labels[::-1]] = number[::-1]  # the last one written stays
    first[0] = len(order)
    used, group = np.unique(first, return_inverse=True)
    labels = np.where(first < len(order), group + 1, 0).astype(np.int32)
    return labels, tuple(order[i] for i in used if i < len(order))


def _layers(trace: Trace, classes: Labels) -> Iterable[Layer]:
    for c in trace.layers:
        macs = _product(c.constant, [classes[d] for d in c.dims])
        yield Layer(c.node, c.op, c.weight, classes[c.outputs], classes[c.inputs], macs)


def _uncounted(trace: Trace) -> Iterable[str]:
    """Layers without known shapes have no MACs: say so, for fractions of FLOPs leave them out."""
    counted = {c.node for c in trace.layers}
    layers = (n for n in trace.model.graph.nodes if n.op in _LAYERS and n.domain in (None, "", "ai.onnx"))
    missing = [name for name in (n.name or n.outputs[0].name for n in layers) if name not in counted]
    if missing:
        yield f"layers whose FLOPs are not counted, since shapes are unknown: {len(missing)}, the first {missing[0]!r}"


def _elements(model: Model, owned: Mapping[str, list[Labels]]) -> Iterable[Element]:
    """owned: of each parameter, the classes of the axes with anything to remove."""
    for name, tensor in model.constants().items():
        dims, dtype = owned.get(name, []), dtype_of(tensor)
        constant = prod(shape_of(tensor)) // prod(d.size for d in dims)
        yield Element(name, Product(constant, tuple(dims)), dtype.itemsize if dtype is not None else 1)


def _product(constant: int, dims: list[Labels]) -> Product:
    """Dims in which nothing can go are part of the constant."""
    live = [d for d in dims if d.any()]
    return Product(constant * prod(d.size for d in dims) // prod(d.size for d in live), tuple(live))
