"""Class counts of the fixtures, against the reviewed file fixtures/golden.json (written by tools/golden.py)."""

import json
from pathlib import Path

import pytest

import onnxprune

FIXTURES = Path(__file__).parent.parent / "fixtures"
GOLDEN = json.loads((FIXTURES / "golden.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", GOLDEN)
def test_class_counts(name):
    """Classes, inexact classes, largest class, frozen filters and groups of every fixture are the reviewed ones."""
    analysis = onnxprune.analyze(FIXTURES / name)
    found = {
        "classes": analysis.classes,
        "inexact": int(analysis.inexact.sum()),
        "largest": analysis.largest,
        "frozen": sum(f.positions for f in analysis.frozen),
        "groups": [int((analysis.group == g + 1).sum()) for g in range(len(analysis.groups))],
    }
    assert found == GOLDEN[name]


@pytest.mark.parametrize("network", sorted({n.rsplit("_", 1)[0] for n in GOLDEN}))
def test_exporters_agree(network):
    """The two exporters write the same network differently; its classes are the same."""
    legacy, dynamo = GOLDEN[f"{network}_legacy.onnx"], GOLDEN[f"{network}_dynamo.onnx"]
    assert legacy == dynamo
