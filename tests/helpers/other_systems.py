"""Run clients of memory:// and file:// without what Windows lacks: `python -m tests.helpers.other_systems DIRECTORY`.

The names are taken away after the standard library is loaded, whose own use of them isn't in question.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import logging.config
import multiprocessing.connection
import os
import pkgutil
import random
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import types
from typing import List

STANDARD = [asyncio, concurrent.futures, logging.config, multiprocessing.connection]
STANDARD += [random, socket, sqlite3, ssl, subprocess, tempfile]
OF_OS = "chown fchmod fchown fdatasync fork geteuid getpgid getuid killpg openpty posix_fadvise pread pwrite"
OF_OS += " register_at_fork sched_getaffinity setsid statvfs O_CLOEXEC O_DIRECTORY"
OF_SIGNAL = "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGUSR1 SIGUSR2 setitimer sigwait"
MODULES = "fcntl grp pty pwd resource termios tty uvloop"
ENGINE_AND_CLIENT = "client config engine errors host lanes results storage wire worker"
PARTS = tuple("synap." + part for part in ENGINE_AND_CLIENT.split())


def take_away() -> None:
    """Take away what Windows hasn't, and give what it has instead."""
    space = shutil.disk_usage(tempfile.gettempdir())
    shutil.disk_usage = lambda path: space  # there it asks Windows, here `os.statvfs`
    for module, names in ((os, OF_OS), (signal, OF_SIGNAL)):
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    for name in MODULES.split():
        sys.modules[name] = None  # type: ignore[assignment]  # how Python marks a module that can't be imported
    msvcrt = types.ModuleType("msvcrt")
    msvcrt.__dict__.update(LK_NBLCK=2, LK_UNLCK=0, locking=lambda file, mode, count: None)
    sys.modules["msvcrt"] = msvcrt


def main(directory: str) -> None:
    """Import every module, and use both kinds of engine; raises what fails."""
    take_away()
    from synap import SynapClient
    from synap import __path__ as places

    loaded: List[str] = []
    for module in pkgutil.walk_packages(places, "synap."):
        if module.name.startswith(PARTS) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            loaded.append(module.name)
    for url in ("memory://", f"file://{directory}"):
        with SynapClient(url) as client:
            client.kv.set("key", 1)
            client.queue.publish("queue", "work")
            assert client.queue.consume("queue") is not None
    with SynapClient(f"file://{directory}") as client:
        assert client.kv.get("key").value == 1
    sys.stdout.write(f"{len(loaded)}\n")


if __name__ == "__main__":
    main(sys.argv[1])
