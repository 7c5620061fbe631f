"""Repairs of weights alone, on a cut model: the channel ridge against its formula, the others through their modules."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import analyse, each, random_plan
from recovering import Case, duplicates, far, outputs

from onnxprune.recover import weights
from onnxprune.recover.layers import sites
from onnxprune.recover.program import program
from onnxprune.recover.statistics import readers

KINDS = {
    "Conv": (
        "float[N,3,7,6] x",
        "float[5,3,1,1] w, float[5] b, float[4,5,3,2] v, float[2,4,1,1] u",
        "k = Conv(r, v)\n s = Relu(k)\n y = Conv(s, u)",
    ),
    "ConvTranspose": (
        "float[N,3,5,4] x",
        "float[5,3,1,1] w, float[5] b, float[5,4,2,2] v, float[2,4,1,1] u",
        "k = ConvTranspose(r, v)\n s = Relu(k)\n y = Conv(s, u)",
    ),
}


def case_of(x, held, last, kept=None):
    text = f"g ({x}) => (float[] y) <{held}> {{ h = Conv(x, w, b)\n r = Relu(h)\n {last} }}"
    analysis = analyse(text)
    case = Case(analysis, random_plan(analysis, 0.5, 1) if kept is None else kept)
    full = np.ones(analysis.classes + 1, bool)
    return case, readers(analysis, full, case.whole, sites(case.whole)[0], case.reference)


@each(KINDS, "x, held, last")
def test_channel_ridge(x, held, last):
    """W' = B W with B = G[:, P] (G[P, P] + ridge mean(diag) I)^-1, G the channels' second moments over all taps."""
    case, found = case_of(x, held, last)
    smaller = case.smaller.copy()
    weights.repair("ridge", case.analysis, case.kept, smaller, found, ridge=0.1)
    narrow = program(smaller)
    tested = 0
    for reader in found:
        full = reader.inputs
        taps = reader.site.layer.taps
        classes = full.classes[0].reshape(taps, -1)[0]
        stay = case.kept[classes]
        if stay.all():
            continue
        tested += 1
        c = len(stay)
        gram = sum(full.gram[0][t * c : (t + 1) * c, t * c : (t + 1) * c].astype(np.float64) for t in range(taps))
        inner = gram[np.ix_(stay, stay)]
        express = np.linalg.solve(inner + 0.1 * np.diag(inner).mean() * np.eye(len(inner)), gram[stay])
        site = next(s for s in sites(narrow)[0] if s.weight == reader.site.weight)
        axis = next(x for x in case.analysis.layers if x.weight == site.weight)
        outs = case.kept[axis.outputs]
        wanted = [express @ full.weight[0][t * c : (t + 1) * c][:, outs] for t in range(taps)]
        np.testing.assert_allclose(
            site.layer.matrix(site.read(narrow))[0], np.concatenate(wanted), rtol=1e-3, atol=1e-4
        )
    assert tested == 2


def test_channel_ridge_of_copies():
    """Without a ridge, copies are lost without loss."""
    text = "g (float[N,3,7,6] x) => (float[] y) <float[5,3,1,1] w, float[5] b, float[2,5,3,2] v> { h = Conv(x, w, b)\n r = Relu(h)\n y = Conv(r, v) }"
    case = duplicates(text)
    found = readers(case.analysis, case.kept | True, case.whole, sites(case.whole)[0], case.reference)
    smaller = case.smaller.copy()
    done = weights.repair("ridge", case.analysis, case.kept, smaller, found, ridge=0.0)
    assert far(outputs(program(smaller), case.batches), case.reference.outputs) < 1e-4
    assert [(x.node, x.op, x.method) for x in done] == [("y", "Conv", "ridge")]


@pytest.mark.parametrize("method", weights.METHODS)
def test_every_method_helps_on_copies(method):
    """Each repair leaves a network that runs, changes it in place, is nearer to the original, and tells what it did."""
    text = "g (float[N,3,7,6] x) => (float[] y) <float[5,3,1,1] w, float[5] b, float[2,5,3,2] v, float[2] c> { h = Conv(x, w, b)\n r = Relu(h)\n y = Conv(r, v, c) }"
    case = duplicates(text)
    found = readers(case.analysis, case.kept | True, case.whole, sites(case.whole)[0], case.reference)
    smaller = case.smaller.copy()
    done = weights.repair(method, case.analysis, case.kept, smaller, found)
    assert far(outputs(program(smaller), case.batches), case.reference.outputs) < case.before
    assert any(x.method == method for x in done)
    assert all((x.before, x.after) == (None, None) for x in done)


def test_absorb_uses_measured_means():
    """What is absorbed is the mean that was measured: the bias moves by the weights' sum times it."""
    text = "g (float[N,3,7,6] x) => (float[] y) <float[5,3,1,1] w, float[5] b, float[2,5,3,2] v, float[2] c> { h = Conv(x, w, b)\n r = Relu(h)\n y = Conv(r, v, c) }"
    case = duplicates(text)
    found = readers(case.analysis, case.kept | True, case.whole, sites(case.whole)[0], case.reference)
    reader = next(r for r in found if r.site.layer.y == "y")
    smaller = case.smaller.copy()
    weights.repair("absorb", case.analysis, case.kept, smaller, found)
    classes = reader.inputs.classes[0].reshape(6, 5)[0]
    means = reader.inputs.mean[0].reshape(6, 5).mean(0)
    gone = ~case.kept[classes]
    wide = case.whole.weights
    moved = wide["v"].sum((2, 3))[:, gone] @ means[gone]
    np.testing.assert_allclose(program(smaller).weights["c"] - wide["c"], moved, rtol=1e-4)
