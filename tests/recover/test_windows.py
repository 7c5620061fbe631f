"""Which layers are refitted together."""

from __future__ import annotations

import pytest
from graphs import analyse, each
from recovering import feeds

from onnxprune.recover.layers import sites
from onnxprune.recover.program import program
from onnxprune.recover.reference import reference
from onnxprune.recover.windows import affordable, windows

PLANE = "float[N,3,8,8] x"
THREE = "float[3,3,1,1] a, float[3,3,1,1] b, float[3,3,1,1] c"
# name -> (graph, outputs of the layers of each window)
CASES = {
    "a residual block": (
        f"""g ({PLANE}) => (float[] y) <{THREE}> {{
            s = Conv(x, a)
            r = Relu(s)
            h = Conv(r, b)
            i = Relu(h)
            j = Conv(i, c)
            k = Add(j, r)
            y = Relu(k)
        }}""",
        ["hj"],
    ),
    "a bottleneck": (
        f"""g ({PLANE}) => (float[] y) <{THREE}, float low = {{0}}, float high = {{6}}> {{
            s = Sigmoid(x)
            h = Conv(s, a)
            i = Clip(h, low, high)
            j = Conv(i, b)
            k = Relu(j)
            l = Conv(k, c)
            y = Add(s, l)
        }}""",
        ["hjl"],
    ),
    "five in a row": (
        f"""g ({PLANE}) => (float[] y) <{THREE}, float[3,3,1,1] d, float[3,3,1,1] e> {{
            h = Conv(x, a)
            i = Relu(h)
            j = Conv(i, b)
            k = Relu(j)
            l = Conv(k, c)
            m = Relu(l)
            n = Conv(m, d)
            o = Relu(n)
            y = Conv(o, e)
        }}""",
        ["hjl", "lny"],
    ),
    "four in a row, one with BatchNormalization, one without activation": (
        f"""g ({PLANE}) => (float[] y) <{THREE}, float[3,3,1,1] d, float[3] s, float[3] t, float[3] u, float[3] var> {{
            h = Conv(x, a)
            i = BatchNormalization(h, s, t, u, var)
            j = Relu(i)
            k = Conv(j, b)
            l = Conv(k, c)
            m = Relu(l)
            y = Conv(m, d)
        }}""",
        ["hkl", "ly"],
    ),
    "read twice": (
        f"""g ({PLANE}) => (float[] y) <{THREE}> {{
            h = Conv(x, a)
            i = Relu(h)
            j = Conv(i, b)
            k = Conv(i, c)
            y = Add(j, k)
        }}""",
        [],
    ),
    "a result of the model between": (
        f"""g ({PLANE}) => (float[] y, float[] i) <{THREE}> {{
            h = Conv(x, a)
            i = Relu(h)
            j = Conv(i, b)
            y = Add(j, j)
        }}""",
        [],
    ),
    "a pool between": (
        f"""g ({PLANE}) => (float[] y) <{THREE}> {{
            h = Conv(x, a)
            i = Relu(h)
            j = MaxPool <kernel_shape = [2, 2]> (i)
            y = Conv(j, b)
        }}""",
        [],
    ),
    "an activation that bends": (
        f"""g ({PLANE}) => (float[] y) <{THREE}> {{
            h = Conv(x, a)
            i = Sigmoid(h)
            j = Conv(i, b)
            k = Mul(j, j)
            y = Conv(k, c)
        }}""",
        [],
    ),
    "an integer weight": (
        f"""g ({PLANE}) => (float[] y) <{THREE}, int8[3,3,1,1] d, float scale> {{
            h = Conv(x, a)
            i = Relu(h)
            q = DequantizeLinear(d, scale)
            y = Conv(i, q)
        }}""",
        ["hy"],
    ),
    "another way of the axes": (
        f"""g ({PLANE}) => (float[] y) <{THREE}> {{
            h = Conv(x, a)
            i = Relu(h)
            j = Conv(i, b)
            k = Transpose <perm = [0, 2, 3, 1]> (j)
            y = Relu(k)
        }}""",
        [],
    ),
    "matrices": (
        """g (float[N,3] x) => (float[] y) <float[3,3] a, float[3,3] b> {
            h = MatMul(x, a)
            i = Relu(h)
            y = MatMul(i, b)
        }""",
        [],
    ),
}


def found_in(text, memory=1e9, samples=32):
    """The windows of an uncut network."""
    analysis = analyse(text)
    whole = program(analysis.model, analysis.shapes)
    made = reference(whole, sites(whole)[0], feeds(analysis.model, 3, samples=samples), 1)
    return windows(whole, sites(whole)[0], made, memory)


@each(CASES, "text, wanted")
def test_windows(text, wanted):
    """Convolutions that only the next one reads, three at most, behind ReLU, Clip or nothing."""
    found = found_in(text)
    assert ["".join(s.layer.y for s in w.sites) for w in found.values()] == wanted
    assert list(found) == [w.last.index for w in found.values()]


def test_the_shortcut_belongs_to_the_aim():
    """A window of a residual block aims behind the Add."""
    (found,) = found_in(CASES["a residual block"][0]).values()
    assert (found.start, found.end, found.layers[-1].chain.other) == ("r", "k", "r")


def test_work_shortens_the_fit_and_ends_it():
    """With less work there are fewer steps, then half of the inputs; then none."""
    found = found_in(CASES["five in a row"][0])
    once = 64 * 9 * 6  # one input: 64 positions, 3 x 3 weights, 6 layers in two windows
    step = once * (5 * 64 + 32)  # on 64 inputs, checked on 32
    bend = once * 2 * 256  # a curvature, for eight steps

    def efforts(work):
        return {(w.effort.count, w.effort.inputs) for w in affordable(found, work).values()}

    assert efforts(16 * step + 2 * bend) == {(16, 64)}
    assert efforts(16 * step + 2 * bend - 1) == {(12, 64)}
    assert efforts(8 * step + bend) == {(8, 64)}
    assert efforts(2 * step + bend) == {(2, 64)}
    assert efforts(2 * step + bend - 1) == {(2, 32)}
    assert efforts(step) == set()


def test_a_step_looks_at_800_inputs_if_it_may():
    """With work for it, a step looks at up to 800 inputs, with less at 400 before there are fewer than six steps."""
    found = found_in(CASES["five in a row"][0], samples=450)  # two batches of them to fit
    passes = 6 * (5 * 800 + 450) + 2 * 256
    work = 64 * 9 * 6 * passes

    def efforts(work):
        return {(w.effort.count, w.effort.inputs) for w in affordable(found, work).values()}

    assert (efforts(work), efforts(work - 1)) == ({(6, 800)}, {(6, 400)})


@pytest.mark.parametrize(("batches", "pool"), [(2, 2), (1, 1), (0, 0)])
def test_memory_limits_the_inputs(batches, pool):
    """A window sees as many batches as fit: its input and twice its output, 3 channels of 8 x 8 each."""
    limit = (1 + batches) * 32 * 3 * (3 * 64 * 4)  # one batch is held out
    found = found_in(CASES["a residual block"][0], limit)
    assert [w.pool for w in found.values()] == [pool] * (pool > 0)


@pytest.mark.parametrize(("inputs", "part"), [(7, 7), (1000, 64), (0.99, 1)])
def test_memory_limits_what_is_looked_at_at_once(inputs, part):
    """The tensors of a window, here four of 3 channels of 8 x 8, take a 24th of the memory at once."""
    (found,) = found_in(CASES["a bottleneck"][0], 24 * inputs * 4 * (4 * 3 * 64) + 1e-3, samples=1).values()
    assert found.part == part
