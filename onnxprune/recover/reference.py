"""What the original network gives, at chosen positions: the targets of every refit, gathered in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.graph import Array
from onnxprune.parallel import each
from onnxprune.recover.chain import Chain, chain
from onnxprune.recover.layers import Site
from onnxprune.recover.linear import Positions
from onnxprune.recover.program import Feeds, Program, Store, run_through

_POSITIONS = 50_000  # per layer, or ten per unknown
_LARGEST = 1e15  # its square, summed over all positions, is still far from what overflows
_SHARE = 16  # no layer's gathered inputs take more than this part of the memory


@dataclass(frozen=True)
class Layer:
    """A layer of the original: where its output goes, the chosen positions and the values wanted there, per batch."""

    site: Site
    chain: Chain
    positions: list[Positions]
    wanted: list[Array]


@dataclass(frozen=True)
class Reference:
    """The original network on the calibration inputs.

    batches: inputs; held: how many of the last batches no fit may see; layers: by the tensor that the layer makes;
    outputs: results of the network per batch.
    """

    program: Program
    batches: Sequence[Feeds]
    held: int
    layers: dict[str, Layer]
    outputs: list[dict[str, Array]]

    @property
    def train(self) -> int:
        """Number of batches that fits may see."""
        return len(self.batches) - self.held

    @property
    def checks(self) -> range:
        """Indices of the batches that fits are checked on: those that they may not see, if there are any."""
        return range(self.train, len(self.batches)) if self.held else range(len(self.batches))


def overflowing(reference: Reference) -> tuple[str, float] | None:
    """A layer whose squared outputs float32 cannot sum, and the value of its largest one; None where there is none."""
    for layer in reference.layers.values():
        ends = [abs(float(end(a))) for a in layer.wanted if a.size for end in (np.max, np.min)]
        found = float(np.max(ends, initial=0.0))  # NaN stays NaN
        if not found <= _LARGEST:
            return layer.site.layer.node, found
    return None


def samples(batch: Feeds) -> int:
    """Inputs in a batch."""
    return max((len(a) for a in batch.values() if a.ndim), default=1)


def reference(
    program: Program,
    sites: Sequence[Site],
    batches: Sequence[Feeds],
    held: int,
    *,
    seed: int = 0,
    memory: float = 4e9,
    store: Store | None = None,
    sums: bool = True,
) -> Reference:
    """Run the original once and gather the targets of all layers.

    memory: bytes that the gathered rows may take (the targets a quarter of it; beyond that fewer positions are taken).
    sums: aim behind an Add, at the sum (else at the layer's own output).
    """
    store = store or Store()
    layers = {s.layer.y: Layer(s, chain(program, s.layer, s.index, sums=sums), [], []) for s in sites}
    total = sum(samples(b) for b in batches)
    wanted = _positions(sites, memory)
    outputs: list[dict[str, Array]] = []

    def visit(index: int, tensors: Mapping[str, Array]) -> None:
        outputs.append({n: store.keep(tensors[n]) for n in program.outputs})

        def gathered(layer: Layer) -> tuple[Positions, Array]:
            made = layer.chain.restore(tensors[layer.chain.end])
            at = _choose(layer.site, made.shape, wanted[layer.site.layer.y] / total, [seed, layer.site.index, index])
            return at, layer.site.layer.outputs(made, at).astype(np.float32)

        found = each(gathered, list(layers.values()))
        for layer, (at, targets) in zip(layers.values(), found, strict=True):
            layer.positions.append(at)
            layer.wanted.append(store.keep(targets))

    run_through(program, batches, [x.chain.end for x in layers.values()], visit, "the original: batch")
    return Reference(program, batches, held, layers, outputs)


def _positions(sites: Sequence[Site], memory: float) -> dict[str, float]:
    """How many positions each layer gets over all samples."""
    counts = {}
    for s in sites:
        layer = s.layer
        width = max(layer.inputs * layer.taps, 2 * layer.channels)
        counts[layer.y] = min(max(10 * layer.unknowns, _POSITIONS), memory / _SHARE / 4 / width)
    held = 4 * sum(counts[s.layer.y] * s.layer.channels for s in sites)
    thin = min(1.0, memory / 4 / max(held, 1))
    return {name: n * thin for name, n in counts.items()}


def _choose(site: Site, shape: Sequence[int], per_sample: float, seed: list[int]) -> Positions:
    """Random positions of every sample of a batch, or all."""
    count, places = site.layer.samples(shape), site.layer.places(shape)
    wanted = int(np.ceil(per_sample))
    if wanted >= places:
        return Positions(np.repeat(np.arange(count), places), np.tile(np.arange(places), count))
    rng = np.random.default_rng(seed)
    place = rng.random((count, places)).argpartition(wanted, axis=1)[:, :wanted]
    return Positions(np.repeat(np.arange(count), wanted), place.reshape(-1))
