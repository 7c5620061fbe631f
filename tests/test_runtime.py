"""Sessions: what runs, how it is interrupted, and how failures are told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune import files, runtime
from onnxprune.errors import DataError, ModelError, ResourceError, UnsupportedError, UsageError
from onnxprune.runtime import InputSpec

ROOT = Path(__file__).parents[1]
MODELS = sorted((ROOT.parent / "shared" / "models").glob("*.onnx"))  # beside the repository
ENDLESS = """g (float x) => (float y) <int64 m = {4611686018427387904}, bool c = {1}> {
  y = Loop (m, c, x) <body = b (int64 i, bool go, float a) => (bool on, float s) { on = Identity (go)  s = Neg (a) }>
}"""


def build(text, /, opset=17, **weights):
    """The model of an ONNX text, with arrays as its initializers."""
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items())
    return model


def floats(*shape):
    """Normal floats, the same for the same shape."""
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def refusal(kind, call, *args, **kwargs):
    """Message of the error."""
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind
    return str(caught.value)


MATMUL = "g (float[N, 64] x) => (float[N, 64] y, float[N, 64] z) { y = MatMul (x, w)  z = Add (y, b) }"


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("form", ["proto", "bytes"])
def test_outputs_equal_numpy(form, optimize):
    """A proto, whose weights are handed over in memory, and its bytes give what numpy computes."""
    w, b, x = floats(64, 64), floats(64), floats(2, 64)
    model = build(MATMUL, w=w, b=b)
    session = runtime.session(model if form == "proto" else model.SerializeToString(), optimize=optimize)
    out = session.run({"x": x})
    assert list(out) == session.outputs == ["y", "z"]
    np.testing.assert_allclose(out["z"], x @ w + b, rtol=1e-5, atol=1e-5)
    assert list(session.run({"x": x}, ["z"])) == ["z"]


def test_sessions_do_not_spin():
    """Idle threads of a session do not take the processor from others."""
    options = runtime.session(build(MATMUL, w=floats(64, 64), b=floats(64)))._inner.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.inter_op_num_threads == 1


def test_a_session_keeps_no_hold_on_the_model():
    """Changing or freeing the weights after a session was made does not change its results."""
    model, x = build(MATMUL, w=floats(64, 64), b=floats(64)), floats(2, 64)
    session = runtime.session(model)
    before = session.run({"x": x})["z"]
    for tensor in model.graph.initializer:
        tensor.raw_data = bytes(len(tensor.raw_data))
    np.testing.assert_array_equal(session.run({"x": x})["z"], before)


@pytest.mark.parametrize(
    "dtype",
    [np.float16, np.float64, ml_dtypes.bfloat16, np.int8, np.uint8, np.int64, np.bool_],
    ids=lambda d: d.__name__,
)
def test_large_weights_of_every_type(dtype):
    """Weights of 4096 entries reach the session unchanged in every element type."""
    w = np.arange(4096).astype(dtype)
    model = build("g (float[1] x) => (float[4096] y) { c = Cast <to = 1> (w)  y = Add (c, x) }", w=w)
    out = runtime.session(model).run({"x": np.zeros(1, np.float32)})["y"]
    np.testing.assert_array_equal(out, w.astype(np.float32))


def test_weights_that_shape_inference_and_bodies_read():
    """A shape constant, a weight captured by a branch and a default input work when the rest is handed over."""
    text = """g (bool c, float[2, 512] x, float[512] d) => (float[N, M] y) {
      p = Add (x, d)
      h = If (c) <then_branch = t () => (float[2, 512] a) { a = Add (p, w) },
                  else_branch = e () => (float[2, 512] b) { b = Sub (p, w) }>
      y = Reshape (h, s)
    }"""
    w, d, x = floats(512), floats(512), floats(2, 512)
    model = build(text, w=w, d=d, s=np.array([4, 256]))
    session = runtime.session(model)
    assert session.inputs == ["c", "x"]
    for branch, expected in ((True, x + d + w), (False, x + d - w)):
        out = session.run({"c": np.array(branch), "x": x})["y"]
        np.testing.assert_array_equal(out, expected.reshape(4, 256))


@pytest.mark.parametrize("kind", ["BFLOAT16", "FLOAT8E4M3FN"])
def test_types_that_numpy_lacks_pass_in_and_out(kind):
    """bfloat16 and float8 arrays of ml_dtypes are taken and given, at any rank and memory order."""
    number = getattr(TensorProto, kind)
    dtype = helper.tensor_dtype_to_np_dtype(number)
    text = f"g ({kind.lower()}[N, M] x) => (float[N, M] y, {kind.lower()}[N, M] z) "
    model = build(text + f"{{ y = Cast <to = 1> (x)  z = Cast <to = {number}> (y) }}", opset=19)
    x = np.arange(6).reshape(2, 3).astype(dtype).T
    out = runtime.session(model).run({"x": x})
    np.testing.assert_array_equal(out["y"], x.astype(np.float32))
    assert out["z"].dtype == dtype
    np.testing.assert_array_equal(out["z"].astype(np.float32), x.astype(np.float32))


def test_inner_tensors_as_outputs():
    """Every node output is available through `extra`, and the model is not changed."""
    model, x = build(MATMUL.replace("float[N, 64] y, ", ""), w=floats(64, 64), b=floats(64)), floats(2, 64)
    before = model.SerializeToString()
    assert runtime.inner_tensors(model) == ["y"]
    session = runtime.session(model, extra=["y"])
    assert model.SerializeToString() == before
    assert session.outputs == ["z", "y"]
    np.testing.assert_allclose(session.run({"x": x})["y"], x @ floats(64, 64), rtol=1e-5, atol=1e-5)


REFUSED = {
    "unknown op": (
        "g (float[1, 3] x) => (float[1, 3] y) { [n] y = Foo (x) }",
        ModelError,
        "'n' (Foo): No Op registered",
    ),
    "unnamed": ("g (float[1, 3] x) => (float[1, 3] y) { y = Foo (x) }", ModelError, "at an unnamed node (Foo): No Op"),
    "shapes": (
        "g (float[1, 3] x) => (float[1, 3] y) { [n] y = MatMul (x, x) }",
        ModelError,
        "at node 'n' (MatMul): [Shape",
    ),
    "types": (
        'g (float[1, 3] x) => (int64[1, 3] y) { [n] y = BitShift <direction = "LEFT"> (x, x) }',
        ModelError,
        "at node 'n' (BitShift): Type 'tensor(float)' of input parameter (x)",
    ),
    "no kernel": (
        "g (bfloat16[1, 3] x) => (bfloat16[1, 3] y) { [n] y = Sigmoid (x) }",
        UnsupportedError,
        "cannot run the model on the CPU at node 'n' (Sigmoid): Could not find an implementation",
    ),
}


@pytest.mark.parametrize(("text", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_models_that_do_not_load(text, kind, message, capfd):
    """The reason is one line that names the node, without onnxruntime's codes, and nothing else is printed."""
    text = refusal(kind, runtime.session, build(text))
    assert message in text
    assert "\n" not in text
    assert "ONNXRuntimeError" not in text
    assert capfd.readouterr() == ("", "")


def test_bytes_that_are_no_model():
    """Bytes that do not parse are a ModelError."""
    assert "protobuf parsing failed" in refusal(ModelError, runtime.session, b"garbage")


FAILING = {
    "reshape": (
        "g (float[N, 3] x, int64[1] s) => (float[M] y) { [n] y = Reshape (x, s) }",
        [5],
        ModelError,
        "onnxruntime refuses the model at node 'n' (Reshape): The input tensor cannot be reshaped",
    ),
    "gather": (
        "g (float[N, 3] x, int64[1] s) => (float[M, 3] y) { [n] y = Gather (x, s) }",
        [7],
        ModelError,
        "at node 'n' (Gather): indices element out of data bounds",
    ),
    "memory": (
        "g (float[N, 3] x, int64[1] s) => (float[M] y) { [n] y = ConstantOfShape (s) }",
        [10**15],
        ResourceError,
        "ran out of memory at node 'n' (ConstantOfShape): Failed to allocate",
    ),
}


@pytest.mark.parametrize(("text", "value", "kind", "message"), FAILING.values(), ids=FAILING)
def test_nodes_that_fail_in_the_run(text, value, kind, message, capfd):
    """The failing node is named, source places of onnxruntime are left out, and nothing else is printed."""
    session = runtime.session(build(text))
    told = refusal(kind, session.run, {"x": floats(1, 3), "s": np.array(value)})
    assert message in told
    assert "onnxruntime_src" not in told
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "missing ['x'], unknown []"),
        ({"x": floats(1, 3), "z": floats(1)}, "missing [], unknown ['z']"),
        ({"x": floats(1, 4)}, "does not fit the model's input: Got invalid dimensions for input: x"),
        ({"x": floats(1, 3).astype(np.float64)}, "Unexpected input data type"),
    ],
)
def test_arrays_that_do_not_fit_the_inputs(feeds, message):
    """Missing, unknown, misshapen and mistyped arrays are DataErrors."""
    session = runtime.session(build("g (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }"))
    assert message in refusal(DataError, session.run, feeds)


def _workers():
    return [t for t in threading.enumerate() if t.name.startswith("onnxruntime")]


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_stops_a_run():
    """An interrupt during an endless loop is raised in the main thread, and the run itself ends too."""
    session = runtime.session(build(ENDLESS), threads=1)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        session.run({"x": np.float32(1)[...]})
    timer.join()
    for worker in _workers():
        worker.join(60)
    assert not _workers()


def test_threads_run_for_themselves(monkeypatch):
    """Only the main thread, where Ctrl-C arrives, needs another one for a run."""
    session, made = runtime.session(build("g (float[2] x) => (float[2] y) { y = Relu (x) }")), list[str]()

    def pool(size, name):
        made.append(name)
        return ThreadPoolExecutor(size)

    monkeypatch.setattr(runtime, "ThreadPoolExecutor", pool)
    feeds = {"x": np.array([-1, 2], np.float32)}
    with ThreadPoolExecutor(1) as other:
        assert other.submit(session.run, feeds).result()["y"].tolist() == [0, 2]
    assert made == []
    session.run(feeds)
    assert made == ["onnxruntime"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_ends_the_process():
    """A process in the middle of an endless run dies of the interrupt, without a crash at exit."""
    code = (
        "import sys, numpy as np\n"
        "from onnx import ModelProto\n"
        "from onnxprune import runtime\n"
        "session = runtime.session(ModelProto.FromString(sys.stdin.buffer.read()), threads=1)\n"
        "print('ready', flush=True)\n"
        "session.run({'x': np.float32(1)[...]})\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as child:
        child.stdin.write(build(ENDLESS).SerializeToString())
        child.stdin.close()
        assert child.stdout.readline() == b"ready\n"
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == -signal.SIGINT
        assert child.stderr.read().endswith(b"KeyboardInterrupt\n")


INPUTS = """g (float[N, 3, 8] x, float16[2] h, bfloat16[2] b, int64[4] i, bool[5] m, uint8 s, float[2] w)
=> (float[2] y) <float[2] w = {1, 2}> { y = Relu (w) }"""


def test_input_specs():
    """Names, element types and dims come in order, without initializers; unfixed dims are symbols or None."""
    model = build(INPUTS)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -1
    model.graph.input[1].type.tensor_type.ClearField("shape")
    assert runtime.input_specs(model) == [
        InputSpec("x", np.dtype(np.float32), ("N", None, 8)),
        InputSpec("h", np.dtype(np.float16), None),
        InputSpec("b", np.dtype(ml_dtypes.bfloat16), (2,)),
        InputSpec("i", np.dtype(np.int64), (4,)),
        InputSpec("m", np.dtype(np.bool_), (5,)),
        InputSpec("s", np.dtype(np.uint8), ()),
    ]


def test_inputs_that_are_no_tensors():
    """A sequence as input is refused with its name."""
    model = build("g (seq(float[2]) q) => (float[2] y) { y = ConcatFromSequence <axis = 0> (q) }")
    assert "input 'q' is a sequence_type" in refusal(UnsupportedError, runtime.input_specs, model)


def test_random_inputs():
    """Floats are normal, integers 0 or 1; types and shapes are those of the inputs; seeds decide the values."""
    model = build(INPUTS)
    arrays = runtime.random_inputs(model, {"x": (500, 3, 8), "other": (1,)}, seed=0)
    specs = runtime.input_specs(model)
    assert [(n, a.dtype) for n, a in arrays.items()] == [(s.name, s.dtype) for s in specs]
    assert [a.shape for a in arrays.values()] == [(500, 3, 8), (2,), (2,), (4,), (5,), ()]
    assert abs(arrays["x"].mean()) < 0.05
    assert abs(arrays["x"].std() - 1) < 0.05
    assert set(arrays["i"]) <= {0, 1}
    same, other = (runtime.random_inputs(model, {"x": (500, 3, 8)}, seed) for seed in (0, 1))
    np.testing.assert_array_equal(same["x"], arrays["x"])
    assert not np.array_equal(other["x"], arrays["x"])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, "the shape of input 'x' is N,3,8: give its sizes with --input-shape x:"),
        ({"x": (2, 3)}, "the shape [2, 3] does not fit input 'x', whose shape is N,3,8"),
        ({"x": (2, 4, 8)}, "the shape [2, 4, 8] does not fit"),
        ({"x": (-1, 3, 8)}, "the shape [-1, 3, 8] does not fit"),
    ],
)
def test_shapes_that_are_missing_or_do_not_fit(shapes, message):
    """Random inputs need a fitting size for every dim that is not fixed."""
    assert message in refusal(UsageError, runtime.random_inputs, build(INPUTS), shapes, 0)


def test_inputs_without_random_values():
    """A string input is refused with its name."""
    model = build("g (string[2] q) => (string[2] y) { y = Identity (q) }")
    assert "input 'q' has the element type" in refusal(UnsupportedError, runtime.random_inputs, model, {}, 0)


@pytest.mark.parametrize(
    ("content", "cpus", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 8, 2),
        ({"cpu.max": "max 100000\n"}, 8, 8),
        ({"cpu.max": "50000 100000"}, 8, 1),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8, 8),
        ({"cpu.max": "garbage"}, 8, 8),
        ({}, 3, 3),
        ({"cpu.max": "900000 100000\n"}, 2, 2),
    ],
)
def test_threads_follow_affinity_and_quota(monkeypatch, tmp_path, content, cpus, expected):
    """The default number of threads is the smaller of the affinity mask and the container's quota, rounded up."""
    for name, text in content.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    read = files.read_text
    monkeypatch.setattr(runtime, "read_text", lambda path: read(path.replace("/sys/fs/cgroup", str(tmp_path))))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
    monkeypatch.delenv("ONNXPRUNE_THREADS", raising=False)
    assert runtime.default_threads() == expected
    monkeypatch.setenv("ONNXPRUNE_THREADS", "2")
    assert runtime.default_threads() == min(expected, 2)


@pytest.mark.parametrize("path", MODELS or [None], ids=lambda p: p.name if p else "none")
def test_real_models_run_alike_in_both_ways(path):
    """For every exported model at hand, proto and bytes give the same bits, and all inner tensors can be had."""
    if path is None:
        pytest.skip("the exported models are not beside the repository")
    model = files.read_model(path)
    shapes = {s.name: tuple(d if isinstance(d, int) else 1 for d in s.dims) for s in runtime.input_specs(model)}
    feeds = runtime.random_inputs(model, shapes, seed=0)
    ours = runtime.session(model, threads=1, extra=runtime.inner_tensors(model)).run(feeds)
    theirs = runtime.session(model.SerializeToString(), threads=1).run(feeds)
    assert set(ours) == {o for n in model.graph.node for o in n.output if o}
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)


def test_an_initializer_that_nobody_reads_is_no_obstacle():
    """onnxruntime drops unread weights while it loads; a session is made all the same."""
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(4096, np.float32), "unread"))
    found = runtime.session(model).run({"x": np.array([-1, 1], np.float32)})
    assert found["y"].tolist() == [0, 1]


def test_memory_is_given_back():
    """What was freed goes back to the system where its C library can be asked to; elsewhere nothing happens."""
    held = [bytes(1000) for _ in range(200_000)]
    before = resident()
    held.clear()
    runtime.trim()
    assert resident() <= before


def resident():
    """Bytes of this process in memory; 0 where that is not told."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0
