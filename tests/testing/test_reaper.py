"""Services, nodes and disks of tests end with the process that started them, however it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import List

import pytest

from synap.testing.server import can_serve
from tests.helpers.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
needs_a_service = pytest.mark.skipif(not can_serve(), reason="needs a service")

SERVICE = """
import os, pathlib, signal, threading, time
from synap.testing.server import ThrowawayServer

def test_it(tmp_path):
    with ThrowawayServer() as service, ThrowawayServer(data=tmp_path / "data") as frozen:
        frozen.signal(signal.SIGSTOP)
        ports = [service.port, frozen.port]
        {more}
        pathlib.Path("new").write_text(" ".join(map(str, ports)))
        pathlib.Path("new").rename("ports")
        {end}
"""

FORK = """
        if not os.fork():
            while not os.path.exists("end"):  # outlives its parent, and keeps no service up
                time.sleep(0.02)
            os._exit(0)
"""

NODES = """
        from synap.testing.cluster import ThrowawayCluster
        cluster = ThrowawayCluster(2).start()
        ports += [node.port for node in cluster.nodes]
        pathlib.Path("folder").write_text(cluster.folder)
"""


def in_another_run(folder: Path, text: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Begin a run of pytest of its own."""
    (folder / "test_it.py").write_text(text, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)


def listen(ports: List[int]) -> List[int]:
    """Return those of the ports on which somebody listens."""
    found = []
    for port in ports:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                found.append(port)
    return found


def ports_of(folder: Path, run: subprocess.Popen[bytes]) -> List[int]:
    """Wait for what a run has started."""
    give_up = time.monotonic() + PATIENCE
    while not (folder / "ports").exists():
        assert run.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return [int(port) for port in (folder / "ports").read_text(encoding="utf-8").split()]


def are_gone(ports: List[int]) -> None:
    """Wait until nobody listens on any of the ports."""
    give_up = time.monotonic() + PATIENCE
    while listen(ports):
        assert time.monotonic() < give_up, listen(ports)
        time.sleep(0.02)


def is_removed(folder: Path) -> None:
    """Wait until a folder isn't there."""
    give_up = time.monotonic() + PATIENCE
    while folder.exists():
        assert time.monotonic() < give_up, list(folder.rglob("*"))
        time.sleep(0.02)


@needs_a_service
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_services_and_nodes_end_with_a_run_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    more = FORK + NODES if sys.version_info >= (3, 10) else FORK
    run = in_another_run(tmp_path, SERVICE.format(more=more, end="threading.Event().wait()"), "-n0")
    try:
        ports = ports_of(tmp_path, run)
        assert listen(ports) == ports
        run.send_signal(number)
        run.wait(PATIENCE)
        are_gone(ports)
        if NODES in more:
            is_removed(Path((tmp_path / "folder").read_text(encoding="utf-8")))
    finally:
        run.kill()
        run.wait()
        (tmp_path / "end").touch()


@needs_a_service
def test_services_end_with_a_worker_of_a_run_that_is_killed(tmp_path: Path) -> None:
    text = SERVICE.format(more="", end="os.kill(os.getpid(), signal.SIGKILL)")
    run = in_another_run(tmp_path, text, "-n1", "--max-worker-restart=0")
    try:
        assert run.wait(PATIENCE) == 1
        are_gone([int(port) for port in (tmp_path / "ports").read_text(encoding="utf-8").split()])
    finally:
        run.kill()
        run.wait()


DISK = """
import os, signal
from tests.helpers.small_disk import small_disk

def test_it(small_disk):
    if not os.path.exists("killed"):
        with open("killed", "w"), open(os.path.join(small_disk.path, "open"), "w"):
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_small_disk_is_not_in_the_way_of_the_run_after_one_that_is_killed(tmp_path: Path) -> None:
    for outcome in (-signal.SIGKILL, 0):
        run = in_another_run(tmp_path, DISK, "-n0", f"--basetemp={tmp_path / 'base'}")
        assert run.wait(PATIENCE) == outcome
