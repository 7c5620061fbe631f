"""Batch normalisation for the time of training, as most networks had it before they were exported.

A convolution with a bias gets one behind it, which changes nothing at first, and is folded into its weights when they
are written; one that the graph still has uses the statistics of the batch (Ioffe and Szegedy 2015). The statistics for
inference are means over batches that the weights as they are have seen, not over the past (Wu and Johnson 2021).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from onnxprune.student.table import Function

if TYPE_CHECKING:
    from onnxprune.student.network import Network, Step

LEAST = 256  # values per channel in a batch from which on its statistics are used
_EPSILON = 1e-5
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_OTHERS = {"GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"}


class Norm(nn.Module):
    """Statistics [channels] of the batch while training, otherwise and for batches under `LEAST` those that are held.

    momentum: what share of those held a batch replaces.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, mean: Tensor, var: Tensor, epsilon: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("var", var.clone())
        self.epsilon, self.momentum = epsilon, 0.0

    def _apply_to(self, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        batch = self.training and _values(x) >= LEAST
        return nn.functional.batch_norm(x, self.mean, self.var, scale, bias, batch, self.momentum, self.epsilon)


class ConvNorm(Norm):
    """A convolution with a normalisation behind it; its bias becomes that of the normalisation.

    convolution: takes the input and the kernel; mean, var [channels]: of what it gives without bias.
    """

    def __init__(self, convolution: Function, mean: Tensor, var: Tensor) -> None:
        super().__init__(mean, var, _EPSILON)
        self._convolution = convolution
        self.scale = nn.Parameter(torch.sqrt(var + _EPSILON))

    def forward(self, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        """The convolution, normalised."""
        return self._apply_to(self._convolution(x, kernel), self.scale, bias)

    def folded(self, kernel: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        """Kernel and bias of the convolution that gives the same in inference."""
        factor = self.scale.detach().double() / torch.sqrt(self.var.double() + self.epsilon)
        shape = [-1, *[1] * (kernel.ndim - 1)]
        return (kernel * factor.reshape(shape)).float(), (bias - self.mean * factor).float()


class NodeNorm(Norm):
    """A BatchNormalization node of the graph."""

    def forward(self, x: Tensor, scale: Tensor, bias: Tensor, *_: Tensor) -> Tensor:
        """As the node does it, with other statistics than those it was given."""
        return self._apply_to(x, scale, bias)

    def folded(self, scale: Tensor, bias: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        """The four tensors of the node."""
        return scale, bias, self.mean, self.var


def normalise(network: Network, batches: Iterable[Mapping[str, Tensor]]) -> int:
    """Normalise the layers of a network by batch from now on, in place; return how many.

    batches: inputs that show what the layers give, as training will have them. Left alone are the last layers, those
    that share weights, and those that give fewer than `LEAST` values per channel; and all of a network that takes a
    fixed number of samples (its batches are split) or that normalises otherwise.
    """
    if network.batch is not None or any(s.op in _OTHERS for s in network.steps):
        return 0
    places = _places(network)
    moments = {i: _Moments(network.steps[i]) for i in places}
    plain = network.steps
    network.steps = [s._replace(function=moments[i]) if i in moments else s for i, s in enumerate(plain)]
    try:
        with torch.no_grad():
            for feeds in batches:
                network(feeds)
    finally:
        network.steps = plain
    norms = {i: _norm(network, plain[i], moments[i]) for i in places if moments[i].least >= LEAST}
    network.norms = nn.ModuleDict({str(i): norm for i, norm in norms.items()})
    network.steps = [s._replace(function=norms.get(i, s.function)) for i, s in enumerate(plain)]
    return len(norms)


def estimate(network: Network, batches: Iterable[Mapping[str, Tensor]]) -> None:
    """Set the statistics for inference to what the layers give on these batches."""
    norms = [n for n in network.norms.values() if isinstance(n, Norm)]
    network.train()
    with torch.no_grad():
        for count, feeds in enumerate(batches, 1):
            for norm in norms:
                norm.momentum = 1 / count
            network(feeds)
    for norm in norms:
        norm.momentum = 0.0


def _places(network: Network) -> list[int]:
    """Indices of the steps that can be normalised: nodes that do it, and convolutions with a bias but without one."""
    weights, steps = network.weights, network.steps
    uses = Counter(name for s in steps for name in s.inputs)
    nodes = {s.inputs[0] for s in steps if s.op == "BatchNormalization"}
    before = _before_layers(steps)

    def fits(step: Step) -> bool:
        own, made = step.inputs[1:], step.outputs[0]
        kind = (step.op, len(own)) in (("Conv", 2), ("BatchNormalization", 4))
        wanted = made in before and not (step.op == "Conv" and made in nodes)
        return kind and wanted and all(uses[n] == 1 for n in own) and all(n in weights for n in own[:2])

    return [i for i, step in enumerate(steps) if fits(step)]


def _before_layers(steps: list[Step]) -> set[str]:
    """Tensors from which a later layer's input is computed."""
    found: set[str] = set()
    for step in reversed(steps):
        if step.op in _LAYERS or found.intersection(step.outputs):
            found.update(n for n in step.inputs if n is not None)
    return found


class _Moments:
    """In the place of a step's function: it gives the same, and adds up the moments of it."""

    def __init__(self, step: Step) -> None:
        self._function = step.function
        self._count, self._sum, self._squares = 0, torch.zeros(()), torch.zeros(())
        self.least = 0

    def __call__(self, *given: Tensor) -> Tensor:
        made: Tensor = self._function(*given)
        axes = [a for a in range(made.ndim) if a != 1]
        wide = made.double()
        self._sum = self._sum.to(wide.device) + wide.sum(axes)
        self._squares = self._squares.to(wide.device) + wide.square().sum(axes)
        self._count += _values(made)
        self.least = min(self.least or _values(made), _values(made))
        return made

    def of_all(self) -> tuple[Tensor, Tensor]:
        """Mean and variance per channel."""
        mean = self._sum / self._count
        return mean.float(), (self._squares / self._count - mean.square()).clamp_min(0).float()


def _norm(network: Network, step: Step, moments: _Moments) -> Norm:
    held = [network.held(str(n)) for n in step.inputs[1:]]
    if step.op == "BatchNormalization":
        keywords = getattr(step.function, "keywords", {})
        return NodeNorm(held[2], held[3], float(keywords.get("epsilon", _EPSILON)))
    mean, var = moments.of_all()
    norm = ConvNorm(step.function, mean - held[1].detach(), var)
    with torch.no_grad():
        held[1].copy_(mean)
    return norm


def _values(x: Tensor) -> int:
    """How many values there are per channel."""
    return int(x.numel()) // max(int(x.shape[1]), 1)
