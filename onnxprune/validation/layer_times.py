"""What each layer costs at which widths: convolutions timed alone at a few widths, the model profiled once.

A convolution's time is no multiple of its MACs: onnxruntime computes blocks of channels, several at a time, so that
half of the filters may take as long as all of them. Times alone give the shape of this curve, the profile of the whole
model, where other nodes are fused and caches are shared, its height.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import files
from onnxprune.analysis import Analysis, Labels, Layer
from onnxprune.clock import Progress
from onnxprune.cost import Duration
from onnxprune.errors import FileError
from onnxprune.graph import Array, Node, dtype_of, shape_of
from onnxprune.normalize.describe import export
from onnxprune.runtime import CPU, version
from onnxprune.validation.environment import cpu_flags, cpu_name
from onnxprune.validation.kernels import block_size
from onnxprune.validation.profile import events, profile

_POINTS = 6  # widths of an axis
_NARROW = (4, 8)  # inputs of less than a block, which are not read in blocks
_WEIGHT = 0.01  # neither zero nor so small that processors slow down
_RUNS = 10  # of a convolution alone; the faster half counts
_NAME, _BEFORE = "layer", "before"
_LOG = logging.getLogger("onnxprune")
_EMPTY: Labels = np.zeros(1, np.int32)


@dataclass(frozen=True, slots=True)
class Conv:
    """All of a convolution that decides its time, but its widths.

    shape: batch, height and width of its input; attributes: as ONNX has them, but for `group`.
    """

    kernel: tuple[int, ...]
    shape: tuple[int, int, int]
    depthwise: bool
    attributes: tuple[tuple[str, Any], ...]
    opset: int
    threads: int

    @property
    def key(self) -> str:
        """A name for a file."""
        return json.dumps(asdict(self), sort_keys=True)


Timer = Callable[[Conv, int, int], float]
Times = dict[str, dict[str, float]]  # convolution -> "inputs,outputs" -> seconds


def durations(
    analysis: Analysis,
    feeds: Mapping[str, Array],
    threads: int = 1,
    *,
    timer: Timer | None = None,
    whole: Mapping[str, float] | None = None,
) -> list[Duration]:
    """Seconds of every node of the cleaned model as functions of its widths.

    feeds: an array per input. timer: seconds of a convolution alone, with so many inputs and outputs; whole: seconds by
    node in the whole model; both are measured unless given. What was measured alone is kept in the cache folder.
    """
    if whole is None:
        _LOG.info("profile of the model")
        whole = {row.node: row.seconds for row in profile(export(analysis.model), feeds, threads=threads)}
    nodes = {n.name or n.outputs[0].name: n for n in analysis.model.graph.nodes if n.outputs}
    layers = {x.node: x for x in analysis.layers if whole.get(x.node)}
    convs = {name: c for name in layers if (c := _conv(analysis, nodes[name], threads))}
    table = _table(convs, layers, timer)
    found = [_layer(x, whole[name], table.get(name)) for name, x in layers.items()]
    others = {name: seconds for name, seconds in whole.items() if name not in layers}
    return found + [_other(analysis, nodes.get(name), seconds) for name, seconds in others.items()]


def _conv(analysis: Analysis, node: Node, threads: int) -> Conv | None:
    """The convolution of a node; None for what is not timed alone: grouped, of other dimensions, or not in float32."""
    if node.op != "Conv" or node.inputs[1].name not in analysis.model.constants():
        return None
    weight, shape = node.inputs[1], analysis.shapes.get(node.inputs[0].name, ())
    outputs, columns, *kernel = shape_of(analysis.model.constants()[weight.name])
    group = int(node.attrs.get("group", 1))
    depthwise = group == outputs == shape[1] > 1 and columns == 1 if len(shape) == 4 else False
    if len(shape) != 4 or dtype_of(weight) != np.float32 or not (group == 1 or depthwise):
        return None
    attributes = {k: v for k, v in node.attrs.items() if k != "group"}
    told = tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in attributes.items()))
    return Conv(tuple(kernel), (shape[0], *shape[2:]), depthwise, told, analysis.model.opset, threads)


# ---- convolutions alone --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Grid:
    """Seconds [inputs, outputs] at these widths."""

    inputs: NDArray[np.int64]
    outputs: NDArray[np.int64]
    seconds: NDArray[np.float64]


def _table(convs: Mapping[str, Conv], layers: Mapping[str, Layer], timer: Timer | None) -> dict[str, _Grid]:
    """Times of each convolution, by node; those alike in all but their widths share a grid."""
    most: dict[Conv, tuple[int, int]] = {}
    for name, conv in convs.items():
        held = most.get(conv, (1, 1))
        most[conv] = (max(held[0], len(layers[name].inputs)), max(held[1], len(layers[name].outputs)))
    path = _cache()
    known = _read(path) if timer is None else {}
    count, grids = sum(map(len, known.values())), dict[Conv, _Grid]()
    for conv, (inputs, outputs) in Progress("times of layers:", len(most)).over(most.items()):
        reads = np.unique([*(w for w in _NARROW if w < min(inputs, block_size())), *widths(inputs)])
        grids[conv] = _timed(conv, reads, widths(outputs), timer or alone, known.setdefault(conv.key, {}))
    if timer is None and sum(map(len, known.values())) > count:
        _write(path, known)
    return {name: grids[conv] for name, conv in convs.items()}


def widths(most: int) -> NDArray[np.int64]:
    """Whole blocks up to the width `most`, in growing steps; of less than a block that width alone."""
    block = block_size()
    if most < block:
        return np.array([most])
    top = ceil(most / block)
    return np.unique(np.ceil(np.geomspace(1, top, _POINTS).round(6)).astype(np.int64)) * block


def _timed(
    conv: Conv, inputs: NDArray[np.int64], outputs: NDArray[np.int64], timer: Timer, known: dict[str, float]
) -> _Grid:
    """The grid of a convolution; noise must not make a narrower one slower."""
    for i in inputs.tolist():
        for o in outputs.tolist():
            if f"{i},{o}" not in known:
                known[f"{i},{o}"] = timer(conv, i, o)
    seconds = np.array([[known[f"{i},{o}"] for o in outputs.tolist()] for i in inputs.tolist()])
    return _Grid(inputs, outputs, np.maximum.accumulate(np.maximum.accumulate(seconds, 0), 1))


def alone(conv: Conv, inputs: int, outputs: int) -> float:
    """Seconds of one run of a convolution behind another one, and of a change of layout between the two."""
    batch, *size = conv.shape
    model = _model(conv, outputs if conv.depthwise else inputs, outputs)
    feeds = {"x": np.ones((batch, model.graph.input[0].type.tensor_type.shape.dim[1].dim_value, *size), np.float32)}
    found = events(model, feeds, conv.threads, CPU, _RUNS)
    first = [i for i, name in enumerate(found) if name.startswith(_BEFORE)]
    series = [times for _, _, times in list(found.values())[first[0] + 1 if first else 0 :]]
    last = next(i for i, name in enumerate(list(found)[-len(series) :]) if name.startswith(_NAME))
    times = np.sort(np.sum(series[: last + 1], axis=0))
    return float(times[: ceil(len(times) / 2)].mean())


def _model(conv: Conv, inputs: int, outputs: int) -> ModelProto:
    """The convolution behind another one, unless its few inputs are those of the model."""
    batch, *size = conv.shape
    reads, first = (inputs, []) if inputs < _NARROW[0] else (block_size(), [_made(_BEFORE, ["x", "v"])])
    group = outputs if conv.depthwise else 1
    layer = _made(_NAME, [_BEFORE if first else "x", "w", "b"], group=group, **dict(conv.attributes))
    shapes = {"w": (outputs, inputs // group, *conv.kernel), "b": (outputs,)}
    shapes |= {"v": (inputs, reads, 1, 1)} if first else {}
    graph = helper.make_graph(
        [*first, layer],
        _NAME,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, reads, *size])],
        [helper.make_tensor_value_info(_NAME, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.full(shape, _WEIGHT, np.float32), name) for name, shape in shapes.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", conv.opset)], ir_version=8)


def _made(name: str, inputs: Sequence[str], **attributes: Any) -> Any:
    return helper.make_node("Conv", inputs, [name], name, **attributes)


# ---- the cache -----------------------------------------------------------------------------------------------------


def _cache() -> Path:
    """The file for this processor and this onnxruntime."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxprune"
    machine = json.dumps([cpu_name(), sorted(cpu_flags()), version()])
    return folder / f"layer-times-{sha256(machine.encode()).hexdigest()[:16]}.json"


def _read(path: Path) -> Times:
    """What was measured before; nothing where there is no file, or not one of ours."""
    try:
        found = json.loads(files.read_text(path))
        return {k: {w: float(s) for w, s in times.items()} for k, times in found["seconds"].items()}
    except (FileError, ValueError, KeyError, AttributeError, TypeError):
        return {}


def _write(path: Path, known: Times) -> None:
    """Keep it; a machine without a place for it measures again."""
    told = {"cpu": cpu_name(), "onnxruntime": version(), "seconds": known}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(told), force=True)
    except (FileError, OSError) as error:
        _LOG.info("times of layers are not kept: %s", error)


# ---- as functions of the classes -------------------------------------------------------------------------------------


def _layer(layer: Layer, seconds: float, grid: _Grid | None) -> Duration:
    """Of a layer: as it was timed alone, else proportional to its inputs and outputs."""
    if grid is None:
        return _proportional(layer.inputs, layer.outputs, seconds)
    height = seconds / grid.seconds[-1, -1]
    found = Duration(layer.inputs, layer.outputs, grid.inputs, grid.outputs, grid.seconds * height, block_size())
    at = found.at(np.array([[len(layer.inputs), len(layer.outputs)]]))[0]
    return found.scaled(seconds / at)


def _proportional(inputs: Labels, outputs: Labels, seconds: float) -> Duration:
    corners = np.array([[0.0, 0.0], [0.0, seconds]])
    return Duration(inputs, outputs, np.array([0, len(inputs)]), np.array([0, len(outputs)]), corners, 1)


def _other(analysis: Analysis, node: Node | None, seconds: float) -> Duration:
    """Of a node without weights: proportional to the widest axis of what it makes; of a change of layout constant."""
    views = analysis.trace.trace.views
    factors = [f for o in (node.outputs if node else ()) for f in views.get(o.name, ())]
    widest = max(factors, key=np.size, default=None)
    labels = _EMPTY if widest is None else analysis.trace.classes[widest.reshape(-1)]
    return _proportional(_EMPTY, labels, seconds)
