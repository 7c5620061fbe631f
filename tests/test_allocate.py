"""Allocation: budgets met from below, constraints never broken."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxprune.allocate import allocate
from onnxprune.analysis import Analysis, Axis, Element, Layer, Product
from onnxprune.cost import CostModel
from onnxprune.errors import TargetError, UsageError
from onnxprune.target import Target


def network(widths, readers=None, *, factors=None, frozen=(), copies=(), inexact=()):
    """Layers in a row: layer i makes `widths[i]` filters and reads the layers `readers[i]` (default: the one before).

    frozen: filters per layer that are frozen; copies: positions per class, per layer; inexact: class ids.
    The last layer's output is frozen.
    """
    factors = factors or [1] * len(widths)
    frozen, copies = [*frozen, *[0] * len(widths)], [*copies, *[1] * len(widths)]
    outputs, axes, layers, elements, groups, group = [], [], [], [], [], [0]
    for i, width in enumerate(widths):
        live = 0 if i == len(widths) - 1 else (width - frozen[i]) // copies[i]
        ids = np.repeat(np.arange(len(group), len(group) + live), copies[i])
        outputs.append(np.concatenate([ids, np.zeros(width - len(ids))]).astype(np.int32))
        sources = ([i - 1] if i else []) if readers is None else readers[i]
        inputs = np.concatenate([outputs[j] for j in sources] or [np.zeros(3, np.int32)])
        axes += [Axis(f"w{i}", 0, outputs[i], "out"), Axis(f"w{i}", 1, inputs, "in")]
        if live:
            groups.append(axes[-2])
            group += [len(groups)] * live
        dims = (outputs[i], inputs)
        layers.append(Layer(f"n{i}", "Conv", f"w{i}", *dims, Product(factors[i], dims)))
        elements.append(Element(f"w{i}", Product(1, dims), 4))
    soft = np.zeros(len(group), bool)
    soft[list(inexact)] = True
    parts = tuple(axes), tuple(layers), tuple(elements), np.array(group, np.int32), tuple(groups)
    return Analysis(None, {}, len(group) - 1, soft, *parts, (), (), None)  # allocation never looks at the graph


def run(analysis, keep, *, scores=None, kind="flops", **options):
    if scores is None:
        scores = np.random.default_rng(0).random(analysis.classes + 1)
    return allocate(analysis, np.asarray(scores, float), CostModel(analysis), target=Target(kind, keep), **options)


def widths_of(analysis, result):
    return [int(result.kept[g.classes].sum()) for g in analysis.groups]


def test_everything_stays_at_target_one():
    """A target of 1.0 removes nothing."""
    result = run(network([16, 16, 10]), 1.0)
    assert result.kept.all()
    assert (result.fraction, result.note) == (1.0, "")


def test_smallest_scores_leave_first():
    """Within a group the classes leave in ascending score."""
    net = network([10, 5])
    result = run(net, 0.65, scores=[0, 5, 1, 9, 2, 8, 3, 7, 4, 6, 10], align=1)
    assert np.flatnonzero(~result.kept).tolist() == [2, 4, 6, 8]


def test_scores_are_compared_relative_to_their_group():
    """Multiplying one group's scores by a constant changes nothing."""
    net = network([20, 20, 5])
    scores = np.random.default_rng(1).random(41)
    scaled = np.where(net.group == 2, 1000 * scores, scores)
    assert (run(net, 0.5, scores=scores).kept == run(net, 0.5, scores=scaled).kept).all()


@pytest.mark.parametrize(("width", "step"), [(64, 8), (32, 8), (24, 4), (8, 4), (6, 1)])
def test_automatic_alignment(width, step):
    """Wide groups leave in eights, middling ones in fours, narrow ones one by one."""
    net = network([width, 4])
    result = run(net, 1 - 1 / width, best_effort=True)
    assert widths_of(net, result) == [width - step]


def test_first_chunk_brings_an_odd_width_to_a_multiple():
    """A group of 30 goes to 28, then to 24."""
    net = network([30, 4])
    assert widths_of(net, run(net, 0.99)) == [28]
    assert widths_of(net, run(net, 0.92)) == [24]


def test_forced_alignment_counts_frozen_positions():
    """40 positions of which 5 are frozen leave 24 at --align 12, then 12."""
    net = network([40, 4], frozen=[5])
    assert widths_of(net, run(net, 0.6, align=12)) == [24]
    assert widths_of(net, run(net, 0.31, align=12)) == [12]


def test_grouped_convolution_leaves_in_whole_groups():
    """Classes of 6 positions on an axis of 48 leave in fours, which is a multiple of 8."""
    net = network([48, 4], copies=[6])
    assert widths_of(net, run(net, 0.9)) == [24]


def test_automatic_alignment_gives_way_where_it_would_remove_nothing():
    """Three classes of three positions can never leave a multiple of four; the width is odd anyway."""
    net = network([9, 4], copies=[3])
    assert widths_of(net, run(net, 0.7)) == [6]
    with pytest.raises(TargetError):
        run(net, 0.7, align=4)


def test_alignment_gets_no_worse_than_it_was():
    """Only three of 32 filters can go: taking them would leave 29, so none leaves unless --align 1."""
    net = network([32, 4], frozen=[29])
    with pytest.raises(TargetError, match="--align 1"):
        run(net, 0.99)
    assert widths_of(net, run(net, 0.97, align=1)) == [31]


def test_floor_is_a_share_of_the_group():
    """min_keep 0.3 of 20 positions is 6; at --min-keep 0 one position stays."""
    net = network([20, 4])
    assert widths_of(net, run(net, 0.01, align=1, min_keep=0.3, best_effort=True)) == [6]
    assert widths_of(net, run(net, 0.01, align=1, min_keep=0, best_effort=True)) == [1]


def test_aligned_floor_is_rounded_up():
    """A tenth of 64 is 7, which at multiples of 8 is 8."""
    net = network([64, 4])
    assert widths_of(net, run(net, 0.001, best_effort=True)) == [8]


def test_every_axis_keeps_a_position():
    """Where a layer reads only half of a group (a Split), the best of that half stays although it scores low."""
    net = network([8, 4, 4])
    half = net.axes[0].classes[:4]
    axes = (*net.axes, Axis("half", 1, half, "in"))
    net = Analysis(net.model, {}, net.classes, net.inexact, axes, *(getattr(net, f) for f in FIELDS))
    scores = [0, 1, 3, 2, 0, 10, 11, 12, 13, *[20] * 4]
    result = run(net, 0.001, scores=scores, align=1, min_keep=0, best_effort=True)
    assert result.kept[half].tolist() == [False, True, False, False]


FIELDS = ("layers", "elements", "group", "groups", "frozen", "notes", "trace")


def test_protected_and_inexact_classes_stay():
    """Protected classes never leave, inexact ones only by request."""
    net = network([10, 4], inexact=[1, 2, 3])
    protect = np.zeros(11, bool)
    protect[[4, 5]] = True
    scores = np.arange(11)
    strict = run(net, 0.01, scores=scores, align=1, min_keep=0, protect=protect, best_effort=True)
    assert np.flatnonzero(strict.kept).tolist() == [0, 1, 2, 3, 4, 5]
    loose = run(net, 0.01, scores=scores, align=1, min_keep=0, protect=protect, inexact=True, best_effort=True)
    assert np.flatnonzero(loose.kept).tolist() == [0, 4, 5]


@pytest.mark.parametrize("kind", ["flops", "params", "size"])
def test_each_kind_of_budget(kind):
    """Every kind bounds its own number and reports its fraction."""
    net = network([200, 100, 10], factors=[1, 50, 7])
    result = run(net, 0.5, kind=kind, align=1)
    assert 0.49 < result.reached.of(kind) / result.original.of(kind) == result.fraction <= 0.5


def test_a_chunk_that_is_too_large_is_left_out():
    """The ranking's next filter would overshoot; smaller ones of another layer fill the gap."""
    net = network([10, 200, 3], readers=[[], [], [1]], factors=[1000, 1, 1])
    scores = np.concatenate([[0], np.linspace(0.1, 0.2, 10), np.linspace(1, 2, 200)])
    result = run(net, 0.975, scores=scores, align=1)
    assert 0.98 * 0.975 < result.fraction <= 0.975
    assert widths_of(net, result)[0] == 10


def test_an_exchange_hits_the_window():
    """Filters worth 7, 5 and 4 of 32 are ranked in this order: only giving the 7 up for 5 and 4 leaves 23."""
    net = network([2, 2, 2, 1], readers=[[], [], [], []], factors=[7, 5, 4, 0], frozen=[1, 1, 1])
    result = run(net, 23 / 32, scores=[0, 1, 1, 1], align=1, min_keep=0)
    assert np.flatnonzero(~result.kept).tolist() == [2, 3]


def test_a_loose_fit_says_why():
    """Two aligned steps of 50 % cannot come close to 0.7; the note names the gap and the remedy."""
    result = run(network([16, 4]), 0.7, align=8)
    assert result.fraction == 0.5
    assert "28.6% below the target 0.7" in result.note
    assert "--align 1" in result.note


def test_an_unreachable_target_names_the_nearest():
    """The error gives a fraction that works when it is asked for, and the options that would allow less."""
    net = network([20, 4], inexact=[1])
    with pytest.raises(TargetError, match=r"--flops 0.05 cannot be reached.* nearest target is --flops 0.2;") as caught:
        run(net, 0.05)
    assert all(hint in str(caught.value) for hint in ("--min-keep", "--align 1", "--inexact"))
    assert run(net, 0.2).fraction == 0.2


def test_best_effort_goes_to_the_floors_and_says_so():
    """Out of reach, everything leaves that may; the note is the error's text."""
    result = run(network([20, 4]), 0.05, align=1, best_effort=True)
    assert result.fraction == result.smallest == 0.1
    assert "cannot be reached" in result.note


def test_nothing_to_remove():
    """A model without layers, or without removable classes, reaches only 1.0."""
    for net in (network([]), network([4])):
        assert run(net, 1.0).kept.all()
        with pytest.raises(TargetError):
            run(net, 0.9)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, float("nan")])
def test_fractions_outside_the_range(keep):
    """A budget must be in (0, 1]."""
    with pytest.raises(UsageError, match="--flops"):
        Target("flops", keep)


@pytest.mark.parametrize(
    "options",
    [{"min_keep": -0.1}, {"min_keep": 1.5}, {"align": 0}, {"align": "often"}, {"scores": [0, 1]}],
    ids=str,
)
def test_wrong_options(options):
    """Options that make no sense are refused before anything is computed."""
    with pytest.raises(UsageError):
        run(network([10, 4]), 0.5, **options)


def test_scores_that_are_not_numbers():
    """A criterion that gives NaN is refused."""
    with pytest.raises(UsageError, match="finite"):
        run(network([2, 4]), 0.5, scores=[0, 1, np.nan])


def test_equal_scores_still_reach_the_target():
    """With all scores zero the ranking is arbitrary but the budget is met."""
    net = network([100, 100, 10])
    result = run(net, 0.5, scores=np.zeros(201), align=1)
    assert 0.49 < result.fraction <= 0.5


@st.composite
def networks(draw, low=1, high=40):
    """Up to five layers that read any earlier ones; frozen and inexact positions, classes of several positions."""
    count = draw(st.integers(2, 5))
    widths = draw(st.lists(st.integers(low, high), min_size=count, max_size=count))
    readers = [draw(st.lists(st.integers(0, i - 1), unique=True, max_size=3)) if i else [] for i in range(count)]
    factors = draw(st.lists(st.integers(1, 100), min_size=count, max_size=count))
    frozen = [draw(st.integers(0, w)) if draw(st.booleans()) else 0 for w in widths]
    copies = [draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in widths]
    net = network(widths, readers, factors=factors, frozen=frozen, copies=copies)
    share, seed = draw(st.sampled_from([0, 0.2])), draw(st.integers(0, 99))
    net.inexact[1:] = np.random.default_rng(seed).random(net.classes) < share
    return net


targets = st.floats(0.02, 1)
aligns = st.sampled_from(["auto", 1, 4, 8])


def constraints_hold(net, result, align, min_keep):
    """Every promise about widths that does not depend on the target."""
    assert result.kept[0]
    assert result.kept[net.inexact].all()
    assert all(result.kept[axis.classes].any() for axis in net.axes)
    for axis in net.groups:
        width, left = len(axis.classes), int(result.kept[axis.classes].sum())
        assert left >= np.ceil(min_keep * width - 1e-9)
        step = align if align != "auto" else 8 if width >= 32 else 4 if width >= 8 else 1
        assert left == width or left % step == 0 or (align == "auto" and left % np.gcd(width, 4) == 0)


@settings(deadline=None)
@given(networks(), targets, aligns, st.sampled_from([0, 0.1, 0.5]), st.integers(0, 9))
def test_constraints_hold_on_random_networks(net, keep, align, min_keep, seed):
    """Within the budget or out of reach; floors, alignment, exactness and one position per axis in either case."""
    scores = np.random.default_rng(seed).random(net.classes + 1)
    result = run(net, keep, scores=scores, align=align, min_keep=min_keep, best_effort=True)
    constraints_hold(net, result, align, min_keep)
    assert result.fraction == CostModel(net).evaluate(result.kept).macs / result.original.macs
    assert result.fraction <= keep or result.fraction == result.smallest > keep
    assert bool(result.note) == (not 0.98 * keep < result.fraction <= keep)


@settings(deadline=None)
@given(networks(), st.lists(targets, min_size=2, max_size=6), aligns, st.integers(0, 9))
def test_share_is_monotone_in_the_target(net, keeps, align, seed):
    """A smaller target never keeps a larger share."""
    scores = np.random.default_rng(seed).random(net.classes + 1)
    shares = [run(net, t, scores=scores, align=align, best_effort=True).fraction for t in sorted(keeps)]
    assert shares == sorted(shares)


@settings(deadline=None)
@given(networks(low=60, high=200), st.floats(0.3, 1), st.integers(0, 9))
def test_window_is_hit_where_steps_are_small(net, keep, seed):
    """If no single class costs as much as the window is wide, the result lies in the window."""
    model, everything = CostModel(net), np.ones(net.classes + 1, bool)
    saved = model.saved(everything, [np.array([c]) for c in range(1, net.classes + 1)])
    assume(net.classes and saved.max() < 0.02 * keep * model.original.macs)
    result = run(net, keep, scores=np.random.default_rng(seed).random(net.classes + 1), align=1, best_effort=True)
    assert result.fraction > 0.98 * keep


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 50)), min_size=2, max_size=4), st.data())
def test_window_is_hit_in_tiny_networks_if_any_choice_of_widths_does(layers, data):
    """In a chain of a few filters, a budget that some widths meet within 2 % is met within 2 %."""
    widths, factors = zip(*layers, strict=True)
    net = network(widths, factors=list(factors))
    total = CostModel(net).original.macs
    every = product(*(range(1, w + 1) for w in widths[:-1]), widths[-1:])
    shares = [sum(f * a * b for f, a, b in zip(factors, w, (3, *w), strict=False)) / total for w in every]
    keep = min(1.0, data.draw(st.sampled_from(shares)) * data.draw(st.floats(1, 1.02)))
    assert any(0.98 * keep < share <= keep for share in shares)
    assert 0.98 * keep < run(net, keep, align=1, min_keep=0).fraction <= keep


@pytest.mark.parametrize("groups", [3, 40])
def test_equal_steps_that_are_all_too_large(groups):
    """Steps of 1 in 2n miss a window between two of them: the lower one is taken, few combinations or many."""
    net = network([2] * groups + [1], readers=[[]] * (groups + 1), factors=[1] * groups + [0])
    result = run(net, (groups + 1.99) / (2 * groups), align=1, min_keep=0)
    assert result.fraction == pytest.approx((groups + 1) / (2 * groups))
    assert "too coarse" in result.note


@settings(deadline=None)
@given(networks(high=8), targets, st.integers(0, 9))
def test_group_members_leave_in_order(net, keep, seed):
    """No class leaves while a lower-scored one of its group stays, unless that one is the last of an axis."""
    scores = np.random.default_rng(seed).random(net.classes + 1)
    result = run(net, keep, scores=scores, align=1, best_effort=True)
    alone = [c for a in net.axes for c in set(a.classes) if not result.kept[a.classes[a.classes != c]].any()]
    for group in range(1, len(net.groups) + 1):
        members = np.flatnonzero(net.group == group)
        gone = members[~result.kept[members]]
        stay = [c for c in members if result.kept[c] and not net.inexact[c] and c not in alone]
        assert not len(gone) or all(scores[c] >= scores[gone].max() for c in stay)
