"""A latency as a target: the loop of choosing, measuring and correcting, on made-up latencies."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.allocate import Allocation
from onnxprune.cost import Cost
from onnxprune.reach import TOLERANCE, Measured, reach
from onnxprune.validation.intervals import Interval

STEPS = 200  # equal steps in which the made-up network shrinks
ONE = Interval(1.0, 0.99, 1.01)


def network(latency, floor=0.0, steps=STEPS):
    """choose and measure of a network whose share of the latency is a function of the share of its cost."""
    measured = []

    def choose(asked):
        left = max(int(np.floor(asked * steps + 1e-9)), int(np.ceil(floor * steps)))
        kept = np.arange(steps) < left
        return Allocation(kept, Cost(1, 1, 1), Cost(1, 1, 1), left / steps, np.ceil(floor * steps) / steps, "")

    def measure(choice):
        measured.append(choice.fraction)
        at = latency(choice.fraction)
        return Measured(Interval(at, at, at), ONE, 1.0, at)

    return choose, measure, measured


@pytest.mark.parametrize("wanted", [0.9, 0.7, 0.5, 0.35])
@pytest.mark.parametrize(
    "latency",
    [
        lambda x: x,
        lambda x: 0.3 + 0.7 * x,
        lambda x: 0.1 + 0.9 * x**0.3,
        lambda x: 0.2 * x + 0.8 * x**3,
        lambda x: 1.15 * x if x < 1 else 1.0,
    ],
    ids=["proportional", "overhead", "concave", "convex", "slower at first"],
)
def test_the_wanted_share_is_reached(latency, wanted):
    """Whatever way the latency falls with the cost, the measured share ends within 3 % of what is wanted, soon."""
    if latency(0.0) > wanted:
        wanted = latency(0.0) * 1.2
    choose, measure, measured = network(latency, steps=10_000)
    found = reach(wanted, choose, measure)
    assert found.met
    assert abs(found.ratio / wanted - 1) <= TOLERANCE
    assert found.ratio == latency(found.choice.fraction)
    assert len(measured) <= 8


def test_a_good_prediction_needs_one_measurement():
    """Where latency follows the predicted cost, the first network is taken."""
    choose, measure, measured = network(lambda x: x)
    assert reach(0.5, choose, measure).met
    assert measured == [0.5]


def test_the_floor_is_told():
    """Where nothing more may leave, the loop ends there and says so, with the share that was measured."""
    choose, measure, measured = network(lambda x: 0.4 + 0.6 * x, floor=0.25)
    found = reach(0.5, choose, measure)
    assert found.floor
    assert not found.met
    assert found.ratio == pytest.approx(0.55)
    assert measured[-1] == 0.25


def test_all_of_the_latency():
    """Where nothing has to leave, nothing does, whatever noise is measured."""
    choose, measure, measured = network(lambda x: 1.06)
    found = reach(1.0, choose, measure)
    assert found.met
    assert found.choice.kept.all()
    assert measured == [1.0]


def test_coarse_steps_give_the_nearest_below():
    """Where no step is close enough, the largest share below what is wanted is taken; nothing is measured twice."""
    choose, measure, measured = network(lambda x: x, steps=4)
    found = reach(0.6, choose, measure)
    assert not found.met
    assert not found.floor
    assert found.ratio == 0.5
    assert len(measured) == len(set(measured)) == len(found.trials)


def test_coarse_steps_without_anything_below():
    """Where all networks are slower than wanted, the fastest one is the nearest."""
    choose, measure, _ = network(lambda x: 0.8 if x < 1 else 1.0, floor=0.1)
    found = reach(0.5, choose, measure)
    assert found.ratio == 0.8
    assert found.floor


def test_json():
    """What is told of the way: predicted and measured shares, and the trial that was taken."""
    choose, measure, _ = network(lambda x: 0.2 + 0.8 * x)
    told = reach(0.5, choose, measure).as_dict()
    assert told["wanted"] == 0.5
    assert told["met"] is True
    assert told["iterations"][0] == {"asked": 0.5, "predicted": 0.5, "measured": pytest.approx(0.6)}
    assert told["measured"]["ratio"]["point"] == told["iterations"][-1]["measured"]
    assert told["predicted"] == told["iterations"][-1]["predicted"]
