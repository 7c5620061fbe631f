"""An ONNX graph as a torch module: its parameters are the graph's initializers, by name; writing them back is exact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from onnxprune.errors import OnnxpruneError, UnsupportedError
from onnxprune.finetuning.trainable import trainable
from onnxprune.graph import Array, Model, Node, from_proto, is_constant, values
from onnxprune.ops.versions import modern
from onnxprune.runtime import input_specs
from onnxprune.student.layers import along, fake_quantise
from onnxprune.student.table import OPS, Function

Feeds = Mapping[str, Tensor]


class Step(NamedTuple):
    """One node: names of what it reads (None: omitted) and makes, and of what nobody reads after it."""

    op: str
    function: Function
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    label: str
    done: tuple[str, ...] = ()


class Stored(NamedTuple):
    """How a weight is kept as whole numbers: the parameter is what they stand for."""

    scale: Tensor
    zero: Tensor | None
    axis: int
    dtype: np.dtype[Any]

    @property
    def limits(self) -> tuple[int, int]:
        found = np.iinfo(self.dtype)
        return int(found.min), int(found.max)


class Network(nn.Module):
    """A model in torch: in inference form (statistics of normalisations stay as they are unless `student.norms` puts
    in others), with gradients.

    proto: not changed. weights: the parameters by initializer name. Weights that are stored as whole numbers are
    trained as floats that are rounded on every use, so that what is trained is what is written. norms: what `normalise`
    put in, by step; empty before. batch: the number of
    samples that the graph takes, None for any: other numbers are split into such batches.
    Raises UnsupportedError, with the node, for what has no torch function, and for weights that are not float32.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        super().__init__()
        model = from_proto(proto)
        specs = input_specs(model.header)
        self.inputs = [s.name for s in specs]
        self.outputs = [o.name for o in model.header.graph.output]
        fixed = {s.dims[0] for s in specs if s.dims and isinstance(s.dims[0], int)}
        self.batch: int | None = fixed.pop() if len(fixed) == 1 else None
        self._whole: dict[str, Tensor] = {}  # sizes and indices: they stay on the CPU
        self._slots: dict[str, str] = {}  # floats by name -> name of the parameter or buffer
        self._stored: dict[str, Stored] = {}
        self.norms = nn.ModuleDict()
        _check(proto, model)
        self._read_initializers(model)
        self.steps = self._build(model)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """Parameters by initializer name."""
        return {n: p for n, s in self._slots.items() if (p := self._parameters.get(s)) is not None}

    def held(self, name: str) -> Tensor:
        """A weight or a constant of floats, by initializer name."""
        found: Tensor = getattr(self, self._slots[name])
        return found

    # ---- building ----------------------------------------------------------------------------------------------------

    def _read_initializers(self, model: Model) -> None:
        constants = model.constants() | {t.name: t for t in model.graph.outputs if is_constant(t)}
        trained = set(trainable(model))
        for name, tensor in constants.items():
            array = values(tensor)
            if array is None:
                raise UnsupportedError(f"the initializer '{name}' has an element type that cannot be trained here")
            if name in trained and array.dtype.kind in "iu":
                self._stored[name] = _stored(tensor.outputs[0], name, array.dtype)
                array = self._meaning(name, array)
            if name in trained:
                _check_float32(name, array)
                self._hold(name, nn.Parameter(_tensor(array)))
            else:
                self._hold(name, _tensor(array))

    def _hold(self, name: str, value: Tensor) -> None:
        slot = f"t{len(self._slots)}"
        if isinstance(value, nn.Parameter):
            self._slots[name] = slot
            self.register_parameter(slot, value)
        elif value.is_floating_point():
            self._slots[name] = slot
            self.register_buffer(slot, value, persistent=False)
        else:
            self._whole[name] = value

    def _meaning(self, name: str, array: Array) -> Array:
        how = self._stored[name]
        shift = 0 if how.zero is None else along(how.zero.float(), array.ndim, how.axis)
        found: Array = ((_tensor(array).float() - shift) * along(how.scale, array.ndim, how.axis)).numpy()
        return found

    def _build(self, model: Model) -> list[Step]:
        """Steps of the nodes; what depends on nothing that is trained or fed is computed now."""
        steps = []
        with torch.no_grad():
            for node in model.graph.nodes:
                step = self._step(model, node)
                names = [i for i in step.inputs if i is not None]
                if all(n in self._whole or (n in self._slots and n not in self.weights) for n in names):
                    for name, value in zip(step.outputs, _run(step, self._constants()), strict=False):
                        self._hold(name, value)
                else:
                    steps.append(step)
        return _with_ends(steps, self.outputs)

    def _step(self, model: Model, node: Node) -> Step:
        domain = "" if node.domain in (None, "", "ai.onnx") else node.domain
        label = f"{node.op} '{node.name or node.outputs[0].name}'"
        function = OPS.get((domain, node.op))
        if function is None:
            raise UnsupportedError(
                f"{label}: the operator {f'{domain}.' if domain else ''}{node.op} cannot be trained through. Add a "
                "function for it with onnxprune.student.op, or train elsewhere: `onnxprune handoff` writes what that "
                "needs, `onnxprune absorb` takes the weights back"
            )
        given, attrs = modern(node, model.opset) if not domain else (list(node.inputs), dict(node.attrs))
        attrs = {k: _attribute(v) for k, v in attrs.items()}
        names = [self._name(i, f"{label}.{k}") for k, i in enumerate(given)]
        while names and names[-1] is None:
            names.pop()
        if node.op == "Split" and len(names) < 2:
            attrs["num_outputs"] = len(node.outputs)
        if node.op == "DequantizeLinear" and names[0] in self._stored:
            how = self._stored[str(names[0])]
            function, attrs = _requantised, {"axis": how.axis, "limits": how.limits}
        made = tuple(o.name for o in node.outputs)
        return Step(node.op, partial(function, **attrs), tuple(names), made, label)

    def _name(self, given: Any, label: str) -> str | None:
        if given is None or not isinstance(given, np.ndarray):
            return None if given is None or not given.name else str(given.name)
        self._hold(label, _tensor(given))
        return label

    def _constants(self) -> dict[str, Tensor]:
        return self._whole | {n: self._buffers[s] for n, s in self._slots.items() if s in self._buffers}

    # ---- running -----------------------------------------------------------------------------------------------------

    def forward(self, feeds: Feeds, wanted: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Tensors by name: the outputs, or those wanted.

        feeds: [samples, ...] by input name. Raises UnsupportedError, with the node, where torch cannot run it.
        """
        names = list(self.outputs if wanted is None else wanted)
        count = len(next(iter(feeds.values())))
        if self.batch in (None, count):
            return self._run(feeds, names)
        assert self.batch is not None
        parts = {n: x.reshape(-1, self.batch, *x.shape[1:]) for n, x in feeds.items()}
        found = torch.func.vmap(lambda f: self._run(f, names))(parts)
        return {n: x.flatten(0, 1) if x.ndim > 1 and x.shape[1] == self.batch else x for n, x in found.items()}

    def _run(self, feeds: Feeds, wanted: Sequence[str]) -> dict[str, Tensor]:
        held = self._start(feeds)
        for step in self.steps:
            for name, value in zip(step.outputs, _run(step, held), strict=False):
                held[name] = value
            for name in step.done:
                if name not in wanted:
                    del held[name]
        return {n: held[n] for n in wanted}

    def _start(self, feeds: Feeds) -> dict[str, Tensor]:
        known: dict[str, Any] = {**self._whole, **feeds}
        known.update({n: getattr(self, s) for n, s in self._slots.items()})
        return known

    def first_not_finite(self, feeds: Feeds) -> str:
        """The first node whose result is not finite, or the first such weight; "" where all are finite."""
        bad = [n for n, p in self.weights.items() if not bool(torch.isfinite(p).all())]
        if bad:
            return f"weight '{bad[0]}'"
        held = self._start(feeds)
        with torch.no_grad():
            for step in self.steps:
                for name, value in zip(step.outputs, _run(step, held), strict=False):
                    held[name] = value
                    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                        return step.label
        return ""

    def take_any_number(self, feeds: Feeds) -> None:
        """From now on, take any number of samples at once, if the graph is seen to give the same for `feeds` then: the
        number that it was exported for often matters to nothing but the first size of a Reshape.
        """
        if self.batch is None:
            return
        batch, whole = self.batch, dict(self._whole)
        with torch.no_grad():
            wanted = self(feeds)
            self.batch = None
            for name in (s.inputs[1] for s in self.steps if s.op == "Reshape"):
                if name in whole and whole[name][:1].tolist() == [batch]:
                    self._whole[str(name)] = torch.cat([whole[str(name)].new_zeros(1), whole[str(name)][1:]])
            try:
                same = all(_alike(made, wanted[n]) for n, made in self(feeds).items())
            except UnsupportedError:
                same = False
        if not same:
            self.batch, self._whole = batch, whole

    # ---- weights -----------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, Array]:
        """The weights by initializer name, of the element type of the graph, with all normalisations folded in; the
        statistics of the graph's own, too, where they were trained.
        """
        found = {name: p.detach() for name, p in self.weights.items()}
        for index, norm in self.norms.items():
            names = [n for n in self.steps[int(index)].inputs[1:] if n is not None]
            found.update(zip(names, norm.folded(*(self.held(n).detach() for n in names)), strict=True))
        return {name: self._array(name, value.cpu().contiguous()) for name, value in found.items()}

    def _array(self, name: str, value: Tensor) -> Array:
        how = self._stored.get(name)
        if how is None:
            return np.array(value.numpy(), order="C")
        scale, zero = along(how.scale, value.ndim, how.axis), 0 if how.zero is None else how.zero.float()
        shift = zero if isinstance(zero, int) else along(zero, value.ndim, how.axis)
        return np.asarray(torch.clamp(torch.round(value / scale + shift), *how.limits).numpy(), how.dtype)

    def channels_last(self) -> Network:
        """Lay out kernels as CPUs and GPUs like them best; the module itself."""
        for weight in (p for p in self.weights.values() if p.ndim == 4):
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        return self


def _check(proto: onnx.ModelProto, model: Model) -> None:
    """Raise UnsupportedError for what a cleaned model does not have."""
    if proto.functions or proto.graph.sparse_initializer:
        raise UnsupportedError(
            "models with local functions or sparse initializers cannot be trained: use what `onnxprune clean` writes"
        )
    bodies = [n for n in proto.graph.node if any(a.HasField("g") or a.graphs for a in n.attribute)]
    if bodies or model.captured:
        raise UnsupportedError(
            f"{bodies[0].op_type} '{bodies[0].name}' has a body of its own, through which nothing can be trained here; "
            "train elsewhere: `onnxprune handoff` writes what that needs"
        )


def _check_float32(name: str, array: Array) -> None:
    if array.dtype != np.float32:
        raise UnsupportedError(
            f"the weight '{name}' is {array.dtype}: training needs float32. Train the float32 model, convert it after"
        )


def _stored(node: Node, name: str, dtype: np.dtype[Any]) -> Stored:
    """How DequantizeLinear reads a weight."""
    held = [values(t) for t in node.inputs[1:]]
    if len(node.inputs[0].outputs) > 1 or any(h is None for h in held) or node.attrs.get("block_size"):
        raise UnsupportedError(
            f"the weight '{name}' of DequantizeLinear '{node.name}' is shared, in blocks, or has a computed scale"
        )
    arrays = [_tensor(h) for h in held if h is not None]
    return Stored(arrays[0], arrays[1] if len(arrays) > 1 else None, int(node.attrs.get("axis", 1)), dtype)


def _requantised(x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int, limits: tuple[int, int]) -> Tensor:
    """A weight as it will be stored."""
    return fake_quantise(x, scale, zero, axis, *limits)


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array, order="C"))


def _attribute(value: Any) -> Any:
    """Tensors as torch has them; the rest as it is."""
    array = values(value) if hasattr(value, "outputs") else None
    return value if array is None else _tensor(array)


def _run(step: Step, held: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    try:
        made: Any = step.function(*(None if i is None else held[i] for i in step.inputs))
    except OnnxpruneError as error:
        raise type(error)(f"{step.label}: {error}") from error
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsupportedError(f"{step.label} cannot be run by torch: {first}") from error
    return made if isinstance(made, tuple) else (made,)


def _alike(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or not b.numel():
        return False
    x, y = a.double(), b.double()
    return bool(torch.allclose(x, y, rtol=1e-3, atol=1e-4 * float(y.abs().max())))


def _with_ends(steps: Sequence[Step], outputs: Iterable[str]) -> list[Step]:
    """The steps, each with the names that no later one reads."""
    alive, result = set(outputs), []
    made = {o for s in steps for o in s.outputs}
    for step in reversed(steps):
        names = {*(i for i in step.inputs if i in made), *step.outputs} - alive
        alive |= names
        result.append(step._replace(done=tuple(sorted(n for n in names if n))))
    return result[::-1]
