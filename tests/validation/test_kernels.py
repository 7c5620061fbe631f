"""Which convolutions run in blocks of channels, and why others do not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import each, proto
from onnx import helper, numpy_helper

from onnxprune import compress, files
from onnxprune.errors import ModelError
from onnxprune.validation import kernels
from onnxprune.validation.kernels import blocked, covered, fell_off, heaviest, misfit, named, optimised_graph

X86 = bool({"avx", "avx2", "avx512f"} & kernels.cpu_flags())
blocks_only = pytest.mark.skipif(not X86, reason="onnxruntime has no blocked kernels here")


def convs(middle, inputs=16):
    """Two convolutions with `middle` channels between, then what a block of a residual network has."""
    return proto(f"""g (float[1,{inputs},8,8] x) => (float[] y)
        <float[{middle},{inputs},3,3] w, float[{middle}] b, float[16,{middle},1,1] v> {{
        [first] h = Conv<pads = [1,1,1,1]>(x, w, b)
        [relu] r = Relu(h)
        [second] s = Conv(r, v)
        [add] a = Add(s, x)
        [last] y = Relu(a)
    }}""")


@blocks_only
def test_aligned_channels_run_blocked():
    """Channels in multiples of 4 run in blocks, both convolutions."""
    found = blocked(convs(20))
    assert [(c.node, c.blocked, c.why) for c in found.convs] == [("first", True, ""), ("second", True, "")]
    assert found.blocked == 2
    assert found.others == ()


@blocks_only
def test_misaligned_channels_leave_the_blocks():
    """The convolution that reads 18 channels leaves the blocks: it is named, with the reason and what would fix it."""
    after = blocked(convs(18))
    (fallen,) = fell_off(blocked(convs(20)), after)
    assert (fallen.node, fallen.inputs, fallen.outputs) == ("second", 18, 16)
    assert fallen.why == "18 input channels are no multiple of 4"
    assert fallen.fix == "inputs 16 or 20 (--align 4)"
    assert fell_off(after, after) == ()
    assert after.as_dict()["blocked"] == 1


@blocks_only
def test_weights_that_are_inputs():
    """Weights that the graph takes as inputs cannot be put in blocks: `clean` helps."""
    model = convs(16)
    weight = next(t for t in model.graph.initializer if t.name == "w")
    model.graph.input.append(helper.make_tensor_value_info("w", 1, list(weight.dims)))
    first, second = blocked(model).convs
    assert (first.blocked, first.why, first.fix) == (
        False,
        "its weights are inputs of the graph",
        "`onnxprune clean` makes them constants",
    )
    assert second.blocked


@blocks_only
def test_weights_that_are_computed():
    """Weights that a node dequantises in every run cannot be put in blocks."""
    model = proto("""g (float[1,16,8,8] x, float s) => (float[] y) <float[16,16,3,3] w> {
        m = Mul(w, s)
        [conv] y = Conv(x, m)
    }""")
    assert blocked(model).others[0].why == "its weights are computed in every run"


def test_one_dimensional_convolutions():
    """Convolutions over one dimension have no blocked kernel."""
    model = proto("g (float[1,16,8] x) => (float[] y) <float[16,16,3] w> { [conv] y = Conv(x, w) }")
    assert blocked(model).others[0].why == "it has not two spatial dimensions"


MISFITS = {
    "few inputs": ((3, 18, 1), None),
    "inputs": ((18, 32, 1), ("18 input channels", "inputs 16 or 20")),
    "outputs": ((16, 18, 1), None),
    "depthwise": ((18, 18, 18), ("18 channels are", "channels 16 or 20")),
    "depthwise, aligned": ((20, 20, 20), None),
    "groups": ((32, 48, 4), ("(8 -> 12)", "multiples of 16 per group")),
    "groups, aligned": ((64, 64, 4), None),
}


@each(MISFITS, "sizes,expected")
def test_misfits(sizes, expected):
    """The rule of onnxruntime's NchwcTransformer, at blocks of 16 channels."""
    why, fix = misfit(*sizes, block=16)
    if expected is None:
        assert (why, fix) == ("onnxruntime chose another kernel", "")
    else:
        assert expected[0] in why
        assert expected[1] in fix


@blocks_only
@pytest.mark.parametrize("inputs", [8, 12, 16, 18, 20, 30, 33])
@pytest.mark.parametrize("group", [1, "depthwise"])
def test_the_rule_is_that_of_onnxruntime(inputs, group):
    """What onnxruntime does with a convolution is what `misfit` says."""
    deep = group == "depthwise"
    weight = f"float[{inputs},1,3,3] w" if deep else f"float[32,{inputs},3,3] w"
    group = inputs if deep else 1
    model = proto(f"g (float[1,{inputs},8,8] x) => (float[] y) <{weight}> {{ [conv] y = Conv<group = {group}>(x, w) }}")
    fits = misfit(inputs, inputs if deep else 32, group)[1] == ""
    assert blocked(model).blocked == fits


@blocks_only
def test_pruned_model():
    """A model cut to free widths leaves the blocks in places; one cut to multiples of 4 does not."""
    path = "fixtures/resnet_bn_dynamo.onnx"
    before = blocked(files.read_model(path))
    free, aligned = (compress(path, flops=0.5, align=a, recover="none").model for a in (1, 4))
    assert fell_off(before, blocked(free))
    assert fell_off(before, blocked(aligned)) == ()


# ---- from the optimised graph to the original ---------------------------------------------------------------------


def test_fused_nodes_are_joined():
    """A fused kernel stands for the nodes that it took in, and a layer among them names it."""
    model = proto("""g (float[1,16,8,8] x) => (float[] y) <float[16,16,3,3] w, float[16] b> {
        [conv] h = Conv(x, w, b)
        [relu] r = Relu(h)
        [pool] y = GlobalMaxPool(r)
    }""")
    nodes = {n.name: n for n in model.graph.node}
    parts = covered(model.graph, optimised_graph(model)).values()
    joined = {heaviest(nodes[n] for n in part): set(part) for part in parts if part}
    assert joined == {"conv": {"conv", "relu"}, "pool": {"pool"}}


def test_every_node_is_counted_at_most_once_where_nothing_is_folded():
    """On a real network the kernels share out the original's nodes."""
    model = named(files.read_model("fixtures/vgg_dynamo.onnx"))
    found = [n for part in covered(model.graph, optimised_graph(model)).values() for n in part]
    assert sorted(found) == sorted(n.name for n in model.graph.node)


def test_nodes_get_names():
    """Nodes without a name, or with one that is not theirs alone, get one; the model itself is not changed."""
    model = proto("g (float[2] x) => (float[2] y) { a = Relu(x)  [n] b = Neg(a)  [n] c = Abs(b)  [o] y = Exp(c) }")
    before = model.SerializeToString()
    names = [n.name for n in named(model).graph.node]
    assert len(set(names)) == 4
    assert names[0] == "a"
    assert names[3] == "o"
    assert model.SerializeToString() == before
    assert named(named(model)) is not model


def test_names_that_are_there_stay():
    """A model whose nodes all have names of their own is not copied."""
    model = convs(16)
    assert named(model) is model


def test_models_that_do_not_load():
    """A model that onnxruntime refuses is a ModelError."""
    weight = numpy_helper.from_array(np.zeros((16, 16, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[5, 5])
    ends = [helper.make_tensor_value_info(n, 1, None) for n in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.graph.node[0].op_type = "Nothing"
    with pytest.raises(ModelError, match="Nothing"):
        blocked(onnx.ModelProto.FromString(model.SerializeToString()))
