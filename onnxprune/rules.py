"""What an op rule works with: its arguments, the tracer, and the table of rules.

A rule is a plain function named after its op. Its parameters are the op's inputs and attributes under their ONNX names; it
returns the view of each output. It says three things: which atoms the outputs *carry*, which atoms are *tied*, and how the
shape constants of the node are *refitted* once positions are gone. Whatever input atom it neither carries nor names is
frozen by the engine, so an omission is as safe as an unknown op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Protocol

import numpy as np

from onnxprune.factors import EMPTY, Factor, Shape, View, lines, raise_rank, support
from onnxprune.graph import Array, Model, Node
from onnxprune.shapes import skeleton
from onnxprune.symbolic import Facts, interpret

OUT, IN = np.uint8(1), np.uint8(2)
NEW = 1 << 14


class Refuse(Exception):  # noqa: N818 - a decision with a reason, not a failure
    """Raised by a rule: freeze every input of this node, for this reason."""


@dataclass(frozen=True, slots=True)
class Arg:
    """One input of a node as a rule sees it.

    param: the initializer that it is, or is computed from (transposed, dequantised); "" for activations. value: the array of
    an initializer or of what was an attribute, but for large float weights, which no rule reads.
    """

    name: str
    shape: Shape
    view: View = EMPTY
    param: str = ""
    value: Array | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    def ints(self, what: str) -> list[int]:
        """The value as a flat list of integers; refuses where it is not constant."""
        if self.value is None:
            raise Refuse(f"its {what} are computed at run time")
        return [int(v) for v in self.value.reshape(-1)]


class Kept(Protocol):
    """Which positions stay, for refits."""

    def mask(self, atoms: Factor) -> Array:
        """[n] bool: which positions of a 1-D array of atoms are kept."""

    def shape(self, view: View, shape: Shape) -> list[int]:
        """Size of each axis once positions are gone."""


Refit = Callable[[Kept], Mapping[str, Any]]
RuleResult = View | Sequence[View] | None
Rule = Callable[..., RuleResult]
RULES: dict[tuple[str, str], Rule] = {}


def rule(*ops: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a function as the rule of the named ops; the latest registration wins.

    ops: op types. domain: operator domain, "" for ONNX itself. The function is called with the tracer, the inputs as `Arg`
    (None where omitted) and the node's attributes as keyword arguments; it returns one view, or one per output.
    """

    def register(function: Rule) -> Rule:
        RULES.update({(domain, op): function for op in ops})
        return function

    return register


@dataclass(frozen=True, slots=True)
class Contact:
    """A layer as traced, before classes are known."""

    node: str
    op: str
    weight: str | None
    outputs: Factor
    inputs: Factor
    constant: int
    dims: tuple[Factor, ...]


@dataclass(frozen=True, slots=True)
class Bracket:
    """A node that renormalises over `axis` of its input: the reference must compute it on the kept positions only."""

    node: str
    axis: int
    atoms: Factor
    params: tuple[str, ...]
    restores: bool


@dataclass(frozen=True, slots=True)
class Contracted:
    """An operand whose removed positions along `axis` must not contribute to a sum over activations."""

    node: str
    operand: int
    axis: int
    atoms: Factor


@dataclass
class Trace:
    """The record of one interpretation: atoms, ties with their reasons, views, layers and refits."""

    model: Model
    shapes: dict[str, Shape]
    count: int = 1
    views: dict[str, View] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    owners: dict[tuple[str, int], Factor] = field(default_factory=dict)
    ties: list[tuple[Factor, Factor, int]] = field(default_factory=list)
    reasons: list[tuple[str, str, str]] = field(default_factory=list)
    layers: list[Contact] = field(default_factory=list)
    refits: list[tuple[str, Refit]] = field(default_factory=list)
    brackets: list[Bracket] = field(default_factory=list)
    contracted: list[Contracted] = field(default_factory=list)
    inexact: list[Factor] = field(default_factory=list)
    roles: Array = field(default_factory=lambda: np.zeros(NEW, np.uint8))
    stamp: Array = field(default_factory=lambda: np.full(NEW, -1, np.int32))

    @cached_property
    def facts(self) -> Facts:
        """What is certain about values computed at run time; worked out only where a rule asks."""
        return interpret(skeleton(self.model))

    def fresh(self, n: int) -> Factor:
        """[n] new atoms."""
        atoms = np.arange(self.count, self.count + n, dtype=np.int32)
        self.count += n
        if self.count > self.roles.size:
            size = 2 * self.count
            self.roles = np.concatenate([self.roles, np.zeros(size - self.roles.size, np.uint8)])
            self.stamp = np.concatenate([self.stamp, np.full(size - self.stamp.size, -1, np.int32)])
        return atoms

    def tie(self, a: Factor, b: Factor | int, node: tuple[str, str], why: str) -> None:
        """Record that the atoms are the same thing (element by element, broadcasting)."""
        self.ties.append((a, np.asarray(b, np.int32), len(self.reasons)))
        self.reasons.append((*node, why))


class Tracer:
    """The `t` of a rule: one node being interpreted."""

    def __init__(self, trace: Trace, node: Node, index: int, shapes: list[Shape | None]) -> None:
        self.trace, self.node, self.index = trace, node, index
        self.label = (node.op, node.name or next((o.name for o in node.outputs if o.name), ""))
        self._shapes = shapes

    def shape(self, output: int = 0) -> Shape:
        """Shape of an output."""
        shape = self._shapes[output]
        if shape is None:
            raise Refuse(f"the shape of output {output} is not known")
        return shape

    # ---- ties -----------------------------------------------------------------------------------------------------

    def tie(self, a: Factor, b: Factor, why: str) -> None:
        """The positions of `a` and `b` (arrays of atoms that broadcast) go together; tying with 0 freezes."""
        if a is not b:
            self.trace.tie(a, b, self.label, why)
        self.name(a, b)

    def freeze(self, factors: Iterable[Factor], why: str) -> None:
        """The positions can never be removed."""
        for f in factors:
            self.trace.tie(f, 0, self.label, why)
            self.name(f)

    def name(self, *factors: Factor) -> None:
        """These atoms are accounted for: carried, tied, frozen, summed over, or not read at all."""
        for f in factors:
            self.trace.stamp[f] = self.index

    def inexact(self, atoms: Factor, why: str) -> None:
        """Removing these positions changes the function even where they are dead (`why` says which statistic)."""
        self.trace.inexact.append(atoms)
        self.trace.tie(atoms, atoms, self.label, why)
        self.name(atoms)

    def fresh(self, n: int) -> Factor:
        """[n] new atoms for positions that no parameter holds (padding)."""
        return self.trace.fresh(n)

    # ---- one axis at a time -----------------------------------------------------------------------------------------

    def atoms(self, arg: Arg, axis: int) -> Factor:
        """[size] the atoms along one axis, 0 where it is frozen; what varies jointly with it is tied along the other axes."""
        axis %= arg.rank
        found = [self.project(f, axis) for f in arg.view if f.shape[axis] > 1]
        if not found:
            return np.zeros(arg.shape[axis], np.int32)
        for other in found[1:]:
            self.tie(found[0], other, f"axis {axis} of {arg.name} merges two prunable axes")
        return found[0]

    def project(self, factor: Factor, axis: int) -> Factor:
        """[size] the atoms along `axis`; positions that share an index there are tied."""
        rows = lines(factor, axis)
        if rows.shape[1] > 1:
            self.trace.tie(rows[:, 1:], rows[:, :1], self.label, f"only whole indices of axis {axis} can be removed")
            self.name(rows[:, 1:])
        return rows[:, 0]

    def certain(self, arg: Arg) -> list[int | None]:
        """The elements of an integer vector computed at run time, None where they depend on the input."""
        found = self.trace.facts.values.get(arg.name)
        return [] if found is None else [e if isinstance(e, int) else None for e in found.reshape(-1).tolist()]

    def others(self, arg: Arg, *axes: int) -> View:
        """The factors of an argument that do not vary along any of `axes`."""
        wanted = {a % arg.rank for a in axes}
        return tuple(f for f in arg.view if not wanted.intersection(support(f)))

    # ---- broadcasting -------------------------------------------------------------------------------------------------

    def align(self, args: Sequence[tuple[View, Shape]], why: str) -> View:
        """View of the broadcast of several operands: along every axis, all that are not of size 1 there lose the same positions."""
        rank = max(len(s) for _, s in args)
        shapes = [(1,) * (rank - len(s)) + tuple(s) for _, s in args]
        views = [[raise_rank(f, rank) for f in v] for v, _ in args]
        out: list[Factor] = []
        for axes in _components([support(f) for v in views for f in v]):
            inside = [[f for f in v if axes.intersection(support(f))] for v in views]
            sizes = [{a for a in axes if s[a] > 1} for s in shapes]
            out += self._align(inside, sizes, axes, why)
        return tuple(out)

    def _align(self, inside: list[list[Factor]], sizes: list[set[int]], axes: set[int], why: str) -> list[Factor]:
        taking_part = [i for i, s in enumerate(sizes) if s]
        if len(taking_part) == 1:
            return inside[taking_part[0]]
        same = {support(f) for i in taking_part for f in inside[i]}
        if len(same) == 1 and all(len(inside[i]) == 1 and sizes[i] == axes for i in taking_part):
            first = inside[taking_part[0]][0]
            for i in taking_part[1:]:
                self.tie(first, inside[i][0], why)
            return [first]
        return self._align_along(inside, sizes, axes, why)

    def _align_along(self, inside: list[list[Factor]], sizes: list[set[int]], axes: set[int], why: str) -> list[Factor]:
        """Operands that vary along different sets of axes meet along one of them, the last that all can vary along."""

        def meets(axis: int) -> bool:
            return all(any(f.shape[axis] > 1 for f in fs) for fs, s in zip(inside, sizes, strict=True) if axis in s)

        factors = [f for fs in inside for f in fs]
        axis = next((a for a in sorted(axes, reverse=True) if meets(a)), None)
        if axis is None:
            self.freeze(factors, f"{why}, and not every operand can lose positions there")
            return []
        self.freeze([f for f in factors if f.shape[axis] == 1], f"{why}, and they can only lose positions along axis {axis}")
        lines_ = [self.project(f, axis) for f in factors if f.shape[axis] > 1]
        for other in lines_[1:]:
            self.tie(lines_[0], other, why)
        rank = factors[0].ndim
        return [lines_[0].reshape((1,) * axis + (-1,) + (1,) * (rank - axis - 1))]

    def contract(self, args: Sequence[tuple[View, Shape]], summed: Sequence[int], why: str) -> tuple[View, View]:
        """Align operands in one common frame of axes, then sum over some: (factors that stay, 1-D factors summed over)."""
        stay, gone = [], []
        for f in self.align(args, why):
            over = [a for a in summed if f.shape[a] > 1]
            if not over:
                stay.append(f)
            elif support(f) == tuple(over):
                gone.append(f)
                self.name(f)
            else:
                atoms = self.project(f, over[-1])
                self.name(atoms)
                gone.append(atoms.reshape([-1 if a == over[-1] else 1 for a in range(f.ndim)]))
        return tuple(stay), tuple(gone)

    # ---- records ------------------------------------------------------------------------------------------------------

    def layer(self, weight: Arg | None, outputs: Factor, inputs: Factor, frame: Shape, factors: Iterable[Factor]) -> None:
        """Record a layer: its filters, the positions it reads, and its MACs, the volume of `frame`, along which `factors` vary."""
        self.trace.roles[outputs] |= OUT
        self.trace.roles[inputs] |= IN
        dims, constant, used = [], prod(frame), set[int]()
        for f in factors:
            if not used.intersection(support(f)):
                used.update(support(f))
                constant //= f.size
                dims.append(f.reshape(-1))
        name = weight.param or None if weight is not None else None
        self.trace.layers.append(Contact(self.label[1], self.node.op, name, outputs, inputs, constant, tuple(dims)))

    def refit(self, function: Refit) -> None:
        """After the cut, set the node's parameters (inputs or attributes, by their modern names) to what `function` returns."""
        self.trace.refits.append((self._key(), function))

    def sums(self, operand: int, axis: int, atoms: Factor) -> None:
        """The node sums an activation over `axis`: in the masked original, removed positions must not contribute."""
        self.trace.contracted.append(Contracted(self._key(), operand, axis, atoms))

    def bracket(self, axis: int, atoms: Factor, params: Sequence[Arg | None] = (), restores: bool = True) -> None:
        """The node renormalises over `axis` of its first input; `params` are vectors along it, `restores` whether the output has it."""
        names = tuple(p.name for p in params if p is not None)
        self.trace.brackets.append(Bracket(self._key(), axis, atoms, names, restores))

    def _key(self) -> str:
        return next(str(o.name) for o in self.node.outputs if o.name)


def _components(supports: list[tuple[int, ...]]) -> list[set[int]]:
    """Axes that vary together, as sets, by their first axis."""
    parts: list[set[int]] = []
    for s in supports:
        joined = set(s)
        rest = []
        for p in parts:
            if joined & p:
                joined |= p
            else:
                rest.append(p)
        parts = [*rest, joined]
    return sorted(parts, key=min)
