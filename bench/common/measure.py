"""Processor time and memory of processes, sampled from /proc while they run."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.25
"""Default sampling interval in seconds: its cost is negligible in runs of many seconds, for any
number of processes."""

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Usage:
    """The resources that one process has used so far."""

    pid: int
    role: str
    cpu: float = 0.0
    """Processor time in seconds, user and system, since `Meter.mark`."""
    peak_anonymous: int = 0
    """Peak anonymous memory in bytes, as sampled."""
    peak_resident: int = 0
    """Peak resident memory in bytes, mapped files included (the kernel's high-water mark)."""
    _before: float = 0.0
    _seen: float = 0.0


class Meter:
    """Samples a set of processes from its own thread."""

    def __init__(self, interval: float = INTERVAL) -> None:
        """`interval` is the time between two memory samples, in seconds. Processor time needs no
        sampling: the kernel adds it up."""
        self._interval = interval
        self._lock = threading.Lock()
        self._processes: dict[int, Usage] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._machine_before = _machine_cpu()
        self._machine = 0.0
        self._own_before = time.process_time()
        self.own_cpu = 0.0
        """Processor time in seconds that the benchmark itself used since `mark`."""

    def start(self) -> None:
        self._thread.start()

    def add(self, pid: int, role: str) -> None:
        """Adds a process. Before `mark`, its usage counts from its start."""
        usage = Usage(pid, role)
        with self._lock:
            self._processes[pid] = usage

    def ended(self, pid: int, cpu: float) -> None:
        """Records that the process has ended and used `cpu` seconds in total, as its parent
        learned."""
        with self._lock:
            if usage := self._processes.get(pid):
                usage._seen = max(usage._seen, cpu)

    def mark(self) -> None:
        """Starts counting processor time from zero."""
        self._sample()
        with self._lock:
            for usage in self._processes.values():
                usage._before = usage._seen
        self._machine_before = _machine_cpu()
        self._own_before = time.process_time()

    def anonymous(self, role: str) -> int:
        """Current anonymous memory of all processes of a role, in bytes."""
        with self._lock:
            pids = [pid for pid, usage in self._processes.items() if usage.role == role]
        return sum(_memory(pid)[0] for pid in pids)

    def forget_peaks(self) -> None:
        """Resets the memory peaks."""
        with self._lock:
            for usage in self._processes.values():
                usage.peak_anonymous = 0

    def finish(self) -> list[Usage]:
        """Takes a last sample; call it before the processes end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._sample()
        self._machine = _machine_cpu() - self._machine_before
        self.own_cpu = time.process_time() - self._own_before
        return list(self._processes.values())

    def others_cpu(self) -> float:
        """Processor time in seconds used since `mark` by everything else on the machine, including
        the kernel's work for the links."""
        return max(0.0, self._machine - self.own_cpu - sum(usage.cpu for usage in self._processes.values()))

    def _loop(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample_memory()

    def _sample(self) -> None:
        self._sample_memory()
        with self._lock:
            for pid, usage in self._processes.items():
                cpu = _cpu(pid)
                if cpu is not None:
                    usage._seen = max(usage._seen, cpu)
                usage.cpu = usage._seen - usage._before

    def _sample_memory(self) -> None:
        with self._lock:
            for pid, usage in self._processes.items():
                anonymous, resident = _memory(pid)
                usage.peak_anonymous = max(usage.peak_anonymous, anonymous)
                usage.peak_resident = max(usage.peak_resident, resident)


def threads(pid: int) -> dict[str, float]:
    """Processor time of each thread of a process in seconds, with nanosecond resolution: `stat`
    counts in ticks, which is too coarse for idle processes."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found[task.name] = int((task / "schedstat").read_text().split()[0]) / 1e9
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _cpu(pid: int) -> float | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    user, system, user_of_children, system_of_children = (int(field) for field in fields[11:15])
    return (user + system + user_of_children + system_of_children) / _TICK


def _memory(pid: int) -> tuple[int, int]:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    return _kilobytes(text, "RssAnon:") * 1024, _kilobytes(text, "VmHWM:") * 1024


def _kilobytes(text: str, name: str) -> int:
    """A field of /proc/PID/status; 0 if it is absent, as for a process that has ended."""
    _, found, rest = text.partition(name)
    return int(rest.split(None, 1)[0]) if found else 0


def _machine_cpu() -> float:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, *_ = (int(field) for field in fields)
    return (user + nice + system + irq + softirq) / _TICK
