"""Normalisations: exact per channel (Batch, Instance) or whole group (Group); inexact over the channels (Layer, RMS,
LRN).
"""

from __future__ import annotations

from onnxprune.factors import Factor, View, along, support
from onnxprune.rules import Arg, Kept, Tracer, rule


def channelwise(t: Tracer, X: Arg, axis: int, params: list[Arg | None]) -> View:
    """y[:, c] depends on x[:, c] and on element c of each parameter vector."""
    channels = t.atoms(X, axis)
    for p in params:
        if p is not None:
            t.tie(channels, t.atoms(p, 0), "one parameter per channel")
    return (along(channels, axis % X.rank, X.rank), *t.others(X, axis))


@rule("BatchNormalization")
def batch_normalization(t: Tracer, X: Arg, scale: Arg, B: Arg, input_mean: Arg, input_var: Arg) -> list[View]:
    """y[:, c] = scale[c] * (x[:, c] - mean[c]) / sqrt(var[c] + epsilon) + b[c]; in training, statistics per channel
    too.
    """
    channels = channelwise(t, X, 1, [scale, B, input_mean, input_var])[0]
    statistics: View = (channels.reshape(-1),)
    return [(channels,), *[statistics] * (len(t.node.outputs) - 1)]


@rule("InstanceNormalization")
def instance_normalization(t: Tracer, input: Arg, scale: Arg, B: Arg) -> View:
    """Statistics over space, per sample and channel; channels reshaped into space (a GroupNorm) are inexact."""
    y, space = channelwise(t, input, 1, [scale, B])[:1], []
    for f in t.others(input, 1):
        axes = support(f)
        if len(axes) == 1 and axes[0] > 1:
            renormalise(t, axes[0], f.reshape(-1), [], "InstanceNormalization")
            space.append(f)
    return (*y, *space)


@rule("GroupNormalization")
def group_normalization(t: Tracer, X: Arg, scale: Arg, bias: Arg, *, num_groups: int) -> View:
    """Statistics over space and the channels of one group: whole groups are exact. Before opset 21, one scale per
    group.
    """
    grid = t.atoms(X, 1).reshape(num_groups, -1)
    t.tie(grid, grid[:, :1], "the channels of one normalisation group go together")
    for p in (scale, bias):
        vector = t.atoms(p, 0)
        t.tie(
            grid[:, 0] if vector.size == num_groups else grid.reshape(-1), vector, "one parameter per channel or group"
        )

    def refit(kept: Kept) -> dict[str, int]:
        return {"num_groups": int(kept.mask(grid[:, 0]).sum())}

    t.refit(refit)
    return (along(grid.reshape(-1), 1, X.rank),)


@rule("LayerNormalization")
def layer_normalization(t: Tracer, X: Arg, Scale: Arg, B: Arg | None = None, *, axis: int = -1) -> list[View]:
    """Statistics over the axes from `axis` on. One such axis can be pruned inexactly; several are frozen."""
    return _over_last(t, X, [Scale, B], axis, "LayerNormalization")


@rule("RMSNormalization")
def rms_normalization(t: Tracer, X: Arg, scale: Arg, *, axis: int = -1) -> list[View]:
    """Mean square over the axes from `axis` on."""
    return _over_last(t, X, [scale], axis, "RMSNormalization")


@rule("SimplifiedLayerNormalization")
def simplified_layer_normalization(t: Tracer, X: Arg, scale: Arg, *, axis: int = -1) -> list[View]:
    """onnxruntime's name of RMSNormalization."""
    return _over_last(t, X, [scale], axis, "RMSNormalization")


def _over_last(t: Tracer, X: Arg, params: list[Arg | None], axis: int, what: str) -> list[View]:
    axis %= X.rank
    rest = t.others(X, *range(axis, X.rank))
    if axis < X.rank - 1:
        gone = [f for f in X.view if not any(f is r for r in rest)]
        t.freeze(gone, f"{what} over several axes")
        return [rest, rest, rest]
    channels = t.atoms(X, axis)
    for p in params:
        if p is not None:
            t.tie(channels, t.atoms(p, -1), "one parameter per channel")
    renormalise(t, axis, channels, params, what)
    return [(along(channels, axis, X.rank), *rest), rest, rest]


def renormalise(
    t: Tracer, axis: int, atoms: Factor, params: list[Arg | None], what: str, restores: bool = True
) -> None:
    """Removing positions changes the statistics over `axis`: inexact, and checked against a bracketed reference."""
    if atoms.any():
        t.inexact(atoms, f"{what} takes its statistics over these positions")
        t.bracket(axis, atoms, params, restores)


@rule("LRN")
def lrn(t: Tracer, X: Arg) -> View:
    """Each channel is divided by the energy of its neighbours: removing one gives the others new neighbours."""
    channels = t.atoms(X, 1)
    renormalise(t, 1, channels, [], "LRN")
    return (along(channels, 1, X.rank), *t.others(X, 1))


@rule("LpNormalization")
def lp_normalization(t: Tracer, input: Arg, *, axis: int = -1) -> View:
    """y = x / norm of x over `axis`: a removed position contributes nothing to the norm."""
    axis %= input.rank
    atoms = t.atoms(input, axis)
    y = along(atoms, axis, input.rank)
    if atoms.any():
        t.sums(0, y)
    return (y, *t.others(input, axis))


@rule("MeanVarianceNormalization")
def mean_variance_normalization(t: Tracer, X: Arg, *, axes: tuple[int, ...] = (0, 2, 3)) -> View:
    """Statistics over `axes`: exact per position of the others."""
    return t.others(X, *axes)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(t: Tracer, input: Arg, *, axis: int = -1, flatten: bool = False) -> View:
    """Normalised over `axis` (before opset 13: over all axes from `axis` on): every position there is observable."""
    axis %= max(input.rank, 1)
    axes = range(axis, input.rank) if flatten else (axis,)
    return observed(t, input, axes, "Softmax normalises over them")


def observed(t: Tracer, X: Arg, axes: range | tuple[int, ...], why: str) -> View:
    """Positions along `axes` must all stay; what varies jointly along another axis may still leave as whole lines."""
    out = list(t.others(X, *axes))
    for f in X.view:
        inner = [a for a in axes if f.shape[a] > 1]
        outer = [a for a in range(f.ndim) if f.shape[a] > 1 and a not in inner]
        if inner and outer:
            out.append(t.whole(f, *inner))
        elif inner:
            t.freeze([f], why)
    return tuple(out)
