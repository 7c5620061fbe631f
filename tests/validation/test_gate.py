"""Verdicts."""

from __future__ import annotations

import pytest

from onnxprune.errors import UsageError
from onnxprune.validation.gate import Goals, check_choice, goal, judged, overall
from onnxprune.validation.intervals import Interval


@pytest.mark.parametrize(
    ("low", "high", "at_most", "verdict"),
    [
        (0.2, 0.9, True, "pass"),
        (0.2, 1.0, True, "pass"),
        (0.2, 1.1, True, "inconclusive"),
        (1.0, 1.1, True, "inconclusive"),
        (1.01, 1.1, True, "fail"),
        (1.01, 1.1, False, "pass"),
        (1.0, 1.1, False, "pass"),
        (0.9, 1.1, False, "inconclusive"),
        (0.9, 1.0, False, "inconclusive"),
        (0.9, 0.99, False, "fail"),
    ],
)
def test_intervals(low, high, at_most, verdict):
    """Pass where the interval lies wholly inside the goal 1, fail where wholly outside; the goal itself is inside."""
    assert judged(1.0, Interval((low + high) / 2, low, high), at_most=at_most) == verdict


@pytest.mark.parametrize(("lost", "n"), [(7, 1000), (3, 700), (1, 3), (33, 9000), (10, 500)])
def test_points_flip_at_the_goal(lost, n):
    """With `point`, as many samples lost as the goal allows pass, and one more fails, whatever the last bit says."""
    bound = float(f"{100 * lost / n:.12g}")  # as somebody writes it

    def verdict(k):
        return judged(bound, Interval(100 * (k / n), -100, 100), at_most=True, by="point")

    assert [verdict(lost - 1), verdict(lost), verdict(lost + 1)] == ["pass", "pass", "fail"]


def test_goal_directions():
    """Goals named max_ bound from above, those named min_ from below."""
    found = Interval(2.0, 1.9, 2.1)
    assert goal("max_latency", 3.0, found, "s", "latency", "interval").verdict == "pass"
    assert goal("min_speedup", 3.0, found, "x", "speed-up", "interval").verdict == "fail"


def test_overall():
    """The worst verdict counts; doubt passes only where it may; without goals there is none."""
    made = {
        v: goal("max_size", 1.0, i, "B", "size", "interval")
        for v, i in {"pass": Interval(0, 0, 0), "inconclusive": Interval(1, 0, 2), "fail": Interval(2, 2, 2)}.items()
    }
    assert overall([]) is None
    assert overall([made["pass"], made["inconclusive"]]) == "inconclusive"
    assert overall([made["pass"], made["inconclusive"]], "pass") == "pass"
    assert overall([made["inconclusive"], made["fail"]], "pass") == "fail"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"min_agreement": 98}, "--min-agreement 98: give a share"),
        ({"min_agreement": 0.0}, "--min-agreement 0"),
        ({"min_speedup": -1.0}, "--min-speedup -1: give a number above 0"),
        ({"max_latency": 0.0}, "--max-latency 0"),
        ({"max_drop": -1.0}, "--max-drop -1: give 0 or more"),
        ({"max_drop": float("nan")}, "--max-drop nan is not a finite number"),
        ({"max_size": -1.0, "min_agreement": 2.0}, "--min-agreement 2.*--max-size -1"),
    ],
)
def test_goals_that_mean_nothing(given, words):
    """Goals that nothing or everything meets are usage errors, all at once."""
    with pytest.raises(UsageError, match=words):
        Goals(**given).check()


@pytest.mark.parametrize(
    ("by", "doubt", "words"),
    [
        ("point", "pass", "contradicts"),
        ("points", "fail", "--verdict 'points'"),
        ("interval", "ok", "--inconclusive 'ok'"),
    ],
)
def test_choices(by, doubt, words):
    """Unknown words, and a rule for doubt where there cannot be any, are usage errors."""
    with pytest.raises(UsageError, match=words):
        check_choice(by, doubt)
