"""`onnxprune report`, and --report of the other commands."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from commands import done, run

from onnxprune.report import html

FIXTURES = Path(__file__).parents[1] / "fixtures"
CUT = ("--flops", "0.5", "--recover", "none")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(FIXTURES / "vgg_legacy.onnx", "m.onnx")
    return tmp_path


def test_kept_json_gives_the_page(folder):
    """`report` draws what --json printed as the page that --report wrote."""
    printed = done("compress", "m.onnx", *CUT, "-o", "small.onnx", "--report", "page.html", "--json").stdout
    Path("run.json").write_text(printed)
    assert done("report", "run.json").stdout == "run.json -> run.html\n"
    assert Path("run.html").read_text() == Path("page.html").read_text() == html.page(json.loads(printed))
    assert "run.html' exists" in run("report", "run.json").stderr
    told = json.loads(done("report", "run.json", "-o", "run.html", "--force", "--json").stdout)
    assert told == {"run": "run.json", "command": "compress", "output": "run.html"}


def test_the_run_of_a_result(folder):
    """The command can be copied, whatever is in it; digests are those of the files."""
    shutil.copy("m.onnx", "a 'b'.onnx")
    told = json.loads(done("compress", "a 'b'.onnx", *CUT, "-o", "small.onnx", "--json").stdout)["run"]
    assert (
        told["command"] == """onnxprune compress 'a '"'"'b'"'"'.onnx' --flops 0.5 --recover none -o small.onnx --json"""
    )
    want = {n: hashlib.sha256(Path(n).read_bytes()).hexdigest() for n in ("a 'b'.onnx", "small.onnx")}
    assert told["sha256"] == want
    assert {"cpu", "system", "python", "onnxruntime", "onnx", "numpy"} <= set(told["environment"])
    assert set(told) == {"command", "date", "version", "environment", "sha256"}


def test_a_drop_has_a_page(folder):
    """`compress --max-drop --report` draws what it tried and the final figure."""
    data = str(FIXTURES / "digits_test.npz")
    done("compress", "m.onnx", "--max-drop", "3", "--data", data, "--allocate", "global", "--report", "page.html", "-q")
    page = Path("page.html").read_text()
    assert '<section id="drop">' in page
    assert "inputs that nothing was chosen on, accuracy drops by" in page


def test_a_drop_that_reaches_the_floor_has_a_page(folder):
    """Targets out of reach are among what was tried, without a share of the MACs."""
    data = str(FIXTURES / "digits_test.npz")
    done("compress", "m.onnx", "--max-drop", "60", "--min-keep", "0.6", "--data", data, "--allocate", "global",
         "--recover", "moments", "--report", "page.html", "-q")  # fmt: skip
    page = Path("page.html").read_text()
    assert page.count("cannot be reached: with everything gone that may go") >= 2
    assert "inputs that nothing was chosen on, accuracy drops by" in page


def test_search_keeps_what_it_prints(folder):
    """search.json is what --json prints, and has a page."""
    printed = done(
        "search", "m.onnx", "--flops", "0.5", "--recover", "none", "--val", FIXTURES / "digits_test.npz", "--json"
    )
    assert json.loads(printed.stdout) == json.loads(Path("m.search/search.json").read_text())
    done("report", "m.search/search.json", "-o", "page.html", "-q")
    assert "m.onnx" in Path("page.html").read_text()


def test_pairs_have_a_page(folder):
    """What pairs of thresholds tried is drawn, the chosen pair marked."""
    data = FIXTURES / "digits_calib.npz"
    done("compress", "m.onnx", "--flops", "0.5", "--allocate", "pairs", "--method", "hybrid", "--data", data,
         "--calibration-size", "32", "--report", "page.html", "-q")  # fmt: skip
    page = Path("page.html").read_text()
    assert '<section id="tried">' in page
    assert page.count("chosen</bdi>") == 1


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("compress", "m.onnx", *CUT, "--report", "page.pdf"), 2, "ends in .html"),
        (("compress", "m.onnx", *CUT, "--report", "none/page.html"), 4, "there is no folder"),
        (
            ("compress", "m.onnx", *CUT, "-o", "x.html", "--report", "x.html"),
            2,
            "--report 'x.html' is the file of -o too",
        ),
        (("bench", "m.onnx", "--report", "page"), 2, "ends in .html"),
        (("search", "m.onnx", "--flops", "0.5", "--report", "page.txt"), 2, "ends in .html"),
        (("validate", "m.onnx", "m.onnx", "--report", "page.txt"), 2, "ends in .json or .html"),
        (("report", "none.json"), 4, "there is no file"),
        (("report", "m.onnx"), 3, "'m.onnx' is no JSON"),
        (("report", "list.json"), 3, "holds no JSON object"),
        (("report", "other.json"), 3, "this is no JSON object of onnxprune"),
        (("report", "part.json"), 3, "incomplete or of another version"),
        (("report", "other.json", "-o", "other.json", "--force"), 4, "is the input"),
    ],
)
def test_errors(folder, args, code, words):
    """What is wrong is said before any work is done, and nothing is written."""
    Path("list.json").write_text("[]")
    Path("other.json").write_text('{"version": 1}')
    Path("part.json").write_text('{"measure": "error", "points": [{}], "original": null}')
    before = sorted(folder.iterdir())
    result = run(*args)
    assert result.exit_code == code, result.output
    assert words in " ".join(result.stderr.split())
    assert sorted(folder.iterdir()) == before
