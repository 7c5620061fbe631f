"""Why is this frozen, and what goes with it: paths through the ties."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order

from onnxprune.analysis import Frozen, Labels
from onnxprune.factors import Factor
from onnxprune.trace import OUT, Trace

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Forest:
    """Shortest paths of ties from atom 0: the parent of each frozen atom, and the reason of the tie between them."""

    parent: Index
    reason: Index


def forest(trace: Trace, root: int = 0, among: NDArray[np.bool_] | None = None) -> Forest:
    """Breadth-first tree of the ties from atom `root` (0: towards what is frozen); `among`: [atoms] bool, where to
    look.
    """
    a, b, reason = _edges(trace, among)
    atoms, ends = np.unique(np.concatenate([[root], a, b]), return_inverse=True)  # these few are numbered anew
    (start,), a, b = np.split(ends, [1, 1 + a.size])
    order = np.concatenate([a, b]), np.concatenate([b, a])
    graph = coo_array((np.ones(order[0].size, np.int8), order), shape=(atoms.size, atoms.size)).tocsr()
    _, predecessors = breadth_first_order(graph, start, directed=True)
    reached = np.flatnonzero(predecessors >= 0)
    key = order[0] * atoms.size + order[1]
    sort = np.argsort(key, kind="stable")
    at = np.searchsorted(key[sort], predecessors[reached].astype(np.int64) * atoms.size + reached)
    parent, why = np.full(trace.count, -1), np.full(trace.count, -1)
    parent[atoms[reached]] = atoms[predecessors[reached]]
    why[atoms[reached]] = np.concatenate([reason, reason])[sort[at]]
    return Forest(parent, why)


def _edges(trace: Trace, among: NDArray[np.bool_] | None) -> tuple[Index, Index, Index]:
    """(atom, atom, reason) of every tie, or of those whose ends are `among`: both are or neither is."""
    ties = trace.ties if among is None else _touching(trace, among)
    pairs = [np.broadcast_arrays(a, b) for a, b, _ in ties]
    a = np.concatenate([p[0].reshape(-1) for p in pairs] or [np.zeros(0)]).astype(np.int64)
    b = np.concatenate([p[1].reshape(-1) for p in pairs] or [np.zeros(0)]).astype(np.int64)
    r = np.repeat([r for *_, r in ties], [p[0].size for p in pairs]).astype(np.int64)
    return a, b, r


def _touching(trace: Trace, among: NDArray[np.bool_]) -> list[tuple[Factor, Factor, int]]:
    """The ties with any atom `among` their first ends."""
    ends = np.cumsum([0, *(a.size for a, *_ in trace.ties)])
    atoms = np.concatenate([np.zeros(0, np.int32), *(a.reshape(-1) for a, *_ in trace.ties)])
    met = np.cumsum(np.append(False, among[atoms]))[ends]
    return [trace.ties[i] for i in np.flatnonzero(np.diff(met))]


def _root_reasons(tree: Forest) -> Index:
    """Reason of the first tie on the path from the root to each atom, by pointer jumping."""
    reached = np.flatnonzero(tree.parent >= 0)
    number = np.zeros(tree.parent.size, np.int64)
    number[reached] = np.arange(reached.size)
    up = np.where(tree.parent[reached] > 0, number[tree.parent[reached]], np.arange(reached.size))
    while ((nxt := up[up]) != up).any():
        up = nxt
    result: Index = np.full(tree.parent.size, -1)
    result[reached] = tree.reason[reached][up]
    return result


def frozen_axes(trace: Trace, classes: Labels) -> tuple[Frozen, ...]:
    """Producer axes with frozen positions, each with the tie that decided most of them."""
    stuck = (trace.per_owner(np.bitwise_or, trace.roles) & OUT > 0) & (trace.per_owner(np.minimum, classes) == 0)
    producers = [owner for owner, held in zip(trace.owners.items(), stuck, strict=True) if held]
    if not producers:
        return ()
    first = _root_reasons(forest(trace, among=classes == 0))
    found = []
    for (name, axis), atoms in producers:
        frozen = atoms[classes[atoms] == 0]
        reasons, counts = np.unique(first[frozen], return_counts=True)
        op, node, why = trace.reasons[reasons[counts.argmax()]] if reasons[0] >= 0 else ("", "", "nothing reads it")
        where = f"{op} {node}".strip()
        found.append(Frozen(name, axis, op, f"{why} ({where})", int(frozen.size)))
    return tuple(found)
