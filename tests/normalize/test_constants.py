"""Constant nodes become initializers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from cleaning import cleaned, initializer, names, ops, parse

FORMS = {
    "value = float[2] {1.5, 2.5}": np.float32([1.5, 2.5]),
    "value_float = 1.5": np.float32(1.5),
    "value_floats = [1.5, 2.5]": np.float32([1.5, 2.5]),
    "value_int = 3": np.int64(3),
    "value_ints = [3, 4]": np.int64([3, 4]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form):
    """Each form of Constant becomes an initializer of the same value under the name of the output."""
    kind = "float" if FORMS[form].dtype == np.float32 else "int64"
    shape = "2" if FORMS[form].ndim else "1"
    model = parse(f"g ({kind}[{shape}] x) => ({kind}[{shape}] y) {{ c = Constant<{form}>()  y = Add(x, c) }}")
    after = cleaned(model)
    assert ops(after) == ["Add"]
    np.testing.assert_array_equal(initializer(after, "c"), FORMS[form], strict=True)


@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "BOOL"])
def test_every_type(kind):
    """Values keep their element type."""
    number = onnx.TensorProto.DataType.Value(kind)
    tensor = onnx.helper.make_tensor("", number, [2], [0, 1])
    model = parse("g (float[2] x) => (float[2] y) { d = Cast<to = 1>(c) y = Add(x, d) }")
    model.graph.node[0].input[0] = "c"
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["c"], value=tensor))
    model.graph.output.append(onnx.helper.make_tensor_value_info("e", number, [2]))
    model.graph.node.append(onnx.helper.make_node("Identity", ["c"], ["e"]))
    after = cleaned(model, run=False)
    assert [(t.name, t.data_type) for t in after.graph.initializer if t.name == "c"] == [("c", number)]


STAYS = {
    "the graph's output": "g (float[1] x) => (float c, float[1] z) { c = Constant<value_float = 1.0>() z = Neg(x) }",
    "a string": """g (float[1] x) => (string s, float[1] z) {
        c = Constant<value_string = "a">() s = Identity(c) z = Neg(x) }""",
    "read by a subgraph": """g (bool b, float[1] x) => (float[1] y) {
        c = Constant<value_float = 1.0>()
        y = If(b)<then_branch = t () => (float[1] p) { p = Add(x, c) },
        else_branch = e () => (float[1] q) { q = Sub(x, c) }>
    }""",
}


@pytest.mark.parametrize("why", STAYS)
def test_stays(why):
    """A Constant that must keep its name or cannot be held as an array stays a node."""
    after = cleaned(parse(STAYS[why]), run=why != "a string")
    assert "Constant" in ops(after)
    assert not names(after)


def test_sparse_stays():
    """A sparse value stays a node."""
    values = onnx.helper.make_tensor("", onnx.TensorProto.FLOAT, [1], [2.0])
    at = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [1], [1])
    model = parse("g (float[3] x) => (float[3] y) { y = Add(x, c) }")
    node = onnx.helper.make_node("Constant", [], ["c"], sparse_value=onnx.helper.make_sparse_tensor(values, at, [3]))
    model.graph.node.insert(0, node)
    after = cleaned(model)
    assert ops(after) == ["Constant", "Add"]
    assert after.graph.node[0].attribute[0].sparse_tensor == node.attribute[0].sparse_tensor
