"""Cleaning a model while asserting everything that must hold for every model."""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.normalize import clean
from onnxprune.runtime import random_inputs, session


def parse(body, *, opset=17, ir=8, domains=""):
    """The model of a graph as text; `domains`: further imports such as ', "com.acme" : 1'."""
    return onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}{domains}]>\n{body}')


def ops(proto):
    """Op types of the nodes, in order."""
    return [n.op_type for n in proto.graph.node]


def initializer(proto, name):
    """Value of an initializer."""
    return onnx.numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == name))


def names(proto):
    """Names of the initializers."""
    return {t.name for t in proto.graph.initializer}


def real_inputs(proto):
    """Graph inputs that are not initializers."""
    return [i for i in proto.graph.input if i.name not in names(proto)]


def sizes(proto, batch):
    """A shape for each input: symbolic first dimensions are the batch size, others 4."""
    shapes = {}
    for info in real_inputs(proto):
        dims = info.type.tensor_type.shape.dim
        shapes[info.name] = tuple(d.dim_value or (batch if i == 0 else 4) for i, d in enumerate(dims))
    return shapes


def assert_equal_outputs(before, after, batches=(1, 3)):
    """Both models compute the same, to 1e-5 of the largest output, for every batch size."""
    first, second = session(before), session(after)
    for shapes in {tuple(sizes(before, b).items()) for b in batches}:
        feeds = random_inputs(before, dict(shapes), seed=1)
        want, got = first.run(feeds), second.run(feeds)
        assert list(want) == list(got)
        for name, array in want.items():
            scale = np.abs(np.asarray(array, np.float64)).max(initial=1e-30)
            assert array.shape == got[name].shape
            assert (
                np.abs(np.asarray(array, np.float64) - np.asarray(got[name], np.float64)).max(initial=0) <= 1e-5 * scale
            )


def cleaned(proto, *, run=True, batches=(1, 3), **options):
    """Clean a model and check: same outputs, signature, versions and names; valid; idempotent; input untouched."""
    before = proto.SerializeToString(deterministic=True)
    after = clean(proto, **options)
    content = after.SerializeToString(deterministic=True)
    assert proto.SerializeToString(deterministic=True) == before
    assert clean(onnx.load_from_string(content), **options).SerializeToString(deterministic=True) == content
    assert list(after.graph.input) == real_inputs(proto)
    assert list(after.graph.output) == list(proto.graph.output)
    assert list(after.opset_import) == list(proto.opset_import)
    assert after.ir_version == max(4, proto.ir_version)
    made = {o: n for n in proto.graph.node for o in n.output if o}
    twins = [(n, made[n.output[0]]) for n in after.graph.node if n.output[0] in made]
    assert all(n.name == old.name for n, old in twins if n.op_type == old.op_type)
    onnx.checker.check_model(after, full_check=True)
    if run:
        assert_equal_outputs(proto, after, batches)
    return after
