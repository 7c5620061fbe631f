"""The one judge of tools/bench_peers.py: is a pruned file valid, and does it compute what its original computes masked?

Which filters are left is read off the weights: those of the pruned file are rows and columns of those of the whole one,
layer by layer in the order of the graph. The masked original is the whole file with all other rows and columns zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

Array = NDArray[Any]
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
NORMALISATIONS = ("LayerNormalization", "GroupNormalization", "InstanceNormalization")
WINDOW = (0.45, 0.55)  # of the MACs
SAME = 1e-4  # largest difference that rounding explains, relative to the largest output


def constants(model: ModelProto) -> dict[str, Array]:
    """Initializers, Constant nodes and what Identity makes of them, by name."""
    found = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return {name: numpy_helper.to_array(t) for name, t in found.items()}


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    return next((a.i for a in node.attribute if a.name == name), default)


def best(hits: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Positions of the n largest, in order."""
    return np.sort(np.argsort(-hits, kind="stable")[:n])


def part_of(whole: Array, part: Array) -> tuple[Array, Array] | None:
    """Rows and columns of `whole` [m, n, ...] that make up `part`; None where it is nothing of the kind."""
    if whole.shape[2:] != part.shape[2:] or any(p > w for p, w in zip(part.shape, whole.shape, strict=True)):
        return None
    hits = np.isin(whole, part) if whole.shape != part.shape else np.ones(whole.shape, bool)
    rows = best(hits.reshape(len(hits), -1).sum(1), part.shape[0])
    columns = best(hits[rows].swapaxes(0, 1).reshape(whole.shape[1], -1).sum(1), part.shape[1])
    return (rows, columns) if np.array_equal(whole[np.ix_(rows, columns)], part) else None


def kept_weights(whole: Array, part: Array, groups: int) -> NDArray[np.bool_] | None:
    """Which elements of a weight are left; a grouped convolution may lose different columns in every group."""
    mask = np.zeros(whole.shape, bool)
    found = part_of(whole, part)
    if found is not None:
        mask[np.ix_(*found)] = True
        return mask
    if groups == 1 or len(part) % groups:
        return None
    blocks = zip(np.split(whole, groups), np.split(part, groups), np.split(mask, groups), strict=True)
    for before, after, kept in blocks:
        found = part_of(before, after)
        if found is None:
            return None
        kept[np.ix_(*found)] = True
    return mask


def layers(model: ModelProto, known: dict[str, Array]) -> list[NodeProto]:
    """Nodes with a constant matrix or kernel, in order."""
    return [n for n in model.graph.node if n.op_type in LAYERS and known.get(n.input[1], np.zeros(0)).ndim > 1]


def masked(whole: ModelProto, cut: ModelProto) -> ModelProto | str:
    """The whole model with zeros for what the cut one lacks, or why there is none."""
    out, before, after = ModelProto(), constants(whole), constants(cut)
    out.CopyFrom(whole)
    pairs = layers(out, before), layers(cut, after)
    if [n.op_type for n in pairs[0]] != [n.op_type for n in pairs[1]]:
        return "the layers are others"
    if normalised(whole, before) != normalised(cut, after):
        return "normalisations over the removed channels"
    readers = {i: n for n in out.graph.node if n.op_type == "Add" for i in n.input}
    for old, new in zip(*pairs, strict=True):
        groups = attribute(old, "group", 1) if attribute(old, "group", 1) == attribute(new, "group", 1) else 1
        kept = kept_weights(before[old.input[1]], after[new.input[1]], groups)
        if kept is None:
            return f"weights of {old.name} are others"
        if kept.all():
            continue
        replace(out, old, 1, before[old.input[1]] * kept)
        mask_biases(out, old, kept, before, readers)
    return out


def normalised(model: ModelProto, known: dict[str, Array]) -> list[int]:
    """Widths over which normalisations look, and sizes over which a mean or a norm is taken."""
    widths = [known[n.input[1]].size for n in model.graph.node if n.op_type in NORMALISATIONS and n.input[1] in known]
    infos = onnx.shape_inference.infer_shapes(model).graph.value_info
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in infos}
    means = [n for n in model.graph.node if n.op_type in ("ReduceMean", "ReduceL2")]
    return widths + [reduced(n, shapes.get(n.input[0], []), known) for n in means]


def reduced(node: NodeProto, shape: list[int], known: dict[str, Array]) -> int:
    """Product of the axes that a reduction removes; 0 where a size is unknown."""
    axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), [])
    axes = axes or (known[node.input[1]].tolist() if len(node.input) > 1 and node.input[1] in known else [])
    return int(np.prod([shape[a] for a in axes])) if shape else 0


def mask_biases(
    model: ModelProto, node: NodeProto, kept: NDArray[np.bool_], known: dict[str, Array], readers: dict[str, NodeProto]
) -> None:
    """Zero the biases of the outputs that left: the layer's own, or that of the Add behind a MatMul."""
    axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
    rows = kept.any(tuple(a for a in range(kept.ndim) if a != axis))
    places = [(node, 2)] if len(node.input) > 2 else []
    if node.op_type == "MatMul" and (reader := readers.get(node.output[0])):
        places = [(reader, i) for i, name in enumerate(reader.input) if name in known]
    for owner, i in places:
        if known.get(owner.input[i], np.zeros((0, 0))).shape == rows.shape:
            replace(model, owner, i, known[owner.input[i]] * rows)


def replace(model: ModelProto, node: NodeProto, i: int, value: Array) -> None:
    """Give a node a constant of its own."""
    name = f"masked {len(model.graph.initializer)} {node.input[i]}"
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    node.input[i] = name


def run(model: ModelProto | str, feeds: dict[str, Array]) -> list[Array]:
    """Outputs in onnxruntime, one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    source = model if isinstance(model, str) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [np.asarray(o) for o in session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})]


def difference(outputs: Iterable[Array], expected: Iterable[Array]) -> float:
    """Largest difference relative to the largest expected value."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(outputs, expected, strict=True))


def judge(original: str, whole: str, cut: str) -> dict[str, Any]:
    """Everything about one pruned file: `problems` is empty where it is valid.

    original: the file that all tools are given; whole: the same network as this tool sees it, before pruning.
    """
    from onnxprune.validation.feeds import made_up

    problems: list[str] = []
    told: dict[str, Any] = {"problems": problems}
    try:
        onnx.checker.check_model(cut)
    except Exception as e:  # noqa: BLE001 - whatever is wrong with a file is its verdict
        problems.append(f"onnx.checker: {e}"[:200])
    feeds = made_up(onnx.load(original), seed=0)
    expected = run(original, feeds)
    try:
        outputs = run(cut, feeds)
    except Exception as e:  # noqa: BLE001 - as above
        return told | {"problems": [*problems, f"onnxruntime: {e}"[:200]]}
    if [o.shape for o in outputs] != [o.shape for o in expected]:
        return told | {"problems": [*problems, "other output shapes"]}
    if not all(np.isfinite(o).all() for o in outputs):
        problems.append("outputs are not finite")
    told["kept"] = share(original, cut)
    if not WINDOW[0] <= told["kept"] <= WINDOW[1]:
        problems.append(f"keeps {told['kept']:.3f} of the MACs")
    told["whole"] = difference(run(whole, feeds), expected)
    return told | equality(whole, cut, feeds, outputs, expected)


def share(original: str, cut: str) -> float:
    """Kept multiply-accumulates, counted by onnxprune for all."""
    from onnxprune import analyze
    from onnxprune.cost import CostModel

    before, after = (CostModel(analyze(p)).original.macs for p in (original, cut))
    return after / before


def equality(
    whole: str, cut: str, feeds: dict[str, Array], outputs: list[Array], expected: list[Array]
) -> dict[str, Any]:
    """Difference between the cut and the masked original, and between that and the original; or why not stated."""
    model = masked(onnx.load(whole), onnx.load(cut))
    if isinstance(model, str):
        return {"unstated": model}
    try:
        reference = run(model, feeds)
    except Exception as e:  # noqa: BLE001 - the mask is ours, and not the file's fault
        return {"unstated": f"the masked original does not run: {e}"[:200]}
    return {"error": difference(outputs, reference), "masked": difference(reference, expected)}
