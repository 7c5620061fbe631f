"""The algebra of factors: what it says of positions is what happens to an index tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
import pytest
from graphs import random_plan
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxprune import factors
from onnxprune.couple import couple
from onnxprune.cut import cut
from onnxprune.graph import from_proto
from onnxprune.rules import RULES
from onnxprune.runtime import session

LARGEST = 240  # positions of a tensor
PADDING = -1  # not a number of any position

shapes = (
    st.lists(st.sampled_from((1, 2, 2, 3, 4)), min_size=1, max_size=4).filter(lambda s: prod(s) <= LARGEST).map(tuple)
)


@st.composite
def regrouped(draw, size):
    """Another shape with that many positions."""
    primes = [p for p in (2, 3, 5, 7) for _ in range(10) if size % p == 0 and (size := size // p) != 0]
    groups = draw(st.integers(1, 4))
    shape = [1] * groups
    for p in [*primes, size]:
        shape[draw(st.integers(0, groups - 1))] *= p
    return tuple(shape)


# ---- factors by themselves ------------------------------------------------------------------------------------------------


@st.composite
def placed(draw):
    """(shape, factor): atoms that vary along some axes of a tensor."""
    shape = draw(shapes)
    sizes = [n if draw(st.booleans()) else 1 for n in shape]
    atoms = draw(st.lists(st.integers(0, 9), min_size=prod(sizes), max_size=prod(sizes)))
    return shape, np.array(atoms, np.int32).reshape(sizes)


def agrees(factor, full):
    """The factor has size 1 or that of the tensor on each axis, and says of every position what the tensor holds."""
    assert factor.ndim == full.ndim
    assert all(n in (1, d) for n, d in zip(factor.shape, full.shape, strict=True))
    assert np.array_equal(np.broadcast_to(factor, full.shape), full)


@given(placed(), st.data())
def test_reshape(start, data):
    """A reshaped factor is the factor of the reshaped tensor."""
    shape, factor = start
    target = data.draw(regrouped(prod(shape)))
    agrees(factors.reshape(factor, shape, target), np.broadcast_to(factor, shape).reshape(target))


@given(placed(), st.data())
def test_other_movements(start, data):
    """Transpose, take, cut, tile and new axes: the same numpy op on the factor and on the tensor."""
    shape, factor = start
    full, rank = np.broadcast_to(factor, shape), len(shape)
    axis = data.draw(st.integers(0, rank - 1))
    perm = data.draw(st.permutations(range(rank)))
    agrees(factors.transpose(factor, perm), full.transpose(perm))
    index = np.array(data.draw(st.lists(st.integers(0, shape[axis] - 1), min_size=1, max_size=4)))
    for indices in (index, index[0], index[:, None]):
        agrees(factors.take(factor, indices, axis), full.take(indices, axis))
    begin = data.draw(st.integers(0, shape[axis] - 1))
    where = slice(begin, data.draw(st.integers(begin + 1, shape[axis])))
    agrees(factors.cut(factor, axis, where), full[(slice(None),) * axis + (where,)])
    repeats = [data.draw(st.integers(1, 3)) for _ in shape]
    agrees(factors.tile(factor, repeats), np.tile(full, repeats))
    agrees(factors.raise_rank(factor, rank + 1), full[None])


@given(placed(), st.data())
def test_concat(start, data):
    """Parts are joined along an axis; a part without atoms is frozen."""
    shape, factor = start
    axis = data.draw(st.integers(0, len(shape) - 1))
    present = [data.draw(st.booleans()) for _ in range(3)]
    full = np.concatenate([np.broadcast_to(factor, shape) * int(p) for p in present], axis)
    joined = factors.concat([factor if p else None for p in present], [shape[axis]] * 3, axis, shape)
    agrees(joined, full)


@given(placed())
def test_compress_and_lines(start):
    """Compressing loses nothing; lines list the positions that share an index."""
    shape, factor = start
    agrees(factors.compress(factor, range(len(shape))), np.broadcast_to(factor, shape))
    for axis, n in enumerate(factor.shape):
        rows = factors.lines(factor, axis)
        assert all(np.array_equal(np.sort(rows[i]), np.sort(factor.take(i, axis), axis=None)) for i in range(n))


@given(shapes, st.data())
def test_blocks(shape, data):
    """Runs of axes with equal products, in order, each axis once, and none could be split further."""
    target = data.draw(regrouped(prod(shape)))
    blocks = factors.blocks(shape, target)
    assert [a for left, _ in blocks for a in left] == list(range(len(shape)))
    assert [a for _, right in blocks for a in right] == list(range(len(target)))
    for left, right in blocks:
        a, b = [shape[i] for i in left], [target[i] for i in right]
        assert prod(a) == prod(b)
        cuts = set(np.cumprod(a[:-1])) & set(np.cumprod(b[:-1])) - {1, prod(a)}
        assert not cuts


def test_views_hold_what_says_something():
    """Factors that hold 0 only, or are None, are left out."""
    zero, good = np.array([[0, 0]], np.int32), np.array([[0, 3]], np.int32)
    assert [f.tolist() for f in factors.view([None, zero, good])] == [[[0, 3]]]
    assert factors.support(good) == (1,)
    assert factors.volume((2, 3)) == 6


# ---- chains of ops on an index tensor -------------------------------------------------------------------------------------


@dataclass
class Chain:
    """A graph of movement ops under construction; `arrays`: what every tensor holds, `nodes`, and the initializers."""

    nodes: list = field(default_factory=list)
    arrays: dict = field(default_factory=dict)
    weights: dict = field(default_factory=dict)
    last: str = "w0"

    def weight(self, shape):
        """An initializer that holds the numbers of its own positions, different from those of any other."""
        offset = 1000 * sum(a.dtype == np.float32 for a in self.weights.values())
        array = np.arange(prod(shape), dtype=np.float32).reshape(shape) + offset
        return self.constant(array)

    def constant(self, array):
        name = f"w{len(self.weights)}"
        self.weights[name] = self.arrays[name] = array
        return name

    def ints(self, values):
        return self.constant(np.array(values, np.int64))

    def add(self, op, inputs, results, **attrs):
        names = [f"t{len(self.arrays) + i}" for i in range(len(results))]
        self.nodes.append(helper.make_node(op, inputs, names, **attrs))
        self.arrays.update(zip(names, map(np.asarray, results), strict=True))
        self.last = names[0]
        return names

    @property
    def value(self):
        return self.arrays[self.last]


def add_reshape(c, draw):
    x = c.value
    target = draw(regrouped(x.size))
    stated = list(target)
    how = draw(st.sampled_from(("numbers", "-1", "0")))
    if how == "-1":
        stated[draw(st.integers(0, len(target) - 1))] = -1
    if how == "0":
        stated = [0 if i < x.ndim and x.shape[i] == n else n for i, n in enumerate(target)]
    c.add("Reshape", [c.last, c.ints(stated)], [x.reshape(target)])


def add_flatten(c, draw):
    x = c.value
    axis = draw(st.integers(0, x.ndim))
    c.add("Flatten", [c.last], [x.reshape(prod(x.shape[:axis]), -1)], axis=axis)


def add_transpose(c, draw):
    perm = draw(st.permutations(range(c.value.ndim)))
    c.add("Transpose", [c.last], [c.value.transpose(perm)], perm=perm)


def add_unsqueeze(c, draw):
    axis = draw(st.integers(0, c.value.ndim))
    c.add("Unsqueeze", [c.last, c.ints([axis])], [np.expand_dims(c.value, axis)])


def add_squeeze(c, draw):
    ones = [a for a, n in enumerate(c.value.shape) if n == 1]
    if ones and c.value.ndim > 1:
        axis = draw(st.sampled_from(ones))
        c.add("Squeeze", [c.last, c.ints([axis - c.value.ndim])], [c.value.squeeze(axis)])


def add_expand(c, draw):
    x = c.value
    new = [draw(st.sampled_from((1, 2))) if n == 1 else draw(st.sampled_from((1, n))) for n in x.shape]
    new = [2, *new] if draw(st.booleans()) else new
    c.add("Expand", [c.last, c.ints(new)], [x * np.ones(new, x.dtype)])


def add_tile(c, draw):
    repeats = [draw(st.sampled_from((1, 1, 2))) for _ in c.value.shape]
    c.add("Tile", [c.last, c.ints(repeats)], [np.tile(c.value, repeats)])


def add_slice(c, draw):
    x = c.value
    axis = draw(st.integers(0, x.ndim - 1))
    begin = draw(st.integers(0, x.shape[axis] - 1))
    end = draw(st.integers(begin + 1, x.shape[axis]))
    step = draw(st.sampled_from((1, 1, 1, 2)))
    stated = [begin, end if end < x.shape[axis] or draw(st.booleans()) else 2**62, axis, step]
    c.add("Slice", [c.last, *(c.ints([v]) for v in stated)], [x[(slice(None),) * axis + (slice(begin, end, step),)]])


def add_gather(c, draw):
    x = c.value
    axis = draw(st.integers(0, x.ndim - 1))
    index = np.array(draw(st.lists(st.integers(-x.shape[axis], x.shape[axis] - 1), min_size=1, max_size=4)))
    index = draw(st.sampled_from((index, index, index[0], index.reshape(-1, 1), np.stack([index, index]))))
    c.add("Gather", [c.last, c.ints(index)], [x.take(index, axis)], axis=axis)


def add_concat(c, draw):
    x = c.value
    axis = draw(st.integers(0, x.ndim - 1))
    fits = [
        n
        for n, a in c.arrays.items()
        if a.dtype == x.dtype
        and a.ndim == x.ndim
        and np.delete(a.shape, axis).tolist() == np.delete(x.shape, axis).tolist()
    ]
    fresh = c.weight((*x.shape[:axis], 2, *x.shape[axis + 1 :]))
    parts = [c.last, *draw(st.lists(st.sampled_from([*fits, fresh]), min_size=1, max_size=2))]
    parts = draw(st.permutations(parts))
    c.add("Concat", parts, [np.concatenate([c.arrays[p] for p in parts], axis)], axis=axis)


def add_split(c, draw):
    x = c.value
    axis = draw(st.integers(0, x.ndim - 1))
    if x.shape[axis] > 1:
        at = draw(st.integers(1, x.shape[axis] - 1))
        names = c.add("Split", [c.last, c.ints([at, x.shape[axis] - at])], np.split(x, [at], axis), axis=axis)
        if draw(st.booleans()):
            c.add("Concat", names[::-1], [np.concatenate([c.arrays[n] for n in names[::-1]], axis)], axis=axis)


def add_pad(c, draw):
    x = c.value
    before, after = ([draw(st.sampled_from((0, 0, 1))) for _ in x.shape] for _ in range(2))
    padded = np.pad(x, list(zip(before, after, strict=True)), constant_values=PADDING)
    c.add("Pad", [c.last, c.ints([*before, *after]), c.constant(np.array(PADDING, np.float32))], [padded])


STEPS = [
    *(
        add_reshape,
        add_reshape,
        add_flatten,
        add_transpose,
        add_unsqueeze,
        add_squeeze,
        add_expand,
        add_tile,
        add_slice,
    ),
    *(add_gather, add_concat, add_split, add_pad),
]


@st.composite
def chains(draw):
    """Up to six movement ops, on a weight that holds its own positions."""
    chain = Chain()
    chain.weight(draw(shapes.filter(lambda s: prod(s) > 1)))
    for _ in range(draw(st.integers(1, 6))):
        if chain.value.ndim and chain.value.size <= LARGEST:
            draw(st.sampled_from(STEPS))(chain, draw)
    assume(chain.nodes)
    return chain


def model_of(chain, sink):
    """The graph of the chain: its last tensor is the result, or goes to an op that reads it and lets everything go."""
    read = {i for n in chain.nodes for i in n.input}
    weights = [numpy_helper.from_array(a, n) for n, a in chain.weights.items() if n in read]
    y = helper.make_tensor_value_info(chain.last, TensorProto.FLOAT, chain.value.shape)
    end = helper.make_node("Sink", [chain.last], ["end"], domain="com.test")
    z = helper.make_tensor_value_info("end", TensorProto.FLOAT, ())
    nodes, result = ([*chain.nodes, end], z) if sink else (chain.nodes, y)
    graph = helper.make_graph(nodes, "chain", [], [result], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module", autouse=True)
def sink():
    """An op that reads a tensor and lets everything of it go."""
    RULES["com.test", "Sink"] = lambda t, x: t.name(*x.view) or ()
    yield
    del RULES["com.test", "Sink"]


def run(model):
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    return next(iter(session(proto).run({}).values()))


def removed(analysis, kept, name, shape):
    """[shape] bool: the positions of a tensor of which any factor holds a class that is removed."""
    mask = np.zeros(shape, bool)
    for f in analysis.trace.trace.views.get(name, ()):
        mask |= ~kept[analysis.trace.classes[f]]
    return mask


def numbers_removed(chain, analysis, kept):
    """What the weights held at the positions that leave."""
    gone = set()
    for name, array in chain.weights.items():
        mask = np.zeros(array.shape, bool)
        for axis in (a for a in analysis.axes if a.param == name):
            np.moveaxis(mask, axis.axis, 0)[~kept[axis.classes]] = True
        gone |= set(array[mask].tolist())
    return gone


@settings(max_examples=300)
@given(chains(), st.integers(0, 1000), st.sampled_from((0.3, 1.0)))
def test_a_chain_agrees_with_an_index_tensor(chain, seed, share):
    """After a cut, the chain gives the original result without the positions that left, in order.

    These are the ones that hold removed positions of weights, and where Expand made copies or Pad constants, possibly more.
    """
    analysis = couple(from_proto(model_of(chain, True)), {n: a.shape for n, a in chain.arrays.items()} | {"end": ()})
    kept = random_plan(analysis, share, seed)
    small = cut(analysis, kept).to_proto()
    small.graph.node.pop()
    small.graph.ClearField("output")
    small.graph.output.append(onnx.ValueInfoProto(name=chain.last))
    before, after = run(model_of(chain, False)), run(small)
    assert np.array_equal(before, chain.value)
    mask, gone = removed(analysis, kept, chain.last, before.shape), numbers_removed(chain, analysis, kept)
    assert after.reshape(-1).tolist() == before[~mask].tolist()
    held = np.isin(before, list(gone))
    assert mask[held].all()
    if not any(node.op_type == "Expand" for node in chain.nodes):
        assert np.array_equal(mask & (before != PADDING), held)


def test_most_chains_have_something_to_remove():
    """The test above is not about frozen tensors."""
    found = []

    @settings(max_examples=50, database=None)
    @given(chains())
    def count(chain):
        analysis = couple(
            from_proto(model_of(chain, True)), {n: a.shape for n, a in chain.arrays.items()} | {"end": ()}
        )
        found.append(analysis.classes > 1)

    count()
    assert np.mean(found) > 0.5
