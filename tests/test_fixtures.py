"""The committed fixtures are what fixtures/README.md says they are."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "fixtures"
MODELS = sorted(FIXTURES.glob("*.onnx"))
NETWORKS = {"resnet_bn", "resnet_folded", "vgg", "mobile", "dense", "senet", "tiny_vit"}

each_model = pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)


def table() -> dict[str, dict[str, str]]:
    """The rows of the README's table by file name."""
    lines = [line for line in (FIXTURES / "README.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {cells[0]: dict(zip(head, cells, strict=True)) for cells in rows}


def predict(path: Path, images: np.ndarray) -> np.ndarray:
    """Predicted classes [n], in the batch size the file was exported with."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]
    step = batch if isinstance(batch, int) else len(images)
    logits = [session.run(["logits"], {"input": images[i : i + step]})[0] for i in range(0, len(images), step)]
    return np.concatenate(logits).argmax(1)


def count(path: Path, op_type: str) -> int:
    """Nodes of one type."""
    return sum(node.op_type == op_type for node in onnx.load(path).graph.node)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch):
    """tools/make_fixtures.py as a module, where torch cannot be imported."""
    monkeypatch.setitem(sys.modules, "torch", None)
    spec = importlib.util.spec_from_file_location("make_fixtures", ROOT / "tools" / "make_fixtures.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_fixtures", module)
    spec.loader.exec_module(module)
    return module


def test_table_is_complete():
    """Every network is there from both exporters, and the table lists exactly the files."""
    expected = {f"{name}_{exporter}.onnx" for name in NETWORKS for exporter in ("legacy", "dynamo")}
    assert {path.name for path in MODELS} == expected == set(table())


@each_model
def test_model_is_valid_and_small(path):
    """The full checker accepts the file, its data is inside, and it has at most 300 KB."""
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert not any(onnx.external_data_helper.uses_external_data(tensor) for tensor in model.graph.initializer)
    assert path.stat().st_size == int(table()[path.name]["bytes"]) <= 300_000


@each_model
def test_stated_accuracy(path):
    """Onnxruntime reaches exactly the stated accuracy, which is at least 95 %."""
    with np.load(FIXTURES / "digits_test.npz") as data:
        accuracy = (predict(path, data["input"]) == data["labels"]).mean()
    assert f"{accuracy:.3f}" == table()[path.name]["test accuracy"]
    assert accuracy >= 0.95


@each_model
def test_stated_versions_and_batch(path):
    """Opset and batch are as stated; one input and one output carry the common names."""
    model, row = onnx.load(path), table()[path.name]
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert ([value.name for value in model.graph.input], [value.name for value in model.graph.output]) == (
        ["input"],
        ["logits"],
    )
    assert (str(model.opset_import[0].version), str(batch.dim_value or "dynamic")) == (row["opset"], row["batch"])
    assert model.opset_import[0].version == 17 if row["exporter"] == "legacy" else model.opset_import[0].version >= 18


def test_half_of_the_files_take_any_batch():
    """At least half of the files have a dynamic batch, and at least one has a fixed one."""
    dynamic = [row["batch"] == "dynamic" for row in table().values()]
    assert len(dynamic) / 2 <= sum(dynamic) < len(dynamic)


def test_batch_normalization_is_kept_and_folded():
    """The two residual networks differ in what they are named for."""
    for exporter in ("legacy", "dynamo"):
        assert count(FIXTURES / f"resnet_bn_{exporter}.onnx", "BatchNormalization") == count(
            FIXTURES / f"resnet_bn_{exporter}.onnx", "Conv"
        )
        assert count(FIXTURES / f"resnet_folded_{exporter}.onnx", "BatchNormalization") == 0


@each_model
def test_nothing_of_the_machine_is_left(path):
    """No paths, stack traces or exporter notes are in the file; one file has metadata of its own."""
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata == ({"task": "digits"} if path.stem == "resnet_bn_legacy" else {})
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert not any(text in path.read_bytes() for text in (b"stack_trace", b".py", b"/home/", b"/root/"))


def test_data_is_disjoint():
    """Calibration images carry no labels and none of them is a test image."""
    with np.load(FIXTURES / "digits_calib.npz") as calib, np.load(FIXTURES / "digits_test.npz") as test:
        assert (calib.files, sorted(test.files)) == (["input"], ["input", "labels"])
        assert (calib["input"].dtype, test["input"].dtype, test["labels"].dtype) == (np.float32, np.float32, np.int64)
        assert 256 <= len(calib["input"]) <= 512
        assert not {image.tobytes() for image in calib["input"]} & {image.tobytes() for image in test["input"]}


def test_check_accepts_the_committed_files(tool, capsys):
    """`--check` measures what README.md states, and does not need torch."""
    assert tool.main(["--check", "--out", str(FIXTURES)]) == 0
    assert "as README.md states" in capsys.readouterr().out


def test_check_names_a_wrong_row(tool, capsys, tmp_path):
    """`--check` returns 1 and prints the row, stated and measured, when an accuracy is wrong."""
    copy = shutil.copytree(FIXTURES, tmp_path / "fixtures")
    readme = copy / "README.md"
    row = next(line for line in readme.read_text(encoding="utf-8").splitlines() if line.startswith("| vgg_legacy"))
    wrong = row.replace(table()["vgg_legacy.onnx"]["test accuracy"], "0.123")
    readme.write_text(readme.read_text(encoding="utf-8").replace(row, wrong), encoding="utf-8")
    assert tool.main(["--check", "--out", str(copy)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if "|" in line] == [f"-{wrong}", f"+{row}"]
