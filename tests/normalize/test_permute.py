"""Channel shuffles become one Gather."""

from __future__ import annotations

import numpy as np
import pytest
from cleaning import cleaned, initializer, ops, parse
from hypothesis import given
from hypothesis import strategies as st

SHUFFLE = [0, 3, 1, 4, 2, 5]  # two groups of three
DYNAMIC = """sh = Shape(x) n = Gather(sh, i0) h = Gather(sh, i2) w = Gather(sh, i3) n1 = Unsqueeze(n, z)
    h1 = Unsqueeze(h, z) w1 = Unsqueeze(w, z) s = Concat<axis = 0>(n1, two, three, h1, w1)
    u = Concat<axis = 0>(n1, six, h1, w1)"""

BECOME_GATHER = {
    "static": (
        """g (float[1,6,4,5] x) => (float[1,6,4,5] y) <int64[5] s = {1, 2, 3, 4, 5}, int64[4] u = {1, 6, 4, 5}> {
        a = Reshape(x, s) b = Transpose<perm = [0, 2, 1, 3, 4]>(a) y = Reshape(b, u) }""",
        {"y": (1, SHUFFLE)},
    ),
    "dynamic batch": (
        """g (float[N,6,4,5] x) => (float[N,6,4,5] y) <int64[5] s = {0, 2, 3, 4, 5}, int64[4] u = {-1, 6, 4, 5}> {
        a = Reshape(x, s) b = Transpose<perm = [0, 2, 1, 3, 4]>(a) y = Reshape(b, u) }""",
        {"y": (1, SHUFFLE)},
    ),
    "dynamic height and width": (
        f"""g (float[N,6,H,W] x) => (float[N,6,H,W] y) <int64 i0 = {{0}}, int64 i2 = {{2}}, int64 i3 = {{3}},
        int64[1] z = {{0}}, int64[1] two = {{2}}, int64[1] three = {{3}}, int64[1] six = {{6}}> {{ {DYNAMIC}
        a = Reshape(x, s) b = Transpose<perm = [0, 2, 1, 3, 4]>(a) y = Reshape(b, u) }}""",
        {"y": (1, SHUFFLE)},
    ),
    "channels last": (
        """g (float[N,4,5,6] x) => (float[N,4,5,6] y) <int64[5] s = {0, 4, 5, 2, 3}, int64[4] u = {0, 4, 5, 6}> {
        a = Reshape(x, s) b = Transpose<perm = [0, 1, 2, 4, 3]>(a) y = Reshape(b, u) }""",
        {"y": (3, SHUFFLE)},
    ),
    "split into halves by Gather": (
        """g (float[1,6,4,5] x) => (float[1,3,4,5] y, float[1,3,4,5] v)
        <int64[3] s = {3, 2, 20}, int64[5] u = {2, -1, 3, 4, 5}, int64 i = {0}, int64 j = {1}> {
        a = Reshape(x, s) b = Transpose<perm = [1, 0, 2]>(a) c = Reshape(b, u) d = Gather<axis = 0>(c, i)
        e = Gather<axis = 0>(c, j) y = Relu(d) v = Neg(e) }""",
        {"d": (1, [0, 2, 4]), "e": (1, [1, 3, 5])},
    ),
    "split into halves by Split and Squeeze": (
        """g (float[N,6,4,5] x) => (float[N,3,4,5] y) <int64[5] s = {0, 3, 2, 4, 5}, int64[1] two = {2}> {
        a = Reshape(x, s) b, c = Split<axis = 2>(a) d = Squeeze(b, two) e = Squeeze(c, two) y = Add(d, e) }""",
        {"d": (1, [0, 2, 4]), "e": (1, [1, 3, 5])},
    ),
    "one half by Slice": (
        """g (float[N,6,4] x) => (float[N,3,4] y) <int64[4] s = {0, 2, 3, 4}, int64[1] one = {1}, int64[1] end = {9},
        int64[3] u = {0, 3, 4}> { a = Reshape(x, s) b = Slice(a, one, end, one) c = Reshape(b, u) y = Relu(c) }""",
        {"c": (1, [3, 4, 5])},
    ),
}


@pytest.mark.parametrize("name", BECOME_GATHER)
def test_becomes_gather(name):
    """The chain is one Gather per end, with the ends' names and constant indices along one axis."""
    text, expected = BECOME_GATHER[name]
    after = cleaned(parse(text))
    gathers = {n.output[0]: n for n in after.graph.node if n.op_type == "Gather"}
    found = {o: (n.attribute[0].i, initializer(after, n.input[1]).tolist()) for o, n in gathers.items()}
    assert found == expected
    assert all(n.input[0] == "x" for n in gathers.values())
    assert not {"Reshape", "Transpose", "Split", "Slice", "Shape"} & set(ops(after))


def test_node_names():
    """The Gather takes the name of the node whose result it gives."""
    model = parse(BECOME_GATHER["static"][0])
    for i, node in enumerate(model.graph.node):
        node.name = f"node{i}"
    assert [n.name for n in cleaned(model).graph.node] == ["node2"]


IDENTITIES = {
    "as_strided, static": """g (float[2,6,1,1] x) => (float[2,6,1,1] y) <int64[1] m = {-1},
        int64[2,6,1,1] i = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}> {
        a = Relu(x) b = Reshape(a, m) c = Gather(b, i) y = Neg(c) }""",
    "as_strided, dynamic": """g (float[N,6,1,1] x) => (float[N,6,1,1] y)
        <int64[1] m = {-1}, int64 nil = {0}, int64 one = {1}, int64 six = {6}, int64[3] axes = {1, 2, 3},
        int64[1,6,1,1] i = {0, 1, 2, 3, 4, 5}> { a = Relu(x) b = Reshape(a, m)
        s = Shape<start = 0, end = 1>(x) n = Squeeze(s) r = Range(nil, n, one) k = Mul(r, six) l = Unsqueeze(k, axes)
        j = Add(i, l) c = Gather(b, j) y = Neg(c) }""",
    "there and back": """g (float[N,6,4] x) => (float[N,6,4] y) <int64[4] s = {0, 2, 3, 4}, int64[3] u = {0, 6, 4}> {
        a = Relu(x) b = Reshape(a, s) c = Transpose<perm = [0, 2, 1, 3]>(b) d = Transpose<perm = [0, 2, 1, 3]>(c)
        e = Reshape(d, u) y = Neg(e) }""",
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identity(name):
    """A chain that moves nothing is bypassed."""
    assert ops(cleaned(parse(IDENTITIES[name]))) == ["Relu", "Neg"]


PREFIX = "g (float[N,6,4,5] x) => (float[N,6,4,5] y"
STAYS = {
    "the middle is used": f"""{PREFIX}, float[N,3,2,4,5] v)
        <int64[5] s = {{0, 2, 3, 4, 5}}, int64[4] u = {{0, 6, 4, 5}}> {{
        a = Reshape(x, s) b = Transpose<perm = [0, 2, 1, 3, 4]>(a) y = Reshape(b, u) v = Relu(b) }}""",
    "the middle is an output": f"""{PREFIX}, float[N,3,2,4,5] b)
        <int64[5] s = {{0, 2, 3, 4, 5}}, int64[4] u = {{0, 6, 4, 5}}> {{
        a = Reshape(x, s) b = Transpose<perm = [0, 2, 1, 3, 4]>(a) y = Reshape(b, u) }}""",
    "two axes": """g (float[N,6,4,4] x) => (float[N,24,2,2] y)
        <int64[6] s = {0, 6, 2, 2, 2, 2}, int64[4] u = {0, 24, 2, 2}> {
        a = Reshape(x, s) b = Transpose<perm = [0, 1, 3, 5, 2, 4]>(a) y = Reshape(b, u) }""",
    "heads": """g (float[N,4,6] x) => (float[N,2,4,3] y) <int64[4] s = {0, 4, 2, 3}> {
        a = Reshape(x, s) y = Transpose<perm = [0, 2, 1, 3]>(a) }""",
    "axes exchanged": """g (float[N,4,4] x) => (float[N,4,4] y) <int64[4] s = {0, 2, 2, 4}, int64[3] u = {0, 4, 4}> {
        a = Reshape(x, s) b = Transpose<perm = [0, 3, 1, 2]>(a) y = Reshape(b, u) }""",
    "identity that is the result": """g (float[N,6] x) => (float[N,6] y) <int64[3] s = {0, 2, 3}, int64[2] u = {0, 6}> {
        a = Reshape(x, s) b = Transpose<perm = [0, 2, 1]>(a) c = Transpose<perm = [0, 2, 1]>(b) y = Reshape(c, u) }""",
    "indices that vary": """g (float[N,6,1] x, int64[3] i) => (float[N,3,1] y)
        <int64[4] s = {0, 6, 1, 1}, int64[1] two = {2}> {
        a = Reshape(x, s) b = Gather<axis = 1>(a, i) y = Squeeze(b, two) }""",
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    """What is read elsewhere, moves along two axes or is not known stays as it is."""
    model = parse(STAYS[name])
    assert ops(cleaned(model)) == ops(model)


def test_batch_baked_in_stays():
    """A shuffle whose targets hold only for batch 1 is not taken for one that holds for any."""
    model = parse("""g (float[N,6,4] x) => (float[a,b,c] y) <int64[4] s = {1, 2, 3, 4}, int64[3] u = {1, 6, 4}> {
        a = Reshape(x, s) b = Transpose<perm = [0, 2, 1, 3]>(a) y = Reshape(b, u) }""")
    assert ops(cleaned(model, batches=(1,))) == ops(model)


SHAPES = [
    (0, 12, 4),
    (0, 2, 6, 4),
    (0, 6, 2, 4),
    (0, 3, 4, 4),
    (0, 12, 2, 2),
    (0, 4, 12),
    (0, 48),
    (-1, 12, 4),
    (-1, 4),
]


@given(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_random_chains(shapes, seed):
    """Any chain of Reshape and Transpose, made into a Gather or not, computes what it did."""
    rng = np.random.default_rng(seed)
    body, last, weights = "", "x", []
    for i, shape in enumerate([*shapes, (0, 12, 4)]):
        perm = rng.permutation(len(shape)).tolist() if rng.random() < 0.7 else list(range(len(shape)))
        if shape[0] == 0 or perm[0] != 0:
            perm = [0, *(1 + rng.permutation(len(shape) - 1)).tolist()]
        target = [s if s else -1 for s in shape]
        weights.append(f"int64[{len(shape)}] s{i} = {{{', '.join(map(str, target))}}}")
        body += f" r{i} = Reshape({last}, s{i}) t{i} = Transpose<perm = {perm}>(r{i})"
        last = f"t{i}"
    text = f"g (float[N,12,4] x) => (float[a,b,c] y) <{', '.join(weights)}> {{ {body} y = Relu({last}) }}"
    cleaned(parse(text), batches=(1, 2))
