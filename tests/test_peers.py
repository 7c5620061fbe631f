"""The comparison with the peers: its judge, the search for a ratio, its rows and its table."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import between, each, proto

import onnxprune

ROOT = Path(__file__).parents[1]
VALID = {
    "problems": [],
    "kept": 0.5,
    "settings": {},
    "seconds": {"prune": 1.0, "search": 2.0, "export": 0.5},
    "peak_mb": 9,
}
EQUAL = VALID | {"error": 1e-7, "masked": 0.5}


@pytest.fixture
def tool(monkeypatch):
    """A module of tools/ by name, its neighbours in reach."""
    for folder in ("tools", "tools/peers"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    return importlib.import_module


def weight(*shape):
    """Random numbers that are all different."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def cut(model, rows, columns):
    """`between` without some outputs of its first convolution and inputs of its second, be they the same or not."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    for tensor in out.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        value = value[:, columns] if tensor.name == "v" else value[rows]
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return out


def difference(judge, whole, part):
    """Of the part from the masked whole."""
    feeds = {"x": weight(1, 3, 6, 6)}
    return judge.difference(judge.run(part, feeds), judge.run(judge.masked(whole, part), feeds))


def test_rows_and_columns_are_read_off_the_weights(tool):
    """A part of a weight tells which rows and columns were kept."""
    whole = weight(8, 6, 3, 3)
    rows, columns = tool("peers_judge").part_of(whole, whole[np.ix_([1, 4, 7], [0, 2, 3, 5])])
    assert [rows.tolist(), columns.tolist()] == [[1, 4, 7], [0, 2, 3, 5]]


OTHERS = {
    "changed": lambda w: w[:4] * np.float32(1.01),
    "another order": lambda w: w[[2, 1, 0]],
    "larger": lambda w: np.concatenate([w, w]),
}


@each(OTHERS, "change")
def test_other_weights_are_no_part(tool, change):
    """Weights that were changed, moved or added are not taken for a part."""
    whole = weight(8, 6, 3, 3)
    assert tool("peers_judge").part_of(whole, change(whole)) is None


def test_every_group_may_lose_other_columns(tool):
    """The halves of a grouped kernel are compared one by one."""
    whole = weight(6, 4, 1, 1)
    part = np.concatenate([whole[np.ix_([0, 2], [0, 1])], whole[np.ix_([4, 5], [1, 3])]])
    kept = tool("peers_judge").kept_weights(whole, part, 2)
    assert np.array_equal(whole[kept], part.reshape(-1))


def test_a_right_cut_equals_its_masked_original(tool):
    """The same channels leave both convolutions: no difference but rounding."""
    whole, judge = proto(between("d = Relu(h)")), tool("peers_judge")
    assert difference(judge, whole, cut(whole, [0, 2], [0, 2])) < judge.SAME


def test_a_wrong_cut_is_seen(tool):
    """A channel leaves the first convolution, another one the second: the file runs, and the judge sees it."""
    whole, judge = proto(between("d = Relu(h)")), tool("peers_judge")
    assert difference(judge, whole, cut(whole, [0, 1, 2], [0, 1, 3])) > 0.01


def test_normalised_channels_state_nothing(tool):
    """Where a LayerNormalization loses width, there is a reason instead of a masked original."""
    text = "g (float[2,3] x) => (float[] y) <float[3,{0}] w, float[{0}] s, float[{0},2] v> {{ h = MatMul(x, w) "
    text += "n = LayerNormalization(h, s) y = MatMul(n, v) }}"
    judge = tool("peers_judge")
    assert judge.masked(proto(text.format(8)), proto(text.format(6))) == "normalisations over the removed channels"


def test_means_over_channels_state_nothing(tool):
    """A mean over channels that leave is a normalisation, too."""
    mean = "m = ReduceMean<axes=[1]>(h) d = Sub(h, m)"
    whole = proto(between(mean))
    reason = "normalisations over the removed channels"
    assert tool("peers_judge").masked(whole, cut(whole, [0, 2], [0, 2])) == reason


def test_our_own_cut_passes(tool, tmp_path):
    """A fixture that onnxprune cuts to half is valid, equal to its masked original, and not to the original."""
    original = ROOT / "fixtures" / "resnet_folded_legacy.onnx"
    onnx.save(onnxprune.clean(original), tmp_path / "whole.onnx")
    onnx.save(onnxprune.compress(original, flops=0.5, recover="none").model, tmp_path / "cut.onnx")
    judge = tool("peers_judge")
    told = judge.judge(str(original), str(tmp_path / "whole.onnx"), str(tmp_path / "cut.onnx"))
    assert told["problems"] == []
    assert told["error"] <= judge.SAME < told["masked"]


def test_too_little_is_not_valid(tool):
    """A file that keeps all of the MACs is named with its share."""
    path = str(ROOT / "fixtures" / "vgg_legacy.onnx")
    assert tool("peers_judge").judge(path, path, path)["problems"] == ["keeps 1.000 of the MACs"]


def test_the_ratio_is_found(tool):
    """A network that keeps (1 - ratio)^2 is brought near to half."""
    found = tool("nearest").search(lambda ratio: ("model", (1 - ratio) ** 2), 0.5, first=0.9)
    assert abs(found.kept - 0.5) <= 0.02
    assert len(found.tries) == len(found.seconds) > 1


def test_a_ratio_that_is_too_high_is_no_failure(tool):
    """Where a cut fails, a smaller one is tried."""

    def prune(ratio):
        if ratio > 0.6:
            raise ValueError("no channels left")
        return "model", 1 - ratio

    assert abs(tool("nearest").search(prune, 0.5, first=0.9).kept - 0.5) <= 0.02


def test_the_first_failure_is_told(tool):
    """Where no cut works, the first error is raised."""

    def prune(ratio):
        raise ValueError(f"at {ratio}")

    with pytest.raises(ValueError, match=r"at 0\.3$"):
        tool("nearest").search(prune, 0.5, first=0.3)


def test_every_tool_gets_every_network(tool):
    """40 networks by four tools, each under a name of its own."""
    bench = tool("bench_peers")
    rows = list(bench.rows())
    pruned = {(r.network, r.label) for r in rows if r.kind == "prune"}
    assert len({r.key for r in rows}) == len(rows)
    assert len(pruned) == 40 * 4
    assert set(bench.LATENCY) <= {network for network, _ in pruned}


VERDICTS = {
    "equal": (EQUAL, "0.500, equal"),
    "differs": (EQUAL | {"error": 0.2}, "0.500, differs: 2.0e-01"),
    "nothing removed": (EQUAL | {"masked": 0.0}, "0.500, differs: 1.0e-07"),
    "not stated": (VALID | {"unstated": "normalisations"}, "0.500"),
    "inexact": (EQUAL | {"settings": {"inexact": True}}, "0.500, equal, inexact"),
    "invalid": (VALID | {"problems": ["keeps 0.9 of the MACs"]}, "invalid: keeps 0.9 of the MACs"),
    "failed": ({"failed": "Error: a | b"}, "failed: Error: a / b"),
    "not run": (None, "not run"),
}


@each(VERDICTS, ("result", "text"))
def test_verdicts(tool, result, text):
    """Every outcome has its words in the table."""
    assert tool("peers_table").verdict(result) == text


def test_summary_counts(tool):
    """Valid, equal, not stated and different files are counted; cost is that of the networks that all prune."""
    cells = {
        ("a", "onnxprune"): EQUAL,
        ("a", "onnxsim"): VALID,
        ("b", "onnxprune"): EQUAL,
        ("b", "onnxsim"): {"failed": ""},
    }
    lines = tool("peers_table").summary(cells)
    assert "| onnxprune | 2 | 2 | 2 | 0 | 0 | 1.50 | 2.00 | 9 |" in lines
    assert "| onnxsim | 2 | 1 | 0 | 1 | 0 | 1.50 | 2.00 | 9 |" in lines
