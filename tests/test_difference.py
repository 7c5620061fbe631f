"""Comparing two models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import proto
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.difference import Change, diff

FIXTURES = Path(__file__).parents[1] / "fixtures"
NET = """g (float[1,4,4,4] x) => (float[] y) <float[4,1,3,3] w, float[2,4,1,1] v, int64[2] s = {1, 32}> {
    h = Conv <group = 4, pads = [1, 1, 1, 1]> (x, w)
    z = Conv(h, v)
    y = Reshape(z, s)
}"""


@pytest.fixture
def net():
    return proto(NET)


@pytest.fixture
def other(net):
    copy = onnx.ModelProto()
    copy.CopyFrom(net)
    return copy


def initializer(model, name):
    """An initializer by name."""
    return next(t for t in model.graph.initializer if t.name == name)


def replace(model, name, array):
    """Exchange the value of an initializer."""
    initializer(model, name).CopyFrom(numpy_helper.from_array(array, name))


def test_equal_models_do_not_differ(net, other):
    """Nothing is listed for two equal models, but their size."""
    change = diff(net, other)
    assert not change
    told = change.as_dict()
    assert told["differs"] is False
    assert {k for k, v in told.items() if v} == {"size"}
    assert [c.before == c.after for c in change.size] == [True] * 3


def test_keys_are_stable(net, other):
    """The JSON form has these members, whatever differs."""
    assert set(diff(net, other).as_dict()) == {
        *("differs", "widths", "types", "values", "parameters", "nodes", "attributes"),
        *("inputs", "outputs", "versions", "metadata", "size"),
    }


def test_widths_and_size(net, other):
    """A sliced parameter is listed with both shapes, and the size follows."""
    replace(other, "v", np.zeros((2, 3, 1, 1), np.float32))
    change = diff(net, other)
    assert change.widths == (Change("v", [2, 4, 1, 1], [2, 3, 1, 1]),)
    assert change.values == change.types == change.parameters == ()
    assert change.size[:2] == (Change("parameters", 46, 44), Change("parameter_bytes", 192, 184))
    assert change.size[2] == Change("bytes", net.ByteSize(), other.ByteSize())


def test_values_are_shown_where_they_are_shapes(net, other):
    """A refitted Reshape target is shown; weights with other values only as checksums."""
    replace(other, "s", np.array([1, -1]))
    replace(other, "w", numpy_helper.to_array(initializer(net, "w")) + 1)
    shapes, weights = sorted(diff(net, other).values, key=lambda c: c.name)
    assert shapes == Change("s", [1, 32], [1, -1])
    assert weights.before.startswith("crc32 ")
    assert weights.before != weights.after


def test_storage_form_does_not_matter(net, other):
    """Values in float_data are the same as in raw_data."""
    tensor = initializer(other, "v")
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(helper.make_tensor("v", tensor.data_type, values.shape, values.ravel()))
    assert diff(net, other).values == ()


def test_element_type(net, other):
    """A converted parameter keeps its width and changes its type."""
    replace(other, "v", np.zeros((2, 4, 1, 1), np.float16))
    change = diff(net, other)
    assert (change.types, change.widths) == ((Change("v", "float", "float16"),), ())


def test_attributes(net, other):
    """Attributes that changed, appeared and vanished are named with their node, which may have no name."""
    conv = other.graph.node[0]
    conv.attribute[0].i = 2
    del conv.attribute[1]
    conv.attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER"))
    assert diff(net, other).attributes == (
        Change("h.group", 4, 2),
        Change("h.pads", [1, 1, 1, 1], None),
        Change("h.auto_pad", None, "SAME_UPPER"),
    )


def test_op_type_is_an_attribute_of_the_node(net, other):
    """A node that keeps its name but not its op is a changed node."""
    other.graph.node[2].op_type = "Expand"
    assert diff(net, other).attributes == (Change("y.op_type", "Reshape", "Expand"),)


def test_bodies_and_tensors_in_attributes_are_compared():
    """Two If nodes whose branches differ are told apart."""
    text = """g (bool c) => (float[] y) <float[1] w> {{
        y = If <
            then_branch = t () => (float[1] a) {{ a = {op}(w) }},
            else_branch = e () => (float[1] b) {{ b = Abs(w) }}
        > (c)
    }}"""
    (change,) = diff(proto(text.format(op="Neg")), proto(text.format(op="Exp"))).attributes
    assert change.name == "y.then_branch"
    assert change.before.startswith("graph of ")


def test_nodes_and_parameters_that_only_one_has(net, other):
    """What was added or removed is listed with op type or shape."""
    del other.graph.node[2]
    other.graph.node.append(helper.make_node("Relu", ["z"], ["r"], name="act"))
    other.graph.initializer.remove(initializer(other, "s"))
    change = diff(net, other)
    assert change.nodes == (Change("y", "Reshape", None), Change("act", None, "Relu"))
    assert change.parameters == (Change("s", [2], None),)


def test_constant_nodes_are_parameters(net, other):
    """A Constant node and an initializer of the same name and value are the same parameter, however it is written."""
    other.graph.initializer.remove(initializer(other, "s"))
    other.graph.node.insert(0, helper.make_node("Constant", [], ["s"], value_ints=[1, 32]))
    change = diff(net, other)
    assert (change.parameters, change.nodes, change.values) == ((), (), ())


def test_signature(net, other):
    """Inputs and outputs are compared by type and shape; initializers among the inputs are no inputs."""
    other.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    other.graph.input.append(helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, [2, 4, 1, 1]))
    other.graph.output[0].name = "logits"
    change = diff(net, other)
    assert change.inputs == (Change("x", "float [1, 4, 4, 4]", "float [batch, 4, 4, 4]"),)
    assert change.outputs == (Change("y", "float [1, 32]", None), Change("logits", None, "float [1, 32]"))


def test_versions_and_metadata(net, other):
    """Opsets, IR version, producer and metadata are compared."""
    other.ir_version, other.producer_name = 9, "me"
    other.opset_import[0].version = 18
    other.metadata_props.add(key="task", value="digits")
    change = diff(net, other)
    assert change.versions == (
        Change("IR version", 8, 9),
        Change("opset ai.onnx", 17, 18),
        Change("producer_name", None, "me"),
    )
    assert change.metadata == (Change("task", None, "digits"),)


def test_difference_of_a_compressed_model_is_its_plan():
    """Against the cleaned model, the widths that changed are exactly the plan's, and nothing else is lost."""
    source = FIXTURES / "mobile_legacy.onnx"
    result = onnxprune.compress(source, flops=0.5, recover="none")
    change = onnxprune.diff(onnxprune.clean(source), result.model)
    widths = ((c.name, enumerate(zip(c.before, c.after, strict=True))) for c in change.widths)
    found = {name: {axis: new for axis, (old, new) in pairs if old != new} for name, pairs in widths}
    assert found == {name: {axis: len(kept) for axis, kept in axes.items()} for name, axes in result.plan.keep.items()}
    assert {c.name.rpartition(".")[2] for c in change.attributes} == {"group"}
    assert change.nodes == change.parameters == change.inputs == change.outputs == change.versions == ()
    assert change.metadata == change.types == ()


def test_bad_models_are_refused(tmp_path):
    """`onnxprune.diff` reads as strictly as everything else."""
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(onnxprune.errors.ModelError, match="empty"):
        onnxprune.diff(tmp_path / "empty.onnx", FIXTURES / "vgg_legacy.onnx")
