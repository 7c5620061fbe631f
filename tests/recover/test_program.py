"""Programs run piece by piece: each node once, the same results, in bounded memory."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
from graphs import analyse, proto
from recovering import duplicates, feeds, outputs

from onnxprune import runtime
from onnxprune.graph import from_proto
from onnxprune.recover.program import Store, Walk, program, run_through, write_back

TEXT = """g (float[N,3,16,16] x, float[N,4,16,16] late) => (float[] z, float[] y) <float[4,3,1,1] w, float[4] b, float[4,4,3,3] v,
  float[2,4,1,1] u> {
    h = Conv(x, w, b)
    r = Relu(h)
    z = GlobalAveragePool(r)
    k = Conv <pads = [1, 1, 1, 1]> (r, v)
    a = Add(r, k)
    t = Mul(a, late)
    y = Conv(t, u)
}"""

TWO = """g (float[N,3,16,16] x) => (float[] y) <float[5,3,1,1] w, float[5] b, float[4,5,3,3] v, float[2,4,1,1] u> {
    h = Conv(x, w, b)
    r = Relu(h)
    k = Conv(r, v)
    s = Relu(k)
    y = Conv(s, u)
}"""


@pytest.fixture
def whole():
    return program(from_proto(proto(TEXT)))


@pytest.fixture
def batches(whole):
    return feeds(from_proto(proto(TEXT)), 3, samples=32)


def direct(batches):
    """What the whole model gives."""
    session = runtime.session(proto(TEXT), threads=1)
    return [session.run(b) for b in batches]


def assert_same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        for name in b:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5)


def finals(walk, count):
    return [{n: walk.tensor(b, n) for n in walk.program.outputs} for b in range(count)]


@pytest.mark.parametrize("stops", [(7,), (1, 2, 3, 4, 5, 6, 7), (3, 3, 5, 7), (2, 7)])
def test_each_node_runs_once(whole, batches, monkeypatch, stops):
    """However the walk is divided, every node is in one piece only, and the results are those of one run."""
    seen, real = [], runtime.session

    def spy(piece, **options):
        seen.extend(n.output[0] for n in piece.graph.node)
        return real(piece, **options)

    monkeypatch.setattr(runtime, "session", spy)
    walk = Walk(whole, batches)
    for stop in stops:
        walk.advance(stop)
    monkeypatch.undo()
    assert sorted(seen) == sorted(n.output[0] for n in whole.nodes)
    assert_same(finals(walk, 3), direct(batches))


def test_only_what_is_needed_is_held(whole, batches):
    """After each step the walk holds what nodes ahead read, and the results; nothing else."""
    held = {2: "late r", 3: "late r z", 4: "late r k z", 5: "late a z", 6: "t z", 7: "y z"}
    walk = Walk(whole, batches)
    names = {*whole.producer, *whole.inputs}
    for stop, there in held.items():
        walk.advance(stop)
        for name in names:
            if name in there.split():
                assert walk.tensor(0, name).shape[0] == 32
            else:
                with pytest.raises(KeyError):
                    walk.tensor(0, name)


@pytest.mark.parametrize("start", range(8))
def test_the_rest(whole, batches, start):
    """From any position another program's results are those of a whole run of it; results made before it count."""
    other = whole.replaced({"u": 2 * whole.weights["u"]})
    walk = Walk(whole, batches)
    walk.advance(start)
    wanted = direct(batches)
    if start < 7:
        wanted = [{"z": b["z"], "y": 2 * b["y"]} for b in wanted]
    assert_same(list(walk.rest(other, other.outputs)), wanted)
    assert not np.array_equal(whole.weights["u"], other.weights["u"])


def test_weights_as_they_are_when_the_walk_passes(whole, batches):
    """A weight replaced ahead of the walk acts; the nodes behind are not run again."""
    walk = Walk(whole, batches)
    walk.advance(5)
    whole.weights["u"] = 3 * whole.weights["u"]
    whole.weights["w"] = np.zeros_like(whole.weights["w"])
    walk.advance(7)
    assert_same(finals(walk, 3), [{"z": b["z"], "y": 3 * b["y"]} for b in direct(batches)])


def test_a_memory_cap(whole, batches, monkeypatch, tmp_path):
    """Beyond the cap arrays go to files without a name; results are the same to the bit, and all is given back."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    size = batches[0]["late"].nbytes  # of every inner tensor
    assert size > 1 << 16
    found = {}
    for cap in (np.inf, 4.5 * size, 0):
        store = Store(cap)
        walk = Walk(whole, batches, store)
        for stop in range(1, 8):
            walk.advance(stop)
            kept = sum(isinstance(walk.tensor(b, n), np.memmap) for b in range(3) for n in "rka" if n in walk._live[b])
            assert not list(tmp_path.iterdir())
            if stop == 4:
                assert kept == {np.inf: 0, 4.5 * size: 2, 0: 6}[cap]
        found[cap] = finals(walk, 3)
        small = 3 * (found[cap][0]["z"].nbytes + found[cap][0]["y"].nbytes)  # not worth a file
        assert store.peak <= cap + small
        assert store.peak > 0
        walk.close()
        assert store.held == 0
        assert not list(tmp_path.iterdir())
    for name in "zy":
        for cap in (4.5 * size, 0):
            assert all(np.array_equal(a[name], b[name]) for a, b in zip(found[cap], found[np.inf], strict=True))


def test_repair_under_a_memory_cap():
    """A repair that keeps everything in files gives the same weights to the bit."""
    plain = duplicates(TWO).repaired()
    store = Store(1e5)
    capped = duplicates(TWO, store=store).repaired(store=store)
    assert plain.program.weights.keys() == capped.program.weights.keys()
    for name, array in plain.program.weights.items():
        assert np.array_equal(array, capped.program.weights[name])


def test_run_through(whole, batches):
    """Inner tensors, results and inputs of every batch, in order."""
    seen = []
    run_through(whole, batches, ["a", "x"], lambda i, tensors: seen.append((i, tensors)))
    assert [i for i, _ in seen] == [0, 1, 2]
    for (_, tensors), batch, wanted in zip(seen, batches, direct(batches), strict=True):
        assert tensors.keys() == {"x", "late", "a", "z", "y"}
        assert np.array_equal(tensors["x"], batch["x"])
        assert_same([{n: tensors[n] for n in "zy"}], [wanted])


def test_bodies():
    """What a body reads from outside keeps it alive, and goes into the pieces."""
    text = """g (float[N,3] x, bool c) => (float[N,3] y) <float[3] w, float[3] v> {
        h = Mul(x, w)
        k = Relu(x)
        y = If (c) <then_branch = t () => (float[N,3] a) { a = Add(h, v) }, else_branch = e () => (float[N,3] o) { o = Neg(k) }>
    }"""
    whole = program(from_proto(proto(text)))
    assert whole.reads[2] >= {"c", "h", "v", "k"}
    rng = np.random.default_rng(0)
    batches = [{"x": rng.standard_normal((2, 3)).astype(np.float32), "c": np.array(c)} for c in (True, False)]
    walk = Walk(whole, batches)
    walk.advance(1)
    walk.advance(3)
    weights = whole.weights
    np.testing.assert_allclose(walk.tensor(0, "y"), batches[0]["x"] * weights["w"] + weights["v"], rtol=1e-6)
    np.testing.assert_allclose(walk.tensor(1, "y"), -np.maximum(batches[1]["x"], 0), rtol=1e-6)


def test_write_back():
    """Weights that changed and a bias that was added arrive in the model; the others stay the same objects."""
    analysis = analyse(TEXT)
    model = analysis.model
    whole = program(model)
    whole.weights["v"] = 2 * whole.weights["v"]
    whole.add_bias(3, np.arange(4, dtype=np.float32))
    assert whole.nodes[3].input[2] == "k_bias"
    before = model.constants()["w"]._values
    write_back(whole, model)
    assert model.constants()["w"]._values is before
    batches = feeds(model, 2, samples=4)
    assert_same(list(outputs(program(model), batches)), list(outputs(whole, batches)))
    assert np.array_equal(model.constants()["k_bias"].values, np.arange(4))


def test_a_bias_of_a_fresh_name():
    """The name of a new bias is taken by nothing else."""
    whole = program(from_proto(proto(TEXT.replace("a = Add", "k_bias = Neg(r)\n a = Add"))))
    whole.add_bias(3, np.zeros(4, np.float32))
    assert whole.nodes[3].input[2] == "k_bias_1"


def test_original_untouched():
    """Repairing changes neither the original nor the cut model."""
    case = duplicates(TWO)
    old = [{n: np.array(a) for n, a in program(m).weights.items()} for m in (case.analysis.model, case.smaller)]
    case.repaired()
    for model, weights in zip((case.analysis.model, case.smaller), old, strict=True):
        assert all(np.array_equal(a, weights[n]) for n, a in program(model).weights.items())
