"""The passes together: real models, versions, subgraphs, and what must come through untouched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from cleaning import cleaned, names, ops, parse
from onnx import numpy_helper

from onnxprune.graph import from_proto
from onnxprune.normalize import clean, normalize

ROOT = Path(__file__).parents[2]
FIXTURES = sorted((ROOT / "fixtures").glob("*.onnx"))
SHARED = sorted((ROOT.parent / "shared" / "models").glob("*.onnx"))
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
RUNTIME_SHAPES = {"Shape", "ConstantOfShape", "Constant", "Identity", "Dropout"}


@pytest.mark.parametrize("path", FIXTURES, ids=lambda p: p.stem)
def test_fixtures(path):
    """Every committed network: equal, valid, idempotent; no shape is computed at run time but a class token's."""
    after = cleaned(onnx.load(path))
    left = set(ops(after)) & RUNTIME_SHAPES
    assert left <= ({"Shape"} if "vit" in path.stem else set())


@pytest.mark.parametrize("path", SHARED, ids=lambda p: p.stem)
def test_shared_models(path):
    """The trained models at hand: equal, valid, idempotent; no shape arithmetic and no shuffle is left."""
    after = cleaned(onnx.load(path), batches=(1,))
    assert not set(ops(after)) & RUNTIME_SHAPES


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "inception_v1", "densenet121"])
def test_light_models(name):
    """IR 3, opset 9, weights from ConstantOfShape, initializers among the inputs."""
    after = cleaned(onnx.load(LIGHT / f"light_{name}.onnx"), batches=(1,))
    assert not set(ops(after)) & RUNTIME_SHAPES


def test_shuffles_of_shufflenet():
    """The sixteen shuffles of ShuffleNet become Gather nodes over channels."""
    model = normalize(onnx.load(LIGHT / "light_shufflenet.onnx"))
    gathers = [n for n in model.graph.nodes if n.op == "Gather"]
    assert len(gathers) == 16
    assert {n.attrs["axis"] for n in gathers} == {1}
    assert not any(n.op == "Transpose" for n in model.graph.nodes)


def test_large_weights_fold_under_the_default_cap():
    """The 144 million weights of VGG-19, all from ConstantOfShape, become initializers."""
    model = normalize(onnx.load(LIGHT / "light_vgg19.onnx"))
    assert not any(n.op == "ConstantOfShape" for n in model.graph.nodes)
    assert sum(t.values.size for t in model.constants().values()) == 143_667_242


def test_notes():
    """Each pass that found something says what and how much, the file's own changes first."""
    model = parse(
        """g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> {
        c = Constant<value_float = 2.0>() a = Mul(w, c) b = Identity(x) d = Neg(b) y = Add(b, a) }""",
        opset=8,
        ir=3,
    )
    model.graph.node[0].CopyFrom(
        onnx.helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32(2)))
    )
    assert normalize(model).notes == [
        "initializers taken out of the graph's inputs: 1 (IR 3 -> 4)",
        "Constant nodes turned into initializers: 1",
        "Identity and Dropout nodes removed: 1",
        "constant nodes folded: 1",
        "unused nodes removed: 1",
    ]


def test_initializers_among_the_inputs():
    """They leave the inputs; IR 3 becomes 4, and any later version stays."""
    text = "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }"
    for ir in (3, 4, 7):
        after = cleaned(parse(text, opset=9, ir=ir), run=ir != 3)
        assert [i.name for i in after.graph.input] == ["x"]


@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (9, 4), (13, 7), (17, 8), (21, 10), (26, 13)])
def test_versions(opset, ir):
    """Opset and IR are kept, from the oldest to the newest that onnxruntime loads."""
    model = parse("g (float[2,2] x) => (float[2,2] y) { a = Identity(x) y = Add(a, w) }", opset=opset, ir=ir)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 2), np.float32), "w"))
    assert ops(cleaned(model, run=ir != 3)) == ["Add"]


def test_nothing_to_do():
    """A model in normal form comes back byte for byte, with its documentation, metadata and weights unread."""
    model = parse("g (float[2] x) => (float[2] y) { y = Add(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.arange(2, dtype=np.float32), "w"))
    model.graph.initializer[0].doc_string = "a weight"
    model.graph.node[0].doc_string = "a node"
    model.metadata_props.add(key="k", value="v")
    model.producer_name, model.doc_string, model.graph.doc_string = "p", "d", "g"
    assert clean(model).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    assert not normalize(model).notes


def test_value_info_is_inferred_again():
    """A file with shapes of inner tensors keeps them, for the tensors that are left; none are added to one without."""
    model = parse("g (float[2] x) => (float[2] y) { a = Identity(x) b = Neg(a) c = Abs(b) y = Neg(c) }")
    assert not cleaned(model).graph.value_info
    described = onnx.shape_inference.infer_shapes(model)
    assert [v.name for v in described.graph.value_info] == ["a", "b", "c"]
    assert [v.name for v in cleaned(described).graph.value_info] == ["b", "c"]


def test_subgraphs_are_left_alone():
    """A Loop, what it reads from outside, and the nodes in its body stay as they are."""
    model = parse("""g (float[2] x) => (float[2] y) <int64 n = {3}, bool c = {1}, float[2] w = {1, 2}> {
        z = Identity(w)
        y = Loop(n, c, x)<body = b (int64 i, bool p, float[2] v) => (bool q, float[2] u) {
            q = Identity(p) k = Constant<value_float = 0.5>() a = Mul(z, k) u = Add(v, a) }> }""")
    after = cleaned(model)
    assert ops(after) == ["Identity", "Loop"]
    assert [n.op_type for n in after.graph.node[1].attribute[0].g.node] == ["Identity", "Constant", "Mul", "Add"]


def test_initializer_that_only_a_subgraph_reads():
    """It survives although no node of the outer graph uses it."""
    model = parse("""g (bool b, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
        y = If(b)<then_branch = t () => (float[2] p) { p = Add(x, w) },
        else_branch = e () => (float[2] q) { q = Neg(x) }> }""")
    assert names(cleaned(model)) == {"w"}


def test_output_that_is_an_initializer():
    """A graph may give an initializer as its result: name and value stay."""
    model = parse("g (float[2] x) => (float[2] y, float[2] w) <float[2] w = {1, 2}> { y = Add(x, w) }")
    assert names(cleaned(model)) == {"w"}


def test_large_weights_are_not_read():
    """Weights that no pass needs stay in the file's own memory: nothing is loaded or copied."""
    model = parse("g (float[1,64] x) => (float[1,64] y) { a = MatMul(x, w) b = MatMul(a, v) y = Relu(b) }")
    for name in ("w", "v"):
        array = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    untouched = {n: repr(t._values) for n, t in from_proto(model).constants().items()}
    assert {n: repr(t._values) for n, t in normalize(model).constants().items()} == untouched
