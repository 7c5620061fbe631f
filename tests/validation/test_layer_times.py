"""Times of layers as functions of their widths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from graphs import analyse, between

import onnxprune
from onnxprune.cost import CostModel, Duration, removal_matrix
from onnxprune.validation import layer_times
from onnxprune.validation.kernels import block_size
from onnxprune.validation.layer_times import durations, widths

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODEL = FIXTURES / "resnet_bn_legacy.onnx"
FEEDS = {"input": np.zeros((1, 1, 8, 8), np.float32)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "onnxprune"


@pytest.fixture
def eights(monkeypatch):
    """Blocks of 8 channels, on whatever processor."""
    monkeypatch.setattr(layer_times, "block_size", lambda: 8)


def duration(at_inputs, at_outputs, seconds, block=8):
    """A duration of two axes of 64 frozen positions."""
    axis = np.zeros(64, np.int32)
    return Duration(axis, axis, np.array(at_inputs), np.array(at_outputs), np.array(seconds, float), block)


def test_interpolation_is_bilinear():
    """Between four corners the time is that of the product of both widths, exactly, where the corners are."""
    grid = [8, 16, 64]
    found = duration(grid, grid, np.multiply.outer(grid, grid))
    at = np.array([[8, 8], [16, 24], [40, 40], [64, 64]])
    assert found.at(at) == pytest.approx(at.prod(axis=1), rel=1e-12)


def test_outputs_count_in_whole_blocks():
    """A width that is no multiple of the block costs as much as the next one; inputs below a block are their own."""
    found = duration([4, 8, 16, 64], [8, 64], [[4, 32], [8, 64], [16, 128], [64, 512]])
    assert found.at(np.array([[16, 12], [12, 16], [4, 8], [8, 3]])).tolist() == [
        found.at(np.array([[16, 16]]))[0],
        found.at(np.array([[16, 16]]))[0],
        4.0,
        8.0,
    ]


def test_beyond_the_ends_is_what_the_ends_cost():
    """Widths outside of what was measured cost what the nearest one does."""
    found = duration([16, 64], [16, 64], [[1, 2], [3, 4]])
    assert found.at(np.array([[8, 8], [128, 128]])).tolist() == [1.0, 4.0]


def test_moves_cost_what_their_results_do():
    """The latency after a removal is that of the model without these classes, to the picosecond."""
    analysis = onnxprune.analyze(MODEL)
    whole = {x.node: 1e-6 * (i + 1) for i, x in enumerate(analysis.layers)}
    model = CostModel(analysis, 0, durations(analysis, FEEDS, timer=lambda c, i, o: 1e-6 * (5 + i * o), whole=whole))
    kept = np.ones(analysis.classes + 1, bool)
    rng = np.random.default_rng(0)
    removals = [rng.choice(np.arange(1, analysis.classes + 1), n, replace=False) for n in (1, 10, 60, 120)]
    starts = np.cumsum([0, *map(len, removals)])
    after = model.after(kept, removal_matrix(np.concatenate(removals), starts, len(kept)), "latency")
    for gone, cost in zip(removals, after, strict=True):
        left = kept.copy()
        left[gone] = False
        assert cost == model.value(left, "latency")
    assert model.scarce == "latency"
    assert model.saved(kept, removals).tolist() == (model.whole("latency") - after).tolist()
    assert (np.diff(after) <= 0).all()


def test_the_whole_costs_what_the_profile_says():
    """With nothing removed, the sum is that of the times of the nodes in the whole model."""
    analysis = onnxprune.analyze(MODEL)
    whole = {x.node: 1e-6 * (i + 1) for i, x in enumerate(analysis.layers)} | {"layout changes": 7e-6}
    model = CostModel(analysis, 0, durations(analysis, FEEDS, timer=lambda c, i, o: 1e-6 * (5 + i * o), whole=whole))
    assert model.whole("latency") == pytest.approx(1e12 * sum(whole.values()), rel=1e-9)


def test_nodes_without_weights_shrink_with_their_channels():
    """An element-wise node costs in proportion to the channels that it makes, a change of layout always the same."""
    analysis = analyse(between("d = Sigmoid(h)"))
    node = next(n for n in analysis.model.graph.nodes if n.op == "Sigmoid")
    name = node.name or node.outputs[0].name
    found = durations(analysis, {}, whole={name: 8e-6, "layout changes": 1e-6})
    model = CostModel(analysis, 0, found)
    kept = np.ones(analysis.classes + 1, bool)
    kept[1 : 1 + analysis.classes // 2] = False
    labels = max((d.outputs for d in found), key=len)
    share = kept[labels].mean()
    assert 0 < share < 1
    assert model.value(kept, "latency") == pytest.approx(1e6 * (1 + 8 * share))


def test_narrow_layers_are_not_slower():
    """Noise that makes a narrower convolution slower is evened out: no removal costs time."""
    analysis = onnxprune.analyze(MODEL)
    rng = np.random.default_rng(0)
    whole = {x.node: 1e-5 for x in analysis.layers}
    found = durations(analysis, FEEDS, timer=lambda c, i, o: float(rng.uniform(1e-6, 1e-5)), whole=whole)
    for d in found:
        assert (np.diff(d.seconds, axis=0) >= 0).all()
        assert (np.diff(d.seconds, axis=1) >= 0).all()


def test_widths(eights):
    """A few whole blocks up to the width; less than a block is measured as it is."""
    assert widths(64).tolist() == [8, 16, 24, 32, 48, 64]
    assert widths(20).tolist() == [8, 16, 24]
    assert widths(3).tolist() == [3]
    assert len(widths(2048)) == 6
    assert widths(2048)[-1] == 2048


def test_convolutions_alone_are_kept(cache, monkeypatch):
    """What was measured alone is written into the cache folder, and the next run measures nothing."""
    analysis, calls = onnxprune.analyze(MODEL), []
    monkeypatch.setattr(layer_times, "alone", lambda c, i, o: calls.append((c, i, o)) or 1e-6 * i * o)
    whole = {x.node: 1e-5 for x in analysis.layers}
    first = durations(analysis, FEEDS, whole=whole)
    (path,) = cache.iterdir()
    told = json.loads(path.read_text())
    assert sum(map(len, told["seconds"].values())) == len(calls) > 0
    assert {"cpu", "onnxruntime"} < told.keys()
    calls.clear()
    again = durations(analysis, FEEDS, whole=whole)
    assert not calls
    assert [d.seconds.tolist() for d in again] == [d.seconds.tolist() for d in first]


@pytest.mark.parametrize("content", ["", "[]", '{"seconds": 3}', '{"seconds": {"a": {"8,8": "x"}}}'])
def test_a_spoilt_cache_is_measured_anew(cache, monkeypatch, content):
    """A file that is not ours counts as none, and is replaced."""
    analysis = onnxprune.analyze(MODEL)
    monkeypatch.setattr(layer_times, "alone", lambda c, i, o: 1e-6 * i * o)
    cache.mkdir()
    path = layer_times._cache()
    path.write_text(content)
    durations(analysis, FEEDS, whole={x.node: 1e-5 for x in analysis.layers})
    assert json.loads(path.read_text())["seconds"]


def test_a_cache_that_cannot_be_written_is_no_error(cache, monkeypatch):
    """Where the cache folder is a file, times are used all the same."""
    analysis = onnxprune.analyze(MODEL)
    monkeypatch.setattr(layer_times, "alone", lambda c, i, o: 1e-6 * i * o)
    cache.write_text("")
    assert durations(analysis, FEEDS, whole={x.node: 1e-5 for x in analysis.layers})
    assert cache.read_text() == ""


@pytest.mark.parametrize(("inputs", "depthwise"), [(3, False), (4, False), (32, False), (32, True)])
def test_a_convolution_alone(inputs, depthwise):
    """A convolution of each kind runs alone, and takes some time."""
    conv = layer_times.Conv((3, 3), (1, 8, 8), depthwise, (("pads", (1, 1, 1, 1)),), 17, 1)
    assert 0 < layer_times.alone(conv, inputs, 32) < 1
    model = layer_times._model(conv, inputs, 32)
    assert len(model.graph.node) == (1 if inputs < 4 else 2)


def test_blocks_are_those_of_the_processor():
    """The grid is in blocks of this processor."""
    assert (widths(256) % block_size() == 0).all()
