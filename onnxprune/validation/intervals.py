"""A point estimate with its confidence interval: what every measurement gives, and what a gate looks at."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate and its 95 % confidence interval."""

    point: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)
