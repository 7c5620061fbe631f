"""Costs: exact counts for any choice of classes, one at a time and many at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from onnxprune.analysis import Analysis, Element, Layer, Product
from onnxprune.cost import Cost, CostModel


def labels(*ids):
    return np.array(ids, np.int32)


def analysis(classes, macs=(), elements=()):
    """An Analysis that has nothing but costs: `macs` are Products, `elements` pairs of Product and bytes."""
    layers = tuple(Layer(f"n{i}", "Conv", None, labels(0), labels(0), p) for i, p in enumerate(macs))
    params = tuple(Element(f"p{i}", p, size) for i, (p, size) in enumerate(elements))
    group = np.zeros(classes + 1, np.int32)
    return Analysis(None, {}, classes, np.zeros(classes + 1, bool), (), layers, params, group, (), (), (), None)


def kept(classes, *removed):
    mask = np.ones(classes + 1, bool)
    mask[list(removed)] = False
    return mask


@pytest.fixture
def chain():
    """Conv 3 -> 4 (3x3, 10x10 outputs), Conv 4 -> 2 (1x1, 10x10), float32 weights, a float16 bias of 4."""
    a, b, x = labels(1, 2, 3, 4), labels(0, 0), labels(0, 0, 0)
    macs = [Product(900, (a, x)), Product(100, (b, a))]
    elements = [(Product(9, (a, x)), 4), (Product(1, (b, a)), 4), (Product(1, (a,)), 2)]
    return analysis(4, macs, elements)


def test_original_cost_by_hand(chain):
    """The uncut chain has 900*3*4 + 100*2*4 MACs, 108 + 8 + 4 elements, and 464 + 8 bytes plus the overhead."""
    assert CostModel(chain, overhead_bytes=1000).original == Cost(11600, 120, 1472)


def test_cut_cost_by_hand(chain):
    """Without two of four filters both the producer and the consumer halve."""
    assert CostModel(chain).evaluate(kept(4, 1, 3)) == Cost(5800, 60, 236)


def test_value_is_one_number_of_the_cost(chain):
    """`value` agrees with `evaluate` for each kind."""
    model = CostModel(chain, 7)
    cost = model.evaluate(kept(4, 2))
    assert [model.value(kept(4, 2), k) for k in ("flops", "params", "size")] == [cost.macs, cost.params, cost.bytes]


def test_square_products_shrink_twice():
    """A layer whose input and output share a class falls with the square of the width."""
    a = labels(1, 2, 3, 4)
    model = CostModel(analysis(4, [Product(5, (a, a))]))
    assert model.evaluate(kept(4, 1)).macs == 45
    assert model.saved(kept(4), [labels(1), labels(1, 2)]).tolist() == [80 - 45, 80 - 20]


def test_multiplicity_counts_positions():
    """A class with three positions on an axis takes three away."""
    model = CostModel(analysis(2, [Product(1, (labels(1, 1, 1, 2, 0),))]))
    assert model.evaluate(kept(2, 1)).macs == 2


def test_constant_products_stay():
    """Frozen axes, no axes and no layers cost the same whatever is removed."""
    model = CostModel(analysis(1, [Product(7, ()), Product(2, (labels(0, 0),))]))
    assert model.evaluate(kept(1, 1)).macs == 11
    assert CostModel(analysis(1)).saved(kept(1), [labels(1)]).tolist() == [0]


def test_counts_above_a_trillion_are_exact():
    """Odd numbers beyond 2**40 survive: nothing passes through float32."""
    factor = 10**12 + 1
    model = CostModel(analysis(3, [Product(factor, (labels(1, 2, 3),)), Product(1, ())]))
    assert model.evaluate(kept(3, 1)).macs == 2 * factor + 1
    assert model.saved(kept(3), [labels(3), labels(1, 2)]).tolist() == [factor, 2 * factor]


def test_cost_arithmetic():
    """Costs subtract, and fractions of nothing are 1."""
    assert Cost(10, 4, 2) - Cost(3, 1, 1) == Cost(7, 3, 1)
    assert Cost(5, 0, 1).fractions(Cost(10, 0, 4)) == {"macs": 0.5, "params": 1.0, "bytes": 0.25}
    assert [Cost(1, 2, 3).of(kind) for kind in ("flops", "params", "size")] == [1, 2, 3]


CLASSES = 6
axis = st.lists(st.integers(0, CLASSES), min_size=1, max_size=8).map(lambda ids: labels(*ids))
products = st.builds(Product, st.integers(1, 10**6), st.lists(axis, max_size=3).map(tuple))
masks = st.lists(st.booleans(), min_size=CLASSES, max_size=CLASSES).map(lambda bits: np.array([True, *bits]))


@given(st.lists(products, max_size=5), masks)
def test_evaluate_equals_counting_each_product(macs, mask):
    """The matrix form equals the definition, `Product.count`, summed."""
    model = CostModel(analysis(CLASSES, macs, [(p, 2) for p in macs]))
    count = sum(p.count(mask) for p in macs)
    assert model.evaluate(mask) == Cost(count, count, 2 * count)


@given(st.lists(products, max_size=5), masks, st.lists(masks, max_size=4))
def test_moves_equal_separate_evaluations(macs, start, ends):
    """Evaluating many moves at once, removals and returns mixed, equals evaluating each result."""
    model = CostModel(analysis(CLASSES, macs))
    change = [start.astype(np.int64) - end.astype(np.int64) for end in ends]
    moves = sparse.csc_array(np.array(change, np.int64).reshape(len(ends), CLASSES + 1).T)
    assert model.after(start, moves, "flops").tolist() == [model.value(end, "flops") for end in ends]
