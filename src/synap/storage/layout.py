"""The files of a data directory, and the errors about them.

synap.db      the log and the snapshots, an SQLite database; beside it, while it is open, synap.db-wal and synap.db-shm
synap.mark    the last commit that was answered, so that a log that ends too early is noticed
synap.lock    which process has the directory
synap.reserve nothing: allocated space that is released when the disk is full
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from synap.errors import SynapError

FORMAT = 3
"""The version of everything below a data directory. A directory of a newer one is refused; one of an older one is read,
and gets this number before anything is written to it. Needed for each record that a version before doesn't know.

1 was that of version 0.1; 2 came with the records `KEY_SET` and `KEYS`, 3 with those that don't repeat who sent a
request, and when.
"""

DATABASE = "synap.db"
WAL = DATABASE + "-wal"
"""The database's write-ahead log."""
SUFFIXES = ("", "-wal", "-shm", "-journal")
"""What the names of a database and of SQLite's files beside it end with."""
MARK = "synap.mark"
LOCK = "synap.lock"
RESERVE = "synap.reserve"
NEW = "synap.db.new"
"""A database that is being made, and gets its own name once it is complete."""


class Unusable(SynapError):
    """Raised when a data directory can't be used: what is wrong and what to do are in the message."""


class Locked(Unusable):
    """Raised when another process has the directory; `details['pid']` names it."""


class Damaged(Unusable):
    """Raised when what is on disk isn't what was written; `details` has `file`, `place` and `what`."""


def refusal(code: str, message: str, directory: str, **details: Any) -> Unusable:
    """Build the error for a directory that can't be used for a reason other than damage."""
    return Unusable(code, message, {"directory": directory, **details})


def whoever() -> str:
    """Name the user that this process is."""
    return f"user {os.geteuid()}" if hasattr(os, "geteuid") else "this user"


def no_data(directory: str) -> Unusable:
    """Build the error for a directory without a database, or that this user may not look into."""
    try:
        os.stat(os.path.join(directory, DATABASE))
    except PermissionError:
        return refusal("INVALID_REQUEST", f"{directory} can't be looked into: {whoever()} may not", directory)
    except OSError:
        pass
    return refusal("INVALID_REQUEST", f"{directory} holds no data: there is no {DATABASE} in it", directory)


def remove_database(path: str) -> None:
    """Remove a database and SQLite's files beside it, as far as they exist."""
    for suffix in SUFFIXES:
        with suppress(FileNotFoundError):
            os.unlink(path + suffix)


def damage(directory: str, file: str, place: str, what: str) -> Damaged:
    """Build the error for damage: which file, where in it, what is wrong, and the way on."""
    path = os.path.join(directory, file)
    return Damaged(
        "INTERNAL_ERROR",
        f"{path} is damaged: {place}: {what}. Nothing was changed. `synap doctor {directory}` checks the directory, "
        "and with `--repair NEW_DIRECTORY` saves what is sound",
        {"directory": directory, "file": file, "place": place, "what": what},
    )


def check_files(directory: str, *names: str) -> None:
    """Raise `Damaged` where there is something with one of these names that is no file: a pipe would never be read.

    Likewise for an empty database: SQLite would take it for new, and remove the write-ahead log.
    """
    for name in names:
        path = os.path.join(directory, name)
        if os.path.exists(path) and not os.path.isfile(path):
            raise damage(directory, name, "the file", "it is no file")
        if name == DATABASE and os.path.exists(path) and not os.path.getsize(path):
            raise damage(directory, name, "byte 0", "it is empty")
