"""What an op rule works with: its arguments, the tracer, and the table of rules.

A rule is a plain function named after its op. Its parameters are the op's inputs and attributes under their ONNX names;
it returns the view of each output. It says three things: which atoms the outputs *carry*, which atoms are *tied*, and
how the shape constants of the node are *refitted* once positions are gone. Whatever input atom it neither carries nor
names is frozen by the engine, so an omission is as safe as an unknown op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import numpy as np

from onnxprune.factors import EMPTY, Factor, Shape, View, cut, lines, raise_rank, support
from onnxprune.graph import Array, Node, Tensor, values
from onnxprune.trace import IN, OUT, Bracket, Contact, Contracted, Kept, Refit, Trace

__all__ = ["IN", "OUT", "RULES", "Arg", "Kept", "Refuse", "Rule", "RuleResult", "Tracer", "components", "rule"]


class Refuse(Exception):  # noqa: N818 - a decision with a reason, not a failure
    """Raised by a rule: freeze every input of this node, for this reason."""


@dataclass(frozen=True, slots=True)
class Arg:
    """One input of a node as a rule sees it.

    param: the initializer that it is, or is computed from (transposed, dequantised); "" for activations. source: the
    tensor, or what was an attribute.
    """

    name: str
    shape: Shape
    view: View = EMPTY
    param: str = ""
    source: Tensor | Array | None = None

    @property
    def value(self) -> Array | None:
        """The array of an initializer or of what was an attribute; None for activations."""
        return self.source if self.source is None or isinstance(self.source, np.ndarray) else values(self.source)

    @property
    def rank(self) -> int:
        return len(self.shape)

    def ints(self, what: str) -> list[int]:
        """The value as a flat list of integers; refuses where it is not constant."""
        value = self.value
        if value is None:
            raise Refuse(f"its {what} are computed at run time")
        return [int(v) for v in value.reshape(-1)]


RuleResult = View | Sequence[View] | None
Rule = Callable[..., RuleResult]
RULES: dict[tuple[str, str], Rule] = {}
F = TypeVar("F", bound=Rule)


def rule(*ops: str, domain: str = "") -> Callable[[F], F]:
    """Register a function as the rule of the named ops; the latest registration wins.

    ops: op types. domain: operator domain, "" for ONNX itself. The function is called with the tracer, the inputs as
    `Arg` (None where omitted) and the node's attributes as keyword arguments; it returns one view, or one per output.
    """

    def register(function: F) -> F:
        RULES.update({(domain, op): function for op in ops})
        return function

    return register


class Tracer:
    """The `t` of a rule: one node being interpreted."""

    def __init__(self, trace: Trace, node: Node, index: int, shapes: list[Shape | None]) -> None:
        self.trace, self.node, self.index = trace, node, index
        self.label = (node.op, node.name or next((o.name for o in node.outputs if o.name), ""))
        self._shapes = shapes
        self.named: list[Factor] = []

    def shape(self, output: int = 0) -> Shape:
        """Shape of an output."""
        shape = self._shapes[output]
        if shape is None:
            raise Refuse(f"the shape of output {output} is not known")
        return shape

    # ---- ties ------------------------------------------------------------------------------------------------------

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
        self.named += factors

    def inexact(self, atoms: Factor, why: str) -> None:
        """Removing these positions changes the function even where they are dead (`why` says which statistic)."""
        self.trace.inexact.append(atoms)
        self.trace.tie(atoms, atoms, self.label, why)
        self.name(atoms)

    def fresh(self, n: int) -> Factor:
        """[n] new atoms for positions that no parameter holds (padding)."""
        return self.trace.fresh(n)

    # ---- one axis at a time ----------------------------------------------------------------------------------------

    def atoms(self, arg: Arg, axis: int) -> Factor:
        """[size] the atoms along one axis, 0 where it is frozen; what varies jointly with it is tied along the other
        axes.
        """
        axis %= arg.rank
        found = [self.project(f, axis) for f in arg.view if f.shape[axis] > 1]
        if not found:
            return np.zeros(arg.shape[axis], np.int32)
        for other in found[1:]:
            self.tie(found[0], other, f"axis {axis} of {arg.name} merges two prunable axes")
        return found[0]

    def project(self, factor: Factor, axis: int) -> Factor:
        """[size] the atoms along `axis`; positions that share an index there are tied."""
        if factor.size == factor.shape[axis]:
            return factor.reshape(-1)
        rows = lines(factor, axis)
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

    # ---- broadcasting ----------------------------------------------------------------------------------------------

    def align(self, args: Sequence[tuple[View, Shape]], why: str) -> View:
        """View of the broadcast of several operands: along every axis, all that are not of size 1 there lose the same
        positions.
        """
        rank = max(len(s) for _, s in args)
        shapes = [(1,) * (rank - len(s)) + tuple(s) for _, s in args]
        views = [[raise_rank(f, rank) for f in v] for v, _ in args]
        return tuple(self._align(views, [{a for a in range(rank) if s[a] > 1} for s in shapes], why))

    def _align(self, views: list[list[Factor]], sizes: list[set[int]], why: str) -> list[Factor]:
        """views, sizes: of each operand, its factors and the axes along which it is not of size 1."""
        out: list[Factor] = []
        for axes in components([support(f) for v in views for f in v]):
            inside = [[f for f in v if axes.intersection(support(f))] for v in views]
            out += self._meet(inside, [s & axes for s in sizes], axes, why)
        return out

    def _meet(self, inside: list[list[Factor]], sizes: list[set[int]], axes: set[int], why: str) -> list[Factor]:
        """Operands meet on axes that vary together: as they are, or else along fewer axes."""
        part = [i for i, s in enumerate(sizes) if s]
        if len(part) == 1:
            return inside[part[0]]
        alike = all(len(inside[i]) == 1 and support(inside[i][0]) == tuple(sorted(axes)) for i in part)
        if alike:
            for i in part[1:]:
                self.tie(inside[part[0]][0], inside[i][0], why)
            return inside[part[0]]
        if len(axes) == 1:
            return self._meet_on_one(inside, part, why)
        axis = self._hindrance(inside, sizes, axes)
        reduced = [[g for f in fs if (g := self.without(f, axis, why)) is not None] for fs in inside]
        return self._align(reduced, [s - {axis} for s in sizes], why)

    def _hindrance(self, inside: list[list[Factor]], sizes: list[set[int]], axes: set[int]) -> int:
        """The axis to give up: one that some operand cannot vary along where others do, or else the shortest."""
        shared = [a for a in sorted(axes) if sum(a in s for s in sizes) > 1]
        able = {
            a
            for a in shared
            if all(any(f.shape[a] > 1 for f in fs) for fs, s in zip(inside, sizes, strict=True) if a in s)
        }
        length = {a: max(f.shape[a] for fs in inside for f in fs) for a in axes}
        return next((a for a in shared if a not in able), min(sorted(axes), key=length.__getitem__))

    def _meet_on_one(self, inside: list[list[Factor]], part: list[int], why: str) -> list[Factor]:
        factors = [f for fs in inside for f in fs]
        if not all(inside[i] for i in part):
            self.freeze(factors, f"{why}, and not every operand can lose positions there")
            return []
        for other in factors[1:]:
            self.tie(factors[0], other, why)
        return factors[:1]

    def without(self, factor: Factor, axis: int, why: str) -> Factor | None:
        """A factor that no longer varies along `axis`: whole lines along it go together; None (and frozen) if it is all
        there is.
        """
        if support(factor) == (axis,):
            self.freeze([factor], f"{why}, and not every operand can lose positions there")
            return None
        return self.whole(factor, axis)

    def whole(self, factor: Factor, *axes: int) -> Factor:
        """The factor with all positions along `axes` tied, so that it no longer varies there."""
        for axis in axes:
            if factor.shape[axis] > 1:
                first, rest = cut(factor, axis, slice(0, 1)), cut(factor, axis, slice(1, None))
                self.trace.tie(rest, first, self.label, f"only whole lines along axis {axis} can be removed")
                self.name(rest)
                factor = first
        return factor

    def contract(self, args: Sequence[tuple[View, Shape]], summed: Sequence[int], why: str) -> tuple[View, View]:
        """Align operands in a common frame of axes, then sum over some: (factors that stay, factors summed over)."""
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

    # ---- records ---------------------------------------------------------------------------------------------------

    def layer(
        self, weight: Arg | None, outputs: Factor, inputs: Factor, frame: Shape, factors: Iterable[Factor]
    ) -> None:
        """Record a layer: its filters, the positions it reads, and its MACs, the volume of `frame`, along which
        `factors` vary.
        """
        self.trace.roles[self.trace.where(outputs)] |= OUT
        self.trace.roles[self.trace.where(inputs)] |= IN
        dims, constant, used = [], prod(frame), set[int]()
        for f in factors:
            if not used.intersection(support(f)):
                used.update(support(f))
                constant //= f.size
                dims.append(f.reshape(-1))
        name = weight.param or None if weight is not None else None
        self.trace.layers.append(Contact(self.label[1], self.node.op, name, outputs, inputs, constant, tuple(dims)))

    def refit(self, function: Refit) -> None:
        """After the cut, set the node's parameters (inputs or attributes, by their modern names) to what `function`
        returns.
        """
        self.trace.refits.append((self._key(), function))

    def sums(self, operand: int, factor: Factor) -> None:
        """The node sums an activation over what this factor of it varies along: in the masked original, removed
        positions must not contribute.
        """
        self.trace.contracted.append(Contracted(self._key(), operand, factor))

    def bracket(self, axis: int, atoms: Factor, params: Sequence[Arg | None] = (), restores: bool = True) -> None:
        """The node reduces or renormalises over `axis` of its first input; `params`: vectors along it; `restores`: the
        output has it.
        """
        names = tuple(p.name for p in params if p is not None)
        self.trace.brackets.append(Bracket(self._key(), axis, atoms, names, restores))

    def _key(self) -> str:
        return next(str(o.name) for o in self.node.outputs if o.name)


def components(supports: list[tuple[int, ...]]) -> list[set[int]]:
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
