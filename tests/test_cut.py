"""Cutting: parameters are sliced by one rule, the rest of the file stays as it was."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import analyse, assert_sound, between, each, proto, random_plan

from onnxprune.cut import Kept, cut
from onnxprune.factors import along

NET = """g (float[1,3,6,6] x) => (float[] y) <float[4,3,3,3] w, float[4] b, float[4] s, float[4] o, float[4] m, float[4] var,
  float[4,4,1,1] u, float[36,2] v, int64[2] shape = {1, -1}> {
    h = Conv <pads = [0, 0, 0, 0], kernel_shape = [3, 3]> (x, w, b)
    n = BatchNormalization(h, s, o, m, var)
    r = Relu(n)
    k = Conv(r, u)
    a = Add(r, k)
    p = MaxPool <kernel_shape = [2, 2]> (a)
    f = Reshape(p, shape)
    y = MatMul(f, v)
}"""
BODIES = """g (float[1,3] x, bool c) => (float[1,2] y, float[1,4] z) <float[3,4] w, float[4,2] v, float[3,4] u> {
    h = MatMul(x, w)
    y = MatMul(h, v)
    z = If (c) <then_branch = t () => (float[1,4] a) { a = MatMul(x, u) }, else_branch = e () => (float[1,4] b) { b = MatMul(x, u) }>
}"""
MODELS = {
    "a small network": (NET,),
    "with subgraphs": (BODIES,),
    "with heads": (
        """g (float[2,5,3] x) => (float[] y) <float[3,6] w, int64[4] s = {0, 0, 2, 3}, int64[3] t = {2, 5, 6}, float[6,2] v> {
            h = MatMul(x, w)
            a = Reshape(h, s)
            b = Reshape(a, t)
            y = MatMul(b, v)
        }""",
    ),
}


def decorated(text):
    """A model with everything that a file can hold beside its graph."""
    model = proto(text)
    model.producer_name, model.producer_version, model.domain, model.model_version = "p", "1.2", "d.example", 7
    model.doc_string, model.graph.doc_string = "a model", "a graph"
    helper = onnx.helper
    helper.set_model_props(model, {"author": "somebody"})
    for i, node in enumerate(model.graph.node):
        node.name, node.doc_string = f"node_{i}", f"the node number {i}"
    return model


@each(MODELS, ["text"])
def test_cutting_nothing_is_bit_identical(text):
    """The bytes of the model do not change when nothing is removed."""
    model = decorated(text)
    analysis = analyse(model)
    nothing = cut(analysis, np.ones(analysis.classes + 1, bool))
    assert nothing.to_proto().SerializeToString() == analysis.model.to_proto().SerializeToString()


@each(MODELS, ["text"])
def test_what_a_cut_leaves_alone(text):
    """Versions, metadata, signature, and the names, ops, attributes and order of nodes and parameters stay."""
    model = decorated(text)
    analysis = analyse(model)
    assert analysis.classes
    small = cut(analysis, random_plan(analysis, 1.0, 0)).to_proto()
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(small, name) == getattr(model, name)
    assert list(small.opset_import) == list(model.opset_import)
    assert list(small.metadata_props) == list(model.metadata_props)
    assert list(small.graph.input) == list(model.graph.input)
    assert list(small.graph.output) == list(model.graph.output)
    assert (small.graph.name, small.graph.doc_string) == (model.graph.name, model.graph.doc_string)
    assert [t.name for t in small.graph.initializer] == [t.name for t in analysis.model.to_proto().graph.initializer]
    for before, after in zip(model.graph.node, small.graph.node, strict=True):
        assert (after.name, after.op_type, after.doc_string) == (before.name, before.op_type, before.doc_string)
        assert list(after.input) == list(before.input)
        assert list(after.output) == list(before.output)
        assert {a.name for a in after.attribute} == {a.name for a in before.attribute}


def test_parameters_are_sliced_where_positions_leave_and_nowhere_else():
    """Every parameter is the original's at the kept indices; those without any to lose are the same arrays."""
    analysis = analyse(NET)
    kept = np.array([True, True, False, True, False])
    before, after = analysis.model.constants(), cut(analysis, kept).constants()
    stay, spread = [0, 2], [9 * c + i for c in (0, 2) for i in range(9)]
    want = {
        **{n: before[n].values[stay] for n in ("w", "b", "s", "o", "m", "var")},
        "u": before["u"].values[np.ix_(stay, stay)],
        "v": before["v"].values[spread],
        "shape": before["shape"].values,
    }
    assert all(np.array_equal(after[n].values, want[n]) for n in before)
    assert all(a.values.flags.c_contiguous for a in after.values())
    assert {n: {a: i.tolist() for a, i in axes.items()} for n, axes in analysis.kept_axes(kept).items()} == {
        **{n: {0: stay} for n in ("w", "b", "s", "o", "m", "var")},
        "u": {0: stay, 1: stay},
        "v": {0: spread},
    }


def test_the_original_is_not_touched():
    """A cut edits a copy, also of the constants that it refits."""
    analysis = analyse(MODELS["with heads"][0])
    before = analysis.model.to_proto().SerializeToString()
    small = cut(analysis, random_plan(analysis, 1.0, 0))
    assert small.constants()["t"].values.tolist() == [2, 5, 2]
    assert analysis.model.to_proto().SerializeToString() == before


def test_the_same_plan_gives_the_same_bytes():
    """Twice from one analysis, and from another one of the same file."""
    first, second = analyse(NET), analyse(NET)
    kept = random_plan(first, 0.5, 3)
    written = [cut(a, kept).to_proto().SerializeToString() for a in (first, first, second)]
    assert len(set(written)) == 1


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "double"])
def test_element_types(kind):
    """The parameters keep their type, and the check runs on them."""
    text = """g (float[5,3] x) => (float[] y) <float[3,4] w, float[4] b, float[4,2] v> {
        h = MatMul(x, w)
        d = Add(h, b)
        y = MatMul(d, v)
    }"""
    analysis = analyse(text.replace("float[", f"{kind}["))
    small = cut(analysis, random_plan(analysis, 1.0, 0))
    dtype = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "double": np.float64}[kind]
    types = {t.data_type for t in small.to_proto().graph.initializer}
    assert types == {onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))}
    assert_sound(analysis)


def test_a_cut_and_another_cut_are_one():
    """Cutting what was cut before gives what both at once give."""
    analysis = analyse(between("d = Relu(h)"))
    first, second = np.array([True, True, False, True, True]), np.array([True, True, False, True, False])
    halfway = cut(analysis, first).to_proto()
    again = analyse(halfway)
    assert again.classes == 3
    twice = cut(again, np.array([True, True, True, False]))
    once = cut(analysis, second)
    assert twice.to_proto().SerializeToString() == once.to_proto().SerializeToString()


def test_kept_answers_the_questions_of_refits():
    """Masks of atoms, and sizes of axes: an index is gone once all its positions are, for any of the factors."""
    analysis = analyse(NET)
    atoms = analysis.trace.trace.owners["w", 0]
    kept = Kept(analysis, np.array([True, True, False, True, False]))
    assert kept.mask(atoms).tolist() == [True, False, True, False]
    assert kept.shape((along(atoms, 1, 3),), (5, 4, 6)) == [5, 2, 6]
    joint = np.repeat(atoms[:, None], 2, 1)
    assert kept.shape((joint,), (4, 2)) == [2, 2]
    assert kept.shape((joint.T,), (2, 4)) == [2, 2]
    assert kept.shape((), (7,)) == [7]
