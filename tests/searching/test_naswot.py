"""The kernel of activation codes against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import proto

from onnxprune.graph import from_proto
from onnxprune.recover.program import program, run_through
from onnxprune.searching.naswot import naswot, switching_points

TEXT = """g (float[N,3,6,6] x) => (float[N,8,6,6] y) <float[8,3,3,3] w, float[8] b, float[8,8,1,1] v, float six = {6}, float low = {1}> {
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu(c)
    d = Conv(r, v)
    e = Clip(d, low, six)
    s = Sigmoid(e)
    m = Mul(s, e)
    y = Sigmoid(m)
}"""


@pytest.fixture
def network():
    return program(from_proto(proto(TEXT)))


def test_switching_points(network):
    """Relu and x * Sigmoid(x) switch at 0, Clip at its least value; a Sigmoid on its own is no switch."""
    assert switching_points(network) == {"c": 0.0, "d": 1.0, "e": 0.0}


def test_the_definition(network):
    """log |det K| with K[i, j] = units - Hamming distance of the codes of i and j, of the first 128 inputs."""
    rng = np.random.default_rng(0)
    batches = [{"x": rng.standard_normal((50, 3, 6, 6)).astype(np.float32)} for _ in range(4)]
    codes = []
    run_through(
        network,
        batches,
        ["c", "d", "e"],
        lambda _, t: codes.append(
            np.concatenate([(t[n] > z).reshape(50, -1) for n, z in (("c", 0), ("d", 1), ("e", 0))], 1)
        ),
    )
    code = np.concatenate(codes)[:128]
    kernel = [[code.shape[1] - np.count_nonzero(a != b) for b in code] for a in code]
    sign, wanted = np.linalg.slogdet(np.array(kernel, float))
    assert sign == 1
    assert naswot(network, batches) == pytest.approx(wanted, rel=1e-9)


def test_inputs_that_are_not_told_apart_have_no_volume(network):
    """Different inputs with equal codes make the kernel singular: the score is -inf; a copy of an input counts once."""
    one = np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)
    assert naswot(network, [{"x": np.concatenate([one, one * np.float32(1 + 1e-6)])}]) == -np.inf
    assert naswot(network, [{"x": np.repeat(one, 8, 0)}]) == naswot(network, [{"x": one}])
