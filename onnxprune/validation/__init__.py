"""Two models beside each other: accuracy, agreement, size and latency, with intervals, and goals that must be met."""

from __future__ import annotations
