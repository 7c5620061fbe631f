"""Stored tensors: all are found, their bytes are counted, large ones are split off without touching the model."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.stored import PAGE, file_bytes, nbytes, serialised, split_weights, stored_tensors, weights_bytes

TEXT = """<ir_version: 8, opset_import: ["" : 17, "lib" : 1], producer_name: "me">
g (bool c, float[3] x) => (float[3] y) <float[3] w = {1, 2, 3}> {
  k = Constant <value = float[3] {4, 5, 6}> ()
  h = Add (w, k)
  y = If (c) <then_branch = t () => (float[3] a) <float[3] v = {1, 1, 1}> { a = Add (h, v) },
              else_branch = e () => (float[3] b) { b = lib.f (x) }>
}
<domain: "lib", opset_import: ["" : 17]> f (p) => (q) { z = Constant <value = float[1] {7}> ()  q = Add (p, z) }"""


def test_tensors_are_found_everywhere():
    """Initializers, Constant nodes, bodies and functions are all walked, each tensor once."""
    model = parser.parse_model(TEXT)
    assert sorted(name for name, _ in stored_tensors(model)) == ["k", "v", "w", "z"]
    assert weights_bytes(model) == 4 * (3 + 3 + 3 + 1)


def test_bytes_of_packed_and_odd_types():
    """Sizes follow the element type, packed ones rounded up to whole bytes, strings not counted."""
    sizes = {
        kind: nbytes(TensorProto(data_type=getattr(TensorProto, kind), dims=[3, 5]))
        for kind in ("FLOAT", "BFLOAT16", "INT4", "FLOAT8E5M2", "COMPLEX128", "BOOL", "STRING")
    }
    assert sizes == {
        "FLOAT": 60, "BFLOAT16": 30, "INT4": 8, "FLOAT8E5M2": 15, "COMPLEX128": 240, "BOOL": 15, "STRING": 0
    }  # fmt: skip


def test_large_weights_are_split_off():
    """Floats and bytes of 1 KiB and more become references to pages of a file; shapes and small tensors stay."""
    model = parser.parse_model(TEXT)
    arrays = {
        "big": np.ones((33, 33), np.float32),
        "half": np.ones(4096, ml_dtypes.bfloat16),
        "bytes": np.ones(1024, np.int8),
        "indices": np.ones(4096, np.int64),
        "small": np.ones(255, np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    before = model.SerializeToString(deterministic=True)
    light, moved = split_weights(model, "data.bin")
    assert [t.name for t in moved] == ["big", "half", "bytes"]
    refs = {t.name: {e.key: e.value for e in t.external_data} for t in light.graph.initializer if t.external_data}
    assert refs == {
        "big": {"location": "data.bin", "offset": "0", "length": "4356"},
        "half": {"location": "data.bin", "offset": str(2 * PAGE), "length": "8192"},
        "bytes": {"location": "data.bin", "offset": str(4 * PAGE), "length": "1024"},
    }
    assert model.SerializeToString(deterministic=True) == before


def test_splitting_loses_nothing_but_the_data():
    """With the data put back, the split model has the bytes of the original."""
    model = parser.parse_model(TEXT)
    tensor = numpy_helper.from_array(np.ones(1000, np.float32), "big")
    tensor.doc_string = "kept"
    model.graph.initializer.append(tensor)
    model.graph.doc_string = "also kept"
    helper.set_model_props(model, {"author": "somebody"})
    light, moved = split_weights(model, "data.bin")
    entry = next(t for t in light.graph.initializer if t.external_data)
    entry.ClearField("external_data")
    entry.ClearField("data_location")
    entry.raw_data = moved[0].raw_data
    assert light.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 5000, 3_000_000])
def test_the_pieces_are_the_bytes_of_the_whole(size):
    """A model in pieces is the model as protobuf writes it, whatever fields are set and however long lengths are."""
    model = parser.parse_model(TEXT)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(size, np.float32), "big"))
    model.graph.initializer.append(helper.make_tensor("typed", TensorProto.INT64, [2], [1, 2]))
    model.graph.doc_string = "after the weights"
    model.graph.metadata_props.add(key="a", value="b")
    model.domain, model.model_version, model.doc_string = "org", 3, "before the graph"
    helper.set_model_props(model, {"after": "the graph"})
    whole = model.SerializeToString(deterministic=True)
    assert b"".join(serialised(model)) == whole
    assert file_bytes(model) == len(whole)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "fixtures").glob("*.onnx")), ids=lambda p: p.stem)
def test_files_in_pieces(path):
    """The same of every fixture."""
    model = onnx.load(path)
    assert b"".join(serialised(model)) == model.SerializeToString(deterministic=True)
