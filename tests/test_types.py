"""What a type checker tells the users of the library."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

CONSUMER = """
import onnxprune

result = onnxprune.compress("model.onnx", flops=0.5)
reveal_type(result)
reveal_type(result.report.compressed.macs)
analysis = onnxprune.analyze("model.onnx")
found = onnxprune.validate("model.onnx", result.model, data="val.npz", max_drop=1.0)
reveal_type(found.verdict)
onnxprune.compress("model.onnx", flpos=0.5)
onnxprune.compress("model.onnx", keep=3)
"""


def test_a_consumer_is_typed(tmp_path):
    """Strict checking of code that uses the library sees its types, and catches a wrong name and a wrong type."""
    pytest.importorskip("mypy")
    (tmp_path / "consumer.py").write_text(CONSUMER)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path), "consumer.py"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    lines = defaultdict[int, str](str)
    for line in told.splitlines():
        if line.startswith("consumer.py:"):
            lines[int(line.split(":")[1])] += line
    assert "Result" in lines[5]
    assert '"int"' in lines[6]
    assert "Literal['pass'" in lines[9]
    assert 'Unexpected keyword argument "flpos"' in lines[10]
    assert 'Argument "keep"' in lines[11]
    assert set(lines) == {5, 6, 9, 10, 11}
    assert (Path(__file__).parents[1] / "onnxprune" / "py.typed").is_file()
