"""Small files that ask for much memory, run as a user would, in a child process whose memory is limited."""

import os
import subprocess
import sys

import onnx
import pytest

resource = pytest.importorskip("resource", reason="limits on memory are a POSIX feature")
GIB = 1 << 30


def bomb(rows, columns):
    """A model of about a hundred bytes that makes a [rows, columns] tensor of constants."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[1] x) => (float[a, b] y) <int64[2] s = {{{rows}, {columns}}}> {{ c = ConstantOfShape(s) y = Add(c, x) }}"""
    return onnx.parser.parse_model(text).SerializeToString()


@pytest.mark.parametrize(
    "command", [["compress", "--flops", "1", "--recover", "none"], ["analyze"]], ids=lambda c: c[0]
)
def test_a_terabyte_is_refused_before_it_is_asked_for(tmp_path, command):
    """A file of 115 bytes that would need 1 TB ends with exit code 4 and the name of the tensor, within 3 GB."""
    path = tmp_path / "bomb.onnx"
    path.write_bytes(bomb(1 << 20, 1 << 18))
    name, *options = command
    done = subprocess.run(
        [sys.executable, "-m", "onnxprune", name, str(path), *options],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 * GIB, 3 * GIB)),
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "tensor 'c'" in done.stderr
    assert "1024 GB" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bomb.onnx"]
