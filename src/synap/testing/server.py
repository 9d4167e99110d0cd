"""A real service for the length of a test: a process of its own, on a free port of this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import List, Mapping, Optional, Sequence, Union

from synap.testing.ports import ReservedPort
from synap.testing.reaper import cancel_kill, kill_at_exit

__all__ = ["SERVER_PYTHON", "ThrowawayServer", "can_serve"]

SERVER_PYTHON = "SYNAP_TEST_SERVER_PYTHON"
"""Environment variable: the Python to run the service with, where the tests' own is too old for it."""

_URL = re.compile(r"https?://[\w.\[\]:-]+:\d+")


def can_serve() -> bool:
    """Say whether this Python (3.10 or newer) or the one that `SYNAP_TEST_SERVER_PYTHON` names, can run the service."""
    return sys.version_info >= (3, 10) or bool(os.environ.get(SERVER_PYTHON))


class ThrowawayServer:
    """A `synap serve` process that a test owns, and that doesn't outlive the process of the test, however that ends.

        with ThrowawayServer() as server:
            client = SynapClient(url=server.url)

    `data`: directory to keep; without one nothing is kept (`--memory`). `arguments` go to `synap serve` as they are.
    `python`: the interpreter, by default `SYNAP_TEST_SERVER_PYTHON`, then this one. `port` stays the same over `kill`
    and `start`, so clients find it again; where none is given, it is one that nobody else gets meanwhile.
    """

    def __init__(
        self,
        *,
        data: Union[str, os.PathLike[str], None] = None,
        arguments: Sequence[str] = (),
        environment: Optional[Mapping[str, str]] = None,
        port: int = 0,
        python: Optional[str] = None,
        patience: float = 120.0,
    ) -> None:
        self.data = None if data is None else os.fspath(data)
        self.arguments = list(arguments)
        self.environment = dict(environment or {})
        self.port = port
        self._reserved: Optional[ReservedPort] = None
        self.python = python or os.environ.get(SERVER_PYTHON) or sys.executable
        self.patience = patience
        """Seconds that starting and stopping may take."""
        self.url = ""
        self.output: List[str] = []
        """Lines the service has printed, since it was started last."""
        self._process: Optional[subprocess.Popen[str]] = None
        self._said = threading.Event()
        """Set once the process has printed its address, or ended."""
        self._listens = False
        self._reader: Optional[threading.Thread] = None

    @property
    def pid(self) -> int:
        """The process's id. Raises `RuntimeError` where it isn't running."""
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> ThrowawayServer:
        """Start the service and wait until it listens; raises `RuntimeError` with its output where it doesn't."""
        if self.running:
            raise RuntimeError("the server runs already")
        if not self.port:
            self._reserved = ReservedPort()
            self.port = self._reserved.number
        command = [self.python, "-m", "synap", "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        if not any(argument.startswith("--engine") for argument in self.arguments):
            command += ["--memory"] if self.data is None else ["--data", self.data]
        self.output = []
        self._said.clear()
        self._listens = False
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SYNAP_")}
        environment.update(self.environment, PYTHONUNBUFFERED="1")
        self._process = subprocess.Popen(
            command + self.arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
        kill_at_exit(self._process.pid)
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        self._said.wait(self.patience)
        if not self._listens or not self.running:
            if not self._said.is_set():
                self.kill()
            else:
                self._ended(self._process)
            raise RuntimeError("the server didn't come up:\n" + "".join(self.output))
        return self

    def stop(self) -> int:
        """Ask the service to drain and stop (SIGTERM), and return its exit code, which should be 0."""
        process = self._running()
        process.terminate()
        return self._ended(process)

    def kill(self) -> None:
        """End the process at once (SIGKILL), as a crash would."""
        process = self._running()
        process.kill()
        self._ended(process)

    def restart(self) -> None:
        """Kill the service and start it again on the same data and the same port."""
        self.kill()
        self.start()

    def signal(self, number: int) -> None:
        """Send the process the signal `number`."""
        self._running().send_signal(number)

    def wait_ended(self) -> int:
        """Wait until the process ends by itself, and return its exit code."""
        return self._ended(self._running())

    def __enter__(self) -> ThrowawayServer:
        return self.start()

    def __exit__(self, kind: object, *_: object) -> None:
        if self._process is None:
            return
        if not self.running:
            self._ended(self._process)
            return
        code = self.stop()
        if kind is None and code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the server ended with exit code {code}:\n" + "".join(self.output))

    # ------------------------------------------------------------------------------------------ inside

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise RuntimeError("the server doesn't run")
        return self._process

    def _ended(self, process: subprocess.Popen[str]) -> int:
        deadline = time.monotonic() + self.patience
        try:
            code = process.wait(self.patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError("the server didn't stop when asked:\n" + "".join(self.output)) from None
        finally:
            if self._reader is not None:
                self._reader.join(max(0.0, deadline - time.monotonic()))
            if process.stdout is not None:
                process.stdout.close()
        cancel_kill(process.pid)
        self._process = None
        return code

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.output.append(line)
            if not self._said.is_set():
                found = _URL.search(line)
                if found:
                    self.url = found.group().replace("//localhost:", "//127.0.0.1:")
                    self._listens = True
                    self._said.set()
        self._said.set()
