"""What the report says of a recovery, with numbers made by hand."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from onnxprune.recover.agreement import Agreement
from onnxprune.recover.result import Recovery
from onnxprune.recover.sequence import LayerRecovery
from onnxprune.report.recovery import recovery, told_accuracy

DATA = {"name": "calib.npz", "samples": 1512, "synthetic": False, "notes": []}
LAYERS = (
    LayerRecovery("conv1", "Conv", 0.75, 0.125, "least-squares"),
    LayerRecovery("conv2", "Conv", 0.5, 0.5, "none", "no better on held-out inputs"),
    LayerRecovery("fc", "Gemm", 0.25, 0.0625, "bias", "10 positions for 99 unknowns"),
)
FOUND = Recovery(
    "least-squares",
    DATA,
    LAYERS,
    Agreement(300, 0.125, 2.5, 0.9, 0.11),
    Agreement(300, 0.875, 0.25, 0.3, 0.11),
    "repaired",
)


def told(found, width=80):
    """The words of the report, however the lines were broken."""
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False, emoji=False)
    console.print(recovery(found))
    text = console.file.getvalue()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    return " ".join(text.split())


def test_agreement_is_told_before_and_after():
    """Source, number of held-out inputs, and both networks beside the original."""
    words = told(FOUND)
    assert "Recovered by least-squares on 1,512 inputs of calib.npz; compared on 300 held out:" in words
    assert "same top-1 answer 12.5 % 87.5 %" in words
    assert "KL divergence 2.5 0.25" in words
    assert "relative error 0.9 0.3" in words
    for warning in ("SYNTHETIC", "CHANCE", "bare cut", "accuracy"):
        assert warning not in words


def test_layers_are_told_worst_first():
    """How many were refitted and how many not, and the layers with the largest errors left."""
    words = told(FOUND)
    assert "2 layers refitted (1 least squares, 1 bias only), 1 left as they were (--json says why)" in words
    places = [words.index(x) for x in ("0.500 -> 0.500 conv2", "0.750 -> 0.125 conv1", "0.250 -> 0.062 fc")]
    assert places == sorted(places)


def test_many_layers_are_cut_short():
    """Only the worst are named."""
    many = tuple(LayerRecovery(f"layer{i}", "Conv", 1.0, i / 100, "least-squares") for i in range(40))
    words = told(replace(FOUND, layers=many))
    assert "40 layers refitted (40 least squares)." in words
    assert words.count("layer") - words.count("layers") - words.count("layer's") == 6
    assert "layer39" in words
    assert "layer33" not in words


def test_repairs_without_errors_are_counted():
    """Where no layer has an error of its own, weights changed and left are counted."""
    layers = (LayerRecovery("a", "Conv", None, None, "merge"), LayerRecovery("b", "Conv", None, None, "none", "why"))
    assert "1 weights changed, 1 left." in told(replace(FOUND, method="merge", layers=layers))


def test_synthetic_inputs_are_told_first():
    """Made-up inputs are said to be so, loudly, before any figure."""
    words = told(replace(FOUND, data=DATA | {"synthetic": True, "notes": ["smooth noise"]}))
    assert words.startswith("SYNTHETIC INPUTS")
    assert "- smooth noise" in words


def test_what_was_shipped():
    """Where the repair did not help, that the bare cut was written is said."""
    assert "the bare cut was written" in told(replace(FOUND, shipped="cut"))


@pytest.mark.parametrize(
    ("shipped", "before", "after", "chance"),
    [("repaired", 0.9, 0.12, True), ("repaired", 0.12, 0.9, False), ("cut", 0.12, 0.9, True), ("cut", 0.9, 0.1, False)],
)
def test_chance_level_is_that_of_what_ships(shipped, before, after, chance):
    """A network that answers like one that always says the same is said to be at chance level, in text and JSON."""
    found = replace(
        FOUND, shipped=shipped, before=replace(FOUND.before, top1=before), after=replace(FOUND.after, top1=after)
    )
    assert found.as_dict()["at_chance"] is chance
    assert ("AT CHANCE LEVEL" in told(found)) is chance


def test_regressions_have_no_chance_level():
    """Without rows of scores there is neither top-1 nor chance, and only the relative error is told."""
    pair = [replace(a, top1=None, chance=None) for a in (FOUND.before, FOUND.after)]
    found = replace(FOUND, before=pair[0], after=pair[1])
    assert found.at_chance is False
    words = told(found)
    assert "relative error 0.9 0.3" in words
    assert "top-1" not in words
    assert "KL" not in words


def test_the_metric_is_told():
    """With labels the accuracy of all three networks."""
    words = told(replace(FOUND, metric={"original": 0.96, "cut": 0.1, "repaired": 0.9}))
    assert "accuracy (original 96.0 %) 10.0 % 90.0 %" in words


def test_training_is_told():
    """A network that was trained after the repair has a column of its own, and decides what is at chance level."""
    right = {"original": 0.96, "cut": 0.1, "repaired": 0.9, "trained": 0.95}
    found = replace(FOUND, trained=Agreement(300, 0.925, 0.125, 0.2, 0.11), shipped="trained", metric=right)
    words = told(found)
    assert "beside the original cut repaired trained" in words
    assert "same top-1 answer 12.5 % 87.5 % 92.5 %" in words
    assert "accuracy (original 96.0 %) 10.0 % 90.0 % 95.0 %" in words
    assert found.as_dict()["trained"]["top1"] == 0.925
    assert not found.at_chance
    assert replace(found, trained=Agreement(300, 0.11, 2.0, 0.9, 0.11)).at_chance


def test_notes_are_told():
    """Those of the data and those of the recovery."""
    words = told(replace(FOUND, data=DATA | {"notes": ["mirrored copies"]}, notes=("to keep to the time",)))
    assert "- mirrored copies" in words
    assert "- to keep to the time" in words


def test_nothing_repaired_and_nothing_measured():
    """The bare cut says that it is one; a repair from the weights alone says that nothing was measured."""
    assert told(None).startswith("Not recovered: this is the bare cut")
    alone = Recovery("absorb", None, (), None, None, "repaired")
    assert "nothing was measured" in told(alone)
    assert alone.as_dict()["before"] is None


def test_accuracy_is_never_claimed():
    """One sentence says what is not known: of nothing, of made-up inputs, of agreement, of few labels."""
    made_up = replace(FOUND, data=DATA | {"synthetic": True})
    labelled = replace(FOUND, metric={"original": 0.9, "cut": 0.1, "repaired": 0.8})
    sentences = [told_accuracy(x) for x in (None, made_up, FOUND, labelled)]
    for sentence, words in zip(
        sentences, ("not measured", "real inputs", "only agreement", "few held-out"), strict=True
    ):
        assert words in sentence


def test_long_names_are_shortened():
    """A name of hundreds of characters takes two lines; one of 90 is whole."""
    layers = tuple(LayerRecovery(n, "Conv", 1.0, 0.5, "joint") for n in ("a" * 90, "functional_1/" * 30))
    words = told(replace(FOUND, layers=layers), width=120)
    assert f"1.000 -> 0.500 {'a' * 90}" in words
    assert f"1.000 -> 0.500 {('functional_1/' * 7)[:87]}..." in words
