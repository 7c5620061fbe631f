"""Coupling: what freezes, what is tied, and that an omission is as safe as ignorance."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import CHANNELS, analyse, assert_sound, between, each, expected, golden, oracle, proto, random_plan, reasons

import onnxprune
from onnxprune.couple import couple
from onnxprune.errors import VerificationError
from onnxprune.factors import along
from onnxprune.graph import from_proto
from onnxprune.rules import RULES
from onnxprune.shapes import concrete_shapes

FOUR = [1, 2, 3, 4]
ACME = ', "com.acme" : 1'


@pytest.fixture
def rules(monkeypatch):
    """The table of rules; what a test registers is gone after it."""
    monkeypatch.setattr("onnxprune.rules.RULES", RULES)
    before = dict(RULES)
    yield RULES
    RULES.clear()
    RULES.update(before)


def custom(call="MyOp(h)", outputs="d"):
    """conv, an op of com.acme whose shapes are known, conv."""
    text = between(f"{outputs} = com.acme.{call}")
    model = from_proto(proto(text.replace("[] y", "[1,2,6,6] y"), domains=ACME))
    shapes = {"x": (1, 3, 6, 6), "h": (1, 4, 6, 6), "y": (1, 2, 6, 6)} | dict.fromkeys("de", (1, 4, 6, 6))
    return lambda: couple(model, shapes)


# ---- what freezes --------------------------------------------------------------------------------------------------------

IF = """g (float[1,3] x, bool c) => (float[1,2] y, float[1,4] z) <float[3,4] w, float[4,2] v, float[3,4] u, int64[2] s = {{1, 4}}> {{
    h = MatMul(x, w)
    r = Reshape(h, s)
    y = MatMul(r, v)
    z = If (c) <
        then_branch = t () => (float[1,4] a) {{ a = {0} }},
        else_branch = e () => (float[1,4] b) {{ b = MatMul(x, u) }}
    >
}}"""

FROZEN = {
    "an op without a rule": (between("n = Det(h)  d = Relu(h)"), {"w.0": "there is no rule for the op Det (Det n)"}),
    "an activation that is also a result": (
        between("d = Relu(h)").replace("float[] y", "float[] y, float[] d"),
        {"w.0": "it is a result of the model (graph output d)"},
    ),
    "an activation that a subgraph reads": (
        IF.format("Relu(h)"),
        {"w.1": "the body of an If, Loop or Scan reads it (subgraph h)"},
    ),
    "a weight that a subgraph reads": (
        IF.format("MatMul(x, w)"),
        {"w.1": "the body of an If, Loop or Scan reads it (subgraph w)"},
    ),
}


@each(FROZEN, "text, why")
def test_frozen(text, why):
    """Nothing can be removed, and the reason says why."""
    analysis = analyse(text)
    assert not golden(analysis)
    assert all(reason in reasons(analysis)[axis] for axis, reason in why.items())


def test_a_subgraph_that_reads_something_else():
    """Only what a body reads is frozen; a shape that it shares with a Reshape outside keeps its value for the body."""
    analysis = analyse(IF.format("Reshape(x2, s)").replace("float[1,3] x,", "float[1,3] x, float[4,1] x2,"))
    assert golden(analysis) == expected({"w.1 v.0": FOUR})
    assert_sound(analysis)


def test_an_unknown_domain():
    """An op of a domain without rules freezes, and says so."""
    analysis = custom()()
    assert not golden(analysis)
    assert "there is no rule for the op MyOp of domain com.acme" in reasons(analysis)["w.0"]


def test_an_unknown_shape():
    """Where a shape is not known, what is there freezes."""
    model = from_proto(proto(between("d = Relu(h)")))
    shapes = concrete_shapes(model)
    del shapes["d"]
    analysis = couple(model, shapes)
    assert not golden(analysis)
    assert "the shape of d is not known" in reasons(analysis)["w.0"]


# ---- omission is as safe as ignorance ---------------------------------------------------------------------------------


def test_a_rule_of_a_third_party(rules):
    """`rule` makes an op of another domain prunable."""

    @onnxprune.rule("MyOp", domain="com.acme")
    def my_op(t, x):
        return x.view

    assert golden(custom()()) == expected(CHANNELS)


def test_a_rule_with_attributes_and_several_inputs(rules):
    """Inputs come as arguments, attributes as keywords, under their names; unknown attributes are not handed over."""
    seen = {}

    @onnxprune.rule("MyOp", domain="com.acme")
    def my_op(t, x, missing=None, k=None, *, axis=0, mode="none"):
        seen.update(shape=x.shape, missing=missing, k=k.param, axis=axis, mode=mode)
        t.tie(t.atoms(x, axis), t.atoms(k, 0), "one k per channel")
        return (along(t.atoms(x, axis), axis, x.rank),)

    text = between("d = com.acme.MyOp <axis = 1, other = 3> (h, , k)", "float[4] k").replace("[] y", "[1,2,6,6] y")
    model = from_proto(proto(text, domains=ACME))
    shapes = {"x": (1, 3, 6, 6), "h": (1, 4, 6, 6), "d": (1, 4, 6, 6), "y": (1, 2, 6, 6)}
    assert golden(couple(model, shapes)) == expected(CHANNELS | {"k.0": FOUR})
    assert seen == {"shape": (1, 4, 6, 6), "missing": None, "k": "k", "axis": 1, "mode": "none"}


FORGETFUL = {
    "nothing at all": lambda t, x: (),
    "no result": lambda t, x: None,
    "another axis": lambda t, x: t.others(x, 1),
    "some positions": lambda t, x: (along(np.where(np.arange(4) < 2, t.atoms(x, 1), 0), 1, 4),),
}


@pytest.mark.parametrize("what", FORGETFUL)
def test_a_rule_that_forgets_an_axis_freezes_it(rules, what):
    """What a rule neither carries nor names stays."""
    RULES["com.acme", "MyOp"] = FORGETFUL[what]
    kept = [1, 2, 0, 0] if what == "some positions" else [0] * 4
    found = golden(custom()())
    assert found == (expected({"w.0 b.0 v.1": kept}) if any(kept) else {})


def test_a_rule_that_forgets_an_output_freezes(rules):
    """Of two outputs, the rule speaks of the first only: nobody knows what the other one would lose."""
    RULES["com.acme", "MyOp"] = lambda t, x: x.view
    analysis = custom(outputs="d, e")()
    assert not golden(analysis)
    assert "its rule says nothing about output e" in reasons(analysis)["w.0"]


def test_a_rule_that_forgets_an_input_freezes_it(rules):
    """Also where the forgotten input is the same tensor as the one that is carried."""
    RULES["com.acme", "MyOp"] = lambda t, x, k: x.view
    assert not golden(custom("MyOp(h, h)")())


def test_atoms_that_a_rule_makes_and_drops(rules):
    """Another array in the same place of memory is not mistaken for them: all its ties count."""

    def my_op(t, x):
        pair = t.fresh(4)
        index = np.array([0, 0, 1, 1])
        t.fresh(4)
        t.tie(t.atoms(x, 1), pair.take(index), "neighbours go together")
        return x.view

    RULES["com.acme", "MyOp"] = my_op
    assert golden(custom()()) == expected({"w.0 b.0 v.1": [1, 1, 2, 2]})


def test_one_atom_that_a_rule_broadcasts(rules):
    """An array that repeats its first atom is not mistaken for the whole of it."""
    RULES["com.acme", "MyOp"] = lambda t, x: (
        t.tie(t.atoms(x, 1), np.broadcast_to(t.fresh(4)[:1], (4,)), "together") or x.view
    )
    assert golden(custom()()) == expected({"w.0 b.0 v.1": [1, 1, 1, 1]})


def test_a_forgotten_axis_that_shares_its_atoms_with_a_carried_one():
    """In a Gram matrix both axes lose the same positions; a convolution carries one and runs along the other."""
    analysis = analyse(
        """g (float[1,5,3] x) => (float[] y) <float[3,4] w, float[2,4,1] v> {
            h = MatMul(x, w)
            t = Transpose <perm = [0, 2, 1]> (h)
            m = MatMul(t, h)
            y = Conv(m, v)
        }"""
    )
    assert not golden(analysis)


def test_a_rule_with_a_wrong_shape_is_our_bug(rules):
    """The engine says which rule, and stops."""
    RULES["com.acme", "MyOp"] = lambda t, x: (along(t.atoms(x, 1), 0, 4),)
    with pytest.raises(
        VerificationError, match=r"The rule of MyOp \(node d\) returned a factor of shape \(4, 1, 1, 1\)"
    ):
        custom()()


@pytest.mark.parametrize("op", ["Conv", "Pad", "ReduceSum", "Concat", "Gemm", "LSTM"])
def test_without_its_rule_every_op_freezes(rules, op):
    """Deleting a rule never makes anything prunable."""
    text = {
        "Conv": between("d = Relu(h)"),
        "Pad": between("d = Pad(h, p)", "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}"),
        "ReduceSum": between("d = ReduceSum(h, a)", "int64[1] a = {2}"),
        "Concat": between("d = Concat <axis = 2> (h, h)"),
        "Gemm": "g (float[5,3] x) => (float[] y) <float[3,4] w, float[4,2] v> { h = Gemm(x, w)  y = Gemm(h, v) }",
        "LSTM": """g (float[5,1,3] x) => (float[] y) <float[1,16,3] w, float[1,16,4] r, float[4,2] v> {
            h = LSTM <hidden_size = 4> (x, w, r)
            y = MatMul(h, v)
        }""",
    }[op]
    assert golden(analyse(text))
    del RULES["", op]
    assert not golden(analyse(text))


# ---- ties across the graph ----------------------------------------------------------------------------------------------

TIED = {
    "a weight used twice as it is": (
        """g (float[1,3] x, float[1,3] z) => (float[] y) <float[3,4] w, float[4,2] v, float[4,2] u> {
            a = MatMul(x, w)
            b = MatMul(z, w)
            c = MatMul(a, v)
            d = MatMul(b, u)
            y = Add(c, d)
        }""",
        {"w.1 v.0 u.0": FOUR},
    ),
    "an embedding that is also the classifier, which fixes its rows": (
        """g (int64[2,5] x) => (float[] y) <float[6,4] w, float[4,4] v> {
            h = Gather(w, x)
            a = MatMul(h, v)
            t = Transpose(w)
            y = MatMul(a, t)
        }""",
        {"w.1 v.0 v.1": FOUR},
    ),
    "a square weight used as both reader and producer": (
        """g (float[1,3] x) => (float[] y) <float[3,4] u, float[4,4] w, float[4,2] v> {
            a = MatMul(x, u)
            b = MatMul(a, w)
            c = Relu(b)
            d = MatMul(c, w)
            y = MatMul(d, v)
        }""",
        {"u.1 w.0 w.1 v.0": FOUR},
    ),
    "a residual stream of two blocks": (
        between(
            "a = Conv(h, p)  c = Relu(a)  e = Conv(c, q)  f = Add(h, e)  i = Conv(f, r)  d = Add(i, f)",
            "float[3,4,1,1] p, float[4,3,1,1] q, float[4,4,1,1] r",
        ),
        CHANNELS | {"p.1 q.0 r.0 r.1": FOUR, "p.0 q.1": [5, 6, 7]},
    ),
    "a weight that reads what it made": (
        """g (float[5,3] x) => (float[] y) <float[3,4] w> {
            h = MatMul(x, w)
            r = Relu(h)
            t = Transpose(w)
            y = MatMul(r, t)
        }""",
        {"w.1": FOUR},
    ),
}


@each(TIED, "text, table")
def test_ties(text, table):
    """Weights that are used twice, and streams that many layers write to."""
    analysis = analyse(text)
    assert golden(analysis) == expected(table)
    assert_sound(analysis, seeds=(0, 1))


def test_two_prunable_axes_merged_into_one():
    """A reader of the merged axis sees one position of it per pair, so that nothing of either can go alone."""
    text = """g (float[5,3] x) => (float[] y) <float[2,5] p, float[3,3] w, float[6,2] v, int64[2] s = {1, 6}> {
        a = MatMul(p, x)
        h = MatMul(a, w)
        f = Reshape(h, s)
        y = MatMul(f, v)
    }"""
    assert golden(analyse(text)) == {"p.0": [1, 1], "w.1": [1, 1, 1], "v.0": [1] * 6}


def test_positions_that_are_no_rectangle_are_tied():
    """Rows of a reshaped weight lose whole indices of one axis: here of the last, along which more classes remain."""
    text = """g (float[1,3] x) => (float[] y, float[] z) <float[3,6] w, int64[2] s = {2, 3}, int64[2] t = {1, 6}, float[6,2] v> {
        h = MatMul(x, w)
        r = Reshape(h, s)
        q = Relu(r)
        f = Reshape(q, t)
        y = MatMul(f, v)
        z = MatMul(h, v)
    }"""
    analysis = analyse(text)
    assert golden(analysis) == expected({"w.1 v.0": [1, 2, 3, 1, 2, 3]})
    assert_sound(analysis)


# ---- the analysis ---------------------------------------------------------------------------------------------------------


def test_roles_groups_and_frozen_positions():
    """Filters, columns and what goes along; classes belong to their first producer; results are frozen."""
    analysis = analyse(
        """g (float[1,3,5,5] x) => (float[] y) <float[4,3,1,1] w, float[4] b, float[2,4,1,1] u, float[2,6,1,1] v> {
            h = Conv(x, w, b)
            k = Conv(h, u)
            d = Concat <axis = 1> (h, k)
            y = Conv(d, v)
        }"""
    )
    assert {f"{a.param}.{a.axis}": a.role for a in analysis.axes} == {
        **{"w.0": "out", "b.0": "with", "u.0": "out", "u.1": "in", "v.1": "in"}
    }
    assert [(g.param, g.axis) for g in analysis.groups] == [("w", 0), ("u", 0)]
    assert analysis.group.tolist() == [0, 1, 1, 1, 1, 2, 2]
    assert [(f.name, f.axis, f.op, f.positions) for f in analysis.frozen] == [("v", 0, "graph output", 2)]


def test_elements_and_cost_of_a_plan():
    """Parameters and multiply-accumulates for kept classes, by hand: 3 of 4 filters of 3x1x1, 25 pixels."""
    analysis = analyse(between("d = Relu(h)", size="5,5"))
    kept = np.array([True, True, False, True, True])
    assert {e.param: e.elements.count(kept) for e in analysis.elements} == {"w": 9, "b": 3, "v": 6}
    assert [layer.macs.count(kept) for layer in analysis.layers] == [25 * 9, 25 * 6]


def test_inexact_classes_are_marked():
    """Removing a position from a LayerNorm changes the others, wherever in its class it is normalised."""
    analysis = analyse(
        """g (float[5,3] x) => (float[] y) <float[3,4] w, float[3,3] u, float[4] g, float[7,2] v> {
            h = MatMul(x, w)
            n = LayerNormalization(h, g)
            k = MatMul(x, u)
            d = Concat <axis = 1> (n, k)
            y = MatMul(d, v)
        }"""
    )
    assert analysis.inexact.tolist() == [False, True, True, True, True, False, False, False]


def test_couple_does_not_change_the_model():
    """Coupling reads: the exported bytes stay the same."""
    model = from_proto(proto(between("d = Relu(h)")))
    before = model.to_proto().SerializeToString()
    analysis = couple(model, concrete_shapes(model))
    assert oracle(analysis, random_plan(analysis, 0.5, 0)).masked_differs
    assert model.to_proto().SerializeToString() == before
