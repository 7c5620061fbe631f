"""What `sparsify` did, as data."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

import onnx

from onnxprune.recover.agreement import Agreement
from onnxprune.stored import split_weights

Choice = Literal["evolved", "magnitude"]


@dataclass(frozen=True, slots=True)
class TensorSparsity:
    """One layer's weight.

    weights: elements; zeros: of them in the model written; magnitude_error, evolved_error: squared change of the
    layer's outputs on its inputs, as a share of their own square, with either mask (None where that was not looked at,
    or where nothing varies on these inputs);
    reason: why it was left as it was or by magnitude, "" where neither.
    """

    name: str
    node: str
    op: str
    weights: int
    zeros: int
    magnitude_error: float | None
    evolved_error: float | None
    reason: str

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / max(self.weights, 1)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sparsity": self.sparsity}


@dataclass(frozen=True, slots=True)
class Masked:
    """The masks that were written, and how the networks compare.

    magnitude, evolved: beside the original on held-out inputs, None where it was not run; shipped: which of the two was
    written; metric: accuracy of original, magnitude and evolved on labelled held-out inputs, 0..1; budget: candidates
    per layer; skipped: layers whose weight cannot be treated, with the reason.
    """

    tensors: tuple[TensorSparsity, ...]
    magnitude: Agreement | None
    evolved: Agreement | None
    shipped: Choice
    metric: dict[str, float] | None
    budget: int
    skipped: dict[str, str]
    notes: tuple[str, ...]

    @property
    def sparsity(self) -> float:
        """Share of zeros among the weights of all layers listed."""
        return sum(t.zeros for t in self.tensors) / max(sum(t.weights for t in self.tensors), 1)

    def errors(self) -> dict[str, float]:
        """Mean error of the layers, by the masks that were looked at."""
        found = {
            "magnitude": [t.magnitude_error for t in self.tensors if t.magnitude_error is not None],
            "evolved": [t.evolved_error for t in self.tensors if t.evolved_error is not None],
        }
        return {name: sum(errors) / len(errors) for name, errors in found.items() if errors}


@dataclass(frozen=True, slots=True)
class Sparsity:
    """The report of one run: settings, masks, bytes of the gzip'ed model before and after, where the inputs come from,
    and seconds per stage.
    """

    model: str
    settings: dict[str, Any]
    masked: Masked
    gzip: tuple[int, int]
    data: dict[str, Any] | None
    seconds: dict[str, float]

    @property
    def sparsity(self) -> float:
        """Share of zeros among the weights of all layers."""
        return self.masked.sparsity

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with stable keys."""
        masked = self.masked
        return {
            "model": self.model,
            "settings": self.settings,
            "sparsity": masked.sparsity,
            "gzip": {"before": self.gzip[0], "after": self.gzip[1]},
            "data": self.data,
            "layer_error": masked.errors(),
            "magnitude": masked.magnitude and masked.magnitude.as_dict(),
            "evolved": masked.evolved and masked.evolved.as_dict(),
            "shipped": masked.shipped,
            "metric": masked.metric,
            "budget": masked.budget,
            "tensors": [t.as_dict() for t in masked.tensors],
            "skipped": masked.skipped,
            "notes": list(masked.notes),
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class Sparsified:
    """A model (ONNX, in memory) with weights set to zero, and the report."""

    model: onnx.ModelProto
    report: Sparsity

    def __repr__(self) -> str:
        return f"Sparsified({self.report.model!r}, {100 * self.report.sparsity:.1f} % zeros)"


def gzip_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of the model, its weights in whole, after gzip."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    light, weights = split_weights(proto, "weights")
    parts = (packer.compress(b) for b in (light.SerializeToString(deterministic=True), *(w.raw_data for w in weights)))
    return sum(map(len, parts)) + len(packer.flush())
