"""The machine that measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe() -> dict:
    return {"cpu": _cpu_model(), "cpus": os.cpu_count(), "memory_mib": _memory() >> 20, "kernel": platform.release(), "load": os.getloadavg()[0]}


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
