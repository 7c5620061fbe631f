"""Time per node, under the names of the original; peak memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from graphs import proto

from onnxprune import files
from onnxprune.errors import ModelError
from onnxprune.validation import memory
from onnxprune.validation.feeds import made_up
from onnxprune.validation.memory import peak_memory
from onnxprune.validation.profile import profile, ran_on

MODEL = "fixtures/resnet_bn_dynamo.onnx"
UNEQUAL = """g (float[256,256] x) => (float[] y) <float[256,256] w> {
    [small] a = Relu(x)
    [large] b = MatMul(a, w)
    c = Neg(b)
    [end] y = ReduceSum(c)
}"""


def test_layers_of_the_original():
    """All rows but those for changes of layout have names of the original, and the shares are of the whole."""
    model = files.read_model(MODEL)
    rows = profile(model, made_up(model), runs=3)
    names = {n.name for n in model.graph.node}
    assert {r.node for r in rows} - names <= {"layout changes"}
    assert sum(r.share for r in rows) == pytest.approx(1)
    assert [r.seconds for r in rows] == sorted((r.seconds for r in rows), reverse=True)
    assert sum(r.op == "Conv" for r in rows) == sum(n.op_type == "Conv" for n in model.graph.node)
    assert {r.provider for r in rows} == {"CPUExecutionProvider"}


def test_the_layer_that_does_the_work():
    """A large product takes longer than the activation before it, and unnamed nodes are shown by their output."""
    model = proto(UNEQUAL)
    rows = {r.node: r for r in profile(model, made_up(model), runs=9)}
    assert rows["large"].seconds > rows["small"].seconds
    assert rows["large"].as_dict()["kernel"].endswith("MatMul")
    assert "c" in rows


def test_what_ran():
    """Every node that ran is counted for the provider that ran it."""
    model = proto(UNEQUAL)
    assert ran_on(model, made_up(model), 1, "CPUExecutionProvider") == {"CPUExecutionProvider": 4}


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    """Profiles, optimised graphs and the model for the memory process are removed, also after a failure."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = proto("g (float[2,3] x, int64[1] s) => (float[M] y) { y = Reshape(x, s) }")
    x = np.ones((2, 3), np.float32)
    profile(model, {"x": x, "s": np.array([6])}, runs=1)
    with pytest.raises(ModelError, match="Reshape"):
        profile(model, {"x": x, "s": np.array([5])}, runs=1)
    with pytest.raises(ModelError, match="Reshape"):
        peak_memory(model, {"x": x, "s": np.array([5])})
    assert list(Path(tmp_path).iterdir()) == []


@pytest.mark.skipif(memory._status("VmHWM") is None, reason="the system does not tell")
def test_peak_memory_grows_with_the_model():
    """A tensor of 64 MB inside the graph shows in the peak, and the parent's own memory does not."""
    held = np.ones(20_000_000)  # 160 MB that the parent has
    small, large = (
        proto(
            f"g (float[1] x) => (float y) <int64[1] s = {{{n}}}> {{ a = Expand(x, s)  b = Exp(a)  y = ReduceSum<keepdims = 0>(b) }}"
        )
        for n in (1000, 16_000_000)
    )
    x = {"x": np.ones(1, np.float32)}
    first, second = peak_memory(small, x), peak_memory(large, x)
    assert first < 60e6 < second - first < 400e6  # two tensors of 64 MB live at once, and what the allocator rounds up
    assert held.sum() == 20_000_000
