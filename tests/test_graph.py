"""The graph view: what is read comes back, what is changed changes alone, and copies are independent."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import between, proto
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph import constant, from_proto, make_node, values

TEXT = """g (bool c, float[3] x) => (float[3] y) <float[3] w = {1, 2, 3}, float[3] v = {4, 5, 6}> {
    [first] h = Clip (x, , w)
    [second] k = LeakyRelu <alpha = 0.5> (h)
    [third] y = If (c) <then_branch = t () => (float[3] a) { a = Add (k, v) },
                        else_branch = e () => (float[3] b) { b = Identity (k) }>
}"""


def model():
    """One with all that nodes can have beside op, inputs, outputs and attributes that are shown."""
    found = proto(TEXT)
    node = found.graph.node[1]
    node.doc_string, node.domain = "why", ""
    node.metadata_props.add(key="origin", value="torch")
    node.attribute[0].doc_string = "slope"
    node.attribute.append(helper.make_attribute("empty", [], attr_type=onnx.AttributeProto.INTS))
    node.attribute.append(helper.make_attribute("names", ["a", "b"]))
    node.attribute.append(helper.make_attribute("table", helper.make_tensor("t", TensorProto.INT4, [2], [1, 2])))
    return found


def test_a_node_comes_back_as_it_was():
    """Name, text, metadata, every kind of attribute and omitted inputs."""
    before = model()
    after = from_proto(before).to_proto()
    assert list(after.graph.node) == list(before.graph.node)


def test_a_node_that_changes_keeps_the_rest():
    """Attributes in their order, those that are not shown behind them; text, metadata and name stay."""
    before = model()
    view = from_proto(before)
    attrs = view.graph.nodes[1].attrs
    assert list(attrs) == ["alpha", "names", "table"]
    attrs["alpha"], attrs["beta"] = 0.25, 7
    del attrs["names"]
    node, old = view.to_proto().graph.node[1], before.graph.node[1]
    assert [a.name for a in node.attribute] == ["alpha", "table", "beta", "empty"]
    assert (node.attribute[0].f, node.attribute[2].i) == (0.25, 7)
    assert (node.attribute[1], node.attribute[3]) == (old.attribute[3], old.attribute[1])
    assert (node.name, node.doc_string, node.metadata_props) == ("second", "why", old.metadata_props)


def test_a_node_of_another_op_takes_nothing_over():
    """A node that was put in the place of another, with its output, has only what it was made of."""
    view = from_proto(model())
    old = view.graph.nodes[1]
    new = make_node("Relu", list(old.inputs), list(old.outputs), name="new")
    view.graph.nodes[1] = new
    (made,) = (n for n in view.to_proto().graph.node if n.op_type == "Relu")
    assert (made.name, made.doc_string, list(made.attribute), list(made.output)) == ("new", "", [], ["k"])


def test_tensors_know_their_nodes():
    """Producers and consumers, of what is read as of what is put in later; an omitted input is nobody's."""
    view = from_proto(model())
    clip, leaky, _ = view.graph.nodes
    assert [n.name for n in clip.outputs[0].outputs] == ["second"]
    assert clip.outputs[0].inputs[0] is clip
    assert [t.name for t in clip.inputs] == ["x", "", "w"]
    relu = make_node("Relu", [clip.outputs[0]], [constant("z", np.zeros(3, np.float32))])
    assert [n.op for n in clip.outputs[0].outputs] == ["LeakyRelu", "Relu"]
    leaky.inputs[0] = relu.outputs[0]
    assert [n.op for n in clip.outputs[0].outputs] == ["Relu"]
    assert view.captured == {"k", "v"}


def test_a_copy_is_independent():
    """Nodes, tensors, attributes and links are its own; arrays are shared."""
    view = from_proto(model())
    before = view.to_proto()
    copy = view.copy()
    assert copy.to_proto() == before
    shared = zip(view.graph.nodes, copy.graph.nodes, strict=True)
    assert all(a is not b and a.inputs[0] is not b.inputs[0] for a, b in shared)
    assert copy.graph.nodes[0].outputs[0].outputs == [copy.graph.nodes[1]]
    copy.graph.nodes[1].attrs["alpha"] = 0.0
    copy.graph.nodes[0].inputs[2].values = np.zeros(3, np.float32)
    copy.graph.nodes[0].inputs[0] = constant("z", np.ones(3, np.float32))
    assert view.to_proto() == before
    assert view.graph.inputs[1].outputs == [view.graph.nodes[0]]


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "BOOL", "INT8", "INT64", "UINT16"])
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_values(kind, raw):
    """Arrays are what the onnx library reads, whichever field holds them."""
    number = getattr(TensorProto, kind)
    dtype = helper.tensor_dtype_to_np_dtype(number)
    array = np.arange(6).reshape(2, 3).astype(dtype)
    tensor = helper.make_tensor("w", number, [2, 3], array.tobytes() if raw else array.ravel().tolist(), raw=raw)
    found = proto(between("d = Relu(h)"))
    found.graph.initializer.append(tensor)
    found.graph.node.append(helper.make_node("Identity", ["w"], ["z"]))
    read = values(from_proto(found).constants()["w"])
    assert (read.dtype, read.shape) == (dtype, (2, 3))
    np.testing.assert_array_equal(read, numpy_helper.to_array(tensor))


def test_types_that_must_not_be_touched():
    """4-bit and 8-bit floats have no values, and come back to the byte."""
    found = proto(between("d = Relu(h)"))
    for name, kind in (("a", TensorProto.INT4), ("b", TensorProto.FLOAT8E5M2)):
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        found.graph.initializer.append(numpy_helper.from_array(np.ones(4, dtype), name))
        found.graph.node.append(helper.make_node("Identity", [name], [f"{name}_out"]))
    view = from_proto(found)
    assert [values(view.constants()[n]) for n in "ab"] == [None, None]
    after = {t.name: t for t in view.to_proto().graph.initializer}
    assert [after[n] for n in "ab"] == list(found.graph.initializer)[-2:]
