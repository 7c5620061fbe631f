"""Pictures: what is drawn where, and what names become."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from onnxprune.drawing import Axis, Mark, Series, brief, fragment, heights, hump, plain, plot, strip, tracks, whisker

HTTP = "{http://www.w3.org/2000/svg}"


def parsed(svg):
    """A picture as a tree: it is well formed."""
    return ElementTree.fromstring(svg)


def path(svg, kind):
    """What the path of a class draws; "" where there is none."""
    return next((p.get("d") for p in parsed(svg).iter("path") if kind in p.get("class").split()), "")


def humps(quantiles, low, high):
    """Heights of the outline of a distribution, 0..18."""
    return [
        20 - float(y)
        for y in re.findall(r"L[\d]+\.5 ([\d.]+)", path(hump(quantiles, low, high, (low, low), ""), "hump"))
    ]


def test_names_are_cut_in_the_middle():
    """A long name keeps its beginning and its end, a short one all of itself."""
    assert brief("conv") == "conv"
    assert brief("a" * 89) == "a" * 89
    assert brief("a" * 50 + "b" * 50 + "c" * 50) == "a" * 50 + "bb" + "\u2026" + "c" * 36


@pytest.mark.parametrize("bad", ["\x00", "\x1b", "\n", "\u202e", "\u2066", "\ud800", "\u2028", "\ufeff"])
def test_what_a_page_cannot_hold_is_replaced(bad):
    """Control characters, those that turn the direction, and lone surrogates are replaced; letters stay."""
    assert plain(f"a{bad}b") == "a\ufffdb"
    assert plain("שלום <b> é 卷积") == "שלום <b> é 卷积"


def test_heights_are_square_roots():
    """A quarter of the width is half as high."""
    assert heights([64, 16, 0], 64) == [1.0, 0.5, 0.0]
    assert heights([0], 0) == [0.0]


def test_bars():
    """Bars stand beside each other as high as they are told; marked ones have another class, empty ones are left out."""
    svg = strip([1.0, 0.5, 0.0], [0.5, 0.25, 0.0], [1], "a <b>")
    assert path(svg, "was") == "M0.1 100v-100.0h.8v100.0zM1.1 100v-50.0h.8v50.0z"
    assert path(svg, "is") == "M0.1 100v-50.0h.8v50.0z"
    assert path(svg, "held") == "M1.1 100v-25.0h.8v25.0z"
    assert parsed(svg).get("aria-label") == "a <b>"
    assert path(strip([7.0], [-1.0], [], ""), "was") == "M0.1 100v-100.0h.8v100.0z"
    assert "height:6em" in strip([1.0], [1.0], [], "", alone=True)


def test_lines_of_groups():
    """A group is one line from its first layer to its last, with dots at all of them."""
    svg = tracks(4, [((0, 2), (3,)), ((1,), ())], "")
    assert parsed(svg).get("viewBox") == "0 0 4 20"
    assert path(svg, "tie") == "M0.5 5H3.5"
    assert path(svg, "makes") == "M0.5 5h0M2.5 5h0"
    assert path(svg, "reads") == "M3.5 5h0"
    assert "M1.5 15h0" in svg


def test_distributions():
    """Where quantiles lie close together the outline is high; all of the distribution is within it."""
    even = [2.0 ** (i / 100) for i in range(101)]
    assert humps(even, 1.0, 2.0) == pytest.approx([18.0] * 48, abs=0.11)
    tall = humps([1.0, *[1.5] * 99, 2.0], 1.0, 2.0)
    assert max(range(48), key=tall.__getitem__) == 28  # log2(1.5) = 0.585 of 48


def test_intervals():
    """A value, its interval and 1 lie where their logarithms are."""
    svg = whisker(2.0, 1.0, 4.0, (0.5, 4.0), "")
    assert path(svg, "range") == "M33.33 10H100.00"
    assert path(svg, "makes") == "M66.67 10h0"
    assert path(svg, "one") == "M33.33 0V20"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]), (0.93, 0.995, [0.94, 0.96, 0.98]), (-3.0, 190.0, [0, 50, 100, 150])],
)
def test_ticks_are_round(low, high, ticks):
    """An axis is marked at round values within it."""
    assert Axis("", low, high, str).ticks() == pytest.approx(ticks)


def test_a_plot_as_a_file():
    """A plot of its own names its series, has a white ground, and one circle per point, one more for the chosen."""
    marks = [Mark(0.0, 1.0, "first <&>"), Mark(1.0, 2.0, "second", solid=False, ring=True)]
    axes = (Axis("x <a>", 0.0, 1.0, str), Axis.around("y", [1.0, 2.0], str))
    tree = parsed(plot([Series("one & all", marks)], *axes, alone=True))
    words = [t.text for t in tree.iter(f"{HTTP}text")]
    assert {"x <a>", "y", "one & all"} <= set(words)
    assert [t.text for t in tree.iter(f"{HTTP}title")] == ["first <&>", "second"]
    assert [c.get("r") for c in tree.iter(f"{HTTP}circle")] == ["4", "9", "4"]
    assert tree.find(f"{HTTP}rect").get("fill") == "white"
    assert "white" not in plot([Series("", marks[:1])], *axes)


def test_one_value_has_an_axis():
    """Where all values are the same there is an axis around them."""
    axis = Axis.around("", [0.0, 0.0], str)
    assert axis.low < 0 < axis.high
    assert axis.part(0.0) == 0.5


def test_pieces_for_notebooks_are_escaped():
    """Markup in titles and cells stays text."""
    made = fragment("<a>", ("<b>", "n"), [("<c>", "1")], "<d>")
    assert not re.search("<[abcd]>", made)
    assert '<td style="text-align:right">1</td>' in made
