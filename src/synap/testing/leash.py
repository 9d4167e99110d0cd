"""Ends processes once the one that started them has ended, however it ended, so that a killed test run leaves none.

A process beside them reads their ids from a pipe, and names of folders. The end of the pipe is the end of who writes
them; then it kills what is still tied, and removes those folders.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Optional

__all__ = ["tie", "tie_folder", "untie", "untie_folder"]

_KEEPER = """
import os, shutil, signal, sys, time

def began(pid):
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            return file.read().rpartition(b")")[2].split()[19]
    except OSError:
        return None

tied, folders = {}, set()
for line in sys.stdin:
    if line[1] == "/":
        folder = os.fsdecode(bytes.fromhex(line[2:]))
        (folders.add if line[0] == "+" else folders.discard)(folder)
        continue
    pid = abs(int(line))
    if int(line) > 0:
        tied[pid] = began(pid)
    else:
        tied.pop(pid, None)
for pid, since in tied.items():
    if began(pid) == since:  # else another process has its id by now
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
for attempt in range(100):  # what was killed may still write for a moment
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    folders = set(filter(os.path.exists, folders))
    if not folders:
        break
    time.sleep(0.05)
"""

_lock = threading.Lock()
_keeper: Optional[subprocess.Popen[bytes]] = None


def tie(pid: int) -> None:
    """Have a child of this process killed once this process ends."""
    _tell(b"%d" % pid)


def untie(pid: int) -> None:
    """Take back what `tie` said: the child has ended."""
    _tell(b"%d" % -pid)


def tie_folder(path: str) -> None:
    """Have a folder removed once this process, and what is tied to it, ends."""
    _tell(b"+/%b" % os.fsencode(path).hex().encode())


def untie_folder(path: str) -> None:
    """Take back what `tie_folder` said: the folder is gone."""
    _tell(b"-/%b" % os.fsencode(path).hex().encode())


def _tell(line: bytes) -> None:
    global _keeper
    with _lock:
        if _keeper is None:
            _keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _KEEPER],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for who started them
            )
        assert _keeper.stdin is not None
        with suppress(BrokenPipeError):  # somebody killed it
            _keeper.stdin.write(line + b"\n")


@atexit.register
def _let_go() -> None:
    if _keeper is not None:
        assert _keeper.stdin is not None
        _keeper.stdin.close()
        _keeper.wait()


def _forked() -> None:
    """Leave the pipe to the parent: it would stay open for as long as a child lives. What that ties, it ties itself."""
    global _keeper, _lock
    _lock = threading.Lock()
    if _keeper is not None:
        assert _keeper.stdin is not None
        _keeper.stdin.close()
        _keeper.returncode = 0  # it isn't this process's to wait for
        _keeper = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
