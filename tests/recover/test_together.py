"""Windows refitted on the way through a cut network: never worse, written as told, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import analyse, each, proto, random_plan
from recovering import Case, far

from onnxprune.couple import couple
from onnxprune.graph import from_proto
from onnxprune.recover import joint, least_squares, sequence
from onnxprune.recover.layers import sites
from onnxprune.recover.least_squares import Sums
from onnxprune.recover.program import Store, run_through
from onnxprune.recover.reference import reference
from onnxprune.shapes import concrete_shapes

PLANE = "float[N,3,8,8] x"
BLOCKS = f"""g ({PLANE}) => (float[] y) <float[8,3,3,3] w, float[8] b, float[8,8,3,3] k, float[8] c, float[8,8,3,3] l, float[8] m,
  float[8,8,3,3] k1, float[8] c1, float[8,8,3,3] l1, float[2,8] v> {{
    h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    s = Relu(h)
    i = Conv <pads = [1, 1, 1, 1]> (s, k, c)
    r = Relu(i)
    j = Conv <pads = [1, 1, 1, 1]> (r, l, m)
    a = Add(j, s)
    s1 = Relu(a)
    i1 = Conv <pads = [1, 1, 1, 1]> (s1, k1, c1)
    r1 = Relu(i1)
    j1 = Conv <pads = [1, 1, 1, 1]> (r1, l1)
    a1 = Add(s1, j1)
    s2 = Relu(a1)
    p = GlobalAveragePool(s2)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, v)
}}"""
# name -> (graph, outputs of layers whose window must have been refitted)
CASES = {
    "residual blocks": (BLOCKS, ["j", "j1"]),
    "plain, with BatchNormalization": (
        f"""g ({PLANE}) => (float[] y) <float[8,3,3,3] w, float[8] s, float[8] o, float[8] m, float[8] var,
          float[8,8,3,3] v, float[8] s1, float[8] o1, float[8] m1, float[8] var1, float[8,8,1,1] u, float[8] c, float[4,8,1,1] t> {{
            h = Conv(x, w)
            n = BatchNormalization(h, s, o, m, var)
            r = Relu(n)
            k = Conv(r, v)
            n1 = BatchNormalization(k, s1, o1, m1, var1)
            r1 = Relu(n1)
            q = Conv(r1, u, c)
            r2 = Relu(q)
            y = Conv(r2, t)
        }}""",
        ["y"],
    ),
    "an inverted residual, depthwise, strided": (
        f"""g ({PLANE}) => (float[] y) <float[9,3,1,1] w, float[9] b, float[9,1,3,3] k, float[9] c, float[5,9,1,1] v, float[5] d,
          float low = {{0}}, float high = {{2}}, float[3,5,1,1] t> {{
            h = Conv(x, w, b)
            r = Clip(h, low, high)
            i = Conv <group = 9, strides = [2, 2], pads = [1, 1, 1, 1]> (r, k, c)
            e = Clip(i, low, high)
            z = Conv(e, v, d)
            q = Sigmoid(z)
            y = Conv(q, t)
        }}""",
        ["z"],
    ),
}
NO_BIAS = f"""g ({PLANE}) => (float[] y) <float[8,3,3,3] w, float[8,8,3,3] v, float[8,8,1,1] u, float[4,8,1,1] t> {{
    h = Conv(x, w)
    r = Relu(h)
    k = Conv(r, v)
    r1 = Relu(k)
    q = Conv(r1, u)
    r2 = Relu(q)
    y = Conv(r2, t)
}}"""
SUM = NO_BIAS.replace("float[4,8,1,1] t", "float[4,8,1,1] t, float[8,1,1] s").replace(
    "r1 = Relu(k)", "a = Add(k, s)\n    r1 = Relu(a)"
)
TOLD = {name: text for name, (text, _) in CASES.items()}
TOLD |= {
    "no biases": NO_BIAS,
    "a constant added": SUM,
    "one without bias": BLOCKS.replace("(r, l, m)", "(r, l)").replace(", float[8] m", ""),
}
DTYPES = {"float32": BLOCKS, "float16": BLOCKS.replace("float[", "float16[")}


def cases(text, **options):
    """A network that lost about a third of its filters, in batches of 24."""
    analysis = analyse(text)
    return Case(analysis, random_plan(analysis, 0.3, 0), batches=8, held=2, samples=24, **options)


def joint_outputs(case, done):
    """Outputs of the last layers of the windows that were refitted."""
    made = {n.name or n.output[0]: n.output[0] for n in done.program.nodes}
    return [made[x.node] for x in done.layers if x.method == "joint" and "at once" in x.reason]


@pytest.fixture
def as_many_rounds(monkeypatch):
    """Layers are fitted alone as thoroughly whether they are refitted together afterwards or not."""
    monkeypatch.setattr(sequence, "_ROUNDS", least_squares.ROUNDS)


@each(CASES, "text, wanted")
def test_better_than_layer_by_layer(text, wanted):
    """A window's error on held inputs is below that of least squares, and so is the network's."""
    case = cases(text)
    single, done = case.repaired(), case.repaired(method="joint")
    assert joint_outputs(case, done) == wanted
    found = next(x for x in done.layers if x.method == "joint" and "at once" in x.reason)
    alone = next(x for x in single.layers if x.node == found.node)  # up to here both have seen the same
    assert found.after < 0.95 * alone.after
    assert case.after(done) < case.after(single)


def errors(case, done):
    """Error of every layer at the end of its chain in the finished program, on held-out inputs: node -> share."""
    batches = case.batches[-2:]
    outs = {x.node: case.kept[x.outputs] for x in case.analysis.layers}
    layers = case.reference.layers.values()
    ends = [x.chain.end for x in layers]
    narrow, whole = {}, {}
    for found, model in ((narrow, done.program), (whole, case.whole)):
        run_through(
            model, batches, ends, lambda i, tensors, found=found: found.update({(i, e): tensors[e] for e in ends})
        )
    shares = {}
    for x in layers:
        keys, limits = [(i, x.chain.end) for i in range(2)], (x.chain.low, x.chain.high)
        parts = [(narrow[k], whole[k][:, outs[x.site.layer.node]]) for k in keys]
        shares[x.site.layer.node] = sum((Sums.of(*(np.clip(a, *limits) for a in p), 1) for p in parts), Sums()).share
    return shares


@each(TOLD, "text")
@pytest.mark.parametrize("method", ["least-squares", "joint"])
def test_what_is_told_is_what_is_written(text, method):
    """Every error told is that of the finished network, and its outputs are those of the walk."""
    case = cases(text)
    done = case.repaired(method=method)
    true = errors(case, done)
    told = {x.node: x.after for x in done.layers}
    assert len(told) > 1
    for node, after in told.items():
        assert after == pytest.approx(true[node], rel=1e-2, abs=1e-6)
    assert case.after(done) == pytest.approx(far(done.outputs, case.reference.outputs), rel=1e-3)


def test_the_other_layers_of_a_window_are_told():
    """Layers before the last are told to be refitted with it, those that had no repair of their own as well."""
    text, (last,) = CASES["an inverted residual, depthwise, strided"]
    done = cases(text).repaired(method="joint")
    nodes = {n.output[0]: n.name or n.output[0] for n in done.program.nodes}
    found = {x.node: x for x in done.layers}
    for name in "hi":
        x = found[nodes[name]]
        assert (x.method, x.reason) == ("joint", f"together with {nodes[last]}")
        assert x.after is not None
    assert found[nodes["h"]].before == 0  # the cut has not changed what it reads


def test_half_precision():
    """Weights in float16 are refitted in float32 and stored as they were."""
    case = cases(DTYPES["float16"])
    done = case.repaired(method="joint")
    assert joint_outputs(case, done) == ["j", "j1"]
    assert {a.dtype for a in done.program.weights.values()} == {np.dtype("float16")}
    assert case.after(done) < case.after(case.repaired())


QUANTISED = BLOCKS.replace("float[8,8,3,3] k,", "int8[8,8,3,3] q, float[8] qs,").replace(
    "i = Conv", "k = DequantizeLinear <axis = 0> (q, qs)\n    i = Conv"
)


def test_integer_weights():
    """The error told for a window with integer weights is the one after they were rounded."""
    case = cases(QUANTISED)
    done = case.repaired(method="joint")
    assert joint_outputs(case, done) == ["j", "j1"]
    assert done.program.weights["q"].dtype == np.int8
    true = errors(case, done)
    assert all(x.after == pytest.approx(true[x.node], rel=1e-3) for x in done.layers if x.after is not None)
    assert case.after(done) < case.after(case.repaired())


@pytest.mark.usefixtures("as_many_rounds")
@each({"float": BLOCKS, "integer": QUANTISED, "no biases": NO_BIAS}, "text")
def test_what_is_stored_is_judged(text, monkeypatch):
    """Where what is stored is worse than promised, everything stays as least squares left it, to the bit."""

    def hardly_better(passes, weights, biases, train, held, **_):
        before = joint.State(passes, weights, biases).error(held)
        return joint.Joint([0.9 * w for w in weights], [b + 1 for b in biases], before, 0.999 * before)

    case = cases(text)
    single = case.repaired()
    monkeypatch.setattr(joint, "refit", hardly_better)
    done = case.repaired(method="joint")
    assert done.layers == single.layers
    for name, array in done.program.weights.items():
        assert np.array_equal(array, single.program.weights.get(name, np.zeros_like(array)))
    assert case.after(done) == pytest.approx(case.after(single), rel=1e-5)


def test_one_input_at_a_time():
    """A model that takes one input only is refitted on many at once, too."""
    fixed = BLOCKS.replace("float[N,", "float[1,")
    analysis = analyse(fixed)
    one = Case(analysis, random_plan(analysis, 0.3, 0), batches=192, held=48)
    done = one.repaired(method="joint")
    assert joint_outputs(one, done) == ["j", "j1"]
    assert one.after(done) < one.after(one.repaired())


def test_one_batch():
    """Where all inputs are one batch, the refit is checked on what it has seen."""
    analysis = analyse(BLOCKS)
    case = Case(analysis, random_plan(analysis, 0.3, 0), batches=1, held=0)
    assert case.after(case.repaired(method="joint")) < case.after(case.repaired())


def test_the_same_from_files():
    """Activations in files, not in memory, give the same weights."""
    case, store = cases(BLOCKS), Store(0.0)
    from_files, from_memory = case.repaired(method="joint", store=store), case.repaired(method="joint")
    for name, array in from_memory.program.weights.items():
        np.testing.assert_array_equal(array, from_files.program.weights[name])


def test_all_memory_is_given_back():
    """At the end the store holds nothing that the walks have put there."""
    store = Store()
    case = cases(BLOCKS, store=store)
    held = store.held
    case.repaired(method="joint", store=store)
    assert store.peak > held
    assert store.held == held


def test_a_few_inputs_at_a_time():
    """With little memory, batches are taken apart; the refit is as good."""
    case = cases(BLOCKS)
    small, large = case.repaired(method="joint", memory=8 * 9e5), case.repaired(method="joint")
    assert joint_outputs(case, small) == ["j", "j1"]
    assert case.after(small) == pytest.approx(case.after(large), rel=0.1)
    assert case.after(small) < case.after(case.repaired())


def test_no_place_for_a_bias():
    """Where a layer may not get the bias that it lacks, its window stays as least squares left it."""
    case = cases(BLOCKS)
    done = case.repaired(method="joint", new_biases=False)
    assert joint_outputs(case, done) == ["j"]


def test_too_much_work():
    """Where the refits of windows cost too much, layers are refitted one at a time, and that is told."""
    case = cases(BLOCKS)
    done = case.repaired(method="joint", work=1e4)
    assert done.notes == ("to keep to the time, layers are refitted one at a time",)
    single = case.repaired()
    assert not single.notes
    assert [x.after for x in done.layers] == [x.after for x in single.layers]


def test_inputs_of_several_sizes():
    """Where batches differ in size, windows are left to least squares; the rest goes on."""
    text = BLOCKS.replace("float[N,3,8,8] x", "float[N,3,H,W] x")
    model = from_proto(proto(text))
    analysis = couple(model, concrete_shapes(model, {"x": (2, 3, 8, 8)}))
    case = Case(analysis, random_plan(analysis, 0.3, 0), batches=2)
    rng = np.random.default_rng(0)
    case.batches = [{"x": rng.standard_normal((24, 3, s, s)).astype(np.float32)} for s in (8, 9, 8, 9, 8)]
    case.reference = reference(case.whole, sites(case.whole)[0], case.batches, 1)
    done = case.repaired(method="joint")
    assert done.layers == case.repaired().layers
    assert case.after(done) < case.before


def test_layers_of_windows_take_fewer_rounds_before(monkeypatch):
    """Least squares iterates less for layers that are refitted together afterwards; alone, as often as ever."""
    rounds, fit = [], least_squares.fit

    def noted(*args, **options):
        rounds.append(options["rounds"])
        return fit(*args, **options)

    monkeypatch.setattr(sequence, "_ROUNDS", 2)
    monkeypatch.setattr(least_squares, "fit", noted)
    case = cases(BLOCKS)
    case.repaired()
    alone = len(rounds)
    case.repaired(method="joint")
    assert rounds[:alone] == [least_squares.ROUNDS] * alone
    assert set(rounds[alone:]) == {2, least_squares.ROUNDS}
