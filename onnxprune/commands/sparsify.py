"""The command `sparsify`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from onnxprune import options as o
from onnxprune.commands.writing import place
from onnxprune.signature import taking
from onnxprune.terminal import progress, show, show_json, warn_made_up

_what = o.panel("What to remove")


Zeros = Annotated[float | None, _what("F", "Share of every layer's weights that becomes zero.", "--sparsity")]
Pattern = Annotated[str | None, _what("N:M", "Instead: N of every M consecutive inputs of an output stay, as 2:4.")]
Masks = Annotated[str, _what("NAME", "How weights are chosen: evolve or magnitude.", "--method")]
Scope = Annotated[str, _what("NAME", "The share is that of every tensor, or global: of all together.")]
MaskSearch = Annotated[str | None, _what("NAME", f"Search of masks: {', '.join(o.OPTIMISERS)} (evolution).")]
MasksTried = Annotated[int | None, _what("N", "Masks that are tried per layer (300).", "--budget")]

Refit = Annotated[
    str, _what("NAME", "Fit what is left anew: auto (where inputs are looked at), least-squares, none.", "--recover")
]


@dataclass(frozen=True, kw_only=True)
class Zeroing(o.Written, o.Inputs):
    """All options of `sparsify`."""

    sparsity: Zeros = None
    pattern: Pattern = None
    method: Masks = "evolve"
    scope: Scope = "tensor"
    optimiser: MaskSearch = None
    budget: MasksTried = None
    recover: Refit = "auto"
    keep: o.Keep = None

    def arguments(self) -> dict[str, Any]:
        """The same as keyword arguments of `onnxprune.sparsify`."""
        names = ("sparsity", "pattern", "method", "scope", "optimiser", "budget", "recover")
        return self.inputs() | {n: getattr(self, n) for n in names} | {"keep": self.keep or ()}


@taking(Zeroing)
def sparsify(model: o.Source, given: Zeroing) -> None:
    """Set single weights to zero; shapes stay, and nothing gets faster: only a compressed file is smaller.

    Give --sparsity or --pattern. Writes MODEL.sparse.onnx unless -o names another file.
    """
    with progress(given.quiet):
        from onnxprune import api, files
        from onnxprune.report import sparsity

        out = place(model, given.output, ".sparse.onnx", given.force)
        result = api.sparsify(model, **given.arguments())
        files.write_model(result.model, out, source=model, force=given.force)
    if given.as_json:
        show_json(result.report.as_dict() | {"output": str(out)})
    elif not given.quiet:
        show(sparsity.sparsity(result.report, out))
    warn_made_up(given.quiet and bool(result.report.data and result.report.data["synthetic"]))
