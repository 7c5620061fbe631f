"""Normalisation by batch while training: it changes nothing at first, and is written back exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import proto

from onnxprune import runtime
from onnxprune.finetuning.trainable import with_weights
from onnxprune.graph import from_proto

torch = pytest.importorskip("torch")
from onnxprune.student import Network  # noqa: E402
from onnxprune.student.norms import LEAST, ConvNorm, NodeNorm, estimate, normalise  # noqa: E402

FIXTURES = Path(__file__).parents[2] / "fixtures"
IMAGES = np.load(FIXTURES / "digits_calib.npz")["input"]
CHAIN = """g (float[N,2,8,8] x) => (float[N,2,8,8] y) <float[3,2,3,3] v, float[3] b, float[2,3,1,1] w, float[2] c> {
    h = Conv<pads=[1,1,1,1]>(x, v, b)
    a = Relu(h)
    y = Conv(a, w, c)
}"""


def batches(size=64, count=4):
    return [{"input": torch.from_numpy(IMAGES[i * size : (i + 1) * size])} for i in range(count)]


def outputs(network, feeds):
    network.eval()
    with torch.no_grad():
        return next(iter(network(feeds).values())).numpy()


def trained(model, steps=4):
    """A network that was normalised, trained for some steps, and its statistics after them."""
    network = Network(onnx.load(model))
    assert normalise(network, batches())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    network.train()
    for feeds in batches(count=steps):
        optimizer.zero_grad()
        sum(network(feeds).values()).square().mean().backward()
        optimizer.step()
    return network


@pytest.mark.parametrize("name", ["vgg_legacy", "mobile_dynamo", "resnet_bn_dynamo", "resnet_folded_dynamo"])
def test_nothing_changes_at_first(name):
    """In inference the network gives what it gave, and its weights are those of the graph, but for rounding."""
    model = onnx.load(FIXTURES / f"{name}.onnx")
    network, feeds = Network(model), batches()[0]
    before, weights = outputs(network, feeds), network.arrays()
    assert normalise(network, batches())
    assert np.abs(outputs(network, feeds) - before).max() < 1e-4 * np.abs(before).max()
    written = network.arrays()
    for key, array in weights.items():
        assert np.abs(written[key] - array).max() <= 1e-5 * max(np.abs(array).max(), 1), key


@pytest.mark.parametrize("name", ["vgg_legacy", "mobile_dynamo", "resnet_bn_dynamo", "resnet_folded_dynamo"])
def test_what_is_trained_is_what_is_written(name):
    """After training and new statistics, onnxruntime gives with the written weights what torch gives in inference."""
    path = FIXTURES / f"{name}.onnx"
    model, network, feeds = onnx.load(path), trained(path), batches()[0]
    estimate(network, batches())
    mine = outputs(network, feeds)
    written = with_weights(model, network.arrays())
    told = runtime.session(written).run({"input": feeds["input"].numpy()})[network.outputs[0]]
    assert np.linalg.norm(told - mine) < 1e-4 * np.linalg.norm(mine)
    apart = outputs(Network(model), feeds) - mine
    assert np.linalg.norm(apart) > 1e-2 * np.linalg.norm(mine)


def test_the_nodes_of_a_graph_keep_their_places():
    """Where the graph still has normalisations, these are used, and their statistics are written, too."""
    model = onnx.load(FIXTURES / "resnet_bn_dynamo.onnx")
    network = trained(FIXTURES / "resnet_bn_dynamo.onnx")
    assert len(network.norms) == 12
    assert all(isinstance(n, NodeNorm) for n in network.norms.values())
    estimate(network, batches())
    written = network.arrays()
    nodes = [n for n in from_proto(model).graph.nodes if n.op == "BatchNormalization"]
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for name in (n.inputs[i].name for n in nodes for i in (3, 4)):
        assert written[name].shape == stored[name].shape
        assert not np.array_equal(written[name], stored[name])


def test_statistics_are_those_of_the_batches():
    """Against numpy: mean and unbiased variance of the first layer over batches of one size, whatever was before."""
    network = Network(proto(CHAIN))
    rng = np.random.default_rng(0)
    parts = [{"x": torch.from_numpy(rng.normal(1, 2, (8, 2, 8, 8)).astype(np.float32))} for _ in range(3)]
    kernel = network.held("v").detach().clone()
    assert normalise(network, parts[:1]) == 1
    estimate(network, parts)
    norm = network.norms["0"]
    made = [torch.nn.functional.conv2d(p["x"], kernel, padding=1).transpose(0, 1).flatten(1) for p in parts]
    assert torch.allclose(norm.mean, torch.stack([m.mean(1) for m in made]).mean(0), atol=1e-5)
    assert torch.allclose(norm.var, torch.stack([m.var(1) for m in made]).mean(0), rtol=1e-4)
    held = norm.mean.clone()
    network.train()
    network(parts[0])
    assert torch.equal(norm.mean, held)  # training alone does not move them


def test_the_batch_counts_while_training():
    """In training, a batch is normalised by its own statistics; one with few values by those that are held."""
    network = Network(proto(CHAIN.replace("<pads=[1,1,1,1]>", "").replace("[N,2,8,8] y", "[N,2,6,6] y")))
    feeds = {"x": torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(0))}
    assert normalise(network, [feeds]) == 1
    moved = {"x": 3 * feeds["x"] + 5}
    with torch.no_grad():
        network.train()
        assert torch.allclose(network(moved)["y"], network(feeds)["y"], atol=1e-4)
        few = {"x": moved["x"][: LEAST // 36]}
        once = network(few)["y"]
        assert torch.equal(once, network.eval()(few)["y"])


def test_which_layers():
    """Not the last one, not those with shared weights, few values or no bias; none of networks that are otherwise."""
    feeds = [{"x": torch.randn(8, 2, 8, 8)}]

    def found(text, given=feeds):
        network = Network(proto(text))
        normalise(network, given)
        assert all(isinstance(n, ConvNorm) for n in network.norms.values())
        return [network.steps[int(i)].outputs[0] for i in network.norms]

    assert found(CHAIN) == ["h"]
    assert found(CHAIN, [{"x": feeds[0]["x"][:3]}]) == []
    assert found(CHAIN.replace("(x, v, b)", "(x, v)").replace("float[3] b, ", "")) == []
    assert found(CHAIN.replace("[N,", "[8,")) == []
    shared = CHAIN.replace("a = Relu(h)", "s = Conv<pads=[1,1,1,1]>(x, v, b)\n    a = Add(h, s)")
    assert found(shared) == []
    other = CHAIN.replace("a = Relu(h)", "a = LayerNormalization(h, q)").replace("float[3] b", "float[3] b, float[8] q")
    assert found(other) == []
