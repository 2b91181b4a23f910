"""Describes the machine that ran the benchmark."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe() -> dict:
    return {"cpu": _cpu_model(), "family": _cpu("cpu family"), "model": _cpu("model"), "avx512": "avx512f" in _cpu("flags").split(), "cpus": os.cpu_count(), "memory_mib": _memory() >> 20, "kernel": platform.release(), "load": os.getloadavg()[0]}


def _cpu_model() -> str:
    return _cpu("model name") or platform.machine()


def _cpu(field: str) -> str:
    """A field of the first processor in /proc/cpuinfo. In a virtual machine, family and model may
    say more than the name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
