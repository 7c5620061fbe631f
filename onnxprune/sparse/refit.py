"""The weights that are left, fitted anew: layer by layer, each on what its inputs have become by then."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

import numpy as np

from onnxprune.analysis import Mask
from onnxprune.clock import Progress
from onnxprune.graph import Array
from onnxprune.recover.layers import sites
from onnxprune.recover.program import Program, Store, Walk
from onnxprune.recover.reference import Reference
from onnxprune.recover.sequence import LayerRecovery, repair_layer
from onnxprune.recover.view import View
from onnxprune.runtime import trim


def refit(
    network: Program, masks: Mapping[str, Mask], reference: Reference, store: Store
) -> tuple[list[LayerRecovery], list[dict[str, Array]]]:
    """Refit the masked weights of a program in place; what became of each, and the network's outputs per batch.

    masks: [groups, d, out/group] of what stays, by weight; zeros stay zeros, and no layer gets a new bias.
    """
    done = list[LayerRecovery]()
    with closing(Walk(network, reference.batches, store)) as walk:
        found = sites(network)[0]
        for site in Progress("layer", len(found)).over(found):
            layer, mask = reference.layers.get(site.layer.y), masks.get(site.weight)
            if layer is None or mask is None:
                continue
            walk.advance(site.index)
            view = View(network, site, np.arange(site.layer.channels), new_biases=False)
            done.append(repair_layer(view, walk, reference, layer, "least-squares", mask=mask))
            trim()
        walk.advance(len(network.nodes))
        made = [{n: walk.tensor(b, n) for n in network.outputs} for b in range(len(reference.batches))]
    return done, made
