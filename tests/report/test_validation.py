"""What a validation found, as text, Markdown and workflow commands."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

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
