"""Normalising a model, so that the rules that follow meet few forms: small passes, one file each, run to a fixed point.

The file itself first: local functions are inlined, sparse initializers made dense, and initializers leave the graph's
inputs (IR 3 becomes 4). Then, until none finds anything to do, in this order:

    constants     Constant nodes become initializers
    identity      Identity and inference Dropout are bypassed
    fold          nodes that read constants only are evaluated
    shape_values  shape arithmetic that is certain becomes constants
    dead          nodes that nobody reads are removed
    permute       channel shuffles become one Gather
    unshare       constants that are shared by coincidence are copied

Every pass decides by the present state of the graph alone. That is what makes `clean` idempotent: a cleaned model is in
the state in which no pass finds anything. Outputs are equal to 1e-5; names of what survives, graph inputs and outputs,
opset and MACs stay. Nodes with subgraphs, and what these read from outside, are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import onnx

from onnxprune.graph import Model, from_proto
from onnxprune.normalize.constants import constants_to_initializers
from onnxprune.normalize.dead import remove_dead
from onnxprune.normalize.describe import export
from onnxprune.normalize.fold import fold_constants
from onnxprune.normalize.identity import remove_identities
from onnxprune.normalize.inline import densify, inline_functions
from onnxprune.normalize.permute import merge_shuffles
from onnxprune.normalize.shape_values import fix_shape_values
from onnxprune.normalize.unshare import unshare
from onnxprune.shapes import skeleton
from onnxprune.shapes.symbolic import Facts, interpret

FOLD_CAP = 1 << 30  # bytes; VGG-19 with its weights in ConstantOfShape nodes folds to 575 MB

Pass = Callable[[Model], int]


def normalize(proto: onnx.ModelProto, *, fold_cap: int = FOLD_CAP) -> Model:
    """Bring a model into the form that coupling expects; `notes` of the result say what was changed.

    proto: not changed, but its arrays are shared: treat it as read-only. fold_cap: bytes that all initializers together
    may reach by constant folding (a larger model does not grow; results up to 1 KB always fold). Raises
    UnsupportedError for sparse initializers beyond that.
    """
    notes: list[str] = []
    if proto.functions:
        notes.append(f"local functions inlined: {len(proto.functions)}")
        proto = inline_functions(proto)
    if proto.graph.sparse_initializer:
        notes.append(f"sparse initializers made dense: {len(proto.graph.sparse_initializer)}")
        proto = densify(proto, fold_cap)
    model = from_proto(proto)
    model.notes.extend([*notes, *_inputs_note(proto, model), *_to_fixed_point(model, fold_cap)])
    return model


def clean(proto: onnx.ModelProto, *, fold_cap: int = FOLD_CAP) -> onnx.ModelProto:
    """The normalised model as a file, with value_info inferred again where the original had any; see `normalize`."""
    return export(normalize(proto, fold_cap=fold_cap))


def _to_fixed_point(model: Model, fold_cap: int) -> list[str]:
    """Run the passes in turn until all of them, one after the other, have found nothing; say what they did."""
    known: list[Facts] = []  # at most one item: what is known of the model as it is now

    def follow() -> Facts:
        known.extend([interpret(skeleton(model))] if not known else [])
        return known[0]

    passes: dict[str, Pass] = {
        "Constant nodes turned into initializers": constants_to_initializers,
        "Identity and Dropout nodes removed": remove_identities,
        "constant nodes folded": lambda m: fold_constants(m, fold_cap),
        "computed shapes made constant": lambda m: fix_shape_values(m, follow),
        "unused nodes removed": remove_dead,
        "channel shuffles turned into Gather nodes": lambda m: merge_shuffles(m, follow),
        "copies made of initializers that were shared by coincidence": unshare,
    }
    counts = dict.fromkeys(passes, 0)
    idle = 0
    for what in cycle(passes):
        found = passes[what](model)
        counts[what] += found
        idle = 0 if found else idle + 1
        if found:
            known.clear()
        if idle == len(passes):
            break
    return [f"{what}: {count}" for what, count in counts.items() if count]


def _inputs_note(proto: onnx.ModelProto, model: Model) -> list[str]:
    count = len(proto.graph.input) - len(model.header.graph.input)
    change = f" (IR {proto.ir_version} -> {model.header.ir_version})" if proto.ir_version < 4 else ""
    return [f"initializers taken out of the graph's inputs: {count}{change}"] if count else []
