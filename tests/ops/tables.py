"""The tests that every table of graphs gets: name -> (graph as text, what is expected of it)."""

from __future__ import annotations

from graphs import analyse, assert_sound, each, expected, golden, reasons


def prunes(table, *, opset=17, seeds=(0,)):
    """Two tests of graphs with {"w.0 b.0": classes}: exactly these axes are prunable, and random plans are sound."""

    @each(table, "text, classes")
    def test_must_prune(text, classes):
        """The classes of every prunable axis, and no other axis."""
        assert golden(analyse(text, opset=opset)) == expected(classes)

    @each(table, "text, classes")
    def test_stays_sound(text, classes):
        """Whatever the plan removes, the cut model equals the masked original."""
        assert_sound(analyse(text, opset=opset), seeds=seeds)

    return test_must_prune, test_stays_sound


def refuses(table, *, opset=17):
    """The test of graphs with {"w.0": part of the reason}: nothing is prunable."""

    @each(table, "text, why")
    def test_must_refuse(text, why):
        """Nothing can be removed, and the reason says why."""
        analysis = analyse(text, opset=opset)
        assert not golden(analysis)
        assert all(reason in reasons(analysis)[axis] for axis, reason in why.items())

    return test_must_refuse
