"""A consistent copy of a directory, also while a process uses it.

The copy is made through SQLite, which reads one state of the database however much is written meanwhile (its write-
ahead log grows until the copy is made). It is then read like at a start, so that damage in the original is found now
and not when the copy is needed. Restoring is starting on the copy.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import suppress
from typing import BinaryIO, Generator, Iterable, Optional

from synap.storage import private
from synap.storage.layout import DATABASE, MARK, NEW, SUFFIXES, Damaged, check_files, damage, no_data, remove_database
from synap.storage.mark import read_mark, write_mark
from synap.storage.recovery import NO_MARK, Found, Progress, Reader, read_directory, reading
from synap.storage.store import sync_directory
from synap.storage.write_directory import new_directory, not_written

PAGES = 2048
"""Pages copied between two reports of progress."""
CHUNK = 1024 * 1024
COPY = ".copy"


def copy(directory: str, target: str, *, progress: Optional[Progress] = None) -> Found:
    """Copy the data of `directory` to `target`, a new directory; returns what is in the copy.

    `progress(done, total)` counts bytes. Raises `Damaged`, `Unusable`; then nothing in `target` counts as a database.
    """
    if not os.path.exists(os.path.join(directory, DATABASE)):
        raise no_data(directory)
    check_files(directory, DATABASE)
    with new_directory(target):
        hidden = os.path.join(target, NEW)
        private.create(hidden).close()
        _copy_database(directory, hidden, progress)
        try:
            return _accept(target, hidden)
        except Damaged as error:  # the copy is removed: what is damaged is what it was made of
            found = error.details
            raise damage(directory, found["file"], found["place"], found["what"]) from None


def stream(directory: str, *, progress: Optional[Progress] = None) -> Generator[bytes, None, None]:
    """Yield the bytes of a copy of a directory's database, for `receive` at the other end. Waits for the disk.

    What `progress(done, total)` raises ends it; it is called while the copy is made.
    """
    file, path = tempfile.mkstemp(COPY, DATABASE + ".", directory)
    os.close(file)
    try:
        _copy_database(directory, path, progress)
        with open(path, "rb") as reader:
            yield from iter(lambda: reader.read(CHUNK), b"")
    finally:
        remove_database(path)


def clear(directory: str) -> None:
    """Remove copies that a process left that ended while it sent them. The directory is locked by this process."""
    for name in os.listdir(directory):
        if name.startswith(DATABASE + ".") and name.endswith(tuple(COPY + suffix for suffix in SUFFIXES)):
            with suppress(OSError):  # it takes space and does no harm
                os.unlink(os.path.join(directory, name))


def receive(chunks: Iterable[bytes], target: str, *, progress: Optional[Progress] = None, total: int = 0) -> Found:
    """Make a directory of the bytes that `stream` yields elsewhere; returns what is in it.

    Raises `Damaged` where they are not a whole and sound copy; then nothing in `target` counts as a database.
    """
    with new_directory(target):
        hidden = os.path.join(target, NEW)
        with private.create(hidden) as file:
            _write(chunks, file, progress, total)
        return _accept(target, hidden)


def _write(chunks: Iterable[bytes], file: BinaryIO, progress: Optional[Progress], total: int) -> None:
    done = 0
    for chunk in chunks:
        file.write(chunk)
        done += len(chunk)
        if progress is not None:
            progress(done, max(total, done))
    file.flush()
    os.fsync(file.fileno())


def _copy_database(directory: str, path: str, progress: Optional[Progress]) -> None:
    mark = read_mark(directory)  # before the reading begins: a copy may reach further than the mark, never less far
    if mark is None:
        raise damage(directory, MARK, "the file", NO_MARK)
    with reading(directory) as source:
        # Reading has begun: all steps of the copy see the state of this moment, whatever is committed meanwhile.
        source.execute("BEGIN")
        page = source.execute("PRAGMA page_size").fetchone()[0]
        Reader(source, directory, mark).check_end()
        target = sqlite3.connect(path, isolation_level=None)
        try:

            def report(status: int, remaining: int, total: int) -> None:
                if progress is not None:
                    progress((total - remaining) * page, total * page)

            source.backup(target, pages=PAGES, progress=report)
        except sqlite3.OperationalError as error:
            if "disk is full" in str(error):  # the copy's; nothing is written where the original is
                raise not_written(error) from None
            raise
        finally:
            target.close()
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _accept(target: str, hidden: str) -> Found:
    """Check a copy, and give it the name of a database."""
    path = os.path.join(target, DATABASE)
    os.replace(hidden, path)
    try:
        found = read_directory(target, lambda records: None, marked=False)
        write_mark(target, found.identity.id, found.seq)
        # The copy was in use when it was checked, and is not any more.
        for suffix in ("-wal", "-shm"):
            if os.path.exists(path + suffix):
                os.unlink(path + suffix)
    except BaseException:
        os.replace(path, hidden)
        raise
    sync_directory(target)
    return found
