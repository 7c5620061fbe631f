"""The record of one interpretation: atoms, ties with their reasons, views, layers and refits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from onnxprune.factors import Factor, Shape, View
from onnxprune.graph import Array, Model
from onnxprune.shapes import skeleton
from onnxprune.shapes.symbolic import Facts, interpret

OUT, IN = np.uint8(1), np.uint8(2)
NEW = 1 << 14


class Kept(Protocol):
    """Which positions stay, for refits."""

    def mask(self, atoms: Factor) -> Array:
        """[n] bool: which positions of a 1-D array of atoms are kept."""

    def shape(self, view: View, shape: Shape) -> list[int]:
        """Size of each axis once positions are gone."""


Refit = Callable[[Kept], Mapping[str, Any]]


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
    """A node that reduces or renormalises over `axis` of its input: the reference computes it on the kept positions
    only.
    """

    node: str
    axis: int
    atoms: Factor
    params: tuple[str, ...]
    restores: bool


@dataclass(frozen=True, slots=True)
class Contracted:
    """An operand whose removed positions (a factor of its rank) must not contribute to a sum that no weight takes part
    in.
    """

    node: str
    operand: int
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
    links: list[tuple[Factor, Factor]] = field(default_factory=list)
    reasons: list[tuple[str, str, str]] = field(default_factory=list)
    layers: list[Contact] = field(default_factory=list)
    refits: list[tuple[str, Refit]] = field(default_factory=list)
    brackets: list[Bracket] = field(default_factory=list)
    contracted: list[Contracted] = field(default_factory=list)
    inexact: list[Factor] = field(default_factory=list)
    parts: list[Factor] = field(default_factory=list)
    roles: Array = field(default_factory=lambda: np.zeros(NEW, np.uint8))
    marked: Array = field(default_factory=lambda: np.zeros(NEW, np.int32))  # to compare sets of atoms; else all 0
    parent: Array = field(default_factory=lambda: np.arange(NEW, dtype=np.int32))
    tied: Array = field(default_factory=lambda: np.zeros(NEW, bool))
    blocks: dict[int, tuple[Factor, slice]] = field(default_factory=dict)  # arrays as `fresh` made them, by their id
    unread: set[str] = field(default_factory=set)  # parameters that no node was seen to read

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
            self.marked = np.concatenate([self.marked, np.zeros(size - self.marked.size, np.int32)])
            self.tied = np.concatenate([self.tied, np.zeros(size - self.tied.size, bool)])
            self.parent = np.concatenate([self.parent, np.arange(self.parent.size, size, dtype=np.int32)])
        self.blocks[id(atoms)] = atoms, slice(self.count - n, self.count)
        return atoms

    def per_owner(self, reduce: np.ufunc, values: Array) -> Array:
        """[owners] `reduce` of values [atoms] over the positions of each parameter axis; their atoms are one range."""
        ends = np.cumsum([1, *(atoms.size for atoms in self.owners.values())])
        result: Array = reduce.reduceat(values[: ends[-1]], ends[:-1]) if self.owners else values[:0]
        return result

    def block(self, atoms: Factor) -> slice | None:
        """The range of atoms that `fresh` made at once and that this is a view of, whole, in whatever order."""
        held = self.blocks.get(id(whole(atoms)))
        return None if held is None else held[1]

    def where(self, atoms: Factor) -> slice | Factor:
        """An index of these atoms, in whatever order; ranges are faster than lists."""
        held = self.blocks.get(id(whole(atoms)))
        return atoms if held is None else held[1]

    def tie(self, a: Factor, b: Factor | int, node: tuple[str, str], why: str) -> None:
        """Record that the atoms are the same thing (element by element, broadcasting).

        An array of atoms that was never tied before simply adopts its partner's (`parent`); only the other ties are
        `links` that the closure must connect. Most ties are of the first kind, which keeps the closure small.
        """
        b = np.asarray(b, np.int32)
        if a.shape != b.shape:
            np.broadcast_shapes(a.shape, b.shape)  # raises ValueError here, where the node is known
        self.ties.append((a, b, len(self.reasons)))
        self.reasons.append((*node, why))
        at_a, at_b = self.block(a), self.block(b)
        if a.shape == b.shape and self._adopts(at_b, a, at_a):
            self.parent[b] = self.parent[a]
        elif a.shape == b.shape and self._adopts(at_a, b, at_b):
            self.parent[a] = self.parent[b]
        else:
            self.links.append((a, b))
        self.tied[a if at_a is None else at_a] = True
        self.tied[b if at_b is None else at_b] = True

    def _adopts(self, child: slice | None, partner: Factor, other: slice | None) -> bool:
        """Whether `child` is a whole array of fresh atoms that no tie has met, and that `partner` has no part of."""
        if child is None or self.tied[child].any():
            return False
        return child != other if other else not ((partner >= child.start) & (partner < child.stop)).any()


def whole(atoms: Factor) -> Factor:
    """The array that this is a view of, if it shows each of its elements once, in whatever order; else itself."""
    base: Any = atoms.base
    if base is None or base.size != atoms.size:
        return atoms
    repeats = 0 in atoms.strides and any(n > 1 and not s for n, s in zip(atoms.shape, atoms.strides, strict=True))
    return atoms if repeats else base
