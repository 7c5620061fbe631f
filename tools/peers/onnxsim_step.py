"""One structured pruning step of onnxsim, timed in process. Prints one line of JSON.

Usage (in its own environment): python onnxsim_step.py FILE KEEP REPEATS
The sparsity whose result keeps a share of the MACs nearest to KEEP is found first (untimed, by bisection); then
`apply_structured_pruning` (L2, the same share in every chain) is timed from model in memory to model in memory.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np
import onnx
import onnxsim


def macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of Conv, Gemm and MatMul at batch 1."""
    m = onnx.ModelProto()
    m.CopyFrom(model)
    for i in m.graph.input:
        i.type.tensor_type.shape.dim[0].dim_value = 1
    for o in m.graph.output:
        for d in o.type.tensor_type.shape.dim:
            d.Clear()
    m.graph.ClearField("value_info")
    m = onnx.shape_inference.infer_shapes(m, data_prop=True)
    shape = {t.name: tuple(t.dims) for t in m.graph.initializer}
    shape |= {
        v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in [*m.graph.value_info, *m.graph.input, *m.graph.output]
    }
    total = 0
    for n in m.graph.node:
        if n.op_type in ("Conv", "Gemm", "MatMul"):
            inner = shape[n.input[1]][1:] if n.op_type == "Conv" else (shape[n.input[0]][-1],)
            total += int(np.prod(shape[n.output[0]])) * int(np.prod(inner))
    return total


def main(path: str, keep: str, repeats: str) -> None:
    """Find the sparsity, measure and print."""
    model = onnx.load(path)
    whole, low, high, best = macs(model), 0.0, 0.95, (9.0, 0.0, 1.0)
    for _ in range(8):
        sparsity = (low + high) / 2
        kept = macs(onnxsim.apply_structured_pruning(model, sparsity, "l2", False)) / whole
        best = min(best, (abs(kept - float(keep)), sparsity, kept))
        low, high = (sparsity, high) if kept > float(keep) else (low, sparsity)
    times = []
    for _ in range(int(repeats)):
        start = time.perf_counter()
        onnxsim.apply_structured_pruning(model, best[1], "l2", False)
        times.append(time.perf_counter() - start)
    print(
        json.dumps(
            {"version": onnxsim.__version__, "seconds": statistics.median(times), "kept": best[2], "sparsity": best[1]}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
