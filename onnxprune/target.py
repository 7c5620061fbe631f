"""A budget, and in words why it is out of reach or met loosely, and what could help."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis import Analysis, Mask
from onnxprune.cost import Kind
from onnxprune.errors import UsageError

Reals = NDArray[np.float64]
_NOUN: dict[Kind, str] = {"flops": "FLOPs", "params": "parameters", "size": "size", "latency": "latency"}


@dataclass(frozen=True, slots=True)
class Target:
    """A budget: at most `keep` (0..1] of the MACs, parameters or bytes of the cleaned model. Raises UsageError."""

    kind: Kind
    keep: float

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise UsageError(f"--{self.kind} {self.keep}: the fraction to keep must be above 0 and at most 1")


def unreachable(
    analysis: Analysis,
    target: Target,
    smallest: float,
    min_keep: float | Reals,
    align: int | str,
    protect: Mask | None,
    inexact: bool,
) -> str:
    """Why a target is out of reach, the nearest that is not, and what could bring it nearer."""
    refused = int(analysis.inexact.sum()) if not inexact else 0
    protected = int(protect[1:].sum()) if protect is not None else 0
    stay = [f"{refused:,} are inexact (--inexact admits them)"] if refused else []
    stay += [f"{protected:,} are protected by --keep"] if protected else []
    stays = f" Of {analysis.classes:,} classes {' and '.join(stay)}." if stay else ""
    hints = (
        ["a smaller --min-keep" if isinstance(min_keep, float | int) else "a smaller --min-keep or larger --max-rate"]
        if np.any(np.asarray(min_keep) > 0)
        else []
    )
    hints += ["--align 1"] if align != 1 else []
    if refused + protected >= analysis.classes:
        hints = []
    stays = stays or ("" if analysis.classes else " Everything is frozen: `onnxprune analyze` says why.")
    if smallest >= 1:
        advice = f" Perhaps {' or '.join(hints)} allows something." if hints else ""
        return f"--{target.kind} {target.keep:g} cannot be reached: nothing can be removed.{advice}{stays}"
    nearest = np.ceil(smallest * 1e4) / 1e4
    advice = f"; {' or '.join(hints)} may allow less" if hints else ""
    return (
        f"--{target.kind} {target.keep:g} cannot be reached: with everything gone that may go, {nearest:g} of the "
        f"{_NOUN[target.kind]} is left. The nearest target is --{target.kind} {nearest:g}{advice}.{stays}"
    )


def loose(target: Target, fraction: float, align: int | str) -> str:
    """Why less is kept than the target allows."""
    advice = "" if align == 1 else "; --align 1 has finer steps"
    return (
        f"kept {fraction:.4g} of the {_NOUN[target.kind]}, {1 - fraction / target.keep:.1%} below the target "
        f"{target.keep:g}: the steps in which layers can leave are too coarse to come closer{advice}"
    )
