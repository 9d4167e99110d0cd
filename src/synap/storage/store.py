"""The container: one SQLite database with the log, the snapshots, and what identifies them.

    log(seq, body)        one row per commit, from 1 without gaps: all that was in flight when the disk was free
    snapshot(id, body)    the slices of a snapshot; id is its generation × 2³² + part
    meta(id, body)        1: identity, format version, secret; 2: the snapshot that counts, and where its log begins

Rows are few and large: the sqlite3 module hands the interpreter lock over at every row, so that rows per key would
leave a writer thread starved beside a busy event loop. SQLite brings what it is good at: atomic commits over torn
writes, a write-ahead log, locks, and a consistent copy for whoever reads beside us. It is not asked to be right about
the content: that is checked by `recovery`, end to end.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from synap.errors import SynapError
from synap.storage import private
from synap.storage.layout import DATABASE, FORMAT, MARK, NEW, WAL, Damaged, damage, refusal, remove_database
from synap.storage.mark import read_mark, write_mark
from synap.storage.reserve import free_space
from synap.storage.rows import Torn, seal_map, unseal_map

_log = logging.getLogger("synap.storage")

SCHEMA = (
    "CREATE TABLE log(seq INTEGER PRIMARY KEY, body BLOB)",
    "CREATE TABLE snapshot(id INTEGER PRIMARY KEY, body BLOB)",
    "CREATE TABLE meta(id INTEGER PRIMARY KEY, body BLOB)",
)
IDENTITY, CURRENT, PROBE = 1, 2, 9
"""Rows of `meta`."""

PAGE = 4096
FRAME = PAGE + 24
"""Bytes of a page in the write-ahead log."""
AMPLE = 64 * 1024 * 1024
"""Bytes that must be free for the write-ahead log's file to be made longer than it has to be."""
BUSY = 5.0
"""Seconds to wait for a foreign process that has the database locked."""


class Identity(NamedTuple):
    """What a database is: `secret` is the engine's, `created` Unix seconds, `id` sixteen random bytes."""

    format: int
    id: bytes
    secret: bytes
    created: float


class Current(NamedTuple):
    """The snapshot that counts: `parts` slices whose checksums make `digest`; the log goes on at `start`. Generation
    0 is none.
    """

    generation: int
    parts: int
    digest: int
    size: int
    start: int


EMPTY = Current(0, 0, 0, 0, 1)
"""What a new database says."""


class Unsynced(OSError):
    """What was written could not be forced to the disk."""


def _force(file: int) -> None:
    try:
        os.fsync(file)
    except OSError as error:
        raise Unsynced(*error.args) from error


def slice_id(generation: int, part: int) -> int:
    """Return the id of a slice's row."""
    return (generation << 32) + part


def connect(path: str, *, read_only: bool = False) -> sqlite3.Connection:
    """Open the database at `path`, which must exist. A read-only connection leaves every file as it is."""
    mode = "ro" if read_only else "rw"
    beside = (path + suffix for suffix in ("-wal", "-shm"))
    if read_only and not os.access(os.path.dirname(path) or ".", os.W_OK) and not any(map(os.path.exists, beside)):
        mode += "&immutable=1"  # SQLite would make both, which nobody has who has it open
    connection = sqlite3.connect(
        f"{Path(os.path.abspath(path)).as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY,
    )
    try:
        # A damaged schema must not make SQLite run what is written in it.
        connection.execute("PRAGMA trusted_schema=OFF")
    except BaseException:
        connection.close()
        raise
    return connection


def create(directory: str) -> None:
    """Make the database and the mark of a new directory. A crash on the way leaves nothing that counts as one."""
    identity = unfinished(directory) or create_hidden(directory)
    sync_directory(directory)
    # The mark first: a database without a mark that was emptied by accident would look like a new one.
    write_mark(directory, identity.id, 0)
    reveal(directory)


def create_hidden(directory: str, current: Current = EMPTY) -> Identity:
    """Make the database of a new directory under a name that doesn't count."""
    new = os.path.join(directory, NEW)
    remove_database(new)
    identity = Identity(FORMAT, secrets.token_bytes(16), secrets.token_bytes(32), time.time())
    private.create(new).close()
    connection = sqlite3.connect(new, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size={PAGE}")
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN")
        for table in SCHEMA:
            connection.execute(table)
        connection.execute("INSERT INTO meta VALUES(?, ?)", (IDENTITY, seal_map(IDENTITY, list(identity))))
        connection.execute("INSERT INTO meta VALUES(?, ?)", (CURRENT, seal_map(CURRENT, list(current))))
        connection.execute("COMMIT")
    finally:
        connection.close()
    return identity


def reveal(directory: str) -> None:
    """Give the database that was made the name that counts, once its mark is on disk."""
    sync_directory(directory)
    os.replace(os.path.join(directory, NEW), os.path.join(directory, DATABASE))
    sync_directory(directory)


def unfinished(directory: str) -> Optional[Identity]:
    """Return what the database is that a crash kept `create` from giving its name; None where there is none.

    What is being brought from elsewhere is none: it has rows, or its `meta` says that it will.
    """
    path = os.path.join(directory, NEW)
    if not os.path.isfile(path) or os.path.exists(path + "-wal"):
        return None
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            identity, current = read_identity(connection, directory), read_current(connection, directory)
            if current != EMPTY or connection.execute("SELECT 1 FROM log UNION SELECT 1 FROM snapshot").fetchone():
                return None
    except (sqlite3.Error, Damaged):
        return None
    with suppress(Damaged):  # the crash came while the mark was written
        mark = read_mark(directory)
        if mark is not None and (mark.identity != identity.id or mark.written):
            return None
    return identity


def sync_directory(directory: str) -> None:
    """Make new names in a directory durable, where the system has a way to."""
    if os.name == "nt":
        return
    file = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _read_meta(connection: sqlite3.Connection, directory: str, number: int, what: str) -> Any:
    row = connection.execute("SELECT body FROM meta WHERE id=?", (number,)).fetchone()
    if row is None:
        raise damage(directory, DATABASE, f"meta row {number}", f"{what} is missing")
    try:
        return unseal_map(number, row[0])
    except Torn as error:
        raise damage(directory, DATABASE, f"meta row {number}", f"{what} {error}") from None


def read_identity(connection: sqlite3.Connection, directory: str) -> Identity:
    """Read what the database is. Raises `Damaged`, and `Unusable` for a database of a newer version."""
    schema = [row[0] for row in connection.execute("SELECT sql FROM sqlite_master ORDER BY rowid")]
    tables = sum("TABLE meta" in (text or "") for text in schema)
    if tables == 0:
        raise damage(directory, DATABASE, "its schema", "it has no table meta: it is no database of synap")
    content = _read_meta(connection, directory, IDENTITY, "the identity")
    if content[0] > FORMAT:
        raise refusal(
            "INVALID_REQUEST",
            f"{directory} was written by a newer version (format {content[0]}, this one knows {FORMAT}); "
            "use that version, or start on another directory",
            directory,
            format=content[0],
        )
    if schema != list(SCHEMA):
        raise damage(directory, DATABASE, "its schema", "the definitions of its tables are not what they were made as")
    return Identity(*content)


def read_current(connection: sqlite3.Connection, directory: str) -> Current:
    """Read which snapshot counts. Raises `Damaged`."""
    return Current(*_read_meta(connection, directory, CURRENT, "the note of the current snapshot"))


class Store:
    """The database of a directory that is in use. Everything here waits for the disk; one thread at a time.

    There are two connections. What is written through the one is on disk, with all before it, when it returns; what is
    written through the other is merely in its place.
    """

    def __init__(self, directory: str, *, name: str = DATABASE) -> None:
        self.directory = directory
        self.path = os.path.join(directory, name)
        self.pages = 0
        """Pages written since the write-ahead log was last copied into the database, about."""
        self.room = 0
        """Pages that the file of the write-ahead log was made long enough for."""
        self.older: Optional[Identity] = None
        """What the database says it is, while that is of an older format. `update` comes before any other write."""
        self._connections: Dict[bool, sqlite3.Connection] = {}
        try:
            for safe in (True, False):
                self._connect(safe)
        except BaseException:
            self.close()
            raise

    def _connect(self, safe: bool) -> None:
        connection = self._connections[safe] = connect(self.path)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("PRAGMA journal_size_limit=16777216")
        # Some builds of SQLite overwrite what is deleted, which takes as much room as writing it did.
        connection.execute("PRAGMA secure_delete=OFF")
        connection.execute(f"PRAGMA synchronous={'FULL' if safe else 'NORMAL'}")

    def execute(self, sql: str, parameters: Sequence[Any] = (), *, safe: bool = False) -> List[Any]:
        """Run one statement; where it writes and is `safe`, it and all before it are on disk when this returns.

        Tests replace this to simulate failures of the disk.
        """
        return self._connections[safe].execute(sql, parameters).fetchall()

    def update(self) -> None:
        """Mark a database of an older format as one of this format, so that older versions refuse it.

        Raises sqlite3.Error; then `probe` does it later.
        """
        if self.older is not None:
            identity = seal_map(IDENTITY, list(self.older._replace(format=FORMAT)))
            self.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (IDENTITY, identity), safe=True)
            self.older = None
            _log.info("%s is of format %d now, which older versions refuse", self.directory, FORMAT)

    def append(self, seq: int, body: bytearray, *, safe: bool) -> None:
        """Write a row of the log. Raises sqlite3.Error."""
        self.execute("INSERT INTO log VALUES(?, ?)", (seq, body), safe=safe)
        self.pages += len(body) // PAGE + 2

    def force(self) -> None:
        """Sync all commits so far, by an empty one. Raises sqlite3.Error."""
        self.execute("INSERT OR REPLACE INTO meta VALUES(?, x'')", (PROBE,), safe=True)
        self.pages += 1

    def probe(self, size: int) -> None:
        """Find out whether a commit of `size` bytes can be written. Raises sqlite3.Error where not."""
        self.checkpoint_what_fits()
        self.update()
        self.execute("INSERT OR REPLACE INTO meta VALUES(?, zeroblob(?))", (PROBE, size), safe=True)
        self.execute("DELETE FROM meta WHERE id=?", (PROBE,), safe=True)

    def checkpoint(self, *, whole: bool = False, waits: bool = True) -> bool:
        """Copy the write-ahead log into the database; returns whether all of it was copied.

        A process that reads the database keeps the rest for later. `whole` also empties the log's file, and `waits` for
        whoever reads.
        """
        sql = f"PRAGMA wal_checkpoint({'TRUNCATE' if whole else 'PASSIVE'})"
        if not waits:
            self.execute("PRAGMA busy_timeout=0", safe=True)
        try:
            busy, length, copied = self.execute(sql, safe=True)[0]
        finally:
            if not waits:
                self.execute(f"PRAGMA busy_timeout={BUSY * 1000:.0f}", safe=True)
        self.pages = 0
        if whole:
            self.room = 0
        return not busy and length == copied

    def lengthen(self, pages: int) -> bool:
        """Make the write-ahead log's file long enough for `pages`, with zeros, in which SQLite sees the log's end.

        Returns False where that isn't possible. Raises `Unsynced`, sqlite3.Error.
        """
        if free_space(self.directory) < AMPLE:
            return False
        try:
            with open(self.path + "-wal", "r+b", buffering=0) as file:
                # Whoever else writes to the database waits: nothing is appended between the look and the zeros.
                self.execute("BEGIN IMMEDIATE")
                try:
                    missing = pages * FRAME - file.seek(0, os.SEEK_END)
                    if missing > 0:
                        file.write(bytes(missing))
                finally:
                    self.execute("ROLLBACK")  # which needs nothing of the disk
                _force(file.fileno())
        except Unsynced:
            raise
        except OSError:
            return False
        self.room = pages
        return True

    def checkpoint_what_fits(self, *, whole: bool = False, waits: bool = True) -> bool:
        """Run a checkpoint, as `checkpoint`, unless the database would grow by more than is free. Raises sqlite3.Error.

        On a full disk, it would take the space that is needed to free more.
        """
        return self.growth() <= free_space(self.directory) and self.checkpoint(whole=whole, waits=waits)

    def unused(self) -> int:
        """Return the bytes of the database's file that hold nothing."""
        pages: int = self.execute("PRAGMA freelist_count")[0][0]
        return pages * PAGE

    def growth(self) -> int:
        """Return the bytes that the database's file grows by with a full checkpoint."""
        pages: int = self.execute("PRAGMA page_count")[0][0]
        return max(pages * PAGE - os.path.getsize(self.path), 0)

    def file_sizes(self) -> Tuple[int, int]:
        """Return the bytes of the database and of its write-ahead log."""
        sizes = []
        for path in (self.path, self.path + "-wal"):
            try:
                sizes.append(os.path.getsize(path))
            except OSError:
                sizes.append(0)
        return sizes[0], sizes[1]

    def close(self) -> None:
        """Close the database. What is committed stays; nothing is waited for."""
        for connection in self._connections.values():
            connection.close()


class Trouble(NamedTuple):
    """What a failed commit means: `reason` a word for programs, `lasting` where only a restart helps, `uncertain`
    where the commit may be found after one."""

    reason: str
    text: str
    lasting: bool
    uncertain: bool


FULL = "disk_full"
"""The reason of trouble that ends once there is space."""
NO_SPACE = Trouble(FULL, "the disk is full", False, False)
_FULL, _BUSY, _LOCKED, _READONLY, _CANTOPEN, _IOERR = 13, 5, 6, 8, 14, 10
_FSYNC = (1034, 1290)


def diagnose(error: BaseException) -> Trouble:
    """Classify the error of a failed commit.

    A write that failed left nothing behind that counts, and can be tried again. A failed fsync can't: the system may
    have dropped what it could not write, and a second fsync that succeeds says nothing about it.
    """
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, Unsynced):
        code = _FSYNC[0]
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        code = _FULL
    if code is None:
        # Before Python 3.11 only the text is there, which doesn't tell a write from an fsync: the worse is assumed.
        texts = {"disk is full": _FULL, "disk I/O error": _FSYNC[0], "is locked": _BUSY, "readonly": _READONLY}
        code = next((known for text, known in texts.items() if text in str(error)), None)
        code = code or (_CANTOPEN if "unable to open" in str(error) else 0)
    if code == _FULL:
        return NO_SPACE
    if code in _FSYNC:
        return Trouble(
            "fsync_failed",
            "what was written could not be forced to the disk (fsync failed), nothing more is promised until a restart",
            True,
            True,
        )
    if code & 0xFF == _IOERR:
        return Trouble("io_error", f"writing to the disk failed ({error})", False, True)
    if code & 0xFF in (_BUSY, _LOCKED, _READONLY, _CANTOPEN):
        return Trouble("io_error", f"the database can't be written ({error})", False, False)
    if isinstance(error, (OverflowError, MemoryError)):
        return Trouble("too_large", f"what is to be written at once is too large ({error})", False, False)
    return Trouble("log_failed", f"the log failed ({type(error).__name__}: {error})", True, True)


def refused(trouble: Trouble, *, sparing: bool = False) -> SynapError:
    """Build the error that writes are refused with. `sparing`: of those that grow something only."""
    end = "a restart is needed" if trouble.lasting else "writing resumes by itself when it works again"
    if trouble.reason == FULL:
        now = "so does" if sparing else "in a moment so does"
        end = (
            f"{now} what makes room (consume, ack, nack, purge, delete), as long as the reserve lasts: do that, or "
            "free space on the disk, and writing resumes by itself"
        )
    return SynapError(
        "SERVICE_UNAVAILABLE",
        f"writes are refused: {trouble.text}; reads go on, and {end}",
        {"retry_after": 30.0 if trouble.lasting else 1.0, "reason": trouble.reason},
    )


def missing_pieces(directory: str) -> Optional[str]:
    """Return the name of a file that shows that a missing database was here; None where there is none."""
    if os.path.exists(os.path.join(directory, WAL)):
        return WAL
    return MARK if os.path.exists(os.path.join(directory, MARK)) and not unfinished(directory) else None
