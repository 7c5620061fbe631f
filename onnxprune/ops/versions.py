"""One modern form of each op: older operator sets had as attributes what are inputs today.

`modern` shows a node to its rule in today's form; `set_parameter` writes a refitted value back in the node's own form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.defs

from onnxprune.graph import Array, Model, Node, Tensor, Variable, constant, fresh_name, values

_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
# op -> (last operator set of the old form, attributes that became inputs, in the order of the inputs after the data)
_ATTRIBUTES: dict[str, tuple[int, tuple[str, ...]]] = {
    "Clip": (10, ("min", "max")),
    "Pad": (10, ("pads", "value")),
    "ReduceSum": (12, ("axes",)),
    "Slice": (9, ("starts", "ends", "axes")),
    "Split": (12, ("split",)),
    "Squeeze": (12, ("axes",)),
    "TopK": (9, ("k",)),
    "Unsqueeze": (12, ("axes",)),
    "Upsample": (8, ("scales",)),
    **{f"Reduce{r}": (17, ("axes",)) for r in _REDUCTIONS},
}
_FLATTENING = frozenset(
    {"Softmax", "LogSoftmax", "Hardmax"}
)  # before 13 they flatten, and normalise over all trailing axes


def modern(node: Node, opset: int) -> tuple[list[Tensor | Array | None], dict[str, Any]]:
    """Inputs and attributes of a node of the default domain in today's form; an attribute that became an input is an
    array.
    """
    inputs: list[Tensor | Array | None] = [t if t.name else None for t in node.inputs]
    attrs = dict(node.attrs)
    last, names = _ATTRIBUTES.get(node.op, (0, ()))
    if opset <= last:
        given = [attrs.pop(n, None) for n in names]
        inputs += [None if v is None else np.asarray(v) for v in given]
    if node.op == "Resize" and opset <= 10:
        inputs.insert(1, None)
    if node.op in _FLATTENING and opset <= 12:
        attrs["flatten"] = True
        attrs.setdefault("axis", 1)
    return inputs, attrs


def set_parameter(model: Model, node: Node, name: str, value: Any, taken: set[str]) -> None:
    """Set an input or attribute by its modern name; None deletes an attribute. `taken`: tensor names in use."""
    schema = _schema(node, model.opset)
    if schema is not None and name in _input_names(schema) and value is not None:
        _set_input(model, node, _input_names(schema).index(name), np.asarray(value), taken)
    elif value is None:
        node.attrs.pop(name, None)
    else:
        node.attrs[name] = [int(v) for v in value] if isinstance(value, (list, tuple, np.ndarray)) else int(value)


def _schema(node: Node, opset: int) -> onnx.defs.OpSchema | None:
    if node.domain not in (None, "", "ai.onnx"):
        return None
    return onnx.defs.get_schema(node.op, opset, "")


def _input_names(schema: onnx.defs.OpSchema) -> list[str]:
    return [i.name for i in schema.inputs]


def _set_input(model: Model, node: Node, index: int, array: Array, taken: set[str]) -> None:
    """Give the node a constant; the old one stays for whoever else reads it."""
    while len(node.inputs) <= index:
        node.inputs.append(Variable.empty())
    old = node.inputs[index]
    held = values(old)
    if held is not None and held.shape == array.shape and (held == array).all():
        return
    dtype = np.int64 if held is None else held.dtype
    base = old.name or f"{node.outputs[0].name}_{index}"
    read = old.name in model.captured or any(o.name == old.name for o in model.graph.outputs)
    alone = len(old.outputs) == 1 and old.name and not read
    new = constant(old.name if alone else fresh_name(base, taken), array.astype(dtype))
    node.inputs[index] = new
