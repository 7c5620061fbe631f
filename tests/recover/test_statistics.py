"""Second moments of what layers read, and refits from them, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import analyse, each, random_plan
from numpy.lib.stride_tricks import sliding_window_view
from recovering import Case

from onnxprune.recover.layers import sites
from onnxprune.recover.program import program, run_through
from onnxprune.recover.statistics import readers, refitted

KINDS = {
    "Conv": ("float[N,3,7,6] x", "float[4,3,1,1] w, float[4] b, float[2,4,3,2] v, float[2] c", "y = Conv(r, v, c)"),
    "Conv, groups": (
        "float[N,3,7,6] x",
        "float[4,3,1,1] w, float[4] b, float[6,2,3,2] v",
        "y = Conv <group = 2> (r, v)",
    ),
    "Conv, depthwise": (
        "float[N,3,7,6] x",
        "float[4,3,1,1] w, float[4] b, float[4,1,3,2] v",
        "y = Conv <group = 4> (r, v)",
    ),
    "Conv, 1 axis": ("float[N,3,9] x", "float[4,3,1] w, float[4] b, float[2,4,3] v", "y = Conv(r, v)"),
    "Conv, 3 axes": ("float[N,3,3,4,3] x", "float[4,3,1,1,1] w, float[4] b, float[2,4,2,1,2] v", "y = Conv(r, v)"),
    "ConvTranspose": ("float[N,3,5,4] x", "float[4,3,1,1] w, float[4] b, float[4,2,3,2] v", "y = ConvTranspose(r, v)"),
}


def text(x, weights, last):
    return f"g ({x}) => (float[] y) <{weights}> {{ h = Conv(x, w, b)\n r = Relu(h)\n {last} }}"


def looked(source, kept=None):
    """A case, and the statistics of its layers by output."""
    analysis = analyse(source)
    full = np.ones(analysis.classes + 1, bool)
    case = Case(analysis, full if kept is None else kept, batches=3, samples=6)
    found = readers(analysis, full, case.whole, sites(case.whole)[0], case.reference)
    return case, {r.site.layer.y: r for r in found}


def windows(r, v, groups, transposed):
    """What all positions of a convolution read: [groups, n, taps * channels], taps slowest."""
    kernel = v.shape[2:]
    if transposed:
        r = np.pad(r, [(0, 0), (0, 0), *((k - 1, k - 1) for k in kernel)])
    axes = tuple(range(2, r.ndim))
    found = sliding_window_view(r, kernel, axis=axes)  # [n, c, grid..., kernel...]
    found = np.moveaxis(found, 1, -1)  # [n, grid..., kernel..., c]
    if transposed:
        found = np.flip(found, tuple(range(-1 - len(kernel), -1)))
    c = r.shape[1] // groups
    found = found.reshape(-1, int(np.prod(kernel)), groups, c)
    return found.transpose(2, 0, 1, 3).reshape(groups, len(found), -1)


@each(KINDS, "x, weights, last")
def test_grams(x, weights, last):
    """Second moments and means are those of the windows of the fitted batches, for every kind of convolution."""
    case, found = looked(text(x, weights, last))
    reader, tensors = found["y"], []
    run_through(case.whole, case.batches[:2], ["r"], lambda _, t: tensors.append(t["r"]))
    rows = windows(
        np.concatenate(tensors), case.whole.weights["v"], reader.site.layer.groups, "Transpose" in last
    ).astype(np.float64)
    np.testing.assert_allclose(reader.inputs.gram, rows.transpose(0, 2, 1) @ rows / rows.shape[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reader.inputs.mean, rows.mean(1), rtol=1e-4, atol=1e-5)
    covariance = np.stack([np.cov(r.T, bias=True).reshape(r.shape[1], -1) for r in rows])
    add = np.einsum("gii->g", covariance) / covariance.shape[1]
    ridged = covariance + 0.01 * add[:, None, None] * np.eye(covariance.shape[1])
    np.testing.assert_allclose(reader.inputs.centred(0.01), ridged, rtol=1e-3, atol=1e-5)
    assert reader.inputs.follows == ("group" in last)


def test_classes():
    """Rows carry the class of the channel that they belong to, taps slowest; frozen layers carry 0."""
    last = "k = Conv <group = 2> (r, v)\n y = Conv(k, u)"
    _, found = looked(
        text("float[N,3,7,6] x", "float[4,3,1,1] w, float[4] b, float[6,2,3,2] v, float[2,6,1,1] u", last)
    )
    assert found["k"].inputs.classes.tolist() == [[1] * 12, [2] * 12]
    assert found["y"].inputs.classes.tolist() == [[1, 1, 1, 2, 2, 2]]
    assert (found["h"].inputs.classes == 0).all()
    assert found["k"].inputs.follows
    _, found = looked(
        text("float[N,3,7,6] x", "float[6,3,1,1] w, float[6] b, float[4,3,3,2] v", "y = Conv <group = 2> (r, v)")
    )
    assert found["y"].inputs.classes.tolist() == [[1, 2, 3] * 6] * 2
    assert not found["y"].inputs.follows
    _, found = looked(text(*KINDS["Conv, groups"]))
    assert found["y"].inputs.classes.tolist() == [[0] * 12] * 2


def test_of_a_cut_model():
    """Statistics of a model that was cut are those of its own inputs."""
    analysis = analyse(text(*KINDS["Conv"]))
    kept = random_plan(analysis, 0.5, 0)
    case = Case(analysis, kept, batches=3, samples=6)
    narrow = program(case.smaller)
    found = {r.site.layer.y: r for r in readers(analysis, kept, narrow, sites(narrow)[0], case.reference)}
    full = {r.site.layer.y: r for r in readers(analysis, kept | True, case.whole, sites(case.whole)[0], case.reference)}
    stay = kept[full["y"].inputs.classes[0]]
    np.testing.assert_allclose(found["y"].inputs.gram[0], full["y"].inputs.gram[0][np.ix_(stay, stay)], rtol=1e-4)
    assert np.array_equal(found["y"].inputs.classes[0], full["y"].inputs.classes[0][stay])


@pytest.mark.parametrize("name", ["Conv", "Conv, 3 axes", "ConvTranspose"])
def test_refitted(name):
    """The refit is the ridge regression of the layer's output on what stays, with the means made up for in the bias."""
    source = text(*KINDS[name])
    case, found = looked(source)
    reader = found["y"]
    lost = np.zeros(case.analysis.classes + 1, bool)
    lost[reader.inputs.classes[0, 0]] = True
    stored = refitted(reader, lost, case.whole)
    new = reader.site.layer.matrix(stored["v"]).astype(np.float64)
    assert set(stored) == ({"v", "c"} if name == "Conv" else {"v"})
    for g, classes in enumerate(reader.inputs.classes):
        gone, old = lost[classes], reader.inputs.weight[g]
        c = reader.inputs.centred()[g]
        wanted = np.zeros_like(old)
        wanted[~gone] = np.linalg.solve(c[np.ix_(~gone, ~gone)], c[~gone] @ old)
        np.testing.assert_allclose(new[g], wanted, rtol=1e-3, atol=1e-4)
        if "c" in stored:
            change = stored["c"] - case.whole.weights["c"]
            np.testing.assert_allclose(change, reader.inputs.mean[g] @ (old - new[g]), rtol=1e-3, atol=1e-4)


def test_nothing_lost():
    """A reader that loses nothing keeps its weight."""
    case, found = looked(text(*KINDS["Conv"]))
    stored = refitted(found["y"], np.zeros(case.analysis.classes + 1, bool), case.whole)
    np.testing.assert_allclose(stored["v"], case.whole.weights["v"], rtol=1e-6)
    np.testing.assert_allclose(stored["c"], case.whole.weights["c"], rtol=1e-6)
