"""Pages in a real browser: no errors, every section seen, tables that sort, pictures that answer, narrow screens."""

from __future__ import annotations

import re

import pytest
from pages import hostile, large, needs_browser, opened, results

from onnxprune.report import html

pytestmark = needs_browser
NAMES = ("compress", "no data", "bare", "validate", "search", "bench")
PROBE = """
const table = document.querySelector("table.sorts"), width = document.documentElement.scrollWidth;
const told = {width: width <= innerWidth, seen: [...document.querySelectorAll("section")].every(s => s.offsetHeight > 40)};
if (table) {
  const column = [...table.tHead.rows[0].cells].findIndex(c => c.textContent === (window.wanted || "MACs"));
  const values = () => [...table.tBodies[0].rows].map(r => Number(r.cells[column].dataset.v));
  const press = () => table.tHead.rows[0].cells[column].querySelector("button").click();
  const sorted = (v, sign) => v.length > 1 && v.every((x, i) => !i || sign * (x - v[i - 1]) >= 0);
  if (column >= 0) {
    const before = values();
    press(); told.down = sorted(values(), -1) && !sorted(before, -1);
    press(); told.up = sorted(values(), 1);
    told.same = values().length === before.length;
  }
}
const strip = document.querySelector("svg.strip");
if (strip) {
  const box = strip.getBoundingClientRect();
  strip.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + 1, clientY: box.top + 1}));
  told.readout = strip.closest("figure").querySelector(".readout").textContent;
  const row = document.querySelector("#t-groups tr[data-layers]");
  row.click();
  told.lit = document.querySelectorAll("#t-layers tr.on").length === row.dataset.layers.split(" ").length;
}
document.documentElement.dataset.told = JSON.stringify(told);
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return results(tmp_path_factory.mktemp("pages"))


def probed(page, width):
    """What the probe says of a page, as text."""
    document, console = opened(page, width=width, script=PROBE)
    assert not console
    return re.search(r'data-told="(.*?)"', document)[1].replace("&quot;", '"')


@pytest.mark.parametrize("name", NAMES)
def test_pages_are_without_errors(told, name):
    """A page as it is written leaves the console empty: its own policy lets its own script run, and nothing else."""
    document, console = opened(html.page(told[name]))
    assert console == []
    assert document.count("<section") == html.page(told[name]).count("<section") > 2


@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("name", ["compress", "search"])
def test_tables_sort_and_pictures_answer(told, name, width):
    """A click on a head sorts from the largest on, a second one from the smallest, on a phone and on a desktop; a
    picture names the layer that is pointed at, a group lights its layers up, and the page is no wider than the screen.
    """
    found = probed(html.page(told[name]), width)
    assert '"width":true,"seen":true,"down":true,"up":true,"same":true' in found
    if name == "compress":
        assert f"layer {told[name]['layers'][0]['node']} " in found
        assert '"lit":true' in found


@pytest.mark.parametrize("name", ["no data", "bare", "validate", "bench"])
def test_pages_fit_a_phone(told, name):
    """On 360 pixels no page is wider than the screen, and every section is seen."""
    assert '"width":true,"seen":true' in probed(html.page(told[name]), 360)


def test_hostile_names_do_nothing(told):
    """Markup in names does not run, even without the policy of the page; nothing sticks out of the screen."""
    page = html.page(hostile(told["compress"]))
    document, console = opened(page)
    assert console == []
    assert "taken" not in re.search("<title>(.*?)</title>", document, re.DOTALL)[1].partition("title = ")[0]
    found = probed(page, 360)
    assert '"width":true,"seen":true,"down":true' in found


def test_a_thousand_layers_are_usable(told):
    """The table of 1,000 layers sorts, and its groups light up."""
    found = probed(html.page(large(told["compress"])), 1100)
    assert '"down":true,"up":true,"same":true' in found
    assert '"lit":true' in found


def test_errors_would_be_seen():
    """A page whose script fails, or that loads something, is noticed by what the tests look at."""
    _, console = opened("<!DOCTYPE html><body><script>nothing.at.all()</script></body>")
    assert "nothing is not defined" in console[0]
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
    _, console = opened(f"<!DOCTYPE html>{policy}<body><img src='x.png'></body>")
    assert "Content Security Policy" in console[0]
