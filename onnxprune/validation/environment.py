"""What a latency was measured on: the processor, how busy it was, the software and its settings."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from typing import Any

from onnxprune.errors import FileError, TargetError
from onnxprune.files import read_text
from onnxprune.quantize import has_int8
from onnxprune.runtime import default_threads, version

_FLAGS = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
)  # what kernels are chosen by


def environment(threads: int, provider: str) -> dict[str, Any]:
    """What a measurement depends on, as JSON holds it."""
    return {
        "cpu": cpu_name(),
        "cpu_flags": [f for f in _FLAGS if f in cpu_flags()],
        "int8": has_int8(cpu_flags()),
        "cpus": default_threads(),
        "governor": _line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": version(),
        "provider": provider,
        "session": {"optimization": "all", "intra_op_threads": threads, "inter_op_threads": 1, "spinning": False},
    }


def check_int8() -> None:
    """Raise TargetError where this processor has no instructions that make int8 fast."""
    if has_int8(cpu_flags()) is False:
        raise TargetError(
            f"--int8: this processor ({cpu_name()}) has no instructions for int8 (VNNI or dot products), so that it "
            "gains nothing; leave it out, or give --best-effort to quantize for another device"
        )


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """The processor as the system names it."""
    return _field("model name") or platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Instruction sets of the processor; empty where the system does not tell."""
    return frozenset((_field("flags") or _field("Features") or "").split())


def _field(name: str) -> str | None:
    try:
        text = read_text("/proc/cpuinfo")
    except FileError:
        return None
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), None)


def _line(path: str) -> str | None:
    try:
        return read_text(path).strip()
    except FileError:
        return None
