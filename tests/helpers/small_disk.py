"""A disk that is small: a file system in memory where one can be mounted, else one that is pretended.

The pretended one stands in the process that uses it: `Store` refuses, as SQLite would on a full disk, what would take
more than is left of the capacity, and so does the reserve. It counts what really lies in the directory.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

import pytest

from synap.storage import durable, reserve, shortage, store
from synap.storage.layout import DATABASE
from synap.storage.store import PAGE, Store
from tests.helpers.patience import PATIENCE

__all__ = ["SmallDisk", "small_disk"]

SHARED = 64 * 1024
"""Bytes of SQLite's index of its write-ahead log, and the small files."""


def used(directory: str) -> int:
    """Return the bytes that the files of a directory take."""
    total = 0
    for name in os.listdir(directory):
        try:
            total += os.stat(os.path.join(directory, name)).st_blocks * 512
        except FileNotFoundError:
            pass
    return total


def free(file: str) -> int:
    """Return the bytes that are left of a pretended disk."""
    with open(file, encoding="utf-8") as reader:
        disk = json.load(reader)
    return max(int(disk["size"]) - used(disk["directory"]), 0)


def pretend(file: str) -> None:
    """Give this process a small disk."""
    execute, allocate = Store.execute, reserve.allocate

    def full() -> sqlite3.OperationalError:
        error = sqlite3.OperationalError("database or disk is full")
        if sys.version_info >= (3, 11):
            error.sqlite_errorcode = 13
        return error

    def checked(self: Store, sql: str, parameters: Sequence[Any] = (), *, safe: bool = False) -> List[Any]:
        if sql.startswith(("INSERT", "DELETE")):
            size = sum(len(value) for value in parameters if isinstance(value, (bytes, bytearray)))
            if "zeroblob" in sql:
                size = parameters[1]
            if free(file) < size + 3 * PAGE:
                raise full()
        elif "checkpoint" in sql:
            pages = execute(self, "PRAGMA page_count")[0][0]
            if free(file) < pages * PAGE - os.path.getsize(self.path):
                raise full()
        return execute(self, sql, parameters, safe=safe)

    def bounded(path: str, size: int) -> None:
        if free(file) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        allocate(path, size)

    Store.execute = checked  # type: ignore[method-assign]
    reserve.allocate = bounded
    for module in (reserve, shortage, durable, store):
        module.free_space = lambda directory: free(file)  # type: ignore[attr-defined]


class SmallDisk:
    """A small disk. `data`: a directory on it that is to be made; `environment`: what a process that uses it needs."""

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.data = os.path.join(path, "data")
        self.environment: Dict[str, str] = {}
        os.mkdir(path)
        self.keeper = _mount(path, size)
        self.mounted = self.keeper is not None
        self.file: Optional[str] = None
        if not self.mounted:
            os.mkdir(self.data)
            self.file = path + ".json"
            with open(os.path.join(path, "sitecustomize.py"), "w", encoding="utf-8") as module:
                module.write(f"from tests.helpers.small_disk import pretend\npretend({self.file!r})\n")
            self.environment["PYTHONPATH"] = os.pathsep.join([path, str(Path(__file__).parents[2])])
        self.resize(size)

    def resize(self, size: int) -> None:
        """Make the disk larger, or smaller, so many bytes."""
        if self.mounted:
            subprocess.run(["mount", "-o", f"remount,size={size}", self.path], check=True)
        else:
            assert self.file is not None
            with open(self.file + ".new", "w", encoding="utf-8") as writer:
                json.dump({"directory": self.data, "size": size}, writer)
            os.replace(self.file + ".new", self.file)

    def used(self) -> int:
        """Return the bytes of it that are taken."""
        if self.mounted:
            status = os.statvfs(self.path)
            return (status.f_blocks - status.f_bfree) * status.f_frsize
        return used(self.data)

    def fold(self) -> None:
        """Have SQLite's write-ahead log folded into the database, and cut to nothing."""
        give_up = time.monotonic() + PATIENCE
        with closing(sqlite3.connect(os.path.join(self.data, DATABASE), isolation_level=None)) as connection:
            while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                assert time.monotonic() < give_up

    def stuff(self) -> None:
        """Fill what is left of it with a file of somebody else's."""
        if self.mounted:
            with open(os.path.join(self.path, "else"), "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
        else:
            self.resize(self.used())

    def remove(self) -> None:
        """Take it away."""
        if self.keeper is not None:
            self.keeper.communicate()
            assert self.keeper.returncode == 0


KEEP = """
mount -t tmpfs -o size="$1" tmpfs "$0" || exit
echo mounted
read nothing
umount "$0" || umount --lazy "$0"
"""
"""Mounts, and unmounts once its input ends: so also where a test's process is killed. The next one's folder for files
that don't stay could not be emptied otherwise."""


def _mount(path: str, size: int) -> Optional[subprocess.Popen[bytes]]:
    if os.environ.get("SYNAP_TEST_PRETEND_DISK"):
        return None
    keeper = subprocess.Popen(
        ["sh", "-c", KEEP, path, str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the tests
    )
    assert keeper.stdout is not None
    if keeper.stdout.readline():
        return keeper
    keeper.communicate()
    return None


@pytest.fixture
def small_disk(tmp_path: Any) -> Iterator[SmallDisk]:
    """Give a disk of 24 MiB."""
    disk = SmallDisk(str(tmp_path / "small"), 24 * 1024 * 1024)
    try:
        yield disk
    finally:
        disk.remove()
