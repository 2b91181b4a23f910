"""What processes cost: processor time and memory, from /proc, sampled while they run."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.25
"""Seconds between two samples where nothing else is said: nothing beside work that takes many seconds, whatever the number of processes."""

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Usage:
    """What one process has used so far."""

    pid: int
    role: str
    cpu: float = 0.0
    """Seconds of processor time, user and system, since `Meter.mark`."""
    peak_anonymous: int = 0
    """Most bytes of anonymous memory seen."""
    peak_resident: int = 0
    """Most bytes resident, mapped files included (the kernel's own high-water mark)."""
    _before: float = 0.0
    _seen: float = 0.0


class Meter:
    """Samples a set of processes from a thread of its own."""

    def __init__(self, interval: float = INTERVAL) -> None:
        """`interval` in seconds between two samples of memory. Processor time needs none: the kernel adds it up."""
        self._interval = interval
        self._lock = threading.Lock()
        self._processes: dict[int, Usage] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._machine_before = _machine_cpu()
        self._machine = 0.0
        self._own_before = time.process_time()
        self.own_cpu = 0.0
        """Processor seconds that this program itself used since `mark`."""

    def start(self) -> None:
        self._thread.start()

    def add(self, pid: int, role: str) -> None:
        """Follows one more process; until `mark`, all that it used since its start counts."""
        usage = Usage(pid, role)
        with self._lock:
            self._processes[pid] = usage

    def ended(self, pid: int, cpu: float) -> None:
        """The process is gone, and its parent was told that it used `cpu` seconds in all."""
        with self._lock:
            if usage := self._processes.get(pid):
                usage._seen = max(usage._seen, cpu)

    def mark(self) -> None:
        """From here on processor time counts."""
        self._sample()
        with self._lock:
            for usage in self._processes.values():
                usage._before = usage._seen
        self._machine_before = _machine_cpu()
        self._own_before = time.process_time()

    def anonymous(self, role: str) -> int:
        """Bytes of anonymous memory that all processes of a role have now."""
        with self._lock:
            pids = [pid for pid, usage in self._processes.items() if usage.role == role]
        return sum(_memory(pid)[0] for pid in pids)

    def forget_peaks(self) -> None:
        """Memory counts from here on."""
        with self._lock:
            for usage in self._processes.values():
                usage.peak_anonymous = 0

    def finish(self) -> list[Usage]:
        """A last sample; call before the processes are ended."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._sample()
        self._machine = _machine_cpu() - self._machine_before
        self.own_cpu = time.process_time() - self._own_before
        return list(self._processes.values())

    def others_cpu(self) -> float:
        """Processor seconds used since `mark` by everything else on the machine, the kernel's own work for the links included."""
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
    """Seconds of processor time of each thread of a process, to the nanosecond: `stat` counts in ticks, too coarse for the idle."""
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
    """A field of /proc/PID/status; 0 where it is not there, as in a process that has ended."""
    _, found, rest = text.partition(name)
    return int(rest.split(None, 1)[0]) if found else 0


def _machine_cpu() -> float:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, *_ = (int(field) for field in fields)
    return (user + nice + system + irq + softirq) / _TICK
