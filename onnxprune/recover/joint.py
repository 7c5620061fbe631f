"""Several layers refitted at once, to what the original gives behind the last of them; no labels.

Least squares moves one layer at a time and takes what its inputs carry as it is; here the layers before it move too, so
that what is left of them carries what is needed. Each step is Gauss-Newton with a curvature per layer that is a
Kronecker product, of what the layer reads and of the gradients at its output (Martens and Grosse, 2015), and has the
exact best length along this direction and the previous step, as conjugate gradients have, or a share of it: short
steps that end early overfit less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.linalg import LinAlgError
from numpy.typing import NDArray

from onnxprune.parallel import each
from onnxprune.recover.least_squares import Sums
from onnxprune.recover.linear import Linear, Positions, product
from onnxprune.recover.passes import Floats, Passes

Doubles = NDArray[np.float64]
Matrices = list[Doubles]  # per layer [groups, d + 1, channels/group], the bias as last row
_RIDGE, _GRADIENT_RIDGE = 1e-3, 1e-2  # shares of the mean diagonal of the two Gram matrices
_REFRESH = 8  # steps between two curvatures
_WHOLE = 8  # steps: where there is time for more, they are shorter, and the held-out inputs tell better where to stop
_CURVATURE = 256  # inputs that a curvature looks at
_GRAMS = 1 << 29  # bytes of Gram matrices that wait to be summed, two of each at least
_LENGTH = 8  # one of so many inputs of a step is enough to tell its length
_PASSES = 5  # what a step costs, in passes over its inputs
_ROWS = 1 << 20  # bytes of rows gathered at once: they stay in the CPU's cache
_PIECE = 16  # inputs that one thread looks at at once, for the same reason
_JOBS = 8  # that the pieces are dealt out to: so many gradients of every layer are held at once


@dataclass(frozen=True, slots=True)
class Part:
    """Some inputs: what the first layer reads, what is wanted behind the last, and what is added there; float32."""

    x: Floats
    wanted: Floats
    added: Floats | None = None


@dataclass(frozen=True, slots=True)
class Effort:
    """count: most steps; patience: steps in a row without progress that end it; inputs: that a step looks at."""

    count: int = 6
    patience: int = 2
    inputs: int = 200

    @property
    def share(self) -> float:
        """Of the best length that a step goes."""
        return min(1.0, _WHOLE / max(self.count, 1))

    def passes(self, held: int) -> int:
        """What a fit costs, in passes of one input through the layers, where it is checked on `held` inputs."""
        return self.count * (_PASSES * self.inputs + held) + ceil(self.count / _REFRESH) * 2 * _CURVATURE


@dataclass(frozen=True, slots=True)
class Joint:
    """Refitted weights and biases; errors on held-out inputs behind the last layer, as shares of the variance wanted.

    inner: errors of the layers before the last one, None where what is wanted there does not vary; not told by `refit`.
    """

    weights: list[Floats]
    biases: list[Floats]
    before: float
    after: float
    inner: tuple[float | None, ...] = ()


def refit(
    passes: Passes,
    weights: Sequence[Floats],
    biases: Sequence[Floats],
    train: Sequence[Part],
    held: Sequence[Part],
    *,
    effort: Effort | None = None,
    seed: Sequence[int] = (0,),
) -> Joint:
    """The weights and biases that are best on `held` among those given and those after each step.

    Raises numpy's LinAlgError where a curvature is singular or not finite.
    """
    effort, rng = effort or Effort(), np.random.default_rng(seed)
    at = State(passes, list(weights), list(biases))
    errors = [at.error(held)]
    best, previous, idle = at, None, 0
    for i in range(effort.count):
        if i % _REFRESH == 0:
            inverse = _curvature(at, _some(train, _CURVATURE, rng), rng)
        previous = _step(at, _some(train, effort.inputs, rng), inverse, previous, effort.share)
        at = at.moved(previous)
        errors.append(at.error(held))
        if not np.isfinite(errors[-1]):
            break
        idle = idle + 1 if errors[-1] >= min(errors[:-1]) else 0
        best = best if idle else at
        if idle == effort.patience:
            break
    return Joint(best.weights, best.biases, errors[0], float(np.nanmin(errors)))


@dataclass(frozen=True)
class State:
    """The layers at present."""

    passes: Passes
    weights: list[Floats]
    biases: list[Floats]

    def look(self, part: Part) -> tuple[list[Floats], Floats]:
        """What each layer reads, and how far the last output is off: not at all where the activation behind is flat and
        the wanted value lies in the same flat part.
        """
        inputs, y = self._outputs(part)
        low, high = map(np.float32, self.passes.ranges[-1])
        off = y - part.wanted
        if low > -np.inf:
            off = np.where(part.wanted <= low, np.maximum(y - low, 0), off)
        if high < np.inf:
            off = np.where(part.wanted >= high, np.minimum(y - high, 0), off)
        return inputs, off

    def error(self, parts: Sequence[Part]) -> float:
        """Squared error behind the activation, as a share of the variance wanted."""
        return sum(each(lambda part: self.sums(part)[1], _pieces(parts)), Sums()).share

    def sums(self, part: Part) -> tuple[list[Floats], Sums]:
        """What each layer reads, and of what `error` is made."""
        low, high = self.passes.ranges[-1]
        inputs, y = self._outputs(part)
        return inputs, Sums.of(np.clip(y, low, high), np.clip(part.wanted, low, high), channels=1)

    def _outputs(self, part: Part) -> tuple[list[Floats], Floats]:
        """What each layer reads, and the last output with what is added there."""
        inputs, y = self.passes.forward(part.x, self.weights, self.biases)
        return inputs, y if part.added is None else y + part.added

    def moved(self, step: Matrices) -> State:
        """These layers after a step."""
        changes = self._changes(step)
        return replace(
            self,
            weights=[w + c for w, (c, _) in zip(self.weights, changes, strict=True)],
            biases=[b + c for b, (_, c) in zip(self.biases, changes, strict=True)],
        )

    def tangent(self, inputs: Sequence[Floats], step: Matrices) -> Floats:
        """First-order change of the last output for a step."""
        return self.passes.tangent(inputs, self.weights, self._changes(step))

    def _changes(self, step: Matrices) -> list[tuple[Floats, Floats]]:
        return [_split(layer, m) for layer, m in zip(self.passes.layers, step, strict=True)]


def _split(layer: Linear, matrix: Doubles) -> tuple[Floats, Floats]:
    """Weight and bias of a matrix."""
    m = matrix.astype(np.float32)
    return layer.from_matrix(m[:, :-1]), np.ascontiguousarray(m[:, -1]).reshape(-1)


def _some(parts: Sequence[Part], inputs: int, rng: np.random.Generator) -> list[Part]:
    """Random parts with at least so many inputs, or all."""
    found, count = list[Part](), 0
    for i in rng.permutation(len(parts)):
        if count < inputs:
            found.append(parts[i])
            count += len(parts[i].x)
    return found


def _curvature(at: State, parts: Sequence[Part], rng: np.random.Generator) -> list[tuple[Doubles, Doubles]]:
    """Inverses of the Gram matrices of what each layer reads, [groups, d + 1, d + 1], and of the gradients at its
    output, [groups, m, m]. Random signs at the last output, taken back through the layers, have the Gauss-Newton matrix
    as covariance.
    """
    layers, total = at.passes.layers, sum(len(p.x) for p in parts)

    def grams(job: tuple[Part, np.random.Generator]) -> list[tuple[Doubles, Doubles]]:
        part, own = job
        inputs, off = at.look(part)
        signs = own.choice(np.array([-1, 1], np.float32), off.shape) * (off != 0)
        back = at.passes.reverse(inputs, at.weights, signs.astype(np.float32))
        share, found = len(part.x) / total, list[tuple[Doubles, Doubles]]()
        for layer, x, g in zip(layers, inputs, back, strict=True):
            rows = _random_rows(layer, x, g.shape, ceil(max(4000, 4 * layer.unknowns) * share), own)
            found.append((_gram(rows) * (share / rows.shape[1]), _gram(_by_group(layer, g)) / total))
        return found

    sizes = [(x.groups, x.unknowns + 1, x.channels // x.groups) for x in layers]
    sums = [(np.zeros((groups, d, d)), np.zeros((groups, m, m))) for groups, d, m in sizes]
    wave = max(_GRAMS // sum(a.nbytes + g.nbytes for a, g in sums), 2)
    jobs = list(zip(parts, rng.spawn(len(parts)), strict=True))
    for start in range(0, len(jobs), wave):
        for found in each(grams, jobs[start : start + wave]):
            for (a, g), (more_a, more_g) in zip(sums, found, strict=True):
                np.add(a, more_a, out=a)
                np.add(g, more_g, out=g)
    return [(_inverse(a, _RIDGE), _inverse(g, _GRADIENT_RIDGE)) for a, g in sums]


def _gram(rows: Floats) -> Doubles:
    return product(rows, rows).astype(np.float64)


def _inverse(gram: Doubles, ridge: float) -> Doubles:
    size = gram.shape[1]
    level = ridge * np.einsum("gii->g", gram) / size + 1e-12
    made: Doubles = np.linalg.inv(gram + level[:, None, None] * np.eye(size))
    if not np.isfinite(made).all():
        raise LinAlgError("a curvature is not finite")
    return made


def _random_rows(layer: Linear, x: Floats, y_shape: Sequence[int], count: int, rng: np.random.Generator) -> Floats:
    """[groups, n, d + 1]: what random positions read, and a one for the bias."""
    places = layer.places(y_shape)
    flat = np.sort(rng.choice(len(x) * places, min(len(x) * places, count), replace=False))
    rows = layer.rows(x, Positions(*np.divmod(flat, places)))
    return np.concatenate([rows, np.ones((*rows.shape[:2], 1), rows.dtype)], 2)


def _by_group(layer: Linear, y: Floats) -> Floats:
    """[groups, n, channels/group] of an output, all positions."""
    flat = y.reshape(len(y), layer.groups, -1, layer.places(y.shape))
    return np.ascontiguousarray(flat.transpose(1, 0, 3, 2)).reshape(layer.groups, -1, flat.shape[2])


def gradient(layer: Linear, x: Floats, g: Floats) -> Doubles:
    """[groups, d + 1, m]: gradient of the weight and the bias from the one at the output, summed over all positions."""
    total = np.zeros((layer.groups, layer.unknowns + 1, layer.channels // layer.groups))
    windows, sides, places = layer.windows(x), _by_group(layer, g), layer.places(g.shape)
    for own in _slices(len(x), _ROWS // (4 * places * layer.unknowns * layer.groups)):
        rows = np.ascontiguousarray(windows[:, own]).reshape(layer.groups, -1, layer.unknowns)
        total[:, :-1] += product(rows, sides[:, own.start * places : own.stop * places])
    total[:, -1] = sides.sum(1)
    return total


def _pieces(parts: Sequence[Part]) -> list[Part]:
    """The same inputs, fewer at a time."""
    return [
        Part(p.x[at], p.wanted[at], None if p.added is None else p.added[at])
        for p in parts
        for at in _slices(len(p.x), _PIECE)
    ]


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(i, i + max(size, 1)) for i in range(0, count, max(size, 1)))


def _step(
    at: State,
    parts: Sequence[Part],
    inverse: Sequence[tuple[Doubles, Doubles]],
    previous: Matrices | None,
    share: float,
) -> Matrices:
    """A share of the best step in the plane of the preconditioned gradient and the previous step."""
    layers, total = at.passes.layers, sum(len(p.x) for p in parts)
    few = _pieces(parts[: ceil(len(parts) / _LENGTH)])
    pieces = [*few, *_pieces(parts[ceil(len(parts) / _LENGTH) :])]

    def slopes(own: range) -> tuple[Matrices, list[tuple[list[Floats], Floats]]]:
        sums, seen = [np.zeros(())] * len(layers), []
        for i in own:
            inputs, off = at.look(pieces[i])
            back = at.passes.reverse(inputs, at.weights, off)
            slope = (gradient(layer, x, g) / total for layer, x, g in zip(layers, inputs, back, strict=True))
            sums = [before + more for before, more in zip(sums, slope, strict=True)]
            seen += [(inputs, off)] if i < len(few) else []
        return sums, seen

    def bends(seen: tuple[list[Floats], Floats]) -> Doubles:
        inputs, off = seen
        moved = np.stack([at.tangent(inputs, direction)[off != 0] for direction in plane])
        made: Doubles = (moved @ moved.T).astype(np.float64)
        return made

    found = each(slopes, [range(i, len(pieces), _JOBS) for i in range(min(_JOBS, len(pieces)))])
    slope = [sum(own, np.zeros(())) for own in zip(*(sums for sums, _ in found), strict=True)]
    plane = [[-a @ g @ b for g, (a, b) in zip(slope, inverse, strict=True)]] + ([previous] if previous else [])
    curvature = sum(each(bends, [one for _, seen in found for one in seen])) / sum(len(p.x) for p in few)
    down = np.array([sum(float((g * p).sum()) for g, p in zip(slope, d, strict=True)) for d in plane])
    curvature += np.diag(1e-6 * np.diag(curvature) + 1e-30)
    lengths = share * np.linalg.solve(curvature, -down)
    return [sum((s * d[i] for s, d in zip(lengths, plane, strict=True)), np.zeros(())) for i in range(len(layers))]
