"""Explanations: what goes with a position, and the path of ties to what froze it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import analyse, proto

import onnxprune
from onnxprune import api
from onnxprune.errors import UsageError
from onnxprune.explanation import Member, explain

FIXTURES = Path(__file__).parents[1] / "fixtures"
CHAIN = """g (float[1,3,4,4] x) => (float[] y) <float[4,3,1,1] w, float[4] b, float[2,4,1,1] v, float[1,2,1,1] c> {
    h = Conv(x, w, b)
    r = Relu(h)
    z = Conv(r, v)
    y = Add(z, c)
}"""
LINEAR = "g (float[1,4] x) => (float[] y) <float[4,6] w, float[6] s, float[6] o, float[6,2] v> { h = MatMul(x, w) "


@pytest.fixture(scope="module")
def chain():
    return analyse(CHAIN)


@pytest.fixture(scope="module")
def resnet():
    return api.analyze(FIXTURES / "resnet_bn_legacy.onnx")


def fate(analysis, name, *axes):
    """The fate of one axis of a tensor."""
    return next(f for f in explain(analysis, name).axes if f.axes == axes)


def test_filters_take_bias_and_consumer_along(chain):
    """A filter of the first layer leaves with its bias and with the column of the layer that reads it."""
    filters = fate(chain, "w", 0)
    assert (filters.role, filters.positions, filters.classes, filters.frozen) == ("out", 4, 4, 0)
    assert filters.typical == 0
    assert filters.members == (Member("w", 0, (0,)), Member("b", 0, (0,)), Member("v", 1, (0,)))
    assert filters.partners == (Member("b", 0, (0, 1, 2, 3)), Member("v", 1, (0, 1, 2, 3)))
    assert filters.causes == ()


def test_path_leads_from_a_position_to_the_graph_output(chain):
    """The constant is tied to the filters by the Add, and the filters to the graph output: two steps, in that order."""
    (cause,) = fate(chain, "c", 1).causes
    assert [(s.position, s.op, s.node) for s in cause.path] == [
        ("c axis 1 index 0", "Add", "y"),
        ("v axis 0 index 0", "graph output", "y"),
    ]
    assert cause.path[-1].why == "it is a result of the model"
    assert (cause.positions, cause.index, cause.other) == (2, 0, "")


def test_columns_are_frozen_by_the_input_and_it_is_named(chain):
    """The first layer's columns meet an input of the model, which has no positions to remove."""
    (cause,) = fate(chain, "w", 1).causes
    assert (cause.positions, len(cause.path)) == (3, 1)
    assert cause.other == "nothing can be removed from x, an input of the model"


def test_verdict_of_a_rule_names_no_other_side():
    """Where a rule freezes by itself, the other inputs of the node are not blamed."""
    analysis = analyse(LINEAR + "d = com.acme.Secret(h)  y = MatMul(d, v) }", domains=', "com.acme" : 1')
    (cause,) = fate(analysis, "w", 1).causes
    assert cause.path[0].op == "Secret"
    assert "no rule for the op Secret of domain com.acme" in cause.path[0].why
    assert cause.other == ""


def test_node_tells_about_its_parameters():
    """A node is explained by all axes of its weight and bias."""
    model = proto(CHAIN)
    model.graph.node[0].name = "first"
    told = explain(api.analyze(model), "first")
    assert (told.kind, told.op) == ("node", "Conv")
    assert [(f.tensor, f.axes) for f in told.axes] == [("w", (0,)), ("w", (1,)), ("b", (0,))]


def test_node_without_parameters_tells_about_its_output():
    """A Relu has no parameters: its output's channels are those of the layer before."""
    model = proto(CHAIN)
    model.graph.node[1].name = "act"
    (channels,) = explain(api.analyze(model), "act").axes
    assert (channels.tensor, channels.axes, channels.role, channels.classes) == ("r", (1,), "", 4)


def test_activation_holds_the_positions_of_what_it_carries():
    """Flattened, four positions of the activation share a class, and so do columns of the layer behind."""
    analysis = analyse(
        """g (float[1,3,2,2] x) => (float[] y) <float[4,3,1,1] w, float[16,2] v> {
            h = Conv(x, w)
            f = Flatten(h)
            y = MatMul(f, v)
        }"""
    )
    flat = fate(analysis, "f", 1)
    assert (flat.positions, flat.classes) == (16, 4)
    assert Member("v", 0, (0, 1, 2, 3)) in flat.members


def test_joint_axes_are_named_together():
    """Before a Flatten over a transposed tensor nothing is decided: positions may vary along several axes."""
    analysis = analyse(
        """g (float[1,3] x) => (float[] y) <float[3,6] w, int64[3] s = {1, 2, 3}, int64[2] u = {1, 6}, float[6,2] v> {
            h = MatMul(x, w)
            d = Reshape(h, s)
            e = Reshape(d, u)
            y = MatMul(e, v)
        }"""
    )
    (joint,) = explain(analysis, "d").axes
    assert (joint.axes, joint.positions) == ((1, 2), 6)


def test_input_says_that_its_sizes_stay(chain):
    """An input of the model holds no positions of parameters."""
    told = explain(chain, "x")
    assert (told.kind, told.axes) == ("activation", ())
    assert "input of the model" in told.note


def test_output_of_a_refusing_node_says_why():
    """Nothing varies along the output of an unknown op; the note is the reason of the refusal."""
    analysis = analyse(LINEAR + "d = com.acme.Secret(h)  y = MatMul(d, v) }", domains=', "com.acme" : 1')
    told = explain(analysis, "d")
    assert told.axes == ()
    assert "there is no rule for the op Secret" in told.note


def test_inexact_positions_name_the_statistic():
    """Positions under a LayerNormalization can be removed inexactly, and it is said which node is why."""
    analysis = analyse(LINEAR + "d = LayerNormalization(h, s, o)  y = MatMul(d, v) }")
    filters = fate(analysis, "w", 1)
    assert filters.removable == 6
    assert filters.inexact == ("LayerNormalization takes its statistics over these positions (LayerNormalization d)",)
    assert fate(analysis, "v", 1).inexact == ()


def test_unknown_name_lists_the_nearest(chain):
    """A misspelt name is a usage error that lists similar names."""
    model = proto(CHAIN)
    model.graph.node[0].name = "/stage1/conv1/Conv"
    with pytest.raises(UsageError, match="'/stage1/conv1/Conv'"):
        explain(api.analyze(model), "conv1")
    with pytest.raises(UsageError, match="analyze"):
        explain(chain, "")


def test_axes_account_for_every_position(resnet):
    """For every parameter: removable and frozen add up, causes cover what is frozen, and classes are the analysis's."""
    known = {(a.param, a.axis): a.classes for a in resnet.axes}
    for name, tensor in resnet.model.constants().items():
        for f in explain(resnet, name).axes:
            classes = known.get((name, f.axes[0]), np.zeros(f.positions, np.int32))
            assert f.positions == tensor.shape[f.axes[0]] == f.removable + f.frozen
            assert (f.frozen, f.classes) == ((classes == 0).sum(), len(set(classes.tolist()) - {0}))
            assert sum(c.positions for c in f.causes) == f.frozen
            assert all(c.path and c.path[0].position == f"{name} axis {f.axes[0]} index {c.index}" for c in f.causes)


def test_members_are_the_whole_class(resnet):
    """The members of the typical class are all its positions on all parameter axes."""
    filters = fate(resnet, "stage1.0.conv2.conv.weight", 0)
    number = next(a for a in resnet.axes if (a.param, a.axis) == (filters.tensor, 0)).classes[filters.typical]
    expected = {(a.param, a.axis, i) for a in resnet.axes for i in np.flatnonzero(a.classes == number).tolist()}
    assert {(m.parameter, m.axis, i) for m in filters.members for i in m.indices} == expected
    assert ("stem.0.conv.weight", 0, filters.typical) in expected


def test_library_takes_models_and_analyses(resnet):
    """`onnxprune.explain` gives the same for a path and for its analysis, as JSON-ready data with stable keys."""
    name = "/head/head.2/Gemm"
    told = onnxprune.explain(FIXTURES / "resnet_bn_legacy.onnx", name).as_dict()
    assert told == onnxprune.explain(resnet, name).as_dict()
    assert set(told) == {"name", "kind", "op", "note", "axes"}
    assert set(told["axes"][0]) == {
        *("tensor", "axes", "role", "positions", "removable", "frozen", "classes", "inexact", "typical"),
        *("members", "partners", "causes"),
    }
