"""How far filters resemble each other: cosines, clusters and rank of tiny layers, by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from commands import run
from graphs import between, proto

import onnxprune
from onnxprune import api
from onnxprune.resemblance import DISTANCES, QUANTILES, effective_rank, similarity

FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_duplicates_opposites_scaled_and_zero_filters():
    """A copy and a scaled copy have a cosine of 1, an opposite filter -1; a zero filter is like any, and no other is like
    it.
    """
    east, north = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert similarity(np.stack([east, east, 3 * east])) == (1.0,) * len(QUANTILES)
    assert similarity(np.stack([east, -east])) == (-1.0,) * len(QUANTILES)
    assert similarity(np.stack([east, north])) == (0.0,) * len(QUANTILES)
    assert similarity(np.stack([east, 0 * east])) == (1.0,) * len(QUANTILES)
    assert similarity(np.stack([east, north, 0 * east])) == pytest.approx(np.quantile([0, 0, 1], QUANTILES))
    assert similarity(east[None]) is None


def test_quantiles_are_of_each_filters_largest_cosine():
    """Two equal filters among four at right angles: half of the largest cosines are 1, half are 0."""
    filters = np.eye(4)[[0, 0, 1, 2]]
    assert similarity(filters) == pytest.approx(np.quantile([1, 1, 0, 0], QUANTILES))


def test_effective_rank():
    """n filters at right angles of one size have rank n; copies add nothing; of unequal sizes it lies between."""
    assert effective_rank(np.eye(5)) == pytest.approx(5)
    assert effective_rank(np.ones((7, 3))) == pytest.approx(1)
    assert effective_rank(np.zeros((3, 3))) == 0
    shares = np.array([3, 1]) / 4
    assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    rng = np.random.default_rng(0)
    filters = rng.standard_normal((6, 40)).astype(np.float32)
    assert effective_rank(filters) == pytest.approx(effective_rank(filters.T), rel=1e-6)


def test_copies_in_a_model_are_one_cluster():
    """A layer whose filters come in equal pairs, read alike, has half as many clusters at every distance."""
    analysis = onnxprune.analyze(proto(between("d = Relu(h)")))
    constants = analysis.model.constants()
    for axis in analysis.axes:
        array = np.moveaxis(constants[axis.param].values.copy(), axis.axis, 0)
        if axis.role in ("out", "in") and len(axis.classes) == analysis.classes:
            array[1::2] = array[: len(array) // 2 * 2 : 2]
            constants[axis.param].values = np.ascontiguousarray(np.moveaxis(array, 0, axis.axis))
    first = onnxprune.redundancy(analysis).layers[0]
    assert (first.filters, first.classes) == (analysis.classes, analysis.classes)
    assert max(first.clusters) <= (analysis.classes + 1) // 2
    assert first.similarity[0] == pytest.approx(1)
    assert first.effective_rank <= (analysis.classes + 1) // 2 + 1e-6


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.onnx")), ids=lambda p: p.stem)
def test_every_layer_of_the_fixtures_is_told(path):
    """A row per layer with a weight; ranks within the matrix, cosines ascending, clusters falling with distance."""
    analysis = onnxprune.analyze(path)
    found = onnxprune.redundancy(analysis)
    assert len(found.layers) + len(found.notes) == sum(x.weight is not None for x in analysis.layers)
    for row in found.layers:
        assert 0 < row.effective_rank <= row.rank + 1e-9
        assert list(row.similarity) == sorted(row.similarity)
        if row.clusters is not None:
            assert row.classes >= row.clusters[0] >= row.clusters[-1] >= 1
            assert list(row.clusters) == sorted(row.clusters, reverse=True)


def test_command():
    """`analyze --redundancy` prints a row per layer within 80 columns; --json adds the same to the analysis."""
    path = FIXTURES / "vgg_legacy.onnx"
    shown = run("analyze", path, "--redundancy")
    assert shown.exit_code == 0
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert all(word in shown.stdout for word in ("classes", "rank", "q50", "d0.5", "Conv"))
    told = json.loads(run("analyze", path, "--redundancy", "--json").stdout)
    assert told["redundancy"] == json.loads(json.dumps(api.redundancy(path).as_dict()))
    assert told["redundancy"]["distances"] == list(DISTANCES)
    plain = json.loads(run("analyze", path, "--json").stdout)
    assert "redundancy" not in plain
    assert {k: v for k, v in told.items() if k != "redundancy"} == plain


@pytest.mark.parametrize("width", [20, 30, 50])
def test_narrow_terminals_cut_no_number(width, monkeypatch):
    """However narrow the terminal, numbers are whole and names are there; lines are longer instead."""
    path = FIXTURES / "vgg_legacy.onnx"
    wide = run("analyze", path, "--redundancy").stdout
    monkeypatch.setenv("COLUMNS", str(width))
    shown = run("analyze", path, "--redundancy").stdout
    assert "\u2026" not in shown

    def rows(text):
        ends = [re.findall(r"\S+", line)[-9:] for line in text.splitlines()]
        return [e for e in ends if len(e) == 9 and all(re.fullmatch(r"[\d.-]+", x) for x in e)]

    assert len(rows(wide)) == 5
    assert rows(shown) == rows(wide)
    assert len(re.findall(r"^/(?:feature|classif)\S* +[\d.]+ ", shown, re.MULTILINE)) == 5
