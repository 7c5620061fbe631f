"""What a validation found, as text, Markdown, JUnit XML and workflow commands."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from rich.console import Console

from onnxprune.report import validation as report
from onnxprune.validation.accuracy import Comparison
from onnxprune.validation.gate import Goal
from onnxprune.validation.intervals import Interval
from onnxprune.validation.result import Validation
from onnxprune.validation.speed import Speed

DROP = Interval(0.4, 0.1, 0.7)
FASTER = Interval(1.8, 1.7, 1.9)
TIMES = SimpleNamespace(
    baseline=SimpleNamespace(p50=0.004),
    candidate=SimpleNamespace(p50=0.002),
    speedup=FASTER,
    median=Interval(0.002, 0.0019, 0.0021),
)
CLEANED = SimpleNamespace(**vars(TIMES) | {"baseline": SimpleNamespace(p50=0.0025), "speedup": Interval(1.2, 1.1, 1.3)})
FOUND = Validation(
    original="big|one.onnx",
    candidate="small.onnx",
    data="val.npz",
    samples=1000,
    metric=Comparison("accuracy", "y", True, True, 0.91, 0.906, DROP, 12, 8),
    agreement={"top1": Interval(0.95, 0.93, 0.96), "cosine": Interval(0.99, 0.98, 0.995)},
    sizes=(2_000_000, 500_000),
    speed=Speed(TIMES, CLEANED),
    goals=(
        Goal("max_drop", 1.0, DROP, "points", "drop of accuracy", "pass"),
        Goal("min_speedup", 2.0, FASTER, "x", "speed-up", "fail"),
        Goal("min_agreement", 0.95, Interval(0.95, 0.93, 0.96), "", "same top-1 answer", "inconclusive"),
    ),
    verdict="fail",
    doubt="fail",
    notes=("something <odd>",),
    seconds={"compare": 1.5},
)
DOUBT = replace(FOUND, goals=(FOUND.goals[0], FOUND.goals[2]), doubt="pass", verdict="pass")
CHILDREN = {  # what the usual schemas of JUnit XML allow, in this order
    "testsuites": ["testsuite"],
    "testsuite": ["properties", "testcase", "system-out", "system-err"],
    "properties": ["property"],
    "testcase": ["error", "failure", "skipped"],
}
NEEDED = {
    "testsuite": {"name", "tests", "failures", "errors", "time", "timestamp", "hostname", "id", "package"},
    "testcase": {"name", "classname", "time"},
    "failure": {"type", "message"},
    "property": {"name", "value"},
}
ALLOWED = {"testsuite": {"skipped"}, "skipped": {"message"}}


def assert_valid(element):
    """Names, order and attributes of elements are those of the schema, and counts are what they count."""
    known = CHILDREN.get(element.tag, [])
    tags = [child.tag for child in element]
    assert set(tags) <= set(known)
    assert tags == sorted(tags, key=known.index)
    needed = NEEDED.get(element.tag, set())
    assert needed <= set(element.attrib) <= needed | ALLOWED.get(element.tag, set())
    if element.tag == "testsuite":
        counts = {
            name: len(element.findall(f"testcase/{tag}"))
            for name, tag in (("failures", "failure"), ("skipped", "skipped"))
        }
        counts |= {"tests": len(element.findall("testcase")), "errors": 0}
        assert {name: int(element.get(name)) for name in counts} == counts
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", element.get("timestamp"))
        float(element.get("time"))
    for child in element:
        assert_valid(child)


def junit(found):
    """The XML, read again."""
    return ElementTree.fromstring(report.junit(found, time=datetime(2026, 1, 2, 3, 4, 5), host="h"))


@pytest.mark.parametrize("found", [FOUND, DOUBT, replace(FOUND, goals=(), verdict=None)], ids=["fail", "doubt", "none"])
def test_junit_is_valid(found):
    """JUnit XML is what its schemas say, with one case per goal."""
    root = junit(found)
    assert_valid(root)
    assert len(root.findall("testsuite/testcase")) == len(found.goals)


def test_junit_verdicts():
    """What is in doubt fails, or is skipped where doubt may pass; characters that XML cannot hold are replaced."""
    cases = junit(FOUND).findall("testsuite/testcase")
    assert [[c.tag for c in case] for case in cases] == [[], ["failure"], ["failure"]]
    assert [case[0].get("type") for case in cases[1:]] == ["fail", "inconclusive"]
    assert "the goal is at least 2.00x" in cases[1][0].get("message")
    assert [[c.tag for c in case] for case in junit(DOUBT).findall("testsuite/testcase")] == [[], ["skipped"]]
    assert "a?<&>" in [p.get("value") for p in junit(replace(FOUND, original="a\x00<&>")).iter("property")]


def test_the_schema_is_checked():
    """The check of the tests itself sees a case too many, a wrong order and a missing attribute."""
    for change in (
        lambda s: s.append(s.find("testcase")),
        lambda s: s.remove(s.find("testcase")),
        lambda s: s.attrib.pop("hostname"),
        lambda s: s.set("colour", "red"),
    ):
        root = junit(FOUND)
        change(root.find("testsuite"))
        with pytest.raises(AssertionError):
            assert_valid(root)


def test_markdown():
    """Markdown has the verdict, the goals, the figures and the remarks; names cannot break its tables."""
    assert report.markdown(FOUND) == (
        "### big\\|one.onnx beside small.onnx, on 1,000 samples of val.npz\n"
        "\n"
        "**Verdict: FAIL (1 of 3 goals met, 1 inconclusive: the interval holds the goal).**\n"
        "\n"
        "| goal | measured | verdict |\n"
        "| -- | -- | -- |\n"
        "| max drop 1.00 points | drop of accuracy 0.40 points (0.10 to 0.70) | pass |\n"
        "| min speedup 2.00x | speed-up 1.80x (1.70x to 1.90x) | FAIL |\n"
        "| min agreement 0.95 | same top-1 answer 0.95 (0.93 to 0.96) | INCONCLUSIVE |\n"
        "\n"
        "|  | original | candidate | difference |\n"
        "| -- | -- | -- | -- |\n"
        "| accuracy | 91.0 % | 90.6 % | drop 0.40 points (0.10 to 0.70) |\n"
        "| size | 2 MB | 500 kB | 25.0 % kept |\n"
        "| latency (p50) | 4.00 ms | 2.00 ms | speed-up 1.80x (1.70x to 1.90x) |\n"
        "| cleaned (p50) | 2.50 ms | 2.00 ms | speed-up 1.20x (1.10x to 1.30x) |\n"
        "\n"
        "| beside the original | candidate |\n"
        "| -- | -- |\n"
        "| same top-1 answer | 95.0 % (93.0 to 96.0) |\n"
        "| cosine of the outputs | 0.99 (0.98 to 0.995) |\n"
        "\n"
        "- Only the original is right on 12 samples, only the candidate on 8.\n"
        "- Cleaning the original alone ('onnxprune clean') makes it 1.50x as fast; beside the cleaned original, the "
        "candidate's speed-up is 1.20x (1.10x to 1.30x).\n"
        "- Note: something \\<odd\\>\n"
        "- In brackets: 95 % confidence intervals.\n"
    )


def test_text():
    """The table has every figure of the Markdown, and fits 80 columns."""
    console = Console(width=80, markup=False)
    with console.capture() as capture:
        console.print(report.text(FOUND))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert max(map(len, lines)) <= 80
    assert "max drop 1.00 points  drop of accuracy 0.40 points (0.10 to 0.70)  pass" in lines
    assert any(line.startswith("accuracy         91.0 %     90.6 %  drop 0.40 points") for line in lines)
    assert lines[-1] == "Verdict: FAIL (1 of 3 goals met, 1 inconclusive: the interval holds the goal)."


def test_several_outputs():
    """Several outputs have a table of their own, and the figures above say which output they are of."""
    top1, cosine = FOUND.agreement["top1"], FOUND.agreement["cosine"]
    several = replace(FOUND, outputs={"boxes": {"cosine": cosine}, "scores": {"top1": top1, "cosine": FASTER}})
    told = report.markdown(several)
    assert "| same top-1 answer ('scores') | 95.0 % (93.0 to 96.0) |" in told
    assert "| cosine of the outputs ('boxes') | 0.99 (0.98 to 0.995) |" in told
    assert "| output | same top-1 | cosine | rel. error | KL |\n" in told
    assert "| boxes | - | 0.99 | - | - |\n| scores | 95.0 % | 1.8 | - | - |\n" in told


def test_workflow_commands():
    """Every goal that is missed is an error, one that may pass in doubt a warning; nothing breaks their syntax."""
    wild = replace(FOUND, candidate="100%\n::b,c")
    errors = list(report.workflow_commands(wild))
    assert [e.partition(" ")[0] for e in errors] == ["::error", "::error"]
    assert errors[0].startswith(
        "::error title=onnxprune validate --min-speedup fail::100%25%0A::b,c: speed-up is 1.80x"
    )
    assert [e.partition(" ")[0] for e in report.workflow_commands(DOUBT)] == ["::warning"]


def test_missed():
    """The message of a gate names what stopped it, and not what may pass."""
    assert "--min-speedup: fail" in report.missed(FOUND)
    assert "--min-agreement: inconclusive" in report.missed(FOUND)
    assert "--min-agreement" not in report.missed(replace(FOUND, doubt="pass"))


def test_units():
    """Numbers have the unit and the digits of their kind; what is exact has no interval."""
    assert report.figure(0.00123, "s") == "1.23 ms"
    assert report.figure(1234, "B") == "1.23 kB"
    assert report.figure(0.123456, "") == "0.1235"
    assert report.interval(Interval(500, 500, 500), "B") == "500 B"
