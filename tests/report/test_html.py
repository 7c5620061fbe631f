"""Pages: what is on them, what is escaped, how large they are, and what is refused."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from pages import HOSTILE, hostile, large, results

from onnxprune.drawing import brief
from onnxprune.errors import DataError
from onnxprune.report import html

SECTIONS = {
    "compress": ["result", "quality", "layers", "groups", "making", "run"],
    "no data": ["result", "quality", "layers", "groups", "making", "run"],
    "bare": ["result", "layers", "groups", "making", "run"],
    "validate": ["goals", "result", "latency", "run"],
    "search": ["curve", "candidates", "run"],
    "bench": ["latency", "kernels", "profile", "run"],
}


class Reader(HTMLParser):
    """Tags that were opened, with their attributes, and all text that is no script or style."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        self.open.remove(tag)

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open[-1:]):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return results(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def read(told):
    return {name: Reader(html.page(result)) for name, result in told.items()}


def test_every_output_is_compared(told):
    """A model of several outputs has a row for each, the one that is ruined and the others."""
    both = told["validate"]["agreement"]
    ruined = {n: i | {"point": 0.25} for n, i in both.items()}
    page = Reader(html.page(told["validate"] | {"outputs": {"fine": both, "ruined": ruined}}))
    assert "ruined 25" in page.text
    assert "fine" in page.text
    assert "ruined" not in Reader(html.page(told["validate"] | {"outputs": {"ruined": ruined}})).text


@pytest.mark.parametrize("name", SECTIONS)
def test_sections(read, name):
    """Every page has its sections in order, and links to each of them; ids are there once."""
    tags = read[name].tags
    assert [a["id"] for tag, a in tags if tag == "section"] == SECTIONS[name]
    assert [a["href"] for tag, a in tags if tag == "a"] == [f"#{s}" for s in SECTIONS[name]]
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", SECTIONS)
def test_nothing_is_loaded(told, read, name):
    """No page names another host, and its policy forbids to load anything."""
    page = html.page(told[name])
    assert "//" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL).replace(str(told[name]), "")
    places = [a[key] for _, a in read[name].tags for key in ("src", "href") if key in a]
    assert all(place.startswith(("#", "data:,")) for place in places)
    (policy,) = (a["content"] for _, a in read[name].tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")


@pytest.mark.parametrize("name", SECTIONS)
def test_a_page_is_a_function_of_its_json(told, name):
    """A result that was kept as a file gives the same page, to the letter."""
    kept = json.loads(json.dumps(told[name]))
    assert html.page(kept) == html.page(told[name])


def test_compress_says_what_happened(told, read):
    """The verdict, the three numbers, all layers with their widths, and why filters are frozen."""
    result, text = told["compress"], read["compress"].text
    kept, same = result["kept"], result["recovery"]["metric"]["repaired"]
    for words in (f"{100 * kept['macs']:.1f} %", f"{100 * kept['bytes']:.1f} %", f"{100 * same:.1f} %"):
        assert words in text
    assert all(x["node"] in text for x in result["layers"])
    (frozen,) = (x for x in result["layers"] if x["frozen"])
    assert frozen["reason"] == "it is a result of the model (graph output logits)"
    assert frozen["reason"] in text
    assert f"{frozen['frozen']} graph output: it is a result of the model" in text
    width = next(x["outputs"] for x in result["layers"] if x["outputs"]["before"] != x["outputs"]["after"])
    assert f"{width['before']} → {width['after']}" in text
    assert "Verified: the cut equals the masked original" in text


def test_a_trained_network_has_a_column(told):
    """Beside the cut and the repaired one; its accuracy is the one on top."""
    result = told["compress"]
    found = result["recovery"]
    metric = found["metric"] | {"trained": 0.987}
    more = {"trained": found["after"] | {"top1": 0.912}, "shipped": "trained", "metric": metric}
    text = Reader(html.page(result | {"recovery": found | more})).text
    for words in ("cut repaired trained", "91.2 %", "98.7 % accuracy on held-out inputs"):
        assert words in text
    assert "trained" not in Reader(html.page(result)).text


def test_the_environment_and_the_command(told, read):
    """Every page ends with the command that makes it again, the software, and digests of what was read and written."""
    run = told["compress"]["run"]
    assert run["command"].startswith("onnxprune compress ")
    assert [len(d) for d in run["sha256"].values()] == [64, 64, 64]
    for words in (run["command"], run["environment"]["onnxruntime"], *run["sha256"].values()):
        assert words in read["compress"].text


def test_groups_name_their_layers(told):
    """A group has the numbers of the layers that make and read its filters; a stream has those of all its blocks."""
    result = told["compress"]
    stem, *others = sorted(result["groups"], key=lambda g: -len(g["makers"]))
    assert (stem["parameter"], stem["axis"], stem["classes"]) == ("stem.0.conv.weight", 0, 16)
    assert [result["layers"][i]["node"].removeprefix("node_conv2d") for i in stem["makers"]] == [
        "",
        "_2",
        "_4",
        "_6",
        "_8",
    ]
    assert all(result["layers"][i]["outputs"]["after"] >= stem["width"]["after"] for i in stem["makers"])
    assert [len(g["makers"]) for g in others] == [2, 2, 1, 1, 1, 1, 1]


def test_made_up_inputs_are_called_so(read):
    """A run without data says in its verdict that its figures are made up."""
    assert "No data were given: the inputs, and its figures, are made up." in read["no data"].text
    assert "made up" not in read["compress"].text


def test_a_bare_cut_is_called_so(read):
    """A cut that was not repaired says so, and that nothing was measured."""
    assert "A bare cut, which was not repaired: fine-tune it before use." in read["bare"].text
    assert "answers were not compared" in read["bare"].text


def test_a_failed_gate(told, read):
    """The page of a gate that is shut says it first, with every goal and its verdict."""
    (verdict,) = (a["class"] for tag, a in read["validate"].tags if tag == "p" and "verdict" in a.get("class", ""))
    goals = told["validate"]["goals"]
    assert {told["validate"]["verdict"], *(g["verdict"] for g in goals)} == {"fail"}
    assert verdict == "verdict bad"
    assert "Fail: 0 of 1 goals met." in read["validate"].text


@pytest.mark.parametrize("name", ["validate", "bench"])
def test_latencies_are_distributions(told, read, name):
    """Latencies have 101 ascending quantiles, which are drawn with the interval of the median."""
    rows = told[name].get("rows") or [
        {"seconds": told[name]["latency"]["paired"][k]} for k in ("baseline", "candidate")
    ]
    for row in rows:
        quantiles = row["seconds"]["quantiles"]
        assert len(quantiles) == 101
        assert quantiles == sorted(quantiles)
        assert quantiles[50] == pytest.approx(row["seconds"]["p50"], rel=1e-3)
    assert sum(a.get("class") == "humps" for tag, a in read[name].tags if tag == "svg") == len(rows) == 2


def test_hostile_names_are_text(told):
    """Names with markup, quotes, template syntax, control and bidirectional characters stay text; long ones are cut."""
    page = html.page(hostile(told["compress"]))
    found = Reader(page)
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert not {"img", "iframe", "object", "link"} & {tag for tag, a in found.tags if a.get("rel") != "icon"}
    assert not [a for _, a in found.tags if any(key.startswith("on") for key in a)]
    for text in (HOSTILE[0], "{{ 7 * 7 }}", "שלום עולם"):
        assert text in found.text
    assert not {"\u202e", "\x00", "\x1b", "\ud800", "\u2028"} & set(page)
    assert max(len(word) for word in found.words) <= 800
    assert len(brief(HOSTILE[3])) < 90


def test_a_thousand_layers_are_small(told):
    """The page of 1,000 layers in 1,000 groups has all layers in less than 2 MB, whatever their names."""
    for name in ("conv_", "long/" * 2000, "<&>\"'" * 100):
        page = html.page(large(told["compress"], name=name))
        assert len(page.encode()) < 2_000_000
        assert page.count(" data-i=") == 1000


def test_older_objects_have_a_page(told):
    """An object that says nothing of its run, as the library makes it, has a page without a command."""
    result = {k: v for k, v in told["compress"].items() if k not in {"run", "output"}}
    assert "does not say which command printed it" in Reader(html.page(result)).text


@pytest.mark.parametrize("value", [{}, {"model": "m.onnx"}, {"version": 1, "keep": {}}])
def test_other_objects_are_refused(value):
    """An object of another command is refused with what is wanted."""
    assert html.kind(value) is None
    with pytest.raises(DataError, match="compress, apply, validate, search or bench"):
        html.page(value)


def test_a_broken_object_is_refused(told):
    """An object in which something is missing is refused by name, not drawn in part."""
    broken = {**told["compress"], "kept": {}}
    with pytest.raises(DataError, match="'macs'"):
        html.page(broken)


def test_the_cleaned_original_has_a_row(told):
    """Where the latency of the cleaned original was measured, the page shows it beside the two others."""
    latency = told["validate"]["latency"]
    assert "cleaned original" not in Reader(html.page(told["validate"])).text
    with_it = {**latency, "cleaned": latency["paired"], "pruning": latency["speedup"]}
    text = Reader(html.page({**told["validate"], "latency": with_it})).text
    assert "cleaned original" in text.replace("candidate beside the cleaned original", "")
