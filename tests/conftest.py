"""Settings of hypothesis: the same examples on every machine, and no deadline."""

from __future__ import annotations

import signal

from hypothesis import settings

settings.register_profile("onnxprune", derandomize=True, deadline=None)
settings.load_profile("onnxprune")

# A shell starts what runs in its background with Ctrl-C ignored, and children inherit that: tests that press it need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
