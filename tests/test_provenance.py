"""Stamping provenance into a model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx

import onnxprune
from onnxprune.plan import Plan, dumps
from onnxprune.provenance import stamp

PLAN = Plan("digest", {"w": {0: [1]}}, {"flops": 0.5, "method": "l1"})


def metadata(model):
    """Metadata as a dictionary; fails on repeated keys."""
    keys = [p.key for p in model.metadata_props]
    assert len(keys) == len(set(keys))
    return {p.key: p.value for p in model.metadata_props}


def test_stamp_says_what_made_the_model():
    """Version, settings, and the digests of plan and source; what was there stays."""
    model = onnx.ModelProto()
    model.metadata_props.add(key="task", value="digits")
    stamp(model, PLAN, "abc")
    assert metadata(model) == {
        "task": "digits",
        "onnxprune.version": onnxprune.__version__,
        "onnxprune.settings": json.dumps(PLAN.settings, sort_keys=True),
        "onnxprune.plan": hashlib.sha256(dumps(PLAN).encode()).hexdigest(),
        "onnxprune.source": "abc",
    }


def test_newer_stamp_replaces_the_older():
    """A model that is compressed twice tells about the second time only."""
    model = onnx.ModelProto()
    stamp(model, PLAN, "abc")
    once = model.SerializeToString(deterministic=True)
    stamp(model, PLAN, "def")
    assert metadata(model)["onnxprune.source"] == "def"
    stamp(model, PLAN, "abc")
    assert model.SerializeToString(deterministic=True) == once


def test_without_a_stamp_nothing_is_written(tmp_path):
    """The library adds no metadata by itself."""
    result = onnxprune.compress(
        Path(__file__).parents[1] / "fixtures" / "resnet_bn_legacy.onnx", flops=0.5, recover="none"
    )
    assert metadata(result.model) == {"task": "digits"}
