"""NASWOT: how differently a network's activations divide inputs, without labels or training (Mellor et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.graph import Array
from onnxprune.recover.program import Feeds, Program, run_through

SAMPLES = 128
_AT_ZERO = frozenset({"Relu", "PRelu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Gelu", "Swish", "Mish"})
_AT_ZERO |= {"Erf", "Tanh"}  # GELU written out has one of them
_GATES = frozenset({"Sigmoid", "HardSigmoid"})  # times their own input: SiLU and HardSwish written out


def naswot(program: Program, batches: Sequence[Feeds]) -> float:
    """log |det K|, with K[i, j] the number of units that are on, or off, for both of the inputs i and j.

    A unit is one element of the input of an activation (Relu and its like at 0, Clip at its least value, HardSwish at
    -3, x * Sigmoid(x) at 0). batches: their first 128 different inputs are used. Compare networks of equal cost
    only: the number grows with theirs. -inf for a network without such activations, or where K is singular.
    """
    points = switching_points(program)
    codes: list[dict[str, Array]] = []

    def visit(_: int, tensors: Mapping[str, Array]) -> None:
        codes.append({name: (tensors[name] > at).reshape(len(tensors[name]), -1) for name, at in points.items()})

    run_through(program, _some(batches), list(points), visit)
    kernel = sum((_agreement(np.concatenate([c[name] for c in codes])) for name in points), np.zeros((1, 1)))
    sign, value = np.linalg.slogdet(kernel)
    return float(value) if sign > 0 else -np.inf


def _some(batches: Sequence[Feeds]) -> list[Feeds]:
    """The first 128 different inputs of the batches: equal ones would make every kernel singular."""
    found, seen = list[Feeds](), set[bytes]()
    for batch in batches:
        size = max(len(a) for a in batch.values())
        rows = [b"".join(a[i].tobytes() for a in batch.values() if len(a) == size) for i in range(size)]
        first = {row: i for i, row in reversed(list(enumerate(rows))) if row not in seen}
        new = sorted(first.values())[: SAMPLES - len(seen)]
        seen.update(rows[i] for i in new)
        if new:
            found.append({n: a[new] if len(a) == size else a for n, a in batch.items()})
        if len(seen) >= SAMPLES:
            break
    return found


def _agreement(code: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[inputs, inputs] number of units with equal bits."""
    signs = np.where(code, np.float32(1), np.float32(-1))
    result: NDArray[np.float64] = ((signs @ signs.T).astype(np.float64) + code.shape[1]) / 2
    return result


def switching_points(program: Program) -> dict[str, float]:
    """The inputs of activations, and the value above which a unit counts as on."""
    found: dict[str, float] = {}
    for node in program.nodes:
        at = _switch(program, node)
        if at is not None and node.input[0] not in program.weights:
            found[node.input[0]] = at
    return found


def _switch(program: Program, node: NodeProto) -> float | None:
    if node.op_type in _AT_ZERO:
        return 0.0
    if node.op_type == "HardSwish":
        return -3.0
    if node.op_type == "Clip":
        low = program.weights.get(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        return 0.0 if low is None else float(low)
    if node.op_type in _GATES:
        readers = [program.nodes[i] for i in program.readers.get(node.output[0], [])]
        gated = any(n.op_type == "Mul" and node.input[0] in n.input for n in readers)
        return (0.0 if node.op_type == "Sigmoid" else -3.0) if gated else None
    return None
