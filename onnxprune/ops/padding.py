"""Padding: positions that are added are constants of their own, and leave with whatever they are added to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.factors import EMPTY, Factor, View, along
from onnxprune.rules import Arg, Kept, Refuse, Tracer, rule


@rule("Pad")
def pad(
    t: Tracer,
    data: Arg,
    pads: Arg,
    constant_value: Arg | None = None,
    axes: Arg | None = None,
    *,
    mode: str | bytes = "constant",
) -> View:
    """y = np.pad(x, pads); negative pads crop. Over a prunable axis only constants can be padded."""
    if not data.view:
        return EMPTY
    widths = pads.ints("pads")
    half = len(widths) // 2
    which = [a % data.rank for a in (axes.ints("axes") if axes is not None else range(half))]
    live = [
        i for i, a in enumerate(which) if (widths[i] or widths[half + i]) and any(f.shape[a] > 1 for f in data.view)
    ]
    if live and mode not in ("constant", b"constant"):
        raise Refuse(f"mode {mode!r} copies channels")
    y = list(t.others(data, *(which[i] for i in live)))
    sizes: dict[int, Callable[[Kept], int]] = {}
    for i in live:
        before, after = widths[i], widths[half + i]
        atoms, sizes[i], sizes[half + i] = _extended(t, t.atoms(data, which[i]), before, after)
        y.append(along(atoms, which[i], data.rank))

    def refit(kept: Kept) -> dict[str, list[int]]:
        return {"pads": [sizes[i](kept) if i in sizes else w for i, w in enumerate(widths)]}

    if live:
        t.refit(refit)
    return tuple(y)


def _extended(
    t: Tracer, atoms: Factor, before: int, after: int
) -> tuple[Factor, Callable[[Kept], int], Callable[[Kept], int]]:
    """The atoms of a padded or cropped axis, and how wide each side is after a cut."""
    ends = [t.fresh(n) if n > 0 else atoms[:0] for n in (before, after)]
    head = atoms[: max(-before, 0)]
    tail = atoms[atoms.size - max(-after, 0) :]
    middle = atoms[head.size : atoms.size - tail.size]
    t.name(head, tail)

    def width(added: Factor, cropped: Factor) -> Callable[[Kept], int]:
        return lambda kept: int(kept.mask(added).sum()) - int(kept.mask(cropped).sum())

    return np.concatenate([ends[0], middle, ends[1]]), width(ends[0], head), width(ends[1], tail)
