"""Initializers that exporters de-duplicated get one copy per use; weights that are really shared stay shared.

Shared zeros of two biases would tie two layers that have nothing to do with each other.
"""

from __future__ import annotations

import numpy as np

from onnxprune.graph import Constant, Model, constant, dtype_of, fresh_name, is_constant, values
from onnxprune.normalize.edit import elements

_MOST = 1 << 20  # elements
_INDICES = {np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.bool_)}


def unshare(model: Model) -> int:
    """Copy shared shapes, indices and uniform vectors; the first use keeps the name. Returns the number of copies."""
    taken: set[str] = set()
    seen: set[str] = set()
    copies = 0
    for node in model.graph.nodes:
        for i, tensor in enumerate(node.inputs):
            if not is_constant(tensor) or len(tensor.outputs) < 2:
                continue
            if tensor.name in seen and _is_coincidence(model, tensor):
                taken = taken or model.names()
                node.inputs[i] = constant(fresh_name(tensor.name, taken), np.array(values(tensor)))
                copies += 1
            seen.add(tensor.name)
    return copies


def _is_coincidence(model: Model, tensor: Constant) -> bool:
    """Whether the uses have merely equal values: not a weight, and nothing that a subgraph reads."""
    dtype, size = dtype_of(tensor), elements(tensor)
    if dtype is None or size >= _MOST or tensor.name in model.captured:
        return False
    if dtype in _INDICES:
        return True
    array = values(tensor)
    return array is not None and size > 1 and bool((array == array.flat[0]).all())
