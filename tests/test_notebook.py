"""Results in notebooks, and as figures."""

from __future__ import annotations

import builtins
import re
from pathlib import Path

import pytest

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.points import AGREEMENT, ERROR, Frontier, Point

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODEL = FIXTURES / "vgg_legacy.onnx"


@pytest.fixture(scope="module")
def result():
    return onnxprune.compress(MODEL, flops=0.5, recover="none")


@pytest.fixture
def without_matplotlib(monkeypatch):
    """An environment that has no matplotlib."""
    load = builtins.__import__

    def refusing(name, *rest):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refusing)


def frontier(measure=AGREEMENT):
    """A search of two methods."""
    error = 0.1 if measure is ERROR else None
    points = [
        Point(m, f, {"macs": f}, None if error else 1 - f, error, None, None, 1.0, None, best=m == "l1")
        for m in ("l1", "l2")
        for f in (0.2, 0.5)
    ]
    broken = Point("l1", 0.1, {}, None, None, None, None, 0.0, None, failed="out of reach")
    return Frontier("m.onnx", measure, (*points, broken))


def test_a_result_shows_itself(result):
    """A notebook shows widths, costs, and that nothing was measured."""
    shown = result._repr_html_()
    assert shown.count("<svg") == shown.count("<table") == 1
    assert f"{100 * result.report.compressed.macs / result.report.original.macs:.1f} %" in shown
    assert "How well it answers was not measured." in shown


def test_a_repaired_result_tells_its_agreement():
    """With data, the share of the same answers is told."""
    made = onnxprune.compress(
        MODEL, flops=0.9, data=FIXTURES / "digits_calib.npz", allocate="global", recover="moments"
    )
    assert re.search(r"On \d+ held-out inputs, same answers as the original: [\d.]+ %", made._repr_html_())


def test_an_analysis_shows_itself():
    """A notebook shows the first layers with their widths and what is frozen."""
    analysis = onnxprune.analyze(MODEL)
    shown = analysis._repr_html_()
    assert shown.count("<tr>") == 1 + min(20, len(analysis.layers))
    assert analysis.layers[0].node in shown
    assert "10 filters frozen" in shown


def test_widths_as_a_figure(result):
    """The figure has two bars per layer with filters, before and after."""
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'onnxprune[plot]'")
    (axes,) = result.plot_widths().axes
    layers = [x for x in result.report.layers if x.outputs]
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == [x.outputs[0] for x in layers] + [x.outputs[1] for x in layers]
    assert [label.get_text() for label in axes.get_xticklabels()] == [x.node[-30:] for x in layers]


@pytest.mark.parametrize(("measure", "values"), [(AGREEMENT, [0.8, 0.5]), (ERROR, [0.1, 0.1])])
def test_a_search_as_a_figure(measure, values):
    """The figure has a line per method, in percent of the MACs; failures are left out, errors are positive."""
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'onnxprune[plot]'")
    (axes,) = frontier(measure).plot().axes
    lines = [line for line in axes.lines if line.get_label() in {"l1", "l2"}]
    assert [line.get_label() for line in lines] == ["l1", "l2"]
    assert list(lines[0].get_xdata()) == [20.0, 50.0]
    assert list(lines[0].get_ydata()) == pytest.approx(values)
    assert axes.get_ylabel() == measure.name


def test_figures_draw(result, tmp_path):
    """Both figures can be written, whatever the names are."""
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'onnxprune[plot]'")
    for figure in (result.plot_widths(), frontier().plot()):
        figure.axes[0].set_title(r"\$x_{$ <script>".replace("$", r"\$"))
        figure.savefig(tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 5000


def test_missing_matplotlib(result, without_matplotlib):
    """Without matplotlib the message has the one command that brings it."""
    for plotted in (result.plot_widths, frontier().plot):
        with pytest.raises(UsageError, match=r"pip install 'onnxprune\[plot\]'"):
            plotted()
