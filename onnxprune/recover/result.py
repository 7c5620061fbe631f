"""What a recovery did, and what it brought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from onnxprune.recover.agreement import Agreement
from onnxprune.recover.sequence import LayerRecovery

_CHANCE = 2.0  # standard errors above the share of the most frequent answer, below which agreement is called chance


@dataclass(frozen=True, slots=True)
class Recovery:
    """What recovery did, and what it brought on inputs that no fit has seen.

    data: where the inputs come from; before, after: the network cut and repaired, beside the original (None for all
    three where nothing looked at inputs); trained: the network fine-tuned after it; shipped: which of them was written;
    metric: accuracy of original, cut, repaired and trained network where labels were given, 0..1.
    """

    method: str
    data: dict[str, Any] | None
    layers: tuple[LayerRecovery, ...]
    before: Agreement | None
    after: Agreement | None
    shipped: Literal["repaired", "cut", "trained"]
    metric: dict[str, float] | None = None
    notes: tuple[str, ...] = ()
    trained: Agreement | None = None

    @property
    def final(self) -> Agreement | None:
        """What was written beside the original; None where nothing looked at inputs."""
        return {"cut": self.before, "repaired": self.after, "trained": self.trained}[self.shipped]

    @property
    def at_chance(self) -> bool:
        """Whether the network that ships answers no better than one that always gives the most frequent answer."""
        final = self.final
        if final is None or final.top1 is None or final.chance is None:
            return False
        spread = _CHANCE * float(np.sqrt(final.chance * (1 - final.chance) / final.samples))
        return final.top1 <= final.chance + spread

    def as_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "data": self.data,
            "shipped": self.shipped,
            "before": self.before and self.before.as_dict(),
            "after": self.after and self.after.as_dict(),
            "trained": self.trained and self.trained.as_dict(),
            "at_chance": self.at_chance,
            "metric": self.metric,
            "layers": [x.as_dict() for x in self.layers],
            "notes": list(self.notes),
        }
