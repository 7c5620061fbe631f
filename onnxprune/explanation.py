"""Why can this not be pruned, and what goes with it: the fate of the positions of one node, parameter or activation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from onnxprune.analysis import Analysis, Labels
from onnxprune.errors import UsageError
from onnxprune.factors import Factor, support
from onnxprune.graph import FLOATS, Constant, Node, dtype_of, is_constant
from onnxprune.reasons import Forest, forest
from onnxprune.trace import IN, OUT, Trace

_SHOWN = 6  # names in a hint, different causes of one axis
_UNHELD = "a position that no parameter holds (padding)"


@dataclass(frozen=True, slots=True)
class Step:
    """One tie on a path: the position it starts from, and the node and reason that tie it to the next."""

    position: str
    op: str
    node: str
    why: str


@dataclass(frozen=True, slots=True)
class Cause:
    """What freezes positions of an axis: how many, one of them, and the shortest path of ties from it to the end.

    other: where the last tie is not a verdict of its node, what that node ties to which nothing can be removed from.
    """

    positions: int
    index: int
    path: tuple[Step, ...]
    other: str


@dataclass(frozen=True, slots=True)
class Member:
    """Positions of a parameter axis: those of one class, or all that share a class with the axis in question."""

    parameter: str
    axis: int
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AxisFate:
    """What can be removed along one axis of a tensor; several `axes` where an activation varies jointly along them.

    role: "out" for filters, "in" for what a layer reads, "with" for what goes along, "" for activations. typical: an
    index that can be removed (-1: none) and, in `members`, all that leaves with it. partners: the parameter axes that
    share a class with this one. inexact: why removing changes the function even where the positions are dead.
    """

    tensor: str
    axes: tuple[int, ...]
    role: str
    positions: int
    frozen: int
    classes: int
    inexact: tuple[str, ...]
    typical: int
    members: tuple[Member, ...]
    partners: tuple[Member, ...]
    causes: tuple[Cause, ...]

    @property
    def removable(self) -> int:
        """Positions that are not frozen."""
        return self.positions - self.frozen

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; partners as counts, since their indices are those of the plan."""
        partners = [{"parameter": m.parameter, "axis": m.axis, "positions": len(m.indices)} for m in self.partners]
        return asdict(self) | {"removable": self.removable, "partners": partners}


@dataclass(frozen=True, slots=True)
class Explanation:
    """The fate of a node (its parameters, or its outputs where it has none), a parameter or an activation.

    kind: "node", "parameter" or "activation"; note: what to know where there is no axis to talk about, else "".
    """

    name: str
    kind: str
    op: str
    axes: tuple[AxisFate, ...]
    note: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with stable keys."""
        return {
            "name": self.name,
            "kind": self.kind,
            "op": self.op,
            "note": self.note,
            "axes": [axis.as_dict() for axis in self.axes],
        }


def explain(analysis: Analysis, name: str) -> Explanation:
    """Explain the fate of a node or tensor of the cleaned model; nodes come first where both have the name.

    Raises UsageError, with the nearest names, where nothing has it.
    """
    node = _node(analysis, name)
    trace: Trace = analysis.trace.trace
    if node is not None:
        fates = _Fates(analysis)
        axes = tuple(f for t in node.inputs if is_constant(t) for f in fates.of(t.name) if _tells(t, f))
        axes = axes or tuple(f for o in node.outputs if o.name for f in fates.of(o.name))
        return Explanation(name, "node", node.op, axes, "" if axes else _note(trace, node))
    if name not in trace.views and name not in trace.shapes:
        raise UsageError(_unknown(analysis, name))
    axes = tuple(_Fates(analysis).of(name))
    if name in analysis.model.constants():
        note = "" if axes else "its axes have one position each, or its element type is one that is never cut"
        return Explanation(name, "parameter", "", axes, note)
    maker = next((n for n in analysis.model.graph.nodes if any(o.name == name for o in n.outputs)), None)
    if maker is None:
        return Explanation(name, "activation", "", axes, "an input of the model: its sizes stay as they are")
    return Explanation(name, "activation", maker.op, axes, "" if axes else _note(trace, maker))


def _node(analysis: Analysis, name: str) -> Node | None:
    return next((n for n in analysis.model.graph.nodes if n.name == name), None) if name else None


def _tells(parameter: Constant, fate: AxisFate) -> bool:
    """Shapes and indices are no parameters that a user asks for; quantised weights are."""
    return fate.removable > 0 or dtype_of(parameter) in FLOATS


def _note(trace: Trace, node: Node) -> str:
    """Why nothing varies along any axis of what a node computes."""
    verdicts = [trace.reasons[r] for _, b, r in trace.ties if b.ndim == 0]
    why = [reason for op, name, reason in verdicts if (op, name) == _label(node)]
    return f"nothing can be removed here: {why[-1] if why else 'what it reads is frozen or summed over'}"


def _label(node: Node) -> tuple[str, str]:
    """The node as the reasons of ties name it."""
    return node.op, node.name or next((o.name for o in node.outputs if o.name), "")


def _unknown(analysis: Analysis, name: str) -> str:
    trace: Trace = analysis.trace.trace
    known = dict.fromkeys([n.name for n in analysis.model.graph.nodes] + [*trace.views, *trace.shapes])
    names = [n for n in known if n]
    inside = [n for n in names if name and name.lower() in n.lower()]
    near = list(dict.fromkeys(inside[:_SHOWN] + get_close_matches(name, names, _SHOWN, cutoff=0.5)))[:_SHOWN]
    hint = f"the nearest names are {', '.join(map(repr, near))}" if near else "`onnxprune analyze` lists the layers"
    return f"the cleaned model has no node and no tensor {name!r}; {hint}"


class _Fates:
    """Looks up atoms: their classes, their owners, and the ties that freeze them."""

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis
        self._trace: Trace = analysis.trace.trace
        self._classes: Labels = analysis.trace.classes
        self._owners = list(self._trace.owners)
        self._starts = np.array([atoms[0] for atoms in self._trace.owners.values()], np.int64)
        self._tree: Forest | None = None

    def of(self, tensor: str) -> Iterator[AxisFate]:
        """Every axis of a tensor that holds atoms."""
        for factor in self._trace.views.get(tensor, ()):
            yield self._fate(tensor, support(factor), factor.reshape(-1))

    def _fate(self, tensor: str, axes: tuple[int, ...], atoms: Factor) -> AxisFate:
        classes = self._classes[atoms]
        live, stuck = np.flatnonzero(classes), np.flatnonzero(classes == 0)
        typical = int(live[0]) if live.size else -1
        return AxisFate(
            tensor=tensor,
            axes=axes,
            role=self._role(tensor, atoms),
            positions=atoms.size,
            frozen=stuck.size,
            classes=np.unique(classes[live]).size,
            inexact=self._inexact(classes[live]),
            typical=typical,
            members=tuple(self._sharing(classes[live[:1]])),
            partners=tuple(m for m in self._sharing(classes[live]) if (m.parameter, (m.axis,)) != (tensor, axes)),
            causes=tuple(self._causes(atoms, stuck)),
        )

    def _role(self, tensor: str, atoms: Factor) -> str:
        if tensor not in self._analysis.model.constants():
            return ""
        roles = int(np.bitwise_or.reduce(self._trace.roles[atoms]))
        return "out" if roles & int(OUT) else "in" if roles & int(IN) else "with"

    def _sharing(self, classes: Labels) -> Iterator[Member]:
        """Positions of all parameter axes that belong to one of the classes."""
        wanted = np.zeros(self._analysis.classes + 1, np.bool_)
        wanted[classes] = True
        for axis in self._analysis.axes:
            indices = np.flatnonzero(wanted[axis.classes])
            if indices.size:
                yield Member(axis.param, axis.axis, tuple(indices.tolist()))

    def _inexact(self, classes: Labels) -> tuple[str, ...]:
        """The reasons of the ties with themselves by which rules mark positions as inexact."""
        if not self._analysis.inexact[classes].any():
            return ()
        marks = [(a, r) for a, b, r in self._trace.ties if a is b]
        found = (self._trace.reasons[r] for a, r in marks if np.isin(self._classes[a], classes).any())
        return tuple(dict.fromkeys(f"{why} ({op} {node})" for op, node, why in found))

    # ---- what freezes ----------------------------------------------------------------------------------------------

    def _causes(self, atoms: Factor, stuck: Labels | np.ndarray[Any, Any]) -> Iterator[Cause]:
        """Frozen positions by the tie with atom 0 at the end of their path, the most frequent first."""
        if not len(stuck):
            return
        self._tree = self._tree or forest(self._trace, among=self._classes == 0)
        last = self._tree.reason[_ends(self._tree, atoms[stuck])]
        _, first, counts = np.unique(last, return_index=True, return_counts=True)
        for i in np.argsort(-counts, kind="stable")[:_SHOWN]:
            index = int(stuck[first[i]])
            path = tuple(self._path(self._tree, int(atoms[index])))
            yield Cause(int(counts[i]), index, path, self._other(int(last[first[i]])) if path else "")

    def _path(self, tree: Forest, atom: int) -> Iterator[Step]:
        """From a position to what froze it."""
        while atom > 0 and tree.parent[atom] >= 0:
            op, node, why = self._trace.reasons[tree.reason[atom]]
            yield Step(self._place(atom), op, node, why)
            atom = int(tree.parent[atom])

    def _other(self, tie: int) -> str:
        """A rule that freezes ties with one 0; a tie with an array of zeros is one with positions that are frozen."""
        _, partner, _ = self._trace.ties[tie]
        op, name, _ = self._trace.reasons[tie]
        node = next((n for n in self._analysis.model.graph.nodes if _label(n) == (op, name)), None)
        if partner.ndim == 0 or node is None:
            return ""
        bare = [t.name for t in node.inputs if t.name and not self._trace.views.get(t.name)]
        given = {i.name for i in self._analysis.model.graph.inputs}
        told = (f"{n}, an input of the model" if n in given else n for n in bare)
        return f"nothing can be removed from {' or '.join(told) or 'what it meets'}"

    def _place(self, atom: int) -> str:
        """Atoms of one parameter axis are consecutive."""
        at = int(np.searchsorted(self._starts, atom, "right")) - 1
        key = self._owners[at] if at >= 0 else None
        if key is None or atom > self._trace.owners[key][-1]:
            return _UNHELD
        return f"{key[0]} axis {key[1]} index {atom - int(self._starts[at])}"


def _ends(tree: Forest, atoms: Factor) -> np.ndarray[Any, Any]:
    """The last atom before atom 0 on the path of each."""
    at = atoms.astype(np.int64)
    while (inner := tree.parent[at] > 0).any():
        at = np.where(inner, tree.parent[at], at)
    return at
