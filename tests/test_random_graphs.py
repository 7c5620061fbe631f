"""Random small networks: every plan passes the oracle, and the order of the nodes does not matter."""

from __future__ import annotations

import numpy as np
from graphs import analyse, oracle, proto, random_plan
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxprune.couple import couple
from onnxprune.graph import from_proto
from onnxprune.shapes import concrete_shapes

SIDE = 4


class Net:
    """A network under construction: tensors of [1, channels, 4, 4] that later layers may read."""

    def __init__(self, draw):
        self.draw, self.lines, self.weights, self.channels = draw, [], [], {"x": 3}

    def pick(self, *but):
        names = [n for n in self.channels if n not in but]
        return self.draw(st.sampled_from(names[-4:]))

    def integer(self, low, high):
        return self.draw(st.integers(low, high))

    def weight(self, shape, kind="float", values=""):
        name = f"{'scale' if values == 'positive' else 'w'}{len(self.weights)}"
        given = f" = {{{values}}}" if values not in ("", "positive") else ""
        self.weights.append(f"{kind}[{shape}] {name}{given}")
        return name

    def ints(self, *values):
        return self.weight(len(values), "int64", ", ".join(map(str, values)))

    def emit(self, call, channels, outputs=1):
        names = [f"t{len(self.channels) + i}" for i in range(outputs)]
        self.lines.append(f"{', '.join(names)} = {call}")
        widths = channels if isinstance(channels, list) else [channels]
        self.channels.update({n: c for n, c in zip(names, widths, strict=True) if c})
        return names[0]

    def inner(self, call):
        """A tensor that only the next line reads."""
        name = f"i{len(self.lines)}"
        self.lines.append(f"{name} = {call}")
        return name


def conv(net):
    x = net.pick()
    c, group = net.channels[x], 1
    out = net.integer(2, 6)
    if net.integer(0, 3) == 0:
        group = net.draw(st.sampled_from([g for g in (1, 2, 3, c) if c % g == 0]))
        out = group * net.integer(1, 2)
    k = net.draw(st.sampled_from((1, 3)))
    w = net.weight(f"{out}, {c // group}, {k}, {k}")
    b = f", {net.weight(out)}" if net.integer(0, 1) else ""
    net.emit(f"Conv <group = {group}, pads = [{k // 2}, {k // 2}, {k // 2}, {k // 2}]> ({x}, {w}{b})", out)


def activation(net):
    x = net.pick()
    net.emit(f"{net.draw(st.sampled_from(('Relu', 'Sigmoid', 'Tanh', 'HardSwish')))}({x})", net.channels[x])


def slope(net):
    x = net.pick()
    net.emit(f"PRelu({x}, {net.weight(f'{net.channels[x]}, 1, 1')})", net.channels[x])


def batch_norm(net):
    x = net.pick()
    c = net.channels[x]
    vectors = [net.weight(c), net.weight(c), net.weight(c), net.weight(c, values="positive")]
    net.emit(f"BatchNormalization({x}, {', '.join(vectors)})", c)


def instance_norm(net):
    x = net.pick()
    c = net.channels[x]
    net.emit(f"InstanceNormalization({x}, {net.weight(c)}, {net.weight(c)})", c)


def pool(net):
    x = net.pick()
    op = net.draw(st.sampled_from(("MaxPool", "AveragePool")))
    net.emit(f"{op} <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({x})", net.channels[x])


def pair(net):
    """Two tensors meet; the narrower one is padded."""
    a, b = net.pick(), net.pick()
    a, b = (a, b) if net.channels[a] >= net.channels[b] else (b, a)
    missing = net.channels[a] - net.channels[b]
    if missing:
        before = net.integer(0, missing)
        b = net.inner(f"Pad({b}, {net.ints(0, before, 0, 0, 0, missing - before, 0, 0)})")
    op = net.draw(st.sampled_from(("Add", "Mul", "Sub", "Max")))
    net.emit(f"{op}({a}, {b})", net.channels[a])


def join(net):
    parts = [net.pick() for _ in range(net.integer(2, 3))]
    net.emit(f"Concat <axis = 1> ({', '.join(parts)})", sum(net.channels[p] for p in parts))


def split(net):
    x = net.pick()
    c = net.channels[x]
    if c > 1:
        at = net.integer(1, c - 1)
        net.emit(f"Split <axis = 1> ({x}, {net.ints(at, c - at)})", [at, c - at], 2)


def part(net):
    x = net.pick()
    c = net.channels[x]
    begin = net.integer(0, c - 1)
    end = net.integer(begin + 1, c)
    net.emit(f"Slice({x}, {net.ints(begin)}, {net.ints(end)}, {net.ints(1)})", end - begin)


def reorder(net):
    x = net.pick()
    index = net.draw(st.lists(st.integers(0, net.channels[x] - 1), min_size=1, max_size=6))
    net.emit(f"Gather <axis = 1> ({x}, {net.ints(*index)})", len(index))


def shuffle(net):
    x = net.pick()
    c = net.channels[x]
    g = net.draw(st.sampled_from([g for g in range(1, c + 1) if c % g == 0]))
    a = net.inner(f"Reshape({x}, {net.ints(1, g, c // g, SIDE, SIDE)})")
    b = net.inner(f"Transpose <perm = [0, 2, 1, 3, 4]> ({a})")
    net.emit(f"Reshape({b}, {net.ints(0, -1, SIDE, SIDE)})", c)


def gate(net):
    x = net.pick()
    c, inner = net.channels[x], net.integer(1, 3)
    p = net.inner(f"GlobalAveragePool({x})")
    q = net.inner(f"Conv({p}, {net.weight(f'{inner}, {c}, 1, 1')})")
    r = net.inner(f"Conv({q}, {net.weight(f'{c}, {inner}, 1, 1')})")
    s = net.inner(f"Sigmoid({r})")
    net.emit(f"Mul({x}, {s})", c)


def tokens(net, x):
    c = net.channels[x]
    f = net.inner(f"Reshape({x}, {net.ints(1, c, SIDE * SIDE)})")
    return net.inner(f"Transpose <perm = [0, 2, 1]> ({f})")


def image(net, x, c):
    t = net.inner(f"Transpose <perm = [0, 2, 1]> ({x})")
    net.emit(f"Reshape({t}, {net.ints(1, c, SIDE, SIDE)})", c)


def attention(net):
    """Two heads, written out."""
    x = net.pick()
    c, d, out = net.channels[x], net.integer(1, 2), net.integer(2, 4)
    t = tokens(net, x)
    parts = []
    for perm in ("0, 2, 1, 3", "0, 2, 3, 1", "0, 2, 1, 3"):
        h = net.inner(f"MatMul({t}, {net.weight(f'{c}, {2 * d}')})")
        r = net.inner(f"Reshape({h}, {net.ints(1, SIDE * SIDE, 2, d)})")
        parts.append(net.inner(f"Transpose <perm = [{perm}]> ({r})"))
    a = net.inner(f"MatMul({parts[0]}, {parts[1]})")
    p = net.inner(f"Softmax({a})")
    h = net.inner(f"MatMul({p}, {parts[2]})")
    j = net.inner(f"Transpose <perm = [0, 2, 1, 3]> ({h})")
    k = net.inner(f"Reshape({j}, {net.ints(0, 0, -1)})")
    image(net, net.inner(f"MatMul({k}, {net.weight(f'{2 * d}, {out}')})"), out)


def layer_norm(net):
    x = net.pick()
    c = net.channels[x]
    t = tokens(net, x)
    image(net, net.inner(f"LayerNormalization({t}, {net.weight(c, values='positive')}, {net.weight(c)})"), c)


STEPS = [
    *(
        conv,
        conv,
        conv,
        conv,
        activation,
        slope,
        batch_norm,
        instance_norm,
        pool,
        pair,
        pair,
        join,
        split,
        part,
        reorder,
    ),
    *(shuffle, gate, attention, layer_norm),
]


@st.composite
def networks(draw):
    """Up to nine layers, and a classifier that reads the last tensor (and often an earlier one)."""
    net = Net(draw)
    conv(net)
    for _ in range(draw(st.integers(1, 8))):
        draw(st.sampled_from(STEPS))(net)
    last = list(net.channels)[-1]
    read = draw(st.sampled_from(([last], [last, net.pick()])))
    joined = net.inner(f"Concat <axis = 1> ({', '.join(read)})")
    flat = net.inner(f"Flatten({joined})")
    net.lines.append(f"y = Gemm({flat}, {net.weight(f'{SIDE * SIDE * sum(net.channels[r] for r in read)}, 2')})")
    body = "\n    ".join(net.lines)
    return f"g (float[1,3,{SIDE},{SIDE}] x) => (float[] y) <{', '.join(net.weights)}> {{\n    {body}\n}}"


@settings(max_examples=150)
@given(networks(), st.integers(0, 1000), st.sampled_from((0.3, 0.7, 1.0)))
def test_random_plans_pass_the_oracle(text, seed, share):
    """Whatever is removed, the cut network equals the masked original."""
    analysis = analyse(text, seed=seed)
    kept = random_plan(analysis, share, seed)
    assume(not kept.all())
    assert oracle(analysis, kept, seed).relative_error <= 1e-5


@settings(max_examples=50)
@given(networks(), st.randoms(use_true_random=False))
def test_node_order_does_not_matter(text, random):
    """The same sets of positions go together, whatever the order of the nodes in the file."""
    model = proto(text)
    shuffled = proto(text)
    ready, waiting = {"x", *(t.name for t in model.graph.initializer)}, list(model.graph.node)
    shuffled.graph.ClearField("node")
    while waiting:
        node = random.choice([n for n in waiting if ready.issuperset(n.input)])
        waiting.remove(node)
        ready.update(node.output)
        shuffled.graph.node.append(node)
    first, second = (partition(m) for m in (model, shuffled))
    assert first == second


def partition(model):
    view = from_proto(model)
    analysis = couple(view, concrete_shapes(view, None))
    sets = [
        frozenset((a.param, a.axis, int(i)) for a in analysis.axes for i in np.flatnonzero(a.classes == c))
        for c in range(1, analysis.classes + 1)
    ]
    return set(sets), {(bool(analysis.inexact[i + 1]), s) for i, s in enumerate(sets)}
