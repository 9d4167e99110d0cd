"""Kills the children of a process, and removes its folders, once it has ended, however it ended (SIGKILL included).

A reaper process reads their ids and names from a pipe. The pipe ends when the process that writes to it does; then the
reaper kills the children that are left, and removes the folders.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Optional

_REAPER = """
import os, shutil, signal, sys, time

def began(pid):
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            return file.read().rpartition(b")")[2].split()[19]
    except OSError:
        return None

doomed, folders = {}, set()
for line in sys.stdin:
    if line[1] == "/":
        folder = os.fsdecode(bytes.fromhex(line[2:]))
        (folders.add if line[0] == "+" else folders.discard)(folder)
        continue
    pid = abs(int(line))
    if int(line) > 0:
        doomed[pid] = began(pid)
    else:
        doomed.pop(pid, None)
for pid, since in doomed.items():
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
_reaper: Optional[subprocess.Popen[bytes]] = None


def kill_at_exit(pid: int) -> None:
    """Have a child of this process killed once this process ends."""
    _tell(b"%d" % pid)


def cancel_kill(pid: int) -> None:
    """Take back `kill_at_exit`: the child has ended."""
    _tell(b"%d" % -pid)


def remove_at_exit(path: str) -> None:
    """Have a folder removed once this process and its children have ended."""
    _tell(b"+/%b" % os.fsencode(path).hex().encode())


def cancel_removal(path: str) -> None:
    """Take back `remove_at_exit`: the folder is gone."""
    _tell(b"-/%b" % os.fsencode(path).hex().encode())


def _tell(line: bytes) -> None:
    global _reaper
    with _lock:
        if _reaper is None:
            _reaper = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _REAPER],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C must not reach it
            )
        assert _reaper.stdin is not None
        with suppress(BrokenPipeError):  # somebody killed it
            _reaper.stdin.write(line + b"\n")


@atexit.register
def _let_go() -> None:
    if _reaper is not None:
        assert _reaper.stdin is not None
        _reaper.stdin.close()
        _reaper.wait()


def _forked() -> None:
    """Leave the pipe to the parent: it would stay open for as long as a child lives. What that ties, it ties itself."""
    global _reaper, _lock
    _lock = threading.Lock()
    if _reaper is not None:
        assert _reaper.stdin is not None
        _reaper.stdin.close()
        _reaper.returncode = 0  # it isn't this process's to wait for
        _reaper = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
