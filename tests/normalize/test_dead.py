"""Nodes that nobody reads are removed."""

from __future__ import annotations

from cleaning import cleaned, ops, parse

from onnxprune.normalize import normalize


def test_chain_goes():
    """A whole chain of nodes without a use is removed, and its weights with it."""
    model = parse("""g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
        a = Add(x, w) b = Relu(a) c = Neg(b) y = Abs(x) }""")
    after = cleaned(model)
    assert ops(after) == ["Abs"]
    assert not after.graph.initializer


def test_split_keeps_its_outputs():
    """An op with several outputs keeps those that are not used: they are its form."""
    model = parse(
        """g (float[6] x) => (float[2] y) <int64[3] s = {2, 2, 2}> { a, b, c = Split<axis = 0>(x, s) y = Neg(b) }"""
    )
    assert list(cleaned(model).graph.node[0].output) == ["a", "b", "c"]


def test_subgraphs_stay():
    """A node with subgraphs is left alone even where nobody reads it, and so is what it reads."""
    model = parse("""g (bool b, float[1] x) => (float[1] y) { a = Neg(x)
        z = If(b)<then_branch = t () => (float[1] p) { p = Neg(a) }, else_branch = e () => (float[1] q) { q = Abs(a) }>
        y = Abs(x) }""")
    assert ops(cleaned(model)) == ["Neg", "If", "Abs"]


def test_deep_graph():
    """A chain of 5,000 dead nodes is no problem for the stack."""
    chain = "\n".join(f"a{i + 1} = Neg(a{i})" for i in range(5000))
    model = parse(f"g (float[1] x) => (float[1] y) {{ a0 = Abs(x) {chain} y = Relu(x) }}")
    assert [n.op for n in normalize(model).graph.nodes] == ["Relu"]
