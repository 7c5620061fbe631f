"""The networks of fixtures/cifar10: small enough, of any batch, and coupled as before."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.runtime import session

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS = sorted((FIXTURES / "cifar10").glob("*.onnx"))

each_model = pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)


def test_the_page_lists_the_files():
    """The table has a row for every file, with its bytes and parameters."""
    page = (FIXTURES / "cifar10" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (cifar10_\w+\.onnx) \| ([0-9]+) \| ([0-9]+) \|", page, re.MULTILINE)
    found = []
    for path in MODELS:
        stored = [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
        found.append((path.name, str(sum(int(np.prod(t.dims)) for t in stored)), str(path.stat().st_size)))
    assert rows == found
    assert len(found) == 3


@each_model
def test_interface(path):
    """Under 3 MB; float32 `image` [batch, 3, 32, 32] in, ten `logits` out, for any batch; nothing of the machine left."""
    assert path.stat().st_size < 3_000_000
    for batch in (1, 3):
        images = np.zeros((batch, 3, 32, 32), np.float32)
        assert session(onnx.load(path)).run({"image": images})["logits"].shape == (batch, 10)
    model = onnx.load(path)
    assert not model.metadata_props
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


@each_model
def test_coupling_is_as_before(path):
    """Classes, frozen filters and widths of the groups are those of golden.json."""
    analysis = onnxprune.analyze(path)
    known = json.loads((FIXTURES / "golden.json").read_text(encoding="utf-8"))[f"cifar10/{path.name}"]
    widths = [int((analysis.group == g + 1).sum()) for g in range(len(analysis.groups))]
    frozen = sum(f.positions for f in analysis.frozen)
    assert (known["classes"], known["frozen"], known["groups"]) == (analysis.classes, frozen, widths)
