"""Files that only their owner may read, replaced atomically."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import contextmanager, suppress
from typing import BinaryIO, Iterator, Optional

from synap.errors import SynapError

try:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)

except ImportError:  # Windows, where no file is replaced that anybody has open, so that one of two is told so

    def _lock(file: int) -> None: ...


_EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def create(path: str) -> BinaryIO:
    """Make a file that only its owner may read. Raises OSError where anything of that name is there, a link too."""
    return os.fdopen(os.open(path, _EXCLUSIVE | _FLAGS, 0o600), "wb")


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock under which a file is replaced.

    A file that isn't there is made, empty, and removed where it still is at the end. Raises OSError, and
    `INVALID_REQUEST` where there is something else of that name.
    """
    while True:
        fresh = _before(path) is None
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        except PermissionError:
            if fresh:
                raise
            # It may still be replaced.
            file = os.open(path, os.O_RDONLY | _FLAGS)
        try:
            _lock(file)
            if not is_at(file, path):  # somebody else has just replaced it
                continue
            try:
                yield
            finally:
                if fresh and is_at(file, path) and not os.fstat(file).st_size:
                    os.unlink(path)
            return
        finally:
            os.close(file)


def is_at(file: int, path: str) -> bool:
    """Return whether an open file is the one that others find under this path."""
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False


@contextmanager
def replacing(path: str, *, keep: bool = False) -> Iterator[BinaryIO]:
    """Write a file, which has its name only once all of it is there and on disk.

    `keep`: a file that was there keeps its mode, and its owner where the system lets us. Raises OSError, and
    `INVALID_REQUEST` where there is something else of that name: a symbolic link is not followed.
    """
    before = _before(path)
    folder, name = os.path.split(path)
    fresh = os.path.join(folder, f".{name}.{secrets.token_hex(8)}")
    opened = create(fresh)
    try:
        with opened:
            if keep and before is not None and os.name == "posix":
                with suppress(PermissionError):
                    os.fchown(opened.fileno(), before.st_uid, before.st_gid)
                os.fchmod(opened.fileno(), stat.S_IMODE(before.st_mode))
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(fresh, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(fresh)
        raise


def _before(path: str) -> Optional[os.stat_result]:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(status.st_mode):
        raise SynapError("INVALID_REQUEST", f"{path} is a symbolic link, which is not followed: name the file itself")
    if not stat.S_ISREG(status.st_mode):
        raise SynapError("INVALID_REQUEST", f"{path} is there and is no file")
    return status
