"""Settings of hypothesis: the same examples on every machine, and no deadline. Test processes have one thread each."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core: more threads would only wait for each other
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ONNXPRUNE_THREADS"):
        os.environ.setdefault(name, "1")

settings.register_profile("onnxprune", derandomize=True, deadline=None)
settings.load_profile("onnxprune")

# A shell starts what runs in its background with Ctrl-C ignored, and children inherit that: tests that press it need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
