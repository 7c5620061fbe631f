"""Local functions are inlined, sparse initializers made dense."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from cleaning import cleaned, initializer, ops, parse
from onnx import helper, numpy_helper

from onnxprune.errors import UnsupportedError
from onnxprune.normalize import clean, normalize

FUNCTIONS = """
<domain: "com.acme", opset_import: ["" : 17]>
Twice (x) => (y) { y = Add(x, x) }
<domain: "com.acme", opset_import: ["" : 17, "com.acme" : 1]>
Leaky <slope: float = 0.5> (x) => (y) { a = com.acme.Twice(x) y = LeakyRelu<alpha: float = @slope>(a) }
"""


def with_functions():
    """A model that calls a function twice, with an attribute, which calls another; a weight of 2,000 elements."""
    model = parse(
        """g (float[2] x) => (float[2] y) { a = com.acme.Leaky(x) b = com.acme.Leaky<slope = 0.25>(a)
        c = ReduceMean<keepdims = 0>(w) y = Add(b, c) }"""
        + FUNCTIONS,
        domains=', "com.acme" : 1',
    )
    model.graph.initializer.append(numpy_helper.from_array(np.arange(2000, dtype=np.float32), "w"))
    return model


def test_functions():
    """Calls are replaced by the bodies, nested and with attributes; weights come through."""
    after = cleaned(with_functions())
    assert ops(after) == ["Add", "LeakyRelu", "Add", "LeakyRelu", "Add"]
    assert not after.functions
    assert initializer(after, "c") == np.float32(999.5)


def test_noted():
    """The note counts the functions."""
    assert normalize(with_functions()).notes[0] == "local functions inlined: 2"


def sparse_model(indices, at):
    """A model that adds a sparse initializer [2, 3] to its input."""
    model = parse("g (float[2,3] x) => (float[2,3] y) { y = Add(x, w) }")
    values = helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [1.5, 2.5])
    tensor = helper.make_tensor("at", onnx.TensorProto.INT64, indices, at)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, tensor, [2, 3]))
    return model


@pytest.mark.parametrize(("indices", "at"), [([2], [1, 5]), ([2, 2], [0, 1, 1, 2])], ids=["flat", "per axis"])
def test_sparse(indices, at):
    """Both forms of indices give the dense weight, in its own element type."""
    model = sparse_model(indices, at)
    after = clean(model)
    want = np.zeros((2, 3), np.float32)
    want[0, 1], want[1, 2] = 1.5, 2.5
    np.testing.assert_array_equal(initializer(after, "w"), want, strict=True)
    assert not after.graph.sparse_initializer
    assert clean(after).SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)
    assert normalize(model).notes == ["sparse initializers made dense: 1"]


def test_sparse_bomb():
    """A sparse initializer that would need more than the cap is refused, by name."""
    model = sparse_model([2], [1, 5])
    model.graph.sparse_initializer[0].dims[:] = [1 << 20, 1 << 20]
    with pytest.raises(UnsupportedError, match="'w'"):
        normalize(model)
