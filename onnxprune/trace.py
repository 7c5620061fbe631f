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
from onnxprune.symbolic import Facts, interpret

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
    stamp: Array = field(default_factory=lambda: np.full(NEW, -1, np.int32))
    parent: Array = field(default_factory=lambda: np.arange(NEW, dtype=np.int32))
    tied: Array = field(default_factory=lambda: np.zeros(NEW, bool))
    places: dict[tuple[int, int], Factor] = field(default_factory=dict)  # holds the arrays: no other takes their place

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
            self.tied = np.concatenate([self.tied, np.zeros(size - self.tied.size, bool)])
            self.parent = np.concatenate([self.parent, np.arange(self.parent.size, size, dtype=np.int32)])
        self.places[_place(atoms)] = atoms
        return atoms

    def tie(self, a: Factor, b: Factor | int, node: tuple[str, str], why: str) -> None:
        """Record that the atoms are the same thing (element by element, broadcasting).

        An array of atoms that was never tied before simply adopts its partner's (`parent`); only the other ties are
        `links` that the closure must connect. Most ties are of the first kind, which keeps the closure small.
        """
        b = np.asarray(b, np.int32)
        np.broadcast_shapes(a.shape, b.shape)  # raises ValueError here, where the node is known
        self.ties.append((a, b, len(self.reasons)))
        self.reasons.append((*node, why))
        if self._adopts(b, a):
            self.parent[b] = self.parent[a]
        elif self._adopts(a, b):
            self.parent[a] = self.parent[b]
        else:
            self.links.append((a, b))
        self.tied[a] = self.tied[b] = True

    def _adopts(self, child: Factor, partner: Factor) -> bool:
        """Whether `child` is a whole array of fresh atoms that no tie has met, of the partner's shape, and not part of
        it.
        """
        if child.shape != partner.shape or _place(child) not in self.places or self.tied[child].any():
            return False
        first, last = child.flat[0], child.flat[-1]
        repeated = last - first + 1 < child.size  # its first atom, broadcast
        return not repeated and not ((partner >= first) & (partner <= last)).any()


def _place(atoms: Factor) -> tuple[int, int]:
    """Where an array of atoms lies in memory: equal for views of the whole of one array, in whatever order."""
    return atoms.__array_interface__["data"][0], atoms.size
