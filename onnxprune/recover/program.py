"""A model as a sequence of nodes that runs piece by piece: each node once, from where the last piece ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune import files, runtime
from onnxprune.clock import Progress
from onnxprune.graph import Array, Model, constant, fresh_name, values
from onnxprune.stored import copy_fields, reads

Feeds = Mapping[str, Array]
_WORTH_A_FILE = 1 << 16  # bytes


@dataclass
class Program:
    """Nodes in an order that runs, and the initializers, which may be replaced.

    header: the model without nodes and initializers; weights: arrays by name; opaque: initializers of types that numpy
    does not hold; shapes: of computed tensors, where known.
    """

    header: ModelProto
    nodes: list[NodeProto]
    weights: dict[str, Array]
    opaque: dict[str, TensorProto]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reads = [reads(n) for n in self.nodes]
        self.inputs = [i.name for i in self.header.graph.input]
        self.constant = self._constant()
        self.outputs = [o.name for o in self.header.graph.output if o.name not in self.constant]
        self.producer = {o: i for i, n in enumerate(self.nodes) for o in n.output if o}
        self.readers: dict[str, list[int]] = {}
        for i, names in enumerate(self.reads):
            for name in names:
                self.readers.setdefault(name, []).append(i)

    def _constant(self) -> set[str]:
        """Tensors computed from initializers alone, such as dequantised weights: they change with those."""
        known, found = {*self.weights, *self.opaque}, set[str]()
        for names, node in zip(self.reads, self.nodes, strict=True):
            if names and names <= known:
                known.update(node.output)
                found.update(o for o in node.output if o)
        return found

    def add_bias(self, index: int, bias: Array) -> None:
        """Give the node at `index`, which has none, a bias."""
        name = fresh_name(
            f"{self.nodes[index].output[0]}_bias", {*self.weights, *self.opaque, *self.producer, *self.inputs}
        )
        node = NodeProto()
        node.CopyFrom(self.nodes[index])
        node.input[2:] = [name]  # where there may be an empty one
        self.nodes[index], self.weights[name], self.readers[name] = node, bias, [index]
        self.reads[index].add(name)

    def replaced(self, weights: Mapping[str, Array]) -> Program:
        """The same nodes with some weights of other values."""
        other = copy(self)
        other.weights = {**self.weights, **weights}
        return other

    def is_dynamic(self, name: str) -> bool:
        """Whether a tensor is computed or fed (not an initializer)."""
        return (name in self.producer and name not in self.constant) or name in self.inputs

    def last_reader(self, name: str) -> int:
        """Index of the last node that reads a tensor; beyond all nodes for a result of the model."""
        return len(self.nodes) if name in self.outputs else max(self.readers.get(name, [-1]))

    def piece(self, start: int, stop: int, given: Mapping[str, Array], wanted: Sequence[str]) -> ModelProto:
        """The nodes [start, stop) as a model of its own, from tensors like `given` to `wanted`."""
        proto = ModelProto()
        copy_fields(self.header, proto, "graph")
        g = proto.graph
        g.name = "piece"
        nodes = self._needed(start, stop, wanted)
        g.node.extend(self.nodes[i] for i in nodes)
        used = set().union(*(self.reads[i] for i in nodes)) if nodes else set()
        for name in sorted(used & given.keys()):
            kind = helper.np_dtype_to_tensor_dtype(given[name].dtype)
            g.input.append(helper.make_tensor_value_info(name, kind, [None] * given[name].ndim))
        for name in sorted(used & self.weights.keys()):
            g.initializer.append(numpy_helper.from_array(self.weights[name], name))
        g.initializer.extend(self.opaque[n] for n in sorted(used & self.opaque.keys()))
        g.output.extend(ValueInfoProto(name=n) for n in wanted)
        return proto

    def _needed(self, start: int, stop: int, wanted: Iterable[str]) -> list[int]:
        """Nodes of the range that these tensors depend on."""
        need, found = set(wanted), []
        for i in range(stop - 1, start - 1, -1):
            if need.intersection(self.nodes[i].output):
                need |= self.reads[i]
                found.append(i)
        for i in range(start - 1, -1, -1) if need & self.constant else ():  # made anew: their initializers may be new
            if need.intersection(self.nodes[i].output) & self.constant:
                need |= self.reads[i]
                found.append(i)
        return found[::-1]


def program(model: Model, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Program:
    """Take a model apart. shapes: of its tensors, where known."""
    proto, weights = model.split()
    header = ModelProto()
    copy_fields(proto, header, "graph")
    header.graph.input.extend(proto.graph.input)
    header.graph.output.extend(proto.graph.output)
    arrays, opaque = dict(weights), dict[str, TensorProto]()
    for tensor in proto.graph.initializer:
        if tensor.name in arrays:
            continue
        if tensor.data_type in _HELD:
            arrays[tensor.name] = numpy_helper.to_array(tensor)
        else:
            opaque[tensor.name] = tensor
    return Program(header, list(proto.graph.node), arrays, opaque, shapes or {})


_T = TensorProto
_HELD = frozenset(
    {
        _T.FLOAT,
        _T.FLOAT16,
        _T.DOUBLE,
        _T.BOOL,
        _T.INT8,
        _T.UINT8,
        _T.INT16,
        _T.UINT16,
        _T.INT32,
        _T.UINT32,
        _T.INT64,
        _T.UINT64,
    }
)


def run_through(
    program: Program,
    batches: Sequence[Feeds],
    names: Collection[str],
    visit: Callable[[int, Feeds], None],
    told: str = "batch",
) -> None:
    """Run the whole program on every batch and show `visit` the tensors named and the results of the model.

    told: what the log calls a batch.
    """
    inner = [n for n in dict.fromkeys([*names, *program.outputs]) if n in program.producer]
    session = runtime.session(program.piece(0, len(program.nodes), batches[0], inner), optimize=True)
    for i, batch in enumerate(Progress(told, len(batches)).over(batches)):
        visit(i, {**batch, **session.run({n: batch[n] for n in session.inputs}, inner)})


class Walk:
    """Runs a program over batches from its first node to its last, each node once; see `advance`.

    Holds, for every batch, those tensors only that nodes ahead still read, the results of the model, and `pinned` ones
    until `unpin`.
    """

    def __init__(
        self, program: Program, batches: Sequence[Feeds], store: Store | None = None, pinned: Iterable[str] = ()
    ) -> None:
        self.program, self.position = program, 0
        self._store, self._pinned = store or Store(), Counter(pinned)
        live = {n for n in program.inputs if self._is_needed(n, 0)}
        self._live: list[dict[str, Array]] = [{n: b[n] for n in live} for b in batches]

    def tensor(self, batch: int, name: str) -> Array:
        """A tensor made behind the position that nodes ahead still read."""
        return self._live[batch][name]

    def advance(self, stop: int) -> None:
        """Run the nodes up to (not including) `stop` with their present weights, on all batches."""
        if stop <= self.position:
            return
        program = self.program
        made = [o for n in program.nodes[self.position : stop] for o in n.output if o and o not in program.constant]
        wanted = [o for o in made if self._is_needed(o, stop)]
        session = None
        if wanted:
            session = runtime.session(program.piece(self.position, stop, self._live[0], wanted), optimize=True)
        for held in self._live:
            results = session.run({n: held[n] for n in session.inputs}, wanted) if session is not None else {}
            for name in [n for n in held if not self._is_needed(n, stop)]:
                self._release(name, held.pop(name))
            held.update({n: self._store.keep(a) for n, a in results.items()})
        self.position = stop

    def again(self, start: int, name: str) -> None:
        """Compute a tensor anew by the nodes from `start` on, whose weights have changed; what they read is held."""
        session = runtime.session(self.program.piece(start, self.position, self._live[0], [name]), optimize=True)
        for held in self._live:
            results = session.run({n: held[n] for n in session.inputs}, [name])
            self._release(name, held.pop(name))
            held[name] = self._store.keep(results[name])

    def unpin(self, name: str) -> None:
        """Take back one pin; let go of the tensor if nobody needs it."""
        self._pinned[name] -= 1
        if not self._is_needed(name, self.position):
            for held in self._live:
                if name in held:
                    self._release(name, held.pop(name))

    def _is_needed(self, name: str, stop: int) -> bool:
        return self._pinned[name] > 0 or self.program.last_reader(name) >= stop

    def rest(self, program: Program, wanted: Sequence[str]) -> Iterator[Feeds]:
        """Results of another program that equals this one up to the position, batch by batch."""
        early = [n for n in wanted if n in self._live[0]]
        late = [n for n in wanted if n not in early]
        session = None
        if late:
            piece = program.piece(self.position, len(program.nodes), self._live[0], late)
            session = runtime.session(piece, optimize=True)
        for held in self._live:
            made = session.run({n: held[n] for n in session.inputs}, late) if session else {}
            yield {n: held[n] for n in early} | made

    def close(self) -> None:
        """Let go of everything."""
        for held in self._live:
            for name, array in held.items():
                self._release(name, array)
            held.clear()

    def _release(self, name: str, array: Array) -> None:
        """Inputs belong to the caller: the store has never counted them."""
        if name in self.program.producer:
            self._store.release(array)


def outputs(whole: Program, batches: Sequence[Feeds]) -> Iterator[Feeds]:
    """Results of a program, batch by batch."""
    return Walk(whole, batches).rest(whole, whole.outputs)


class Store:
    """Keeps arrays in memory up to `cap` bytes, and in files of a temporary folder beyond.

    held, peak: bytes in memory now, and at most so far.
    """

    def __init__(self, cap: float = float("inf")) -> None:
        self._cap, self.held = cap, 0
        self.peak = 0

    def keep(self, array: Array) -> Array:
        """The array, or a copy of it in a file."""
        if self.held + array.nbytes > self._cap and array.nbytes >= _WORTH_A_FILE:
            return files.mapped_copy(array)
        self.held += array.nbytes
        self.peak = max(self.peak, self.held)
        return array

    def release(self, array: Array) -> None:
        """Forget an array that `keep` gave."""
        if not isinstance(array, np.memmap):
            self.held -= array.nbytes


def write_back(program: Program, model: Model) -> None:
    """Put the weights of a program, and biases that it added, into the model that it was made of."""
    constants = model.constants()
    made = {o.name: node for node in model.graph.nodes for o in node.outputs}
    for name, tensor in constants.items():
        held, old = program.weights.get(name), values(tensor)
        if held is not None and old is not None and not np.array_equal(held, old):
            tensor.values = held
    for name, array in program.weights.items():
        if name not in constants:
            for index in program.readers.get(name, []):
                node = made[program.nodes[index].output[0]]
                node.inputs = [*node.inputs[:2], constant(name, array)]
