"""A directory written at once from an engine: what was saved, copied or brought from elsewhere."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import contextmanager, suppress
from typing import Iterator, List, Optional

from synap.engine.engine import Engine
from synap.errors import SynapError
from synap.storage.layout import LOCK, NEW, refusal
from synap.storage.lock import DirectoryLock
from synap.storage.mark import write_mark
from synap.storage.rows import SLICE, Packed, checksum, pack, seal, seal_map
from synap.storage.snapshot import RECORDS, SLICE_BYTES, digest
from synap.storage.store import CURRENT, EMPTY, Current, Store, create_hidden, reveal, slice_id


@contextmanager
def new_directory(directory: str) -> Iterator[None]:
    """Make a directory that will hold data, and lock it while the block runs.

    Where the block fails, the directory is left as it was found: not there, or empty. Raises `Unusable` where there is
    data, or something else.
    """
    made = not os.path.exists(directory)
    empty = False
    lock: Optional[DirectoryLock] = None
    try:
        _make(directory)
        empty = True
        lock = DirectoryLock(directory)
        yield
    except BaseException as error:
        if lock is not None:
            _empty(directory)
        elif empty and not isinstance(error, SynapError):  # of a signal handler, while it was locked
            with suppress(SynapError):
                lock = DirectoryLock(directory)
        if lock is not None:
            lock.remove()
        if made:
            with suppress(OSError):  # somebody else may have put something there
                os.rmdir(directory)
        if isinstance(error, sqlite3.Error):
            error = not_written(error)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = directory
        raise error
    lock.release()


def _make(directory: str) -> None:
    """Make an empty directory, where there is none."""
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        there = sorted(set(os.listdir(directory)) - {LOCK})
    except FileExistsError:
        raise refusal("INVALID_REQUEST", f"{directory} is a file; a new directory is needed", directory) from None
    except OSError as error:
        raise refusal("INVALID_REQUEST", f"{directory} can't be made: {error.strerror}", directory) from None
    if there:
        shown = ", ".join(there[:3]) + (", …" if len(there) > 3 else "")
        raise refusal("INVALID_REQUEST", f"{directory} is not empty ({shown}); a new directory is needed", directory)


def not_written(error: sqlite3.Error) -> OSError:
    """Build the error for a database of ours that can't be written: as a rule the disk is full."""
    number = errno.ENOSPC if "disk is full" in str(error) else errno.EIO
    return OSError(number, os.strerror(number))


def _empty(directory: str) -> None:
    """Remove what was made in a locked directory that is to hold nothing after all."""
    for name in os.listdir(directory):
        if name != LOCK:
            with suppress(OSError):  # what can't be removed is named by the next one who wants the directory
                os.unlink(os.path.join(directory, name))


def write_engine(directory: str, engine: Engine) -> None:
    """Write a directory that holds what an engine holds: a snapshot and an empty log. The directory is new and locked.

    Nothing there counts as a database before all of it does.
    """
    identity = create_hidden(directory, Current(1, 0, 0, 0, 1))
    write_mark(directory, identity.id, 0)
    store = Store(directory, name=NEW)
    try:
        parts = size = sums = 0

        def put(packed: List[Packed]) -> None:
            nonlocal parts, size, sums
            body = seal(SLICE, 1, parts, packed)
            store.execute("INSERT INTO snapshot VALUES(?, ?)", (slice_id(1, parts), body))
            parts += 1
            size += len(body)
            sums = digest(sums, checksum(body))
            if parts % 64 == 0:
                store.checkpoint()

        packed: List[Packed] = []
        held = 0
        for records in engine.dump(RECORDS):
            packed.append(pack(records))
            held += len(packed[-1].data)
            if held >= SLICE_BYTES:
                put(packed)
                packed, held = [], 0
        if packed:
            put(packed)
        current = Current(1, parts, sums, size, 1) if parts else EMPTY
        sealed = seal_map(CURRENT, list(current))
        store.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (CURRENT, sealed), safe=True)
        store.checkpoint(whole=True)
    finally:
        store.close()
    reveal(directory)
