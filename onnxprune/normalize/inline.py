"""What is done before there is a graph to edit: local functions are inlined, sparse initializers made dense."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, SparseTensorProto, TensorProto, inliner, numpy_helper

from onnxprune.errors import UnsupportedError
from onnxprune.graph import Array
from onnxprune.stored import nbytes, split_weights


def inline_functions(proto: ModelProto) -> ModelProto:
    """Inline local functions; the model given is not changed."""
    light, weights = split_weights(proto, "weights")
    inlined: ModelProto = inliner.inline_local_functions(light)
    full = {t.name: t for t in weights}
    for tensor in inlined.graph.initializer:
        if tensor.name in full:
            tensor.CopyFrom(full[tensor.name])
    return inlined


def densify(proto: ModelProto, cap: int) -> ModelProto:
    """Replace sparse initializers by dense ones; UnsupportedError where they would need more than `cap` bytes."""
    dense = ModelProto()
    dense.CopyFrom(proto)
    dense.graph.ClearField("sparse_initializer")
    for sparse in proto.graph.sparse_initializer:
        tensor = TensorProto(name=sparse.values.name, data_type=sparse.values.data_type, dims=sparse.dims)
        if nbytes(tensor) > cap:
            raise UnsupportedError(f"sparse initializer {tensor.name!r} has {nbytes(tensor)} bytes when made dense")
        dense.graph.initializer.append(numpy_helper.from_array(_dense(sparse), tensor.name))
    return dense


def _dense(sparse: SparseTensorProto) -> Array:
    items, at = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    out = np.zeros(tuple(sparse.dims), items.dtype)
    if at.ndim == 1:  # indices into the flattened tensor
        out.reshape(-1)[at] = items
    else:  # [values, rank]
        out[tuple(at.T)] = items
    return out
