"""Shape arithmetic: every op agrees with onnx's reference implementation, and carries symbols where it can."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxprune.shapes.shape_ops import LIMIT, SHAPE_OPS, evaluate
from onnxprune.shapes.sizes import Size, vector

N = Size(1, ("N",))
A, B, V = np.int64([6, -7, 4]), np.int64([4, 2, -3]), np.int64([3, 1, 4, 1, 5, 9])
I64, BOOL = onnx.TensorProto.INT64, np.bool_

AGREES = {
    "Identity": ("Identity", {}, [V]),
    "Cast": ("Cast", {"to": onnx.TensorProto.INT32}, [V]),
    "Cast to bool": ("Cast", {"to": onnx.TensorProto.BOOL}, [np.int64([0, 2, -1])]),
    "Gather": ("Gather", {"axis": 0}, [V, np.int64([[0, -1], [2, 1]])]),
    "Gather a scalar": ("Gather", {}, [V, np.int64(3)]),
    "Slice": ("Slice", {}, [V, np.int64([1]), np.int64([9])]),
    "Slice backwards": ("Slice", {}, [V, np.int64([-1]), np.int64([-(2**63)]), np.int64([0]), np.int64([-2])]),
    "Slice of a matrix": (
        "Slice",
        {},
        [V.reshape(2, 3), np.int64([0, 1]), np.int64([2**63 - 1, 2]), np.int64([0, -1])],
    ),
    "Concat": ("Concat", {"axis": 0}, [V, A]),
    "Split": ("Split", {"axis": 0}, [V, np.int64([2, 4])]),
    "Squeeze": ("Squeeze", {}, [A.reshape(1, 3, 1)]),
    "Squeeze an axis": ("Squeeze", {}, [A.reshape(1, 3, 1), np.int64([-1])]),
    "Unsqueeze": ("Unsqueeze", {}, [A, np.int64([0, 2])]),
    "Reshape": ("Reshape", {}, [V, np.int64([-1, 2])]),
    "Reshape with 0": ("Reshape", {}, [V.reshape(2, 3), np.int64([0, 3, 1])]),
    "Flatten": ("Flatten", {"axis": 1}, [V.reshape(1, 2, 3)]),
    "Flatten from the end": ("Flatten", {"axis": -1}, [V.reshape(1, 2, 3)]),
    "Transpose": ("Transpose", {"perm": [1, 0]}, [V.reshape(2, 3)]),
    "Expand": ("Expand", {}, [A.reshape(3, 1), np.int64([1, 2])]),
    "Tile": ("Tile", {}, [A, np.int64([3])]),
    "ConstantOfShape": ("ConstantOfShape", {"value": helper.make_tensor("", I64, [1], [7])}, [np.int64([2, 3])]),
    "Range": ("Range", {}, [np.int64(7), np.int64(0), np.int64(-3)]),
    "Add": ("Add", {}, [A, B]),
    "Sub": ("Sub", {}, [A, B]),
    "Mul": ("Mul", {}, [A, B]),
    "Mod": ("Mod", {}, [A, B]),
    "Neg": ("Neg", {}, [A]),
    "Min": ("Min", {}, [A, B, np.int64([0])]),
    "Max": ("Max", {}, [A, B]),
    "Equal": ("Equal", {}, [A, np.int64([6])]),
    "Less": ("Less", {}, [A, B]),
    "Greater": ("Greater", {}, [A, B]),
    "And": ("And", {}, [np.array([True, False, True]), np.array([True])]),
    "Or": ("Or", {}, [np.array([True, False]), np.array([False])]),
    "Not": ("Not", {}, [np.array([True, False])]),
    "Where": ("Where", {}, [np.array([True, False, True]), A, B]),
    "ReduceProd": ("ReduceProd", {"keepdims": 0}, [V]),
    "ReduceSum": ("ReduceSum", {"keepdims": 1}, [V, np.int64([0])]),
    "ReduceMin": ("ReduceMin", {"axes": [0]}, [V]),
    "ReduceMax": ("ReduceMax", {"axes": [-1], "keepdims": 0}, [V]),
}


def symbolic(array):
    """The array as a Vector."""
    return np.asarray(array).astype(np.int64).astype(object)


@pytest.mark.parametrize("name", AGREES)
def test_agrees_with_the_reference(name):
    """On numbers the result is onnx's, values and shape."""
    op, attrs, arrays = AGREES[name]
    inputs = [f"i{k}" for k in range(len(arrays))]
    outputs = ["a", "b"] if op == "Split" else ["a"]
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(inputs, arrays, strict=True)
    ]
    graph = helper.make_graph(
        [helper.make_node(op, inputs, outputs, **attrs)], "g", infos, [onnx.ValueInfoProto(name=n) for n in outputs]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    expected = ReferenceEvaluator(model).run(None, dict(zip(inputs, arrays, strict=True)))
    found = evaluate(op, {"num_outputs": len(outputs), **attrs}, [symbolic(a) for a in arrays])
    assert [f.tolist() for f in found] == [symbolic(e).tolist() for e in expected]


def test_division_is_towards_zero():
    """Integer Div truncates, as onnxruntime has it."""
    assert evaluate("Div", {}, [symbolic([7, -7, 7, -7]), symbolic([2, 2, -2, -2])])[0].tolist() == [3, -3, -3, 3]


def test_every_op_is_covered():
    """No op is without a test."""
    assert {op for op, _, _ in AGREES.values()} | {"Div"} == set(SHAPE_OPS)


SYMBOLS = {
    "parts of a shape": ("Gather", {}, [vector([N, 3, 4]), symbolic([0, 2])], [N, 4]),
    "merged": ("ReduceProd", {"keepdims": 1}, [vector([N, 3, 4])], [Size(12, ("N",))]),
    "equal to -1": ("Equal", {}, [vector([N, -1]), symbolic([-1])], [0, 1]),
    "either": ("Where", {}, [vector([None, None]), vector([N, 2]), vector([N, 3])], [N, None]),
    "split": ("Split", {"num_outputs": 2}, [vector([N, 3, 4])], [N, 3]),
}


@pytest.mark.parametrize("name", SYMBOLS)
def test_symbols(name):
    """Symbols travel through movement and products."""
    op, attrs, inputs, expected = SYMBOLS[name]
    assert evaluate(op, attrs, inputs)[0].tolist() == expected


NOTHING = {
    "unknown op": ("Sin", {}, [symbolic([1])]),
    "to a float": ("Cast", {"to": onnx.TensorProto.FLOAT}, [symbolic([1])]),
    "index out of range": ("Gather", {}, [symbolic([1]), symbolic([3])]),
    "index not known": ("Gather", {}, [symbolic([1, 2]), vector([N])]),
    "shapes do not fit": ("Reshape", {}, [symbolic([1, 2]), symbolic([3])]),
    "too large: Expand": ("Expand", {}, [symbolic([1]), symbolic([LIMIT + 1])]),
    "too large: Tile": ("Tile", {}, [symbolic([1, 2]), symbolic([LIMIT])]),
    "too large: Range": ("Range", {}, [symbolic(0), symbolic(2**62), symbolic(1)]),
    "too large: ConstantOfShape": (
        "ConstantOfShape",
        {"value": helper.make_tensor("", I64, [1], [7])},
        [symbolic([2**62])],
    ),
    "too large: Concat": ("Concat", {"axis": 0}, [symbolic(np.zeros(LIMIT)), symbolic([1])]),
    "too large: Add": ("Add", {}, [symbolic(np.zeros((1, LIMIT))), symbolic(np.zeros((2, 1)))]),
    "floats of ConstantOfShape": ("ConstantOfShape", {}, [symbolic([2])]),
    "fmod": ("Mod", {"fmod": 1}, [symbolic([2]), symbolic([2])]),
    "a reduction that does nothing": ("ReduceSum", {"noop_with_empty_axes": 1}, [symbolic([2, 3])]),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_is_known(name):
    """What fails, is not shape arithmetic or would be too large has no result."""
    op, attrs, inputs = NOTHING[name]
    assert evaluate(op, attrs, inputs) == []
