"""Models from ONNX text, and what the tests of the engine ask about them.

In the text of a graph, a name in <...> that no node makes is an initializer: with the values given, or else seeded random
ones. An output written as `float[] y` gets the shape that inference finds.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.couple import couple
from onnxprune.cut import cut
from onnxprune.graph import from_proto
from onnxprune.shapes import concrete_shapes
from onnxprune.verify import verify

SHARES = (0.3, 0.6, 1.0)  # of the classes that random plans remove; 1: as many as leave something on every axis
CHANNELS = {"w.0 b.0 v.1": [1, 2, 3, 4]}  # of `between`, where its op carries channels


def between(op, weights="", size="6,6"):
    """conv(x, w, b) = h, then `op`, which makes d of h: [1, 4, size], then y = conv(d, v)."""
    ones = ",1" * (size.count(",") + 1)
    return f"""g (float[1,3,{size}] x) => (float[] y) <float[4,3{ones}] w, float[4] b, float[2,4{ones}] v{weights and ", "}{weights}> {{
        h = Conv(x, w, b)
        {op}
        y = Conv(d, v)
    }}"""


def each(table, columns):
    """Run a test for every entry of a table: name -> tuple of the columns named."""
    return pytest.mark.parametrize(columns, table.values(), ids=table)


def proto(text, *, opset=17, domains="", seed=0):
    """The model of a graph as text; `domains`: further imports such as ', "com.acme" : 1'."""
    ir = max(8, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
    model = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}{domains}]>\n{text}')
    graph, rng = model.graph, np.random.default_rng(seed)
    made = {o for n in graph.node for o in n.output}
    weights = [v for v in graph.value_info if v.name not in made]
    graph.initializer.extend(numpy_helper.from_array(_values(v, rng), v.name) for v in weights)
    graph.ClearField("value_info")
    _fill_outputs(model)
    return model


def _values(info, rng):
    shape = tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
    dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    if dtype.kind in "iu":
        return rng.integers(-100 if dtype.kind == "i" else 0, 100, shape).astype(dtype)
    values = rng.standard_normal(shape)
    return (np.abs(values) + 0.5 if info.name.startswith(("var", "scale")) else values).astype(dtype)


def _fill_outputs(model):
    blank = onnx.ModelProto()
    blank.CopyFrom(model)
    blank.graph.ClearField("output")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {o.name: o for o in (*inferred.value_info, *inferred.output)}
    for output in model.graph.output:
        if not output.type.tensor_type.HasField("shape"):
            output.CopyFrom(known[output.name])


def analyse(source, **options):
    """Couple a graph: as text (see `proto`) or as a model."""
    model = from_proto(proto(source, **options) if isinstance(source, str) else source)
    return couple(model, concrete_shapes(model, None))


def golden(analysis):
    """{"parameter.axis": classes of its positions} for every axis with anything to remove."""
    return {f"{a.param}.{a.axis}": a.classes.tolist() for a in analysis.axes}


def expected(table):
    """{"w.0 b.0": labels, ...} as `golden` shows it: axes with the same classes share an entry."""
    return {name: list(labels) for names, labels in table.items() for name in names.split()}


def reasons(analysis):
    """Why nothing, or not everything, of each producer axis can be removed."""
    return {f"{f.name}.{f.axis}": f.reason for f in analysis.frozen}


def random_plan(analysis, share, seed):
    """[classes + 1] bool: a share of the classes goes, in random order, while every axis of every tensor keeps a position."""
    kept = np.ones(analysis.classes + 1, bool)
    wanted = int(np.ceil(share * analysis.classes))
    inner = [analysis.trace.classes[f] for view in analysis.trace.trace.views.values() for f in view]
    axes = [a.classes for a in analysis.axes] + inner
    for number in np.random.default_rng(seed).permutation(analysis.classes) + 1:
        if (~kept).sum() == wanted:
            break
        kept[number] = False
        kept[number] = any(not kept[classes].any() for classes in axes)
    return kept


def oracle(analysis, kept, seed=0):
    """Cut and compare with the masked original; returns the Verification."""
    return verify(analysis, kept, cut(analysis, kept), seed=seed)


def assert_sound(analysis, seeds=(0,), shares=SHARES):
    """Random plans: the cut model equals the masked original, which in turn differs from the original."""
    assert analysis.classes, "nothing can be removed: the oracle would say nothing"
    for seed in seeds:
        for share in shares:
            kept = random_plan(analysis, share, seed)
            found = oracle(analysis, kept, seed)
            assert not kept.all(), "the plan removes nothing"
            assert found.relative_error <= 1e-5
            assert found.masked_differs
