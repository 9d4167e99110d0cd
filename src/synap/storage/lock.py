"""The lock of a directory: one process uses it at a time, and a second one learns which."""

from __future__ import annotations

import datetime
import errno
import json
import os
import socket
import time
from contextlib import suppress
from typing import Any, Dict

from synap import forks
from synap.storage.layout import LOCK, Locked, refusal, whoever
from synap.storage.private import is_at


class DirectoryLock:
    """The lock of a directory, held until `release` or the end of the process.

    Raises `Locked` with the process that has it, `Unusable` where the directory can't be written.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.path = os.path.join(directory, LOCK)
        self._file = -1
        try:
            self._open(directory)
            while not is_at(self._file, self.path):  # its last holder removed it just now
                os.close(self._file)
                self._file = -1
                self._open(directory)
            self._write_holder()
            forks.watch(self)
        except BaseException:  # of a signal handler too
            self.release()
            raise

    def _open(self, directory: str) -> None:
        try:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
            self._file = os.open(self.path, flags, 0o600)  # whoever can open it can hold it
        except OSError as error:
            raise _not_writable(directory, error) from None
        try:
            take(self._file)
        except OSError as error:
            holder = self._read_holder()
            os.close(self._file)
            self._file = -1
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK, errno.EDEADLK):
                raise refusal(
                    "INVALID_REQUEST",
                    f"{self.path} can't be locked ({error.strerror}): it must be on a file system with file locks",
                    directory,
                ) from None
            raise in_use(directory, holder) from None

    def remove(self) -> None:
        """Release the lock and remove its file: there is nothing to be locked any more."""
        with suppress(OSError):  # Windows removes no open file; an empty one is as good as none
            os.unlink(self.path)
        self.release()

    def _write_holder(self) -> None:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": round(time.time(), 3)}
        try:
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, json.dumps(holder).encode())
        except OSError:
            pass  # a full disk: the lock is held all the same, but a second process can't name its holder

    def _read_holder(self) -> Dict[str, Any]:
        try:
            os.lseek(self._file, 0, os.SEEK_SET)
            holder = json.loads(os.read(self._file, 4096))
            return holder if isinstance(holder, dict) else {}
        except (OSError, ValueError):
            return {}

    def release(self) -> None:
        """Release the lock; harmless when that has happened."""
        if self._file >= 0:
            try:
                os.ftruncate(self._file, 0)
                # Explicitly: closing releases it only when no child that was just forked has the file open, too.
                give_back(self._file)
            except OSError:
                pass
            os.close(self._file)
            self._file = -1

    def forked(self) -> None:
        """In a forked child: close its copy of the file, which would keep the shared lock past the parent's end."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


try:
    import fcntl

    def take(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def give_back(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)

except ImportError:  # Windows
    import msvcrt

    def take(file: int) -> None:
        # A byte far behind the text, so that others can read who has it.
        os.lseek(file, 1 << 20, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]

    def give_back(file: int) -> None:
        os.lseek(file, 1 << 20, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined,unused-ignore]


def in_use(directory: str, holder: Dict[str, Any]) -> Locked:
    """Build the error for a directory that somebody else has: `holder` as the lock's file names it."""
    pid = holder.get("pid")
    who = "another process"
    if pid == os.getpid() and holder.get("host") == socket.gethostname():
        who = f"this process itself (pid {pid})"
    elif pid is not None:
        who = f"process {pid} on {holder.get('host')}"
    since = holder.get("since")
    if isinstance(since, (int, float)):
        who += " since " + datetime.datetime.fromtimestamp(since).isoformat(" ", "seconds")
    return Locked(
        "SERVICE_UNAVAILABLE",
        f"{directory} is in use by {who}; one process can have a data directory at a time",
        {"directory": directory, "pid": pid, "host": holder.get("host")},
    )


def _not_writable(directory: str, error: OSError) -> Exception:
    if error.errno == errno.EROFS:
        why = "it is on a read-only file system"
    elif error.errno in (errno.EACCES, errno.EPERM):
        why = f"{whoever()} must be allowed to read and write it"
        if os.access(directory, os.R_OK | os.W_OK | os.X_OK):  # the lock of somebody else, who was here before
            return refusal("INVALID_REQUEST", f"{os.path.join(directory, LOCK)} can't be used: {why}", directory)
    else:
        why = error.strerror or str(error)
    return refusal("INVALID_REQUEST", f"{directory} can't be used as a data directory: {why}", directory)
