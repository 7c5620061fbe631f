"""Settings of hypothesis: the same examples on every machine, and no deadline."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("onnxprune", derandomize=True, deadline=None)
settings.load_profile("onnxprune")
