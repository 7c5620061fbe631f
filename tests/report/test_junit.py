"""JUnit XML against the schema beside this file, and what it says of verdicts."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import xmlschema
from graphs import each

from onnxprune.errors import DataError
from onnxprune.report import junit
from onnxprune.validation.gate import Goal
from onnxprune.validation.intervals import Interval
from onnxprune.validation.result import Validation

SCHEMA = xmlschema.XMLSchema10(Path(__file__).with_name("junit.xsd"))
DROP = Goal("max_drop", 1.0, Interval(0.4, 0.1, 0.7), "points", "drop of accuracy", "pass")
SPEED = Goal("min_speedup", 2.0, Interval(1.8, 1.7, 1.9), "x", "speed-up", "fail")
ANSWERS = Goal("min_agreement", 0.95, Interval(0.95, 0.93, 0.96), "", "same top-1 answer", "inconclusive")
FOUND = Validation(
    original="one.onnx",
    candidate="small.onnx",
    data="val.npz",
    samples=1000,
    metric=None,
    agreement={},
    sizes=(2_000_000, 500_000),
    speed=None,
    goals=(DROP, SPEED, ANSWERS),
    verdict="fail",
    doubt="fail",
    notes=(),
    seconds={"compare": 1e-5, "latency": 1.5},
)
HOSTILE = "a\x00\x1b[31m<&>\"'\ud800\ufffe]]>\r\n\t<!-- --></testcase> &#0; \U0001f600 \u202eא"
NO_LABELS = DataError("val.npz: no labels")
WHERE = SimpleNamespace(time=datetime(2026, 1, 2, 3, 4, 5), host="h")
OUTCOMES = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def written(found):
    """The XML of a verdict."""
    return junit.judged(found, **vars(WHERE))


def broken_off(error=NO_LABELS, original="m.onnx"):
    """The XML of a command that an error ended."""
    return junit.stopped(error, {"original": original, "candidate": "small.onnx"}, **vars(WHERE))


def assert_counted(root):
    """Counts are the numbers of what they count: the part of the format that XSD 1.0 cannot say."""
    for suite in root.findall("testsuite"):
        cases = suite.findall("testcase")
        assert int(suite.get("tests")) == len(cases)
        for name, tag in OUTCOMES.items():
            assert int(suite.get(name)) == sum(case.find(tag) is not None for case in cases)


def valid(text):
    """The root of a document that the schema allows, with counts that are true."""
    root = ElementTree.fromstring(text.encode())
    SCHEMA.validate(root)
    assert_counted(root)
    return root


DOCUMENTS = {
    "pass": (replace(FOUND, goals=(DROP,), verdict="pass"), {"tests": 1, "failures": 0, "errors": 0, "skipped": 0}),
    "fail": (FOUND, {"tests": 3, "failures": 2, "errors": 0, "skipped": 0}),
    "doubt may pass": (replace(FOUND, doubt="pass"), {"tests": 3, "failures": 1, "errors": 0, "skipped": 1}),
    "no goals": (replace(FOUND, goals=(), verdict=None), {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}),
    "no data": (replace(FOUND, data=None), {"tests": 3, "failures": 2, "errors": 0, "skipped": 0}),
    "an hour": (replace(FOUND, seconds={"a": 3600.0}), {"tests": 3, "failures": 2, "errors": 0, "skipped": 0}),
}


@each(DOCUMENTS, "found,counts")
def test_verdicts_are_valid(found, counts):
    """Every verdict is a document of the schema, with one case per goal, counted by outcome."""
    suite = valid(written(found)).find("testsuite")
    assert {name: int(suite.get(name)) for name in counts} == counts


def test_outcomes():
    """What is in doubt fails, or is skipped where doubt may pass."""
    cases = valid(written(FOUND)).findall("testsuite/testcase")
    assert [[c.tag for c in case] for case in cases] == [[], ["failure"], ["failure"]]
    assert [case[0].get("type") for case in cases[1:]] == ["fail", "inconclusive"]
    assert "the goal is at least 2.00x" in cases[1][0].get("message")
    doubt = valid(written(replace(FOUND, doubt="pass"))).findall("testsuite/testcase")
    assert [[c.tag for c in case] for case in doubt] == [[], ["failure"], ["skipped"]]


def test_an_error_is_valid():
    """An error before any verdict is one case in error, which says what went wrong."""
    (case,) = valid(broken_off()).findall("testsuite/testcase")
    (error,) = case
    assert (error.tag, error.get("type"), error.text) == ("error", "DataError", "val.npz: no labels")


def test_hostile_names():
    """Names reach the document as they are; what XML cannot hold is replaced, in attributes and in text."""
    wild = replace(SPEED, what=HOSTILE, reason=HOSTILE)
    root = valid(written(replace(FOUND, original=HOSTILE, candidate=HOSTILE, data=HOSTILE, goals=(wild,))))
    clean = "a??[31m<&>\"'??]]>\r\n\t<!-- --></testcase> &#0; \U0001f600 \u202eא"
    assert [p.get("value") for p in root.iter("property")] == [clean] * 3
    unix = clean.replace("\r\n", "\n")  # XML readers read every end of a line so
    assert unix in root.find("testsuite/testcase/failure").text
    assert unix in root.find("testsuite/system-out").text
    (error,) = valid(broken_off(DataError(HOSTILE), HOSTILE)).iter("error")
    assert error.text == unix


BREAKS = {
    "a count that is no number": lambda s: s.set("tests", "three"),
    "a negative count": lambda s: s.set("failures", "-1"),
    "a time that is no number": lambda s: s.set("time", "nan"),
    "a time with an exponent": lambda s: s.set("time", "1e-05"),
    "a time with a comma": lambda s: s.find("testcase").set("time", "0,1"),
    "a date with a zone": lambda s: s.set("timestamp", "2026-01-02T03:04:05+00:00"),
    "a month too many": lambda s: s.set("timestamp", "2026-13-02T03:04:05"),
    "a suite without a name": lambda s: s.attrib.pop("name"),
    "a suite without a host": lambda s: s.attrib.pop("hostname"),
    "a suite without its tests": lambda s: s.attrib.pop("tests"),
    "a case without a name": lambda s: s.find("testcase").attrib.pop("name"),
    "a case without a class": lambda s: s.find("testcase").attrib.pop("classname"),
    "an empty name": lambda s: s.find("testcase").set("name", " "),
    "two cases of one name": lambda s: s.findall("testcase")[1].set("name", s.find("testcase").get("name")),
    "a property twice": lambda s: s.findall("properties/property")[1].set("name", "original"),
    "a property without a value": lambda s: s.find("properties/property").attrib.pop("value"),
    "a failure without a message": lambda s: s.find("testcase/failure").attrib.pop("message"),
    "a failure without a type": lambda s: s.find("testcase/failure").attrib.pop("type"),
    "two outcomes of one case": lambda s: s.findall("testcase")[1].append(ElementTree.Element("skipped")),
    "an unknown attribute": lambda s: s.set("colour", "red"),
    "an unknown element": lambda s: s.append(ElementTree.Element("colour")),
    "an unknown outcome": lambda s: s.find("testcase").append(ElementTree.Element("warning")),
    "a case behind the output": lambda s: s.append(copy.deepcopy(s.find("testcase"))),
    "text between the cases": lambda s: setattr(s.find("testcase"), "tail", "passed"),
    "no properties": lambda s: s.remove(s.find("properties")),
}


@each(BREAKS, "change")
def test_the_schema_catches(change):
    """A document that the schema allows is refused after one change."""
    root = valid(written(FOUND))
    change(root.find("testsuite"))
    with pytest.raises(xmlschema.XMLSchemaValidationError):
        SCHEMA.validate(root)


def test_the_schema_needs_its_root():
    """A suite alone, no suite, and two suites of one id are refused."""
    root = valid(written(FOUND))
    assert not SCHEMA.is_valid(root.find("testsuite"))
    assert not SCHEMA.is_valid(ElementTree.Element("testsuites"))
    root.append(copy.deepcopy(root.find("testsuite")))
    assert not SCHEMA.is_valid(root)
    root.findall("testsuite")[1].set("id", "1")
    assert SCHEMA.is_valid(root)


@pytest.mark.parametrize("name", ["tests", *OUTCOMES])
def test_counts_are_checked(name):
    """A count that the schema allows, but that is not true, is seen."""
    root = valid(written(FOUND))
    suite = root.find("testsuite")
    suite.set(name, str(int(suite.get(name)) + 1))
    SCHEMA.validate(root)
    with pytest.raises(AssertionError):
        assert_counted(root)
