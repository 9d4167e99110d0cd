"""Several worker processes: start, restart and stop them, and replace them when code changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Dict, Optional, Sequence

from synap.errors import SynapError
from synap.worker.process import FOUND_NOTHING

FAILED_WITHIN = 5.0
"""A process that ends sooner than this (seconds) counts as failed, and the pause before its restart grows."""
MAX_PAUSE = 30.0


class Supervisor:
    """Runs `count` processes of `python -m synap.worker` with `arguments`.

    One that ends is restarted, with exponential backoff while they fail within `FAILED_WITHIN` seconds. SIGTERM and
    SIGINT are passed on; processes that still run `grace` + 10 seconds later are killed. All end when this process
    does, even by SIGKILL: each watches a pipe that is closed then.
    """

    def __init__(self, arguments: Sequence[str], count: int, grace: float, reload: Sequence[str] = ()) -> None:
        self._command = [sys.executable, "-m", "synap.worker", *arguments, "--lifeline"]
        self._count = count
        self._grace = grace
        self._reload = list(reload)
        self._processes: Dict[subprocess.Popen[bytes], float] = {}
        """When each was started."""
        self._stopping = threading.Event()
        self._failures = 0
        self._pause_until = 0.0
        """When processes are started again, after some that failed."""
        self._code = 0

    def run(self) -> int:
        """Run until a signal asks to stop; returns the exit code."""
        before = {number: signal.signal(number, self._signalled) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            if self._reload:
                threading.Thread(target=self._watch_code, daemon=True).start()
            while not self._stopping.is_set():
                self._restart_ended()
                self._stopping.wait(0.1)
            self._end(list(self._processes))
        finally:
            for process in self._processes:
                process.kill()
                process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._code

    def _signalled(self, number: int, frame: Optional[FrameType]) -> None:
        if self._stopping.is_set():  # the second one: handlers are cancelled
            for process in self._processes:
                process.send_signal(signal.SIGINT)
        self._stopping.set()

    def _restart_ended(self) -> None:
        for process in [process for process in self._processes if process.poll() is not None]:
            started = self._processes.pop(process, None)
            if started is None:  # all were replaced, as the code has changed
                break
            lived = time.monotonic() - started
            if process.returncode == FOUND_NOTHING and not self._reload:
                self._code = FOUND_NOTHING
                self._stopping.set()
                return
            self._failures = self._failures + 1 if lived < FAILED_WITHIN else 0
            sys.stderr.write(f"synap worker: process {process.pid} ended with {process.returncode}, restarting\n")
            if self._failures > 1:
                self._pause_until = time.monotonic() + min(MAX_PAUSE, 0.5 * 2 ** min(self._failures, 10))
        while len(self._processes) < self._count and not self._stopping.is_set():
            if time.monotonic() < self._pause_until:
                return
            self._start()

    def _start(self) -> None:
        # A process group of its own: signals of a terminal reach this process only, which passes them on once.
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)
        self._processes[process] = time.monotonic()

    def _end(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            process.terminate()
        until = time.monotonic() + self._grace + 10
        for process in processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                self._code = 1

    def _watch_code(self) -> None:
        """Replace the processes whenever a Python file changes."""
        import watchfiles  # installed, as `check_reload` has seen

        wanted = watchfiles.PythonFilter()
        for changed in watchfiles.watch(*self._reload, watch_filter=wanted, stop_event=self._stopping):
            names = ", ".join(sorted(os.path.relpath(path) for _, path in changed)[:3])
            sys.stderr.write(f"synap worker: {names} changed, restarting\n")
            self._replace()

    def _replace(self) -> None:
        """End all processes, while the loop starts new ones at once."""
        former, self._processes = self._processes, {}
        self._failures = 0
        self._pause_until = 0.0
        self._end(list(former))


def check_reload() -> None:
    """Raise `INVALID_REQUEST` if `watchfiles` is not installed."""
    try:
        import watchfiles  # noqa: F401
    except ImportError:
        raise SynapError("INVALID_REQUEST", "--reload needs: pip install 'synap-client[worker]'") from None
