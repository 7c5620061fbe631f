"""Which kernels onnxruntime chooses, read from its optimised graph: no measurement, so no noise.

Convolutions in blocked layout (NCHWc) are several times faster than the others. A convolution leaves that layout where
its channel counts do not fit the blocks, so that a smaller model can be a slower one.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto

from onnxprune.files import read_bytes
from onnxprune.runtime import CPU, session
from onnxprune.stored import reads
from onnxprune.validation.environment import cpu_flags

BLOCKED = "com.microsoft.nchwc"
_SUFFIX = "_nchwc"  # onnxruntime names a blocked node after the tensor that the plain one made
_ALIGNED = 4  # channels; what reordering into blocks needs


@dataclass(frozen=True, slots=True)
class ConvKernel:
    """A convolution: its channels, whether it runs blocked, and where it does not, why and what would fix it."""

    node: str
    inputs: int
    outputs: int
    group: int
    blocked: bool
    why: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The convolutions of a model in the order of its graph."""

    convs: tuple[ConvKernel, ...]

    @property
    def blocked(self) -> int:
        """How many run blocked."""
        return sum(c.blocked for c in self.convs)

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        return {"convs": len(self.convs), "blocked": self.blocked, "others": [asdict(c) for c in self.others]}

    @property
    def others(self) -> tuple[ConvKernel, ...]:
        """Those that do not run blocked."""
        return tuple(c for c in self.convs if not c.blocked)


def blocked(model: ModelProto) -> Kernels:
    """Which convolutions onnxruntime runs in blocked layout on this processor; those on quantized inputs do not count.

    model: not changed. Raises ModelError when onnxruntime does not load it.
    """
    model = named(model)
    optimised = optimised_graph(model)
    origin = covered(model.graph, optimised)
    kernel = {name: node for node in optimised.node for name in origin[node.name]}
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    given = {i.name for i in model.graph.input}
    ints = {o for n in model.graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    convs = [n for n in model.graph.node if n.op_type == "Conv" and n.name in kernel and n.input[0] not in ints]
    return Kernels(tuple(_conv(n, kernel[n.name], shapes.get(n.input[1]), n.input[1] in given) for n in convs))


def fell_off(before: Kernels, after: Kernels) -> tuple[ConvKernel, ...]:
    """Convolutions that ran blocked before and do not any more; those of the same name are the same."""
    were = {c.node for c in before.convs if c.blocked}
    return tuple(c for c in after.others if c.node in were)


def _conv(node: NodeProto, kernel: NodeProto, shape: tuple[int, ...] | None, given: bool) -> ConvKernel:
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    outputs, inputs = (shape[0], shape[1] * group) if shape else (0, 0)
    why, fix = ("", "") if kernel.domain == BLOCKED else _why(kernel, shape, given, group)
    return ConvKernel(node.name, inputs, outputs, group, kernel.domain == BLOCKED, why, fix)


def _why(kernel: NodeProto, shape: tuple[int, ...] | None, given: bool, group: int) -> tuple[str, str]:
    """Why a convolution does not run blocked, and what would change that."""
    if kernel.op_type not in ("Conv", "FusedConv"):
        return f"it runs as {kernel.op_type}", ""
    if given:
        return "its weights are inputs of the graph", "`onnxprune clean` makes them constants"
    if shape is None:
        return "its weights are computed in every run", "store them as constants"
    if len(shape) != 4:
        return "it has not two spatial dimensions", ""
    return misfit(shape[1] * group, shape[0], group)


def misfit(inputs: int, outputs: int, group: int, block: int | None = None) -> tuple[str, str]:
    """Why channel counts do not fit blocks, and the nearest that do; as onnxruntime's NchwcTransformer decides.

    block: channels; that of this processor unless given.
    """
    block = block or block_size()
    if group == 1:
        if inputs >= block and inputs % _ALIGNED:
            return f"{inputs} input channels are no multiple of {_ALIGNED}", _fix("inputs", inputs, _ALIGNED)
    elif group == inputs == outputs:
        if outputs % _ALIGNED:
            return f"{outputs} channels are no multiple of {_ALIGNED}", _fix("channels", outputs, _ALIGNED)
    elif (inputs // group) % block or (outputs // group) % block:
        sizes = f"{inputs // group} -> {outputs // group}"
        return f"channels per group ({sizes}) are no multiples of {block}", f"multiples of {block} per group"
    return "onnxruntime chose another kernel", ""


def _fix(what: str, count: int, align: int) -> str:
    return f"{what} {count // align * align} or {-(-count // align) * align} (--align {align})"


def block_size() -> int:
    """Channels of a block on this processor."""
    return 16 if "avx512f" in cpu_flags() or "asimd" in cpu_flags() else 8


# ---- from the optimised graph back to the original ----------------------------------------------------------------


def named(model: ModelProto) -> ModelProto:
    """The model with a unique name for every node; the model itself where it has them."""
    names = [n.name for n in model.graph.node]
    if all(names) and len(set(names)) == len(names):
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    taken = set(names)
    for i, node in enumerate(copy.graph.node):
        if not node.name or names.count(node.name) > 1:
            wanted = next(filter(None, node.output), "") or node.op_type
            node.name = wanted if wanted not in taken else f"{wanted}#{i}"
            taken.add(node.name)
    return copy


def optimised_graph(model: ModelProto, provider: str = CPU) -> GraphProto:
    """The graph as onnxruntime runs it, without its weights."""
    with tempfile.TemporaryDirectory(prefix="onnxprune") as folder:
        path = Path(folder) / "optimised.onnx"
        session(model, optimize=True, threads=1, provider=provider, optimized=path)
        graph: GraphProto = onnx.load_model_from_string(read_bytes(path)).graph
    graph.ClearField("initializer")
    return graph


def covered(original: GraphProto, optimised: GraphProto) -> dict[str, list[str]]:
    """Names of the original nodes that each optimised node does the work of, the last one first.

    They lie between what the node makes and what other nodes make. Nodes that onnxruntime computed once and for all
    count for their readers.
    """
    maker = {o: n for n in original.node for o in n.output if o}
    made = {n.name: _makes(n, maker) for n in optimised.node}
    others = {o for outputs in made.values() for o in outputs}
    return {name: _between(outputs, others, maker) for name, outputs in made.items()}


def _makes(node: NodeProto, maker: Mapping[str, NodeProto]) -> list[str]:
    """Tensors of the original that an optimised node makes, maybe in another layout."""
    plain = node.name.removesuffix(_SUFFIX)
    known = [o for o in node.output if o in maker]
    if node.domain == BLOCKED and plain != node.name and plain in maker:
        return [plain]
    return [] if node.op_type in ("ReorderOutput", "ReorderInput") else known


def _between(outputs: Sequence[str], others: Iterable[str], maker: Mapping[str, NodeProto]) -> list[str]:
    stop, queue, found = set(others) - set(outputs), list(outputs), dict[str, None]()
    while queue:
        tensor = queue.pop(0)
        node = maker.get(tensor)
        if node is None or tensor in stop or node.name in found:
            continue
        found[node.name] = None
        queue += sorted(reads(node) - stop)
    return list(found)


def heaviest(nodes: Iterable[NodeProto]) -> str:
    """The node that a kernel is named after: a layer where there is one, else the last."""
    ranked: dict[bool, list[str]] = defaultdict(list)
    for n in nodes:
        ranked[n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")].append(n.name)
    return next(iter(ranked[True] or ranked[False]), "")
