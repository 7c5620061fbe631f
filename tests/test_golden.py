"""Classes of small graphs, confirmed by brute force: every set of positions is removed from a plain numpy function.

A set can be removed if the function of the sliced arrays gives what it gives with these slices zeroed. The classes must be
exactly the smallest sets of this kind: neither too coarse, nor too fine, nor frozen without reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from graphs import analyse, each

from onnxprune.runtime import session


@dataclass(frozen=True)
class Case:
    """An ONNX graph, the same function in numpy, and the parameter axes whose positions are tried.

    function: of the input, the float parameters, and one of `sizes`: what a refit could set, the original first.
    left: positions that stay on every axis (with 2, broadcasting a single one cannot hide that shapes do not fit).
    """

    text: str
    function: object
    axes: tuple[str, ...]
    sizes: tuple[tuple[int, ...], ...] = ((),)
    left: int = 1


def softmax(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(a, g):
    return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5) * g


def grouped(x, w, groups):
    """1x1 convolution, [n, c] -> [n, o]"""
    parts = zip(np.split(x, groups, 1), np.split(w[:, :, 0], groups, 0), strict=True)
    return np.concatenate([a @ b.T for a, b in parts], 1)


CASES = {
    "a chain": Case(
        """g (float[5,3] x) => (float[] y) <float[3,3] w, float[3] b, float[3,2] v> {
            h = Gemm(x, w, b)
            r = Tanh(h)
            y = MatMul(r, v)
        }""",
        lambda x, w, b, v: np.tanh(x @ w + b) @ v,
        ("w.1", "b.0", "v.0", "v.1"),
    ),
    "a residual stream": Case(
        """g (float[5,3] x) => (float[] y) <float[3,3] w, float[3,2] u, float[2,3] t, float[3,2] v> {
            h = MatMul(x, w)
            a = MatMul(h, u)
            r = Tanh(a)
            c = MatMul(r, t)
            d = Add(h, c)
            y = MatMul(d, v)
        }""",
        lambda x, w, u, t, v: ((h := x @ w) + np.tanh(h @ u) @ t) @ v,
        ("w.1", "u.0", "t.1", "v.0"),
    ),
    "a gate": Case(
        """g (float[5,3] x) => (float[] y) <float[3,4] w, float[3,4] u, float[4,2] v> {
            h = MatMul(x, w)
            k = MatMul(x, u)
            s = Sigmoid(k)
            d = Mul(h, s)
            y = MatMul(d, v)
        }""",
        lambda x, w, u, v: (x @ w / (1 + np.exp(-x @ u))) @ v,
        ("w.1", "u.1", "v.0"),
    ),
    "a concatenation": Case(
        """g (float[5,3] x) => (float[] y) <float[3,3] w, float[3,2] u, float[8,2] v> {
            h = MatMul(x, w)
            k = MatMul(x, u)
            d = Concat <axis = 1> (k, x, h)
            t = Tanh(d)
            y = MatMul(t, v)
        }""",
        lambda x, w, u, v: np.tanh(np.concatenate([x @ u, x, x @ w], 1)) @ v,
        ("w.1", "u.1", "v.0"),
    ),
    "a concatenation with itself": Case(
        """g (float[5,3] x) => (float[] y) <float[3,3] w, float[6,2] v> {
            h = MatMul(x, w)
            d = Concat <axis = 1> (h, h)
            y = MatMul(d, v)
        }""",
        lambda x, w, v: np.concatenate([x @ w, x @ w], 1) @ v,
        ("w.1", "v.0", "v.1"),
    ),
    "a split with a gate": Case(
        """g (float[5,3] x) => (float[] y) <float[3,6] w, float[3,2] v> {
            h = MatMul(x, w)
            a, b = Split <axis = 1> (h)
            s = Tanh(b)
            d = Mul(a, s)
            y = MatMul(d, v)
        }""",
        lambda x, w, v, n: ((h := x @ w)[:, :n] * np.tanh(h[:, n:])) @ v,
        ("w.1", "v.0"),
        ((3,), (2,), (1,)),
    ),
    "a grouped convolution": Case(
        """g (float[5,3,1] x) => (float[] y) <float[4,3,1] u, float[2,2,1] w, float[2,2,1] v> {
            a = Conv(x, u)
            r = Tanh(a)
            h = Conv <group = 2> (r, w)
            y = Conv(h, v)
        }""",
        lambda x, u, w, v, g: grouped(np.tanh(x[:, :, 0] @ u[:, :, 0].T), w, g) @ v[:, :, 0].T,
        ("u.0", "w.0", "v.1"),
        ((2,), (1,)),
    ),
    "a convolution of few large groups": Case(
        """g (float[5,3,1] x) => (float[] y) <float[6,3,1] u, float[4,3,1] w, float[2,4,1] v> {
            a = Conv(x, u)
            r = Tanh(a)
            h = Conv <group = 2> (r, w)
            y = Conv(h, v)
        }""",
        lambda x, u, w, v: grouped(np.tanh(x[:, :, 0] @ u[:, :, 0].T), w, 2) @ v[:, :, 0].T,
        ("u.0", "w.1", "v.0"),
    ),
    "a depthwise convolution": Case(
        """g (float[5,2,1] x) => (float[] y) <float[3,2,1] u, float[3,1,1] w, float[3] b, float[2,3,1] v> {
            a = Conv(x, u)
            h = Conv <group = 3> (a, w, b)
            t = Tanh(h)
            y = Conv(t, v)
        }""",
        lambda x, u, w, b, v: np.tanh((x[:, :, 0] @ u[:, :, 0].T) * w[:, 0, 0] + b) @ v[:, :, 0].T,
        ("u.0", "w.0", "b.0", "v.1"),
    ),
    "batch normalisation": Case(
        """g (float[5,2] x) => (float[] y) <float[2,2] w, float[2] s, float[2] o, float[2] m, float[2] var, float[2,2] v> {
            h = MatMul(x, w)
            d = BatchNormalization(h, s, o, m, var)
            y = MatMul(d, v)
        }""",
        lambda x, w, s, o, m, var, v: ((x @ w - m) / np.sqrt(var + 1e-5) * s + o) @ v,
        ("w.1", "s.0", "o.0", "m.0", "var.0", "v.0"),
    ),
    "attention of one head": Case(
        """g (float[5,3] x) => (float[] y) <float[3,3] q, float[3,3] k, float[3,2] v, float[2,2] o> {
            qs = MatMul(x, q)
            ks = MatMul(x, k)
            t = Transpose(ks)
            a = MatMul(qs, t)
            p = Softmax(a)
            vs = MatMul(x, v)
            h = MatMul(p, vs)
            y = MatMul(h, o)
        }""",
        lambda x, q, k, v, o: softmax(x @ q @ (x @ k).T) @ (x @ v) @ o,
        ("q.1", "k.1", "v.1", "o.0"),
    ),
    "a flattened map": Case(
        """g (float[5,2,2] x) => (float[] y) <float[3,2,1] w, float[6,2] v> {
            h = Conv(x, w)
            t = Tanh(h)
            f = Flatten(t)
            y = MatMul(f, v)
        }""",
        lambda x, w, v: np.tanh(np.einsum("ncs,oc->nos", x, w[:, :, 0])).reshape(len(x), -1) @ v,
        ("w.0", "v.0"),
    ),
    "a Gram matrix that is read along one axis": Case(
        """g (float[1,5,3] x) => (float[] y) <float[3,4] w, float[2,5] v> {
            h = MatMul(x, w)
            t = Transpose <perm = [0, 2, 1]> (h)
            m = MatMul(h, t)
            y = MatMul(v, m)
        }""",
        lambda x, w, v: v @ ((x @ w) @ (x @ w).swapaxes(1, 2)),
        ("w.1", "v.0"),
    ),
    "a norm over channels, which freezes them": Case(
        """g (float[5,3] x) => (float[] y) <float[3,4] w, float[4] g, float one = {1}, float[4,2] v> {
            h = MatMul(x, w)
            n = LayerNormalization(h, g)
            d = Add(n, one)
            y = MatMul(d, v)
        }""",
        lambda x, w, g, one, v: (norm(x @ w, g) + one) @ v,
        ("w.1", "g.0", "v.0"),
        left=2,
    ),
    "softmax over channels, which freezes them": Case(
        """g (float[5,3] x) => (float[] y) <float[3,4] w, float[4,2] v> {
            h = MatMul(x, w)
            p = Softmax(h)
            y = MatMul(p, v)
        }""",
        lambda x, w, v: softmax(x @ w) @ v,
        ("w.1", "v.0"),
    ),
    "a maximum over channels, which freezes them": Case(
        """g (float[5,3] x) => (float[] y) <float[3,4] w, float[3,4] u, float[4,2] v> {
            h = MatMul(x, w)
            a = Abs(h)
            n = Neg(a)
            m = ReduceMax <axes = [1]> (n)
            k = MatMul(x, u)
            d = Mul(k, m)
            y = MatMul(d, v)
        }""",
        lambda x, w, u, v: ((x @ u) * (-abs(x @ w)).max(1, keepdims=True)) @ v,
        ("w.1", "u.1", "v.0"),
    ),
}


def evaluate(function, x, arrays, sizes):
    try:
        return function(x, *arrays.values(), *sizes)
    except (ValueError, IndexError):  # shapes that do not fit
        return None


def zeroed(arrays, chosen):
    out = {k: a.copy() for k, a in arrays.items()}
    for name, axis, i in chosen:
        np.moveaxis(out[name], axis, 0)[i] = 0
    return out


def sliced(arrays, chosen):
    out = dict(arrays)
    for name, axis in {(n, a) for n, a, _ in chosen}:
        out[name] = np.delete(out[name], [i for n, a, i in chosen if (n, a) == (name, axis)], axis)
    return out


def removable(case, x, arrays, chosen):
    """Whether some refit makes the function of the sliced arrays equal to that of the zeroed ones."""
    small = sliced(arrays, chosen)
    if any(small[n].shape[a] < case.left for n, a, _ in chosen):
        return False
    want = case.function(x, *zeroed(arrays, chosen).values(), *case.sizes[0])
    found = (evaluate(case.function, x, small, s) for s in case.sizes)
    return any(y is not None and y.shape == want.shape and np.allclose(y, want, atol=1e-9) for y in found)


def smallest_sets(case, x, arrays):
    """All sets of positions that can be removed and of which no smaller part can."""
    axes = [(a.split(".")[0], int(a.split(".")[1])) for a in case.axes]
    positions = [(n, a, i) for n, a in axes for i in range(arrays[n].shape[a])]
    found = []
    for size in range(1, len(positions) + 1):
        for chosen in map(frozenset, combinations(positions, size)):
            if not any(f <= chosen for f in found) and removable(case, x, arrays, chosen):
                found.append(chosen)
    return set(found)


def constants(analysis):
    return {n: c.values for n, c in analysis.model.constants().items() if c.values.dtype.kind == "f"}


@each({name: (case,) for name, case in CASES.items()}, ["case"])
def test_numpy_function_is_the_graph(case):
    """What is brute-forced is the function of the ONNX graph."""
    analysis = analyse(case.text)
    x = np.random.default_rng(1).standard_normal(analysis.shapes["x"])
    y = session(analysis.model.to_proto()).run({"x": x.astype(np.float32)})["y"]
    want = case.function(x, *constants(analysis).values(), *case.sizes[0])
    assert np.allclose(y.reshape(want.shape), want, rtol=1e-4, atol=1e-4)


@each({name: (case,) for name, case in CASES.items()}, ["case"])
def test_classes_are_the_smallest_removable_sets(case):
    """The exact classes, as sets of positions on the axes tried, are what brute force finds; inexact ones it cannot find."""
    analysis = analyse(case.text)
    arrays = {n: a.astype(np.float64) for n, a in constants(analysis).items()}
    x = np.random.default_rng(1).standard_normal(analysis.shapes["x"])
    exact = [c for c in range(1, analysis.classes + 1) if not analysis.inexact[c]]
    axes = [a for a in analysis.axes if f"{a.param}.{a.axis}" in case.axes]
    classes = {
        frozenset((a.param, a.axis, int(i)) for a in axes for i in np.flatnonzero(a.classes == c)) for c in exact
    }
    assert smallest_sets(case, x, arrays) == classes - {frozenset()}
