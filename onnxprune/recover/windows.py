"""Windows of layers that are refitted together: convolutions in a row, each the only reader of the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite, prod

from onnxprune.recover.chain import only_reader
from onnxprune.recover.joint import Effort
from onnxprune.recover.layers import Site
from onnxprune.recover.program import Program
from onnxprune.recover.reference import Layer, Reference, samples

_MOST = 3  # layers per window: a bottleneck, an inverted residual
_FEWEST, _POSITIONS = 128, 100_000  # inputs and positions of the output that a step looks at, if there are so many
_PART, _PARTS = 64, 24  # inputs at once: at most, and so that their tensors take such a part of the memory
# Steps; inputs that each looks at: at most, and what they are divided by then.
_EFFORTS = (*((n, 800, 1) for n in (16, 12, 8, 6)), *((n, 400, 1) for n in (6, 4, 3, 2)), (2, 400, 2))


@dataclass(frozen=True)
class Window:
    """Layers in a row.

    sites: in the order of the graph; layers: the same in the reference; pool: batches of it that the fit may see;
    part: inputs that it looks at at once; held: inputs it is checked on; effort: of the fit; macs: of all layers for
    one input.
    """

    sites: tuple[Site, ...]
    layers: tuple[Layer, ...]
    pool: int
    part: int
    held: int
    effort: Effort
    macs: int

    @property
    def last(self) -> Site:
        """The layer behind which the fit aims."""
        return self.sites[-1]

    @property
    def start(self) -> str:
        """The tensor that the first layer reads."""
        return self.sites[0].layer.x

    @property
    def end(self) -> str:
        """The tensor that the fit aims at."""
        return self.layers[-1].chain.end


def windows(program: Program, sites: Sequence[Site], reference: Reference, memory: float) -> dict[int, Window]:
    """The windows of a cut model by the index of their last layer.

    memory: bytes that a window's inputs may take.
    """
    shapes, made = reference.program.shapes, dict[int, Window]()
    total, held = (
        sum(samples(reference.batches[b]) for b in own) for own in (range(reference.train), reference.checks)
    )
    known = [s for s in sites if s.layer.op == "Conv" and {s.layer.x, s.layer.y} <= shapes.keys()]
    for run in _runs(program, [s for s in known if program.is_dynamic(s.layer.x)], reference.layers):
        for own in (run[i : i + _MOST] for i in range(0, len(run) - 1, _MOST - 1)):
            layers = tuple(reference.layers[s.layer.y] for s in own)
            rows = _rows(reference, own[0].layer.x)
            places = [rows * s.layer.places(shapes[s.layer.y]) for s in own]
            macs = ceil(sum(p * s.layer.unknowns * s.layer.channels for p, s in zip(places, own, strict=True)))
            inputs = min(total, max(_FEWEST, ceil(_POSITIONS / places[-1])))
            pool = _pool(reference, own, memory)
            names = [own[0].layer.x, *(s.layer.y for s in own)]
            part = int(memory / _PARTS / (4 * rows * sum(prod(shapes[n][1:]) for n in names)))
            if pool:
                sized = (pool, max(1, min(part, _PART)), held, Effort(inputs=inputs), macs)
                made[own[-1].index] = Window(tuple(own), layers, *sized)
    return made


def affordable(found: Mapping[int, Window], work: float) -> dict[int, Window]:
    """The windows with as many steps as fit into so many multiply-adds; none where even a few steps are too many."""
    for steps, most, divisor in _EFFORTS:
        planned = {
            i: replace(w, effort=Effort(steps, inputs=ceil(min(w.effort.inputs, most) / divisor)))
            for i, w in found.items()
        }
        if sum(w.macs * w.effort.passes(w.held) for w in planned.values()) <= work:
            return planned
    return {}


def _runs(program: Program, sites: Sequence[Site], layers: Mapping[str, Layer]) -> list[list[Site]]:
    """Convolutions in a row; each site is in at most one run."""
    reader = {s.index: s for s in sites if s.layer.y in layers}
    behind = dict[int, Site]()
    for site in reader.values():
        after = _next(program, layers[site.layer.y])
        if after in reader:
            behind[site.index] = reader[after]
    inner, found = {s.index for s in behind.values()}, list[list[Site]]()
    for site in reader.values():
        if site.index in inner:
            continue
        run = [site]
        while run[-1].index in behind:
            run.append(behind[run[-1].index])
        if len(run) > 1 and not layers[run[-1].layer.y].chain.order:
            found.append(run)
    return found


def _next(program: Program, layer: Layer) -> int | None:
    """Index of the only node that reads a layer's output, with nothing but an activation of known range between."""
    chain = layer.chain
    if chain.other or chain.order or chain.end in program.outputs:
        return None
    name, node = chain.end, only_reader(program, chain.end)
    if node is not None and (isfinite(chain.low) or isfinite(chain.high)):
        name = node.output[0]
    readers = program.readers.get(name, [])
    alone = len(readers) == 1 and name not in program.outputs and program.nodes[readers[0]].input[0] == name
    return readers[0] if alone else None


def _rows(reference: Reference, name: str) -> float:
    """Length of a tensor's first axis per input of the network."""
    shapes = reference.program.shapes
    traced = [shapes[n][0] for n in reference.program.inputs if shapes.get(n)]
    return shapes[name][0] / max([1, *traced])


def _pool(reference: Reference, run: Sequence[Site], memory: float) -> int:
    """How many of the batches that fits may see fit into the memory, beside the held-out ones."""
    shapes, start, end = reference.program.shapes, run[0].layer.x, run[-1].layer.y
    each = 4 * _rows(reference, start) * (prod(shapes[start][1:]) + 2 * prod(shapes[end][1:]))
    count, taken = 0, each * sum(map(samples, reference.batches[reference.train :]))
    for batch in reference.batches[: reference.train]:
        taken += each * samples(batch)
        if taken > memory:
            break
        count += 1
    return count
