"""Graphs as torch modules: the same outputs as onnxruntime, and weights that go back exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import proto

from onnxprune import runtime
from onnxprune.errors import UnsupportedError
from onnxprune.finetuning.trainable import with_weights

torch = pytest.importorskip("torch")
from onnxprune.student import Network, op  # noqa: E402
from onnxprune.student.table import OPS  # noqa: E402

FIXTURES = sorted((Path(__file__).parents[2] / "fixtures").glob("*.onnx"))
SHARED = Path(__file__).parents[3] / "shared" / "models"  # beside the repository
REAL = ("cifar10_resnet20_jpegft", "fastestdet", "mlperf_ic_resnet8", "mlperf_kws", "mlperf_vww96", "ultraface_rfb320")
REAL += ("yolo_fastest", "cifar10_resnet56_jpegft", "efficientnet_lite0_dynamo", "prismanet_portrait", "sinet_portrait")
SAMPLES = 2


def feeds_of(model, seed=0):
    """Random inputs: two samples, as batches that the model takes; and all of them in one array."""
    specs = runtime.input_specs(model)
    fixed = any(isinstance(s.dims[0], int) for s in specs)
    shapes = {
        s.name: tuple(d if isinstance(d, int) else SAMPLES if i == 0 else 224 for i, d in enumerate(s.dims))
        for s in specs
    }
    parts = [runtime.random_inputs(model, shapes, seed + i) for i in range(SAMPLES if fixed else 1)]
    return parts, {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}


def apart(network, model, seed=0):
    """Largest relative difference of an output between torch and onnxruntime."""
    parts, whole = feeds_of(model, seed)
    session = runtime.session(model, threads=1)
    runs = [session.run(p) for p in parts]
    with torch.no_grad():
        made = network({n: torch.from_numpy(a) for n, a in whole.items()})
    found = []
    for name in session.outputs:
        want = np.concatenate([r[name] for r in runs]) if len(runs) == 1 else np.stack([r[name] for r in runs])
        got = made[name].numpy().reshape(want.shape)
        found.append(np.linalg.norm(got.astype(float) - want) / max(np.linalg.norm(want.astype(float)), 1e-12))
    return max(found)


def disturb(network, seed=0):
    """Change every weight a little."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in network.weights.values():
            weight.add_(0.05 * weight.abs().mean() * torch.randn_like(weight))


def check_round_trip(model):
    """The module is the graph; weights put back as they are change no byte, changed ones give the changed module."""
    network = Network(model)
    assert apart(network, model) < 1e-4
    same = with_weights(model, network.arrays())
    names = {t.name for t in model.graph.initializer}
    assert set(network.weights) <= names
    assert {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in same.graph.initializer} == {
        t.name: onnx.numpy_helper.to_array(t).tobytes() for t in model.graph.initializer
    }
    disturb(network)
    changed = with_weights(model, network.arrays())
    assert apart(network, changed, seed=5) < 1e-4
    assert apart(network, model, seed=5) > 1e-4, "the weights did not change"
    for part in ("node", "input", "output"):
        assert getattr(changed.graph, part) == getattr(model.graph, part)
    assert changed.opset_import == model.opset_import


@pytest.mark.parametrize("path", FIXTURES, ids=lambda p: p.stem)
def test_fixtures(path):
    """Every fixture is trained as it is: the same outputs, all weights in reach of gradients, an exact way back."""
    model = onnx.load(path)
    check_round_trip(model)
    network = Network(model)
    made = network({n: torch.from_numpy(a) for n, a in feeds_of(model)[1].items()})
    sum(o.square().mean() for o in made.values()).backward()
    assert network.weights
    assert all(p.grad is not None for p in network.weights.values())


@pytest.mark.parametrize("name", REAL)
def test_real_networks(name):
    """So are networks from practice: detectors, portraits, int8 weights, fixed batches, opsets from 7 on."""
    path = SHARED / f"{name}.onnx"
    if not path.exists():
        pytest.skip("this network is not here")
    check_round_trip(onnx.load(path))


# ---- operators ----------------------------------------------------------------------------------------------------

# One node from x [2,4,6,6], w [4,4,3,3], v [4]; constants by name. What onnxruntime gives is what torch must give.
C = "int64[2] two = {2, 3}, int64[1] one = {1}, int64[1] zero = {0}, int64[1] last = {-1}"
NODES = {
    "Abs": "y = Abs(x)",
    "Add": "y = Add(x, x)",
    "ArgMax": "a = ArgMax <axis = 1, keepdims = 0> (x) y = Cast <to = 1> (a)",
    "AveragePool": "y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 0, 0]> (x)",
    "AveragePool padded": "y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (x)",
    "AveragePool ceil": "y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x)",
    "AveragePool same": 'y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"> (x)',
    "Cast": "a = Cast <to = 7> (x) y = Cast <to = 1> (a)",
    "Celu": "y = Celu <alpha = 0.7> (x)",
    "Clip": "l = Constant <value_float = -0.5> () h = Constant <value_float = 0.7> () y = Clip(x, l, h)",
    "Concat": "y = Concat <axis = 1> (x, x)",
    "Conv same": 'y = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w)',
    "Conv pads": "y = Conv <pads = [2, 1, 0, 1], dilations = [2, 1]> (x, w, v)",
    "ConvTranspose": "y = ConvTranspose <strides = [2, 2], pads = [1, 0, 1, 1], output_padding = [1, 1]> (x, w, v)",
    "ConvTranspose same": 'y = ConvTranspose <strides = [2, 2], auto_pad = "SAME_UPPER"> (x, w)',
    "CumSum": "a = Constant <value_int = 2> () y = CumSum <reverse = 1, exclusive = 1> (x, a)",
    "DepthToSpace": "y = DepthToSpace <blocksize = 2> (x)",
    "DepthToSpace CRD": 'y = DepthToSpace <blocksize = 2, mode = "CRD"> (x)',
    "Div": "y = Div(x, x)",
    "Elu": "y = Elu <alpha = 0.5> (x)",
    "Erf": "y = Erf(x)",
    "Flatten": "y = Flatten <axis = 2> (x)",
    "Gather": "y = Gather <axis = 2> (x, two)",
    "GlobalMaxPool": "y = GlobalMaxPool(x)",
    "HardSigmoid": "y = HardSigmoid <alpha = 0.3> (x)",
    "HardSwish": "y = HardSwish(x)",
    "InstanceNormalization": "y = InstanceNormalization(x, v, v)",
    "LayerNormalization": "y = LayerNormalization <axis = 2> (x, n)",
    "LeakyRelu": "y = LeakyRelu <alpha = 0.2> (x)",
    "LogSoftmax": "y = LogSoftmax <axis = 1> (x)",
    "LRN": "y = LRN <size = 3, bias = 2.0> (x)",
    "LpNormalization": "y = LpNormalization <axis = 1> (x)",
    "MaxPool": "y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 0, 0]> (x)",
    "MaxPool ceil": "y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1, dilations = [2, 2]> (x)",
    "Mean": "a = Neg(x) b = Abs(x) y = Mean(x, a, b)",
    "Min": "a = Neg(x) y = Min(x, a)",
    "Softsign": "y = Softsign(x)",
    "Mod": "a = Abs(x) y = Mod <fmod = 1> (x, a)",
    "PRelu": "y = PRelu(x, s)",
    "Pad": "p = Constant <value_ints = [0, 0, 1, 2, 0, 0, 0, 1]> () y = Pad(x, p)",
    "Pad edge": 'p = Constant <value_ints = [0, 0, 1, 2, 0, 0, 0, 1]> () y = Pad <mode = "edge"> (x, p)',
    "Pad reflect": 'p = Constant <value_ints = [0, 0, 1, 2, 0, 0, 0, 1]> () y = Pad <mode = "reflect"> (x, p)',
    "Pow": "a = Constant <value_float = 2.0> () y = Pow(x, a)",
    "QuantizeLinear": "a = Constant <value_float = 0.1> () q = QuantizeLinear(x, a) y = DequantizeLinear(q, a)",
    "ReduceL2": "y = ReduceL2 <axes = [2, 3], keepdims = 0> (x)",
    "ReduceLogSumExp": "y = ReduceLogSumExp <axes = [1]> (x)",
    "ReduceMax": "y = ReduceMax <axes = [-1]> (x)",
    "ReduceProd": "y = ReduceProd <axes = [1, 2]> (x)",
    "ReduceSum": "y = ReduceSum(x, two)",
    "Resize nearest": 'e = Constant <value_floats = [1.0, 1.0, 2.0, 1.5]> () y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (x, , e)',
    "Resize linear": 'e = Constant <value_floats = [1.0, 1.0, 2.0, 0.5]> () y = Resize <mode = "linear"> (x, , e)',
    "Resize corners": 'e = Constant <value_ints = [2, 4, 9, 11]> () y = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (x, , , e)',
    "Selu": "y = Selu(x)",
    "Slice": "e = Constant <value_ints = [5]> () y = Slice(x, one, e, last)",
    "Slice backwards": "e = Constant <value_ints = [-9]> () y = Slice(x, last, e, two0, last)",
    "Softmax": "y = Softmax <axis = 1> (x)",
    "SpaceToDepth": "y = SpaceToDepth <blocksize = 2> (x)",
    "Split": "a, b = Split <axis = 1> (x) y = Sub(a, b)",
    "Squeeze": "a = Unsqueeze(x, one) b = Squeeze(a, one) y = Neg(b)",
    "Sum": "y = Sum(x, x, x)",
    "ThresholdedRelu": "y = ThresholdedRelu <alpha = 0.5> (x)",
    "Tile": "e = Constant <value_ints = [1, 2, 1, 1]> () y = Tile(x, e)",
    "TopK": "y, i = TopK <axis = 1> (x, one)",
    "Transpose": "y = Transpose <perm = [0, 2, 3, 1]> (x)",
    "Trilu": "y = Trilu <upper = 0> (x)",
    "Where": "a = Neg(x) c = Greater(x, a) y = Where(c, x, a)",
    "Einsum": 'y = Einsum <equation = "bchw,ko->bchw"> (x, m)',
    "Gemm": "f = Flatten <axis = 3> (x) y = Gemm <transA = 1, transB = 1, alpha = 0.5, beta = 2.0> (f, g, k)",
    "Range": "s = Shape(x) a = Constant <value_int = 0> () c = Gather <axis = 0> (s, one) r = Squeeze(c) o = Constant <value_int = 1> () q = Range(a, r, o) y = Gather <axis = 1> (x, q)",
    "ConstantOfShape": "s = Shape(x) z = ConstantOfShape <value = float[1] {2.5}> (s) y = Mul(z, x)",
    "Expand": "e = Constant <value_ints = [1, 2, 1, 1, 1]> () y = Expand(x, e)",
    "ScatterND": "i = Constant <value = int64[1,1] {1}> () u = Slice(x, zero, one, zero) y = ScatterND(x, i, u)",
    "GatherElements": "i = ArgMax <axis = 1> (x) y = GatherElements <axis = 1> (x, i)",
}


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_operators(node):
    """Each operator gives what onnxruntime gives."""
    text = f"""g (float[2,4,6,6] x) => (float[] y)
        <float[4,4,3,3] w, float[4] v, float[6,6] n, float[4,1,1] s, float[3,2] m, float[5,48] g, float[5] k,
         {C}, int64[1] two0 = {{2}}> {{ {node} }}"""
    model = proto(text)
    network = Network(model)
    network.batch = None
    feeds = runtime.random_inputs(model, {}, 3)
    want = runtime.session(model, threads=1).run(feeds)["y"]
    got = network({n: torch.from_numpy(a) for n, a in feeds.items()})["y"].detach().numpy()
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_attributes_of_old_operator_sets():
    """Operators are run in today's form: Softmax flattens before opset 13, bounds are attributes."""
    text = "g (float[2,3,4] x) => (float[] y) { a = Clip <min = -0.5, max = 0.5> (x) y = Softmax <axis = 1> (a) }"
    model = proto(text, opset=10)
    network = Network(model)
    network.batch = None
    feeds = runtime.random_inputs(model, {}, 0)
    want = runtime.session(model, threads=1).run(feeds)["y"]
    np.testing.assert_allclose(network({"x": torch.from_numpy(feeds["x"])})["y"], want, rtol=1e-5, atol=1e-6)


# ---- weights ------------------------------------------------------------------------------------------------------


def test_which_weights_are_trained():
    """Weights and biases are trained, also shared and transposed ones; statistics and scalings of inputs are not."""
    model = proto("""g (float[N,4] x) => (float[N,4] y)
        <float[4] mean, float[4,4] w, float[4] b, float[4] scale_bn, float[4] beta, float[4] mu, float[4] var> {
        c = Sub(x, mean)
        t = Transpose(w)
        h = MatMul(c, w)
        i = Add(h, b)
        n = BatchNormalization(i, scale_bn, beta, mu, var)
        y = MatMul(n, t)
    }""")
    network = Network(model)
    assert list(network.weights) == ["w", "b", "scale_bn", "beta"]
    check_round_trip(model)


def test_int8_weights():
    """Weights stored as int8 are trained as what they will be when stored: written back, the outputs are the same."""
    model = proto("""g (float[N,8] x) => (float[N,3] y)
        <int8[8,3] q, float[3] b, float[3] s = {0.02, 0.01, 0.03}, int8[3] z = {0, 3, -2}> {
        w = DequantizeLinear <axis = 1> (q, s, z)
        h = MatMul(x, w)
        y = Add(h, b)
    }""")
    network = Network(model)
    assert set(network.weights) == {"q", "b"}
    before = network.arrays()["q"]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for seed in range(5):
        x = torch.from_numpy(runtime.random_inputs(model, {"x": (4, 8)}, seed)["x"])
        optimizer.zero_grad()
        network({"x": x})["y"].square().mean().backward()
        optimizer.step()
    after = network.arrays()["q"]
    assert after.dtype == np.int8
    assert (after != before).any()
    assert apart(network, with_weights(model, network.arrays())) < 1e-5


def test_fixed_batches_are_separate():
    """A graph for one sample that ties the batch into its shapes runs many, each as if it were alone."""
    model = proto("""g (float[1,2,3] x) => (float[1,6] y) <float[6,6] w, int64[2] s = {1, -1}> {
        f = Reshape(x, s)
        y = MatMul(f, w)
    }""")
    network = Network(model)
    assert network.batch == 1
    assert apart(network, model) < 1e-6
    x = torch.randn(5, 2, 3)
    network({"x": x})["y"].sum().backward()
    assert network.weights["w"].grad is not None


def test_fixed_batches_that_mean_nothing():
    """A graph for one sample whose Reshape alone says so takes many at once; one that mixes them does not."""
    x = torch.randn(5, 2, 3)
    body = "w> { f = Reshape(x, s) y = MatMul(f, w) }".replace("w> ", "w, int64[2] s = {1, 6}> ")
    network = Network(proto(f"g (float[1,2,3] x) => (float[1,4] y) <float[6,4] {body}"))
    before = network({"x": x})["y"]
    network.take_any_number({"x": x[:2]})
    assert network.batch is None
    assert torch.allclose(network({"x": x})["y"], before, atol=1e-6)
    for mixing in ("m = Softmax<axis=0>(x) y = Add(x, m)", "m = ReduceSum<keepdims=0>(x, z) y = Add(x, m)"):
        network = Network(proto(f"g (float[1,2,3] x) => (float[1,2,3] y) <int64[1] z = {{0}}> {{ {mixing} }}"))
        before = network({"x": x})["y"]
        network.take_any_number({"x": x[:2]})
        assert network.batch == 1
        assert torch.equal(network({"x": x})["y"], before)


# ---- refusals -----------------------------------------------------------------------------------------------------


def test_unknown_operator_is_named():
    """An operator without a function is refused by name, with what would help; registered, it works."""
    model = proto(
        """g (float[2,3] x) => (float[] y) <float[3,3] w> { h = MatMul(x, w) y = Det(k) k = Identity(h) }""".replace(
            "y = Det(k) k = Identity(h)", "y = Hardmax(h)"
        )
    )
    with pytest.raises(UnsupportedError, match=r"Hardmax .*onnxprune\.student\.op.*handoff"):
        Network(model)

    @op("Hardmax")
    def hardmax(x, *, axis=-1):
        return torch.nn.functional.one_hot(x.argmax(axis), x.shape[axis]).float()

    try:
        network = Network(model)
        network.batch = None
        assert apart_of(network, model) < 1e-6
    finally:
        del OPS["", "Hardmax"]


def apart_of(network, model):
    """Difference on inputs of fixed shape."""
    feeds = runtime.random_inputs(model, {}, 0)
    got = network({n: torch.from_numpy(a) for n, a in feeds.items()})["y"].detach().numpy()
    return np.abs(got - runtime.session(model, threads=1).run(feeds)["y"]).max()


def test_other_element_types_are_refused():
    """Weights that are not float32 are refused: training them would round every step."""
    with pytest.raises(UnsupportedError, match="float16: training needs float32"):
        Network(proto("g (float16[N,3] x) => (float16[N,3] y) <float16[3,3] w> { y = MatMul(x, w) }"))


def test_the_first_node_that_is_not_finite():
    """It is found and named."""
    model = proto("g (float[N,3] x) => (float[N,3] y) <float[3,3] w> { h = MatMul(x, w) n = Neg(h) y = Log(n) }")
    network = Network(model)
    with torch.no_grad():
        network.weights["w"].copy_(torch.eye(3))
    assert network.first_not_finite({"x": torch.ones(2, 3)}).startswith("Log")
    assert network.first_not_finite({"x": -torch.ones(2, 3)}) == ""
    with torch.no_grad():
        network.weights["w"].fill_(torch.inf)
    assert network.first_not_finite({"x": torch.ones(2, 3)}) == "weight 'w'"
