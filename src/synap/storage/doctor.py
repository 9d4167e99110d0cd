"""Checks a data directory for damage, and saves what is undamaged to a new one."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import suppress
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from synap.engine.engine import Engine
from synap.engine.journal import Record
from synap.engine.records import KEYS
from synap.storage.durable import spacious_engine
from synap.storage.layout import DATABASE, MARK, WAL, Damaged, Unusable, check_files, no_data, refusal
from synap.storage.mark import Promise, read_mark
from synap.storage.recovery import NO_MARK, Progress, Structure, place_of, unreadable
from synap.storage.rows import COMMIT, HEADER, SLICE, Torn, checksum, unseal_records
from synap.storage.snapshot import digest
from synap.storage.store import (
    PAGE,
    Current,
    Identity,
    connect,
    missing_pieces,
    read_current,
    read_identity,
    slice_id,
)
from synap.storage.wal import broken_frames, mend
from synap.storage.write_directory import new_directory, write_engine


class Problem(NamedTuple):
    """One thing that is wrong: in which file, where, what."""

    file: str
    place: str
    what: str


class Report(NamedTuple):
    """What a directory holds and what is wrong with it. `lost` names what can't be read, `records` counts what can."""

    directory: str
    problems: List[Problem]
    figures: Dict[str, Any]
    lost: List[str]
    records: int

    @property
    def sound(self) -> bool:
        """Whether a start on the directory would succeed with everything in place."""
        return not self.problems


def check(directory: str, *, progress: Optional[Progress] = None) -> Report:
    """Read everything in a directory and report all that is wrong with it. Changes nothing; a process may be using it.

    Raises `Unusable` where there is nothing to check or it can't be read for other reasons than damage.
    """
    return _Examination(directory, lambda record: None, progress).run()


def repair(directory: str, target: str, *, progress: Optional[Progress] = None) -> Report:
    """Save what is sound in `directory` to `target`, a new directory, and report what isn't.

    `directory` stays as it is. Every commit that can be read counts, also those behind one that can't: what is saved is
    then not the state of one moment, but what each key, message and event was when it was last seen.

    Raises `Unusable` where `target` exists with something in it, or nothing could be saved.
    """
    with new_directory(target):
        scratch = os.path.join(target, "examined")
        os.mkdir(scratch, 0o700)
        try:
            before = None
            with suppress(Unusable):  # on a disk that is full or has become read-only; the copy can be read then
                before = check(directory)
            for name in (DATABASE, WAL, DATABASE + "-journal", MARK):  # not what else is there, such as lost+found
                path = os.path.join(directory, name)
                if os.path.isfile(path):
                    with open(path, "rb") as source, open(os.path.join(scratch, name), "xb") as copied:
                        shutil.copyfileobj(source, copied, 1 << 20)
            before = before or _Examination(directory, lambda record: None, None, files=scratch).run()
            mend(os.path.join(scratch, WAL), PAGE)
            engine, skipped, report = _salvage(directory, scratch, progress)
            report = report._replace(problems=before.problems)
        finally:
            shutil.rmtree(scratch)
        if report.problems and not report.records:
            raise refusal(
                "INVALID_REQUEST",
                f"nothing in {directory} could be saved: {report.problems[0].what}; the way on is a backup",
                directory,
            )
        write_engine(target, engine)
        lost = report.lost + ([f"{skipped} records that refer to something lost"] if skipped else [])
        return report._replace(lost=lost)


def _salvage(directory: str, scratch: str, progress: Optional[Progress]) -> Tuple[Engine, int, Report]:
    saved: List[Record] = []
    examination = _Examination(directory, saved.append, progress, files=scratch)
    report = examination.run()
    identity = examination.identity
    engine = spacious_engine(None if identity is None else identity.secret)
    skipped = 0
    for record in saved:
        try:
            engine.restore(record)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError):
            skipped += _count(record)
    engine.restored(engine.timeline.latest)
    return engine, skipped, report


def _count(record: Record) -> int:
    """Return how many records this is: one that holds several keys stands for one of each."""
    return len(record[1]) if record[:1] == (KEYS,) and record[1:2] and isinstance(record[1], dict) else 1


class _Examination:
    """Reads a directory to its end, whatever is damaged. `files`: where to read, if that is a copy."""

    def __init__(
        self,
        directory: str,
        each: Callable[[Record], None],
        progress: Optional[Progress],
        *,
        files: Optional[str] = None,
    ) -> None:
        self.directory = directory
        self.files = files or directory
        self.each = each
        self.progress = progress
        self.problems: List[Problem] = []
        self.lost: List[str] = []
        self.records = 0
        self.identity: Optional[Identity] = None
        self.mark: Optional[Promise] = None
        self.figures: Dict[str, Any] = {}

    def run(self) -> Report:
        path = os.path.join(self.files, DATABASE)
        if not os.path.isdir(self.directory):
            raise refusal("INVALID_REQUEST", f"{self.directory} is not a directory", self.directory)
        if not os.path.exists(path):
            if missing_pieces(self.files) is None:
                raise no_data(self.directory)
            self._found(DATABASE, "the file", "it is missing")
            return self._report()
        self._read_mark()
        try:
            check_files(self.files, DATABASE, WAL)
        except Damaged as error:
            self._note(error)
            return self._report()
        try:
            connection = connect(path, read_only=True)
        except sqlite3.Error as error:
            self._found(DATABASE, "the file", str(error))
            return self._report()
        try:
            self._examine(connection)
        finally:
            connection.close()
        return self._report()

    def _report(self) -> Report:
        return Report(self.directory, self.problems, self.figures, self.lost, self.records)

    def _found(self, file: str, place: str, what: str) -> None:
        self.problems.append(Problem(file, place, what))

    def _note(self, error: Damaged) -> None:
        what = error.message.split(": ", 2)[-1].split(". Nothing was changed")[0]
        self._found(error.details["file"], error.details["place"], what)

    def _read_mark(self) -> None:
        try:
            self.mark = read_mark(self.files)
        except Damaged as error:
            self._note(error)
        else:
            if self.mark is None:
                self._found(MARK, "the file", NO_MARK)

    def _examine(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            if isinstance(error, sqlite3.OperationalError):
                reason = unreadable(self.directory, error)
                if not isinstance(reason, Damaged):
                    raise reason from None
            self._found(DATABASE, "its header", str(error))
            return
        for frame in broken_frames(os.path.join(self.files, WAL), PAGE):
            place = f"frame {frame.number} (from byte {frame.offset})"
            self._found(WAL, place, "it does not match its checksum, so the write-ahead log ends before it")
        structure = Structure(os.path.join(self.files, DATABASE))
        structure.run()
        for line in structure.found:
            text = " ".join(line.split())
            self._found(DATABASE, place_of(text), text)
        current = self._identify(connection)
        reach = self._reach(connection, current)
        self._snapshot(connection, current)
        self._log(connection, current.start, reach)

    def _identify(self, connection: sqlite3.Connection) -> Current:
        try:
            self.identity = read_identity(connection, self.directory)
            self.figures["format"] = self.identity.format
        except Damaged as error:
            self._note(error)
        except sqlite3.Error as error:
            self._found(DATABASE, "meta row 1", str(error))
        try:
            return read_current(connection, self.directory)
        except Damaged as error:
            self._note(error)
        except (sqlite3.Error, TypeError) as error:
            self._found(DATABASE, "meta row 2", str(error))
        return self._guess(connection)

    def _guess(self, connection: sqlite3.Connection) -> Current:
        """Find the snapshot that counts without the note of it: the oldest of which the first slice is there.

        A newer one may be unfinished; then the log from the older one is all there, as it is until that is removed,
        which begins with its first slice.
        """
        run = connection.execute
        try:
            oldest = run("SELECT min(seq) FROM log").fetchone()[0] or 1
            first = run("SELECT min(id) FROM snapshot WHERE id & 0xFFFFFFFF = 0").fetchone()[0]
            if first is None:  # or it is damaged: the newest
                first = run("SELECT max(id) FROM snapshot").fetchone()[0]
            if first is None:
                return Current(0, 0, 0, 0, oldest)
            generation = first >> 32
            ids = (slice_id(generation, 0), slice_id(generation + 1, 0))
            last = run("SELECT max(id) FROM snapshot WHERE id>=? AND id<?", ids).fetchone()[0]
        except sqlite3.Error:
            return Current(0, 0, 0, 0, 1)
        return Current(generation, min((last & 0xFFFFFFFF) + 1, self._most()), -1, 0, oldest)

    def _reach(self, connection: sqlite3.Connection, current: Current) -> int:
        """Find the last commit that there is or must be."""
        last = current.start - 1
        with suppress(sqlite3.Error):
            last = connection.execute("SELECT max(seq) FROM log").fetchone()[0] or last
        if self.mark is not None and (self.identity is None or self.mark.identity == self.identity.id):
            last = max(last, self.mark.reaches())
        elif self.mark is not None:
            self._found(MARK, "byte 4", "it belongs to another database")
        return min(last, current.start + self._most())

    def _most(self) -> int:
        """Return the most rows there can be, so that a damaged number isn't counted up to."""
        path = os.path.join(self.files, DATABASE)
        size = sum(os.path.getsize(name) for name in (path, os.path.join(self.files, WAL)) if os.path.exists(name))
        return size // HEADER.size + 1

    def _snapshot(self, connection: sqlite3.Connection, current: Current) -> None:
        size = sums = 0
        for part in range(current.parts):
            row = self._row(connection, SLICE, current.generation, part)
            if row is None:
                self.lost.append(f"slice {part} of {current.parts} of the snapshot")
                continue
            body, records = row
            sums = digest(sums, checksum(body))
            size += len(body)
            self._take(records)
            self._tell(size, current.size)
        if not self.lost and current.digest not in (-1, sums):
            self._found(DATABASE, f"snapshot of generation {current.generation}", "its slices are not its own")
        self.figures.update(snapshot_slices=current.parts, snapshot_bytes=size)

    def _log(self, connection: sqlite3.Connection, start: int, reach: int) -> None:
        size = rows = 0
        gap: List[int] = []
        for seq in range(start, reach + 1):
            row = self._row(connection, COMMIT, seq, 0, quiet=bool(gap))
            if row is None:
                gap.append(seq)
                continue
            body, records = row
            self._end_gap(gap)
            size += len(body)
            rows += 1
            self._take(records)
            self._tell(size, size)
        if gap and gap[-1] == reach and self.mark is not None and gap[0] > start:
            self._found(DATABASE, f"log row {gap[0]}", f"the log ends here, and commits up to {reach} were answered")
        self._end_gap(gap)
        self.figures.update(first_commit=start, last_commit=reach, log_rows=rows, log_bytes=size)

    def _end_gap(self, gap: List[int]) -> None:
        if gap:
            self.lost.append(f"commit {gap[0]}" if len(gap) == 1 else f"commits {gap[0]} to {gap[-1]}")
            gap.clear()

    def _row(
        self, connection: sqlite3.Connection, kind: bytes, number: int, part: int, *, quiet: bool = False
    ) -> Optional[Tuple[bytes, List[Record]]]:
        """Read a row and its records; None where that fails, which is noted. `quiet`: not where the row is missing."""
        table, key = ("log", "seq") if kind == COMMIT else ("snapshot", "id")
        row_id = number if kind == COMMIT else slice_id(number, part)
        problem = "it is missing"
        try:
            row = connection.execute(f"SELECT body FROM {table} WHERE {key}=?", (row_id,)).fetchone()
            if row is not None:
                return row[0], unseal_records(kind, number, part, row[0])
        except Torn as error:
            problem, quiet = str(error), False
        except (sqlite3.Error, OverflowError) as error:
            problem = str(error)
        if not quiet:
            self._found(DATABASE, f"{table} row {row_id}", problem)
        return None

    def _take(self, records: List[Record]) -> None:
        for record in records:
            self.records += _count(record)
            self.each(record)

    def _tell(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, max(done, total))


def explain(report: Report) -> Iterator[str]:
    """Format a report as lines of text."""
    for problem in report.problems:
        yield f"{problem.file}: {problem.place}: {problem.what}"
    for lost in report.lost:
        yield f"lost: {lost}"
