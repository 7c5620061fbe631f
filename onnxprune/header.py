"""What a file says that the graph view does not hold: signature, metadata, names that bodies capture."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from onnxprune.stored import copy_fields, subgraphs


def declared(proto: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """What the file says of the outputs of custom operators: nobody else can infer their shapes."""
    custom = {o for n in proto.graph.node if n.domain not in ("", "ai.onnx") for o in n.output}
    found = {}
    for info in (v for v in proto.graph.value_info if v.name in custom):
        found[info.name] = onnx.ValueInfoProto()
        found[info.name].CopyFrom(info)
    return found


def header_of(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Everything but nodes, initializers and value_info; initializers leave the inputs, which needs IR 4."""
    header = onnx.ModelProto()
    copy_fields(proto, header, "graph")
    g, h = proto.graph, header.graph
    weights = {t.name for t in g.initializer} | {t.values.name for t in g.sparse_initializer}
    h.name, h.doc_string = g.name, g.doc_string
    h.input.extend(i for i in g.input if i.name not in weights)
    h.output.extend(g.output)
    h.metadata_props.extend(g.metadata_props)
    h.quantization_annotation.extend(g.quantization_annotation)
    header.ir_version = max(header.ir_version, 4)
    return header


def captured_by(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Names read inside the bodies of nodes (at any depth) and not defined there."""
    free: set[str] = set()
    stack = [(body, frozenset[str]()) for n in nodes for body in subgraphs(n)]
    while stack:
        body, outer = stack.pop()
        own = outer | {i.name for i in body.input} | {t.name for t in body.initializer}
        own |= {o for n in body.node for o in n.output}
        free |= {i for n in body.node for i in n.input if i and i not in own}
        free |= {o.name for o in body.output if o.name not in own}
        stack += [(inner, own) for n in body.node for inner in subgraphs(n)]
    return free
