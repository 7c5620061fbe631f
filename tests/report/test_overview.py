"""The analysis in numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from graphs import analyse

from onnxprune import api
from onnxprune.cost import CostModel
from onnxprune.report.overview import overview

FIXTURES = Path(__file__).parents[2] / "fixtures"
RESIDUAL = """g (float[1,3,4,4] x) => (float[] y) <float[4,3,1,1] w, float[4,4,1,1] u, float[2,4,1,1] v> {
    h = Conv(x, w)
    d = Conv(h, u)
    s = Add(h, d)
    y = Conv(s, v)
}"""


@pytest.fixture
def residual():
    analysis = analyse(RESIDUAL)
    return overview(analysis, CostModel(analysis).original, api.frozen_summary(analysis), "net")


def test_layers(residual):
    """Widths, frozen filters, MACs and shares, in graph order; shares add up to 1."""
    rows = [(x.node, x.weight, x.inputs, x.outputs, x.frozen, x.macs) for x in residual.layers]
    assert rows == [("h", "w", 3, 4, 0, 192), ("d", "u", 4, 4, 0, 256), ("y", "v", 4, 2, 2, 128)]
    assert sum(x.share for x in residual.layers) == pytest.approx(1, abs=1e-5)


def test_layers_of_a_residual_share_a_fate(residual):
    """The two layers that meet in the Add have the same classes, which the inner and the last one read."""
    (group,) = residual.groups
    assert (group.parameter, group.axis, group.width, group.classes) == ("w", 0, 4, 4)
    assert (group.producers, group.readers) == (("h", "d"), ("d", "y"))


def test_largest_class_counts_filters(residual):
    """Two filters, one of each layer, can only leave together; columns do not count."""
    assert (residual.classes, residual.largest, residual.filters) == (4, 2, 10)
    assert residual.frozen == ((2, "graph output: it is a result of the model"),)


def test_json_keys_are_stable(residual):
    """The JSON form has these members; costs and counts agree with the analysis."""
    told = residual.as_dict()
    assert set(told) == {"model", "cost", "coupling", "layers", "groups", "notes"}
    assert set(told["cost"]) == {"macs", "params", "bytes"}
    assert set(told["coupling"]) == {"classes", "largest", "inexact", "filters", "frozen", "reasons"}
    assert (told["coupling"]["frozen"], told["cost"]["macs"]) == (2, 576)


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.onnx")), ids=lambda path: path.stem)
def test_every_class_is_in_one_group(path):
    """Groups partition the classes, and every layer that a group names is a layer."""
    view = api.overview(path)
    assert sum(g.classes for g in view.groups) == view.classes > 0
    names = {x.node for x in view.layers}
    assert all(names.issuperset({*g.producers, *g.readers}) for g in view.groups)


def test_a_product_of_activations_has_no_widths():
    """It has no filters: none are told, and none are called frozen; in the file and before and after a cut."""
    view = api.overview(FIXTURES / "tiny_vit_legacy.onnx")
    assert {(x.inputs, x.outputs, x.frozen) for x in view.layers if x.weight is None} == {(None, None, 0)}
    report = api.compress(FIXTURES / "tiny_vit_legacy.onnx", flops=0.7, recover="none").report
    bare = [x for x in report.layers if x.inputs is None]
    assert [x.node for x in bare] == [x.node for x in view.layers if x.weight is None]
    assert all(x.outputs is None and x.kept < 1 for x in bare)
    assert [x["inputs"] for x in report.as_dict()["layers"] if x["node"] == bare[0].node] == [None]
