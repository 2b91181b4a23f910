"""The processes of one run: starts them, reads their output, measures them, and ends them all."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .measure import Meter

GRACE = 5.0
"""Seconds that a process may take to end after SIGTERM."""

DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
"""Command prefix: the kernel ends the command with the thread that started it, so a killed
benchmark leaves no process behind."""


class TrialError(Exception):
    """The run failed; the message says why."""


class Child:
    """One process of the run. Its standard output is read line by line; its standard error goes to
    a log."""

    def __init__(self, process: subprocess.Popen, log: Path):
        self.process = process
        self.pid = process.pid
        self._log = log

    def tell(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def log_tail(self, size: int = 600) -> str:
        return self._log.read_text(errors="replace")[-size:].strip() if self._log.exists() else ""


class Processes:
    """Starts processes and keeps the first failure of any of them."""

    def __init__(self, meter: Meter):
        self.meter = meter
        self._children: list[Child] = []
        self._lock = threading.Lock()
        self._failure: str | None = None
        self._may_end: set[int] = set()

    def start(
        self,
        command: list[str],
        role: str,
        folder: Path,
        on_line: Callable[[str, Child], None] = lambda *_: None,
        environment: dict[str, str] | None = None,
        on_exit: Callable[[int, Child], None] | None = None,
        where: str = "",
    ) -> Child:
        """Starts a process in `folder`, which also gets its log. If the process ends, the run
        fails, unless `on_exit` is given.

        Call it from the main thread: the kernel ends the process with the thread that started
        it."""
        log = folder / f"{role}.log"
        with log.open("ab") as errors:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder,
                                       env={**os.environ, **(environment or {})})
        child = Child(process, log)
        self._children.append(child)
        self.meter.add(child.pid, role)

        def read() -> None:
            for line in process.stdout:
                try:
                    on_line(line.rstrip("\n"), child)
                except Exception as error:  # A reader that dies in silence would look like a stalled run.
                    self.fail(f"{role}{where} said {line!r}: {error!r}")
            try:
                _, status, usage = os.wait4(child.pid, 0)
            except ChildProcessError:
                return
            process.returncode = os.waitstatus_to_exitcode(status)
            self.meter.ended(child.pid, usage.ru_utime + usage.ru_stime)
            if on_exit:
                on_exit(process.returncode, child)
            elif child.pid not in self._may_end:
                self.fail(f"{role}{where} ended with {process.returncode}: {child.log_tail()}")

        threading.Thread(target=read, daemon=True).start()
        return child

    def gate(self, count: int) -> "Gate":
        return Gate(self, count)

    def allow_exit(self, pid: int) -> None:
        """From now on the end of this process is not a failure."""
        self._may_end.add(pid)

    def fail(self, message: str) -> None:
        with self._lock:
            self._failure = self._failure or message

    def raise_failure(self) -> None:
        if self._failure:
            raise TrialError(self._failure)

    def stop(self) -> None:
        """Ends every started process, by pid."""
        self._may_end.update(child.pid for child in self._children)
        for child in self._children:
            if child.process.returncode is None:
                send(child.pid, signal.SIGCONT)
                send(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline and any(c.process.returncode is None for c in self._children):
            time.sleep(0.01)
        for child in self._children:
            if child.process.returncode is None:
                send(child.pid, signal.SIGKILL)
        while any(c.process.returncode is None for c in self._children) and time.monotonic() < deadline + GRACE:
            time.sleep(0.01)


class Gate:
    """Waits until it was passed a given number of times, or a process failed."""

    def __init__(self, processes: Processes, count: int):
        self._processes = processes
        self._count = count
        self._condition = threading.Condition()

    def one(self) -> None:
        with self._condition:
            self._count -= 1
            self._condition.notify_all()

    def wait(self, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        with self._condition:
            while self._count > 0:
                self._processes.raise_failure()
                if time.monotonic() > deadline:
                    raise TrialError(f"{self._count} processes were not ready after {timeout:.0f} s")
                self._condition.wait(0.1)


def send(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
