"""Recovery: restores an engine from a directory. Everything is read and checked before anything is changed.

What must hold, else the directory is refused with the place:

* the database can be read, its structure is sound (SQLite's own quick check, free pages included), its tables are ours;
* the snapshot that counts is complete: every slice is there, says itself that it belongs there, and matches its
  checksum, and all the checksums together match what was noted when it began to count;
* the log goes on where the snapshot began, without a gap, each row saying itself which it is;
* the log reaches at least the last commit that anybody was told about (`mark`).

Rows before and beside those don't count; they are what a crash left of a clean-up.
"""

from __future__ import annotations

import gc
import os
import sqlite3
import threading
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Tuple

from synap.engine.engine import Engine
from synap.engine.journal import Record
from synap.storage.layout import DATABASE, MARK, WAL, Damaged, check_files, damage, refusal, whoever
from synap.storage.mark import Promise, read_mark
from synap.storage.prefetch import Row, Rows, prefetch
from synap.storage.reserve import free_space
from synap.storage.rows import COMMIT, SLICE, Torn, checksum, decode_records, unseal
from synap.storage.snapshot import SEGMENT, digest
from synap.storage.store import FULL, PAGE, Current, Identity, connect, read_current, read_identity, slice_id
from synap.storage.wal import broken_frames

NO_MARK = f"it is missing, and {DATABASE} is there: whether the last commits are there can't be told"
LEAST_SPACE = 64 * 1024
"""Bytes that SQLite needs on the disk to read a database with a write-ahead log."""

Progress = Callable[[int, int], None]
"""Called now and then with (bytes read, bytes to read)."""


class Found(NamedTuple):
    """What a directory holds: `seq` is its last commit.

    `log` has (number, bytes, whether it counts) of each row, `leftovers` (first id, last id) of slices that don't
    count.
    """

    identity: Identity
    current: Current
    seq: int
    log: List[Tuple[int, int, bool]]
    leftovers: List[Tuple[int, int]]


class Reader:
    """Reads what counts of a database, in order, and checks it. Raises `Damaged`, and what SQLite raises."""

    def __init__(self, connection: sqlite3.Connection, directory: str, mark: Optional[Promise]) -> None:
        self.connection = connection
        self.directory = directory
        self.mark = mark
        self.identity = read_identity(connection, directory)
        self.current = read_current(connection, directory)
        self.seq = self.current.start - 1
        self.log: List[Tuple[int, int, bool]] = []

    def sizes(self) -> Tuple[int, int]:
        """Return the bytes of the slices and of the log that count."""
        first, end = self._slices()
        run = self.connection.execute
        snapshot = run("SELECT coalesce(sum(length(body)), 0) FROM snapshot WHERE id>=? AND id<?", (first, end))
        log = run("SELECT coalesce(sum(length(body)), 0) FROM log WHERE seq>=?", (self.current.start,))
        return snapshot.fetchone()[0], log.fetchone()[0]

    def _slices(self) -> Tuple[int, int]:
        generation = self.current.generation
        return slice_id(generation, 0), slice_id(generation, self.current.parts)

    def records(self) -> Iterator[Tuple[int, List[Record]]]:
        """Yield the records of the snapshot, then those of the log, with the bytes of their row."""
        sums = 0
        for size, place, sealed in prefetch(self._rows()):
            try:
                content = unseal(*sealed)
                records = decode_records(content)
            except Torn as error:
                raise self._damage(place, error) from None
            if sealed[0] == SLICE:
                sums = digest(sums, checksum(sealed[-1]))
            yield size, records
        if sums != self.current.digest:
            raise self._damage(
                f"snapshot of generation {self.current.generation}", "its slices are not those it was made of"
            )

    def _rows(self) -> Rows:
        """Yield the rows of the snapshot and of the log, which must be all there. On the reading thread."""
        yield from self._snapshot()
        yield from self._log()
        self._check_reach()

    def _snapshot(self) -> Rows:
        current = self.current
        expected = 0
        rows = self.connection.execute("SELECT id, body FROM snapshot WHERE id>=? AND id<? ORDER BY id", self._slices())
        for number, body in rows:
            part = number - slice_id(current.generation, 0)
            if part != expected:
                break
            place = f"snapshot row {number} (slice {part} of generation {current.generation})"
            expected += 1
            yield row_of(place, SLICE, current.generation, part, body)
        if expected != current.parts:
            row = slice_id(current.generation, expected)
            raise self._damage(f"snapshot row {row}", f"slice {expected} of {current.parts} of the snapshot is missing")

    def _log(self) -> Rows:
        for seq, body in self.connection.execute(
            "SELECT seq, body FROM log WHERE seq>=? ORDER BY seq", (self.current.start,)
        ):
            if seq != self.seq + 1:
                raise self._damage(f"log row {self.seq + 1}", f"it is missing, the next one is {seq}")
            row = row_of(f"log row {seq}", COMMIT, seq, 0, body)
            self.seq = seq
            add_to(self.log, seq, row.size, True)
            yield row

    def check_end(self) -> None:
        """Check that the log reaches the mark, without reading its rows. Raises `Damaged`."""
        last = self.connection.execute("SELECT max(seq) FROM log WHERE seq>=?", (self.current.start,)).fetchone()[0]
        self.seq = self.seq if last is None else last
        self._check_reach()

    def _check_reach(self) -> None:
        mark = self.mark
        if mark is None:
            return
        if mark.identity != self.identity.id:
            raise self._damage("meta row 1", "the mark beside it belongs to another database")
        reaches = mark.reaches()
        if self.seq < reaches:
            ends = f"the log ends at commit {self.seq}, and commits up to {reaches} were answered"
            broken = broken_frames(os.path.join(self.directory, WAL), PAGE)
            if broken:
                place = f"frame {broken[0].number} (from byte {broken[0].offset})"
                raise damage(self.directory, WAL, place, f"it does not match its checksum; because of that {ends}")
            cut = "the end of the database or of its write-ahead log was cut, changed or never reached the disk"
            raise self._damage(f"log row {self.seq + 1}", f"{ends}: {cut}")

    def leftovers(self) -> List[Tuple[int, int]]:
        """Find what doesn't count: older rows of the log go into `log`, slices are returned."""
        run = self.connection.execute
        older = run("SELECT seq, length(body) FROM log WHERE seq<? ORDER BY seq", (self.current.start,))
        stretches: List[Tuple[int, int, bool]] = []
        for seq, size in older:
            add_to(stretches, seq, size or 0, False)
        self.log[:0] = stretches
        first, end = self._slices()
        return [
            (low, high)
            for low, high in (
                run("SELECT min(id), max(id) FROM snapshot WHERE id<?", (first,)).fetchone(),
                run("SELECT min(id), max(id) FROM snapshot WHERE id>=?", (end,)).fetchone(),
            )
            if low is not None
        ]

    def _damage(self, place: str, what: object) -> Damaged:
        return damage(self.directory, DATABASE, place, str(what))


def row_of(place: str, kind: bytes, number: int, part: int, body: Any) -> Row:
    """Describe a row; whether its body is one is checked when it is unsealed."""
    return Row(len(body) if isinstance(body, bytes) else 0, place, (kind, number, part, body))


def add_to(stretches: List[Tuple[int, int, bool]], seq: int, size: int, counts: bool) -> None:
    """Add a row of the log to its stretches, of which there are few, however many rows."""
    if stretches and stretches[-1][1] < SEGMENT:
        size += stretches.pop()[1]
    stretches.append((seq, size, counts))


class Structure(threading.Thread):
    """SQLite's check of the database's structure, beside the reading of its content."""

    def __init__(self, path: str) -> None:
        super().__init__(name="synap-check", daemon=True)
        self.path = path
        self.found: List[str] = []

    def run(self) -> None:
        try:
            connection = connect(self.path, read_only=True)
            try:
                self.found = [row[0] for row in connection.execute("PRAGMA quick_check(3)") if row[0] != "ok"]
            finally:
                connection.close()
        except sqlite3.Error as error:
            self.found = [str(error)]


def structure_error(directory: str, found: List[str]) -> Damaged:
    """Build the error for the damage that SQLite reports."""
    text = "; ".join(" ".join(line.split()) for line in found)
    return damage(directory, DATABASE, place_of(text), text)


def place_of(text: str) -> str:
    """Find the page that SQLite's text names, and where it begins in the file."""
    words = text.replace(":", " ").replace(",", " ").split()
    for word, following in zip(words, words[1:]):
        if word.lower() == "page" and following.isdigit():
            number = int(following)
            return f"page {number} (from byte {max(number - 1, 0) * PAGE})"
    return "its structure"


def read_directory(
    directory: str, each: Callable[[List[Record]], None], *, progress: Optional[Progress] = None, marked: bool = True
) -> Found:
    """Read all that counts in a directory that is locked, `each` taking the records of one row, and check it.

    `marked`: its mark must be there; a copy gets one once it is checked.

    Nothing in the directory is changed. Raises `Damaged`, `Unusable`; then what `each` got is not to be used.
    """
    path = os.path.join(directory, DATABASE)
    mark = read_mark(directory)
    if mark is None and marked:
        raise damage(directory, MARK, "the file", NO_MARK)
    check_files(directory, DATABASE)
    structure = Structure(path)
    structure.start()
    try:
        with reading(directory, structure) as connection:
            connection.execute("BEGIN")
            reader = Reader(connection, directory, mark)
            total = sum(reader.sizes()) if progress is not None else 0
            done = 0
            for size, records in reader.records():
                each(records)
                if progress is not None:
                    done += size
                    progress(done, total)
            leftovers = reader.leftovers()
    finally:
        structure.join()
    if structure.found:
        raise structure_error(directory, structure.found)
    return Found(reader.identity, reader.current, reader.seq, reader.log, leftovers)


def identify(directory: str) -> Identity:
    """Read what the database of a directory is. Raises `Damaged`, `Unusable`."""
    with reading(directory) as connection:
        return read_identity(connection, directory)


@contextmanager
def reading(directory: str, structure: Optional[Structure] = None) -> Iterator[sqlite3.Connection]:
    """Open a database for reading; what goes wrong meanwhile is raised as `Damaged` or `Unusable`."""
    check_files(directory, DATABASE, WAL)
    try:
        connection = connect(os.path.join(directory, DATABASE), read_only=True)
        try:
            yield connection
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        raise unreadable(directory, error) from None
    except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
        if structure is not None:
            structure.join()
        raise structure_error(directory, (structure and structure.found) or [str(error)]) from None


def unreadable(directory: str, error: sqlite3.Error) -> Exception:
    """Build the error for a database that SQLite can't read: no permission, no space for its index, or damage."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    text = str(error)
    if code in (3, 14, 8) or "unable to open" in text or "readonly" in text or "permission" in text:
        if not os.access(directory, os.W_OK):
            text += (
                f"; SQLite makes files beside a database that was in use: let {whoever()} write to {directory}, "
                "or copy it to where that is so"
            )
        return refusal("INVALID_REQUEST", f"{os.path.join(directory, DATABASE)} can't be opened: {text}", directory)
    if free_space(directory) < LEAST_SPACE:
        return refusal(
            "SERVICE_UNAVAILABLE",
            f"{directory} can't be opened ({text}): the disk is full, and {LEAST_SPACE >> 10} KiB are needed to read",
            directory,
            reason=FULL,
        )
    return structure_error(directory, [text])


def recover(
    directory: str,
    engine: Engine,
    now: float,
    *,
    progress: Optional[Progress] = None,
    sound: Callable[[Found], object] = lambda found: None,
) -> Found:
    """Restore an engine from a directory that is locked. Raises `Damaged`, `Unusable`; then the engine is not to be
    used.

    `sound` is called with what was found once all of it is checked, before the engine builds what it derives from that.
    """
    # What is built stays: repeated garbage collections of it would take a third of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        try:
            found = read_directory(directory, engine.restore_all, progress=progress)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            what = f"a record matches its checksum and makes no sense here ({type(error).__name__}: {error})"
            raise damage(directory, DATABASE, "its records", what) from error
        sound(found)
        engine.restored(now)
    finally:
        if collects:
            gc.enable()
    return found
