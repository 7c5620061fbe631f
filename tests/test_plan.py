"""Plans: what is written, what is read back, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.analysis import Analysis, Axis, Frozen
from onnxprune.errors import PlanError
from onnxprune.graph import from_proto
from onnxprune.plan import Plan, as_json, dumps, kept_classes, loads, make_plan

DIGEST = "ab" * 32
AXES = [("w", 0, "out", [1, 2, 3, 0]), ("b", 0, "with", [1, 2, 3, 0]), ("v", 1, "in", [1, 2, 3, 0, 1, 2, 3, 0])]
TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
two (float[1,2] x) => (float[1,3] y) <float[4,2] w, float[4] b, float[3,8] v> {
    h = Gemm <transB = 1> (x, w, b)
    d = Concat <axis = 1> (h, h)
    y = Gemm <transB = 1> (d, v)
}"""


def build():
    """Gemm 2 -> 4 read twice by Gemm 8 -> 3: three classes; filter 3 of `w` and all rows of `v` are frozen."""
    proto = onnx.parser.parse_model(TEXT)
    shapes = {"w": (4, 2), "b": (4,), "v": (3, 8)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in shapes.items())
    axes = tuple(Axis(name, axis, np.array(ids, np.int32), role) for name, axis, role, ids in AXES)
    frozen = (
        Frozen("w", 0, "ArgMax", "ArgMax sees the order of its input", 1),
        Frozen("v", 0, "output", "y is an output of the graph", 3),
    )
    group, exact = np.array([0, 1, 1, 1], np.int32), np.zeros(4, bool)
    return Analysis(from_proto(proto), {}, 3, exact, axes, (), (), group, axes[:1], frozen, (), None)


ANALYSIS = build()


def without(*classes):
    kept = np.ones(4, bool)
    kept[list(classes)] = False
    return kept


def test_keep_lists_what_is_sliced():
    """Every axis of every sliced parameter, kept indices only; frozen positions are among them."""
    plan = make_plan(ANALYSIS, without(2), DIGEST, {"flops": 0.5}, {"macs": 7})
    assert plan.keep == {"w": {0: [0, 2, 3]}, "b": {0: [0, 2, 3]}, "v": {1: [0, 2, 3, 4, 6, 7]}}
    assert plan.frozen[0] == {"name": "w", "op": "ArgMax", "reason": "ArgMax sees the order of its input"}


def test_removing_nothing_keeps_no_lists():
    """A plan that removes nothing has an empty `keep`."""
    assert make_plan(ANALYSIS, without(), DIGEST, {}, {}).keep == {}


def test_text_is_one_line_per_axis():
    """The text for a review, to the letter."""
    plan = Plan(DIGEST, {"w": {1: [0], 0: [0, 2, 3]}, "b": {0: [1]}}, {"z": 1, "a": None}, {"macs": 7}, [])
    assert dumps(plan) == (
        f'{{\n  "version": 1,\n  "model": "{DIGEST}",\n'
        '  "keep": {\n    "w": {"0": [0, 2, 3],\n      "1": [0]},\n    "b": {"0": [1]}\n  },\n'
        '  "settings": {"a": null, "z": 1},\n  "predicted": {"macs": 7},\n  "frozen": []\n}\n'
    )


def test_text_has_the_agreed_members():
    """The JSON has exactly the members that the format names, axes as strings."""
    plan = make_plan(ANALYSIS, without(1), DIGEST, {"flops": 0.5}, {"macs": 7})
    raw = json.loads(dumps(plan))
    assert raw == as_json(plan)
    assert list(raw) == ["version", "model", "keep", "settings", "predicted", "frozen"]
    assert raw["keep"]["w"] == {"0": [1, 2, 3]}
    assert set(raw["frozen"][0]) == {"name", "op", "reason"}


@given(st.lists(st.booleans(), min_size=3, max_size=3))
def test_round_trip(bits):
    """Classes -> plan -> text -> plan -> classes and the text is the same again."""
    kept = np.array([True, *bits])
    plan = make_plan(ANALYSIS, kept, DIGEST, {"method": "l1", "min_keep": 0.1}, {"macs": 7})
    again = loads(dumps(plan))
    assert again == plan
    assert dumps(again) == dumps(plan)
    assert np.array_equal(kept_classes(again, ANALYSIS, DIGEST), kept)


GOOD = {"w": {0: [0, 2, 3]}, "b": {0: [0, 2, 3]}, "v": {1: [0, 2, 3, 4, 6, 7]}}


def test_listing_a_whole_axis_is_harmless():
    """An axis of which everything is kept may be listed, frozen ones too."""
    plan = Plan(DIGEST, GOOD | {"v": {0: [0, 1, 2], 1: GOOD["v"][1]}})
    assert np.array_equal(kept_classes(plan, ANALYSIS, DIGEST), without(2))


REFUSED = {
    "unknown parameter": ({"u": {0: [0]}}, r"'u' is not a parameter"),
    "no such axis": ({"b": {1: [0]}}, r"'b' axis 1 does not exist: the parameter has 1 axes"),
    "too large": ({"w": {0: [0, 4]}}, r"'w' axis 0: index 4 is outside 0..3"),
    "negative": ({"w": {0: [-1, 2]}}, r"'w' axis 0: index -1 is outside 0..3"),
    "unsorted": ({"w": {0: [2, 0, 3]}}, r"'w' axis 0: the indices must ascend"),
    "duplicate": ({"w": {0: [0, 0, 3]}}, r"'w' axis 0: the indices must ascend"),
    "empty": ({"w": {0: []}}, r"'w' axis 0: nothing is left"),
    "frozen position": ({"w": {0: [0, 1, 2]}, "b": {0: [0, 1, 2]}}, r"'w' axis 0 index 3 is frozen: ArgMax: "),
    "frozen axis": (GOOD | {"v": {0: [0, 1], 1: GOOD["v"][1]}}, r"'v' axis 0 cannot be sliced: output: y is an output"),
    "uncoupled axis": (GOOD | {"w": {0: [0, 2, 3], 1: [0]}}, r"'w' axis 1 cannot be sliced: it couples with nothing"),
    "torn": (
        {"w": GOOD["w"], "v": GOOD["v"]},
        r"'b' axis 0 index 1 is kept and 'w' axis 0 index 1 is removed, but they can only go together",
    ),
    "torn on one axis": (
        GOOD | {"v": {1: [0, 2, 3, 4, 5, 6, 7]}},
        r"'v' axis 1 index 5 is kept and 'w' axis 0 index 1 is removed",
    ),
}


@pytest.mark.parametrize(("keep", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_plans_that_do_not_fit(keep, message):
    """Each misfit is refused with the parameter, the axis, the index and the reason."""
    with pytest.raises(PlanError, match=message):
        kept_classes(Plan(DIGEST, keep), ANALYSIS, DIGEST)


def test_several_problems_are_listed_at_once():
    """Up to five problems are shown, the rest counted."""
    keep = {f"u{i}": {0: [0]} for i in range(7)}
    with pytest.raises(PlanError, match=r"(?s)'u0' is not.*'u4' is not.*and 2 more"):
        kept_classes(Plan(DIGEST, keep), ANALYSIS, DIGEST)


def test_plan_of_another_model():
    """A digest that differs is named, with the remedy."""
    with pytest.raises(PlanError, match=r"another model.*abababababab.*cdcdcdcdcdcd.*`plan` command"):
        kept_classes(Plan(DIGEST, {}), ANALYSIS, "cd" * 32)


def text(**changes):
    good = {"version": 1, "model": DIGEST, "keep": {}, "settings": {}, "predicted": {}, "frozen": []}
    return json.dumps({name: value for name, value in (good | changes).items() if value is not ...})


MALFORMED = {
    "empty": ("", "not JSON"),
    "truncated": (text()[:-3], "not JSON"),
    "wrong bytes": (b"\xff\xfe\xff", "not JSON"),
    "too deep": ("[" * 200_000, "not JSON"),
    "NaN": (text(settings={"x": float("nan")}), "NaN is not a JSON number"),
    "repeated parameter": ('{"version": 1, "keep": {"w": {}, "w": {}}}', "'w' appears twice"),
    "a list": ("[]", "must be a JSON object, not list"),
    "no version": (text(version=...), "version None is not known"),
    "wrong version": (text(version=2), "version 2 is not known; this program reads version 1"),
    "version true": (text(version=True), "version True is not known"),
    "no model": (text(model=...), '"model" must be'),
    "no keep": (text(keep=...), '"keep" must be an object'),
    "keep a list": (text(keep=[]), '"keep" must be an object'),
    "parameter a list": (text(keep={"w": [0]}), "\"keep\" of 'w' must be an object"),
    "no axes": (text(keep={"w": {}}), "\"keep\" of 'w' must be an object"),
    "axis a word": (text(keep={"w": {"first": [0]}}), "'first' is not the number of an axis"),
    "axis negative": (text(keep={"w": {"-1": [0]}}), "'-1' is not the number of an axis"),
    "axis padded": (text(keep={"w": {"00": [0]}}), "'00' is not the number of an axis"),
    "index a float": (text(keep={"w": {"0": [0.0]}}), "'w', axis 0: the indices must be a list of integers"),
    "index a boolean": (text(keep={"w": {"0": [True]}}), "must be a list of integers"),
    "indices a number": (text(keep={"w": {"0": 3}}), "must be a list of integers"),
    "settings a list": (text(settings=[]), '"settings" must be an object'),
    "predicted a number": (text(predicted=1), '"predicted" must be an object'),
    "frozen an object": (text(frozen={}), '"frozen" must be a list'),
    "frozen incomplete": (text(frozen=[{"name": "w"}]), '"frozen" must be a list'),
    "unknown member": (text(extra=1), "unknown members: extra"),
}


@pytest.mark.parametrize(("raw", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_plans(raw, message):
    """Text that is not a plan gives a PlanError that names the place, never another exception."""
    with pytest.raises(PlanError, match=message):
        loads(raw)


LEAVES = st.none() | st.booleans() | st.integers() | st.text()


@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_any_json_is_read_or_refused(value):
    """Whatever stands under `keep`, reading gives a plan or a PlanError."""
    try:
        plan = loads(text(keep={"w": value}))
    except PlanError as error:
        assert "malformed plan" in str(error) or "not JSON" in str(error)
    else:
        assert plan.keep["w"]
