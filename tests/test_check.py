"""Structure of models in memory: what is refused, in which words, and what is accepted."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.check import check_model, sort_nodes
from onnxprune.errors import ModelError

HEAD = '<ir_version: 8, opset_import: ["" : 17, "lib" : 1]>\n'
SOUND = "g (float[1, 3] x) => (float[1, 3] y) { h = Relu (x)  y = Add (h, w) }"
REVERSED = "g (float[1, 3] x) => (float[1, 3] y) { y = Add (h, x)  h = Relu (a)  a = Neg (x) }"


def build(text=SOUND, /, **weights):
    """The model of an ONNX text, with arrays (or TensorProtos) as its initializers."""
    model = parser.parse_model(HEAD + text)
    for name, value in weights.items():
        tensor = value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        model.graph.initializer.append(tensor)
    return model


def refusal(model):
    """Message of the refusal."""
    with pytest.raises(ModelError) as caught:
        check_model(model)
    return str(caught.value)


BODY = """g (bool c, float[3] x) => (float[3] y) {{
  h = Neg (x)
  y = If (c) <then_branch = t () => (float[3] a) {{ a = Relu ({read}) }},
              else_branch = e () => (float[3] b) {{ b = Relu (x) }}>
}}"""

BROKEN_NAMES = {
    "unknown input": ("g (float x) => (float y) { [n] y = Add (x, z) }", "node 'n' (Add) reads 'z'"),
    "unnamed node": ("g (float x) => (float y) { y = Add (x, z) }", "the Add node that makes 'y' reads 'z'"),
    "unknown output": ("g (float x) => (float y) { z = Relu (x) }", "output 'y' is made by no node"),
    "two makers": (
        "g (float x) => (float y) { [a] y = Relu (x)  [b] y = Neg (x) }",
        "tensor 'y' is defined 2 times: node 'a' (Relu), node 'b' (Neg)",
    ),
    "makes an input": (
        "g (float x) => (float x) { x = Relu (x) }",
        "tensor 'x' is defined 2 times: an input",
    ),
    "makes a weight": (
        "g (float x) => (float w) <float w = {1}> { w = Relu (x) }",
        "tensor 'w' is defined 2 times: an initializer",
    ),
    "reads itself": ("g (float x) => (float y) { [n] y = Add (x, y) }", "a cycle: node 'n' (Add) -> node 'n' (Add)"),
    "cycle": (
        "g (float x) => (float y) { [a] p = Add (x, q)  [b] q = Relu (p)  [c] y = Relu (q) }",
        "a cycle: node 'a' (Add) -> node 'b' (Relu) -> node 'a' (Add)",
    ),
    "no nodes": ("g (float x) => (float x) { }", "its graph has no nodes"),
    "no outputs": ("g (float x) => () { y = Relu (x) }", "its graph has no outputs"),
    "in a body": (BODY.format(read="gone"), "in a body of the If node that makes 'y': the Relu node"),
    "body of the cycle": (BODY.format(read="y"), "the graph has a cycle"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN_NAMES.values(), ids=BROKEN_NAMES)
def test_broken_names_are_refused(text, message):
    """Dangling, duplicate and cyclic names are refused with the node or the tensor named."""
    assert message in refusal(build(text))


@pytest.mark.parametrize(
    "text",
    [
        BODY.format(read="h"),
        REVERSED,
        "g (float[3] x, float[3] w) => (float[3] y) <float[3] w = {1, 2, 3}> { y = Add (x, w) }",
        "g (float[3] x) => (float[3] y) { y = Clip (x, , top) }",
        "g (float[3] x) => (float[3] x, float[3] y) { y = Relu (x) }",
        "g (float[3] x) => (float[3] y) { y = lib.twice (x) }\n"
        '<domain: "lib", opset_import: ["" : 17]> twice (a) => (b) { b = Add (a, a) }',
    ],
    ids=["body reads outside", "reversed", "weight is an input", "absent input", "input is an output", "function"],
)
def test_valid_forms_are_accepted(text):
    """Captured names, unsorted nodes, default inputs, absent inputs and functions are no problem."""
    weights = {"top": np.float32(1)} if "top" in text else {}
    assert check_model(build(text, **weights)) is None


def test_function_bodies_are_checked():
    """A dangling name inside a local function is found and the function named."""
    text = (
        "g (float[3] x) => (float[3] y) { y = lib.twice (x) }\n"
        '<domain: "lib", opset_import: ["" : 17]> twice (a) => (b) { b = Add (a, c) }'
    )
    assert "in function 'twice': the Add node that makes 'b' reads 'c'" in refusal(build(text))


@pytest.mark.parametrize(
    ("ir", "opset", "message"),
    [
        (2, 17, "IR version is 2, onnxruntime loads 3 to 13"),
        (14, 17, "IR version is 14"),
        (8, 6, "opset is 6, supported are 7 to 26"),
        (8, 27, "opset is 27"),
        (8, None, "no opset of the default domain"),
    ],
)
def test_versions_that_onnxruntime_does_not_load(ir, opset, message):
    """IR 3 to 13 and opset 7 to 26 are accepted, the neighbours are refused with what to do."""
    model = build(w=np.ones(3, np.float32))
    model.ir_version = ir
    model.ClearField("opset_import")
    if opset:
        model.opset_import.append(helper.make_opsetid("ai.onnx", opset))
    assert message in refusal(model)


@pytest.mark.parametrize(("ir", "opset"), [(3, 7), (13, 26)])
def test_oldest_and_newest_versions_are_accepted(ir, opset):
    """Both ends of the version ranges pass."""
    model = build(w=np.ones(3, np.float32))
    model.ir_version, model.opset_import[0].version = ir, opset
    assert check_model(model) is None


def _raw(kind, dims, raw):
    return TensorProto(name="w", data_type=kind, dims=dims, raw_data=raw)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (_raw(1, [3], b"\0" * 11), "tensor 'w' holds 11 bytes, its shape [3] of FLOAT needs 12"),
        (_raw(1, [3], b""), "tensor 'w' holds 0 bytes"),
        (_raw(16, [3], b"\0" * 12), "its shape [3] of BFLOAT16 needs 6"),
        (_raw(1, [1 << 40, 1 << 40], b"\0" * 12), "of FLOAT needs 4835703278458516698824704"),
        (_raw(1, [-3], b"\0" * 12), "tensor 'w' has a negative dimension in its shape [-3]"),
        (_raw(99, [3], b"\0" * 12), "tensor 'w' has the unknown element type 99"),
        (TensorProto(name="w", data_type=1, dims=[3]), "tensor 'w' holds 0 values, its shape [3] of FLOAT needs 3"),
        (TensorProto(name="w", data_type=1, dims=[3], float_data=[1, 2]), "holds 2 values"),
        (TensorProto(name="w", data_type=10, dims=[3], int32_data=[1, 2]), "of FLOAT16 needs 3"),
        (TensorProto(name="w", data_type=1, dims=[3], data_location=1), "in another file, which is not loaded"),
    ],
)
def test_tensors_of_the_wrong_size(tensor, message):
    """Data that does not have the size of shape and element type is refused with both sizes."""
    assert message in refusal(build(w=tensor))


@pytest.mark.parametrize(
    "tensor",
    [
        helper.make_tensor("w", TensorProto.INT4, [3], [1, 2, 3]),
        helper.make_tensor("w", TensorProto.INT4, [3], b"\x21\x03", raw=True),
        helper.make_tensor("w", TensorProto.COMPLEX64, [3], [1j, 2j, 3j]),
        helper.make_tensor("w", TensorProto.STRING, [3], [b"a", b"b", b"c"]),
        helper.make_tensor("w", TensorProto.BFLOAT16, [3], [1, 2, 3]),
        helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, [3], [1, 2, 3]),
        helper.make_tensor("w", TensorProto.FLOAT, [0], []),
    ],
    ids=lambda t: TensorProto.DataType.Name(t.data_type) + ("-raw" if t.raw_data else ""),
)
def test_all_ways_to_store_a_tensor_are_accepted(tensor):
    """Packed, complex, string, half and empty tensors have the size that the check expects."""
    assert check_model(build(w=tensor)) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("place", ["initializer", "typed", "constant"])
def test_nan_and_inf_are_counted(dtype, place):
    """NaN and Inf are refused in every float type and place, with tensor and counts."""
    array = np.array([1, np.nan, np.inf, np.nan, -np.inf], dtype)
    tensor = numpy_helper.from_array(array, "w")
    if place == "typed":
        tensor = helper.make_tensor("w", tensor.data_type, [5], array.astype(np.float64))
    if place == "constant":
        model = build("g (float[5] x) => (float[5] y) { y = Relu (x) }")
        model.graph.node.append(helper.make_node("Constant", [], ["w"], value=tensor))
    else:
        model = build(w=tensor)
    assert "tensor 'w' of shape [5] has 2 NaN and 2 Inf among 5 values" in refusal(model)


@pytest.mark.parametrize(
    ("array", "op", "accepted"),
    [
        (np.array(-np.inf), "Add", True),
        (np.array([np.inf]), "Add", True),
        (np.triu(np.full((4, 4), -np.inf), 1), "Add", True),
        (np.array([0.5, -np.inf]), "Add", False),
        (np.full((2, 2), np.inf), "Add", False),
        (np.array([0.0, -np.inf]), "MatMul", False),
        (np.array(np.nan), "Add", False),
    ],
    ids=["scalar", "one value", "causal mask", "mixed", "all", "weight", "nan"],
)
def test_inf_is_meant_in_bounds_and_masks_only(array, op, accepted):
    """A single Inf is a bound and 0/-Inf a mask; NaN, and Inf in the weights of a layer, never are."""
    model = build(f"g (float[4, 4] x) => (float[4, 4] y) {{ y = {op} (x, w) }}", w=array.astype(np.float32))
    if accepted:
        assert check_model(model) is None
    else:
        assert "tensor 'w'" in refusal(model)


def test_large_finite_floats_are_accepted():
    """Values near the largest float are finite although their sum is not."""
    assert check_model(build(w=np.full(3, np.finfo(np.float32).max))) is None


def test_all_problems_are_reported_at_once():
    """Version, tensor and name problems come in one message, one line each."""
    model = build("g (float x) => (float y) { y = Add (x, z) }", w=_raw(1, [3], b""))
    model.ir_version = 99
    message = refusal(model)
    assert message.startswith("the model cannot be used, 3 problems:\n  - ")
    assert message.count("\n") == 3


def test_long_lists_of_problems_are_cut():
    """A thousand dangling names give twenty lines and the number of the rest."""
    nodes = "  ".join(f"y{i} = Relu (z{i})" for i in range(1000))
    message = refusal(build(f"g (float x) => (float y0) {{ {nodes} }}"))
    assert message.startswith("the model cannot be used, 1000 problems:")
    assert message.endswith("\n  - and 980 more")
    assert message.count("\n") == 21


def test_a_proto_without_a_graph_is_refused():
    """An empty ModelProto, which onnx loads without complaint, is no model."""
    assert "has no graph" in refusal(onnx.ModelProto())


def test_check_does_not_change_the_model():
    """Checking leaves the bytes as they are, also of an unsorted model."""
    model = build(REVERSED)
    before = model.SerializeToString(deterministic=True)
    check_model(model)
    assert model.SerializeToString(deterministic=True) == before


def test_sorting_gives_an_order_that_the_checker_accepts():
    """Unsorted nodes, bodies included, are moved so that onnx's own checker passes."""
    text = """g (bool c, float[3] x) => (float[3] y) {
      y = If (c) <then_branch = t () => (float[3] a) { a = Neg (p)  p = Add (h, x) },
                  else_branch = e () => (float[3] b) { b = Relu (h) }>
      h = Neg (x)
    }"""
    model = build(text)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    assert sort_nodes(model)
    onnx.checker.check_model(model)
    assert [n.op_type for n in model.graph.node] == ["Neg", "If"]


def test_sorting_moves_every_node_to_its_place():
    """An order that is not its own inverse comes out right, also where a branch gives an outer tensor as its output."""
    text = """g (bool c, float[3] x) => (float[3] y) {
      y = If (c) <then_branch = t () => (float[3] d) { }, else_branch = e () => (float[3] e) { e = Neg (x) }>
      b = Neg (x)
      d = Relu (b)
    }"""
    model = build(text)
    check_model(model)
    assert sort_nodes(model)
    assert [n.output[0] for n in model.graph.node] == ["b", "d", "y"]


def test_sorted_nodes_stay_where_they_are():
    """Nothing moves in a model that runs as it is, even where another order is possible."""
    model = build("g (float x) => (float y) { b = Neg (x)  a = Relu (x)  y = Add (a, b) }")
    before = model.SerializeToString(deterministic=True)
    assert not sort_nodes(model)
    assert model.SerializeToString(deterministic=True) == before


def test_long_reversed_chains_are_sorted_without_recursion():
    """20,000 nodes in reverse order are sorted, always in the same way."""
    length = 20_000
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in reversed(range(length))]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("t0", 1, [1])], [value(f"t{length}", 1, [1])])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    check_model(model)
    assert sort_nodes(model)
    assert [n.output[0] for n in model.graph.node] == [f"t{i + 1}" for i in range(length)]
