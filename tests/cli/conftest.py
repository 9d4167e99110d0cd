"""What the command line's tests share: running it in this process, or for real in one of its own."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Protocol

import pytest

from synap.cli.app import run
from synap.testing.reaper import kill_at_exit
from tests.helpers.patience import PATIENCE


@dataclass
class Ended:
    """How a command line ended."""

    code: int
    out: bytes
    err: str

    @property
    def documents(self) -> List[Any]:
        """What it printed, one JSON document a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def document(self) -> Any:
        """The one document it printed."""
        (only,) = self.documents
        return only


class Synap(Protocol):
    def __call__(self, *args: str, stdin: bytes = b"") -> Ended: ...


@pytest.fixture
def synap(synap_url: str, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Synap:
    """Runs a command line against the shared server, in this process."""
    monkeypatch.setenv("SYNAP_URL", synap_url)
    monkeypatch.delenv("SYNAP_API_KEY", raising=False)

    def call(*args: str, stdin: bytes = b"") -> Ended:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsysbinary.readouterr()
        code = run(list(args))
        out, err = capsysbinary.readouterr()
        return Ended(code, out, err.decode())

    return call


@pytest.fixture
def name() -> str:
    """A name of this test's own, for a key, a queue, a room or a topic."""
    return f"t{uuid.uuid4().hex[:12]}"


def environment(url: Optional[str] = None, **more: str) -> Dict[str, str]:
    """The environment of a process of its own: nothing said about the service but `url`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SYNAP_")}
    return {**kept, **({} if url is None else {"SYNAP_URL": url}), **more}


Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def spawn(synap_url: str) -> Any:
    """Starts `synap` as a process of its own; those that still run at the end of the test are killed."""
    started: List[subprocess.Popen[bytes]] = []

    def start(*args: str, url: Optional[str] = None, **options: Any) -> subprocess.Popen[bytes]:
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        given.setdefault("env", environment(url or synap_url))
        if os.name == "posix":  # a run in the background of a shell ignores Ctrl-C, and so would what it starts
            given.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        process: subprocess.Popen[bytes] = subprocess.Popen([sys.executable, "-m", "synap", *args], **given)
        kill_at_exit(process.pid)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def for_real(spawn: Spawn) -> Callable[..., Ended]:
    """Runs a command line to its end in a process of its own."""

    def call(*args: str, stdin: Optional[bytes] = None, **options: Any) -> Ended:
        if stdin is not None:
            options["stdin"] = subprocess.PIPE
        process = spawn(*args, **options)
        out, err = process.communicate(stdin, timeout=PATIENCE)
        return Ended(process.returncode, out or b"", (err or b"").decode())

    return call
