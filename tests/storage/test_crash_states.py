"""Every state that a power loss can leave behind is one that the acknowledgements allow.

The files are copied after each statement that writes. A write that was not synced yet may be on disk, or not, or
partly: so between the last state that was synced and the present one, any mixture of sectors may be what is found.
Recovery from each mixture must give what was answered by then, or what was under way, and nothing else.
"""

from __future__ import annotations

import os
import random
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import pytest

from synap.storage import Damaged
from synap.storage.layout import DATABASE, MARK
from tests.helpers.driver import Service, c, contents, contents_of
from tests.helpers.thorough import rounds
from tests.storage.conftest import put

pytestmark = pytest.mark.usefixtures("commits")

SECTOR = 512
MIXTURES = rounds(3, 10)
"""Of each moment."""
WAL = DATABASE + "-wal"

Files = Dict[str, bytes]


class Moment(NamedTuple):
    """The files after a statement: what was answered by then, and whether everything is synced."""

    files: Files
    answered: int
    synced: bool
    sql: str


class Recorder:
    """Copies the files after each statement that the log's thread runs."""

    def __init__(self, service: Service) -> None:
        self.directory = service.durable.log.store.directory
        self.moments: List[Moment] = []
        self.truths: List[List[str]] = [contents(service.host.engine)]
        store = service.log.store
        self._execute = store.execute
        store.execute = self._run  # type: ignore[method-assign]
        self._keep("start", True)

    def _run(self, sql: str, parameters: Sequence[Any] = (), *, safe: bool = False) -> List[Any]:
        if "wal_checkpoint" in sql:
            # While pages are copied into the database, none of them is synced, and the write-ahead log stays as it is.
            result = self._execute(sql, parameters, safe=safe)
            self._keep(sql, False)
            self._keep(sql, True)
            return result
        if sql.startswith(("INSERT INTO log", "INSERT OR REPLACE INTO meta")) and safe:
            # As the system sees it, this is a write and then a sync; the crash may come between.
            result = self._execute(sql, parameters, safe=True)
            self._keep(sql, False)
            self._keep(sql, True)
            return result
        result = self._execute(sql, parameters, safe=safe)
        if not sql.startswith(("PRAGMA", "SELECT")):
            self._keep(sql, False)
        return result

    def _keep(self, sql: str, synced: bool) -> None:
        files = {}
        for name in (DATABASE, WAL, MARK):
            path = os.path.join(self.directory, name)
            if os.path.exists(path):
                with open(path, "rb") as file:
                    files[name] = file.read()
        self.moments.append(Moment(files, len(self.truths) - 1, synced, sql))

    def answered(self, service: Service) -> None:
        """Take note of what is in the engine after an answer."""
        self.truths.append(contents(service.host.engine))


def mixture(chance: random.Random, old: bytes, new: bytes) -> bytes:
    """Make what may be on disk of a file between two states of it: sector by sector one or the other, or cut, or
    garbage.
    """
    kind = chance.choice(["sectors", "sectors", "prefix", "garbage", "cut", "zeros"])
    size = max(len(old), len(new))
    before, after = old.ljust(size, b"\0"), new.ljust(size, b"\0")
    changed = [at for at in range(0, size, SECTOR) if before[at : at + SECTOR] != after[at : at + SECTOR]]
    if not changed:
        return new
    found = bytearray(before)
    written = changed[: chance.randrange(len(changed) + 1)] if kind in ("prefix", "cut") else changed
    for at in written:
        if kind == "sectors" and chance.random() < 0.5:
            continue
        found[at : at + SECTOR] = after[at : at + SECTOR]
    if kind in ("garbage", "zeros"):
        # Of a sector, only what was being written: a disk that breaks what stands beside it breaks the promise that
        # SQLite, like everybody, relies on ("powersafe overwrite").
        at = chance.choice(changed)
        for place in range(at, min(at + SECTOR, size)):
            if before[place] != after[place]:
                found[place] = 0 if kind == "zeros" else chance.randrange(256)
    if kind == "cut":
        # A file grows when its end is written, and may not have grown.
        return bytes(found[: max(len(old), written[-1] + SECTOR if written else 0)])
    return bytes(found)


def drive(directory: str) -> Tuple[List[Moment], List[List[str]]]:
    """Do a bit of everything, with snapshots and checkpoints in between."""
    service = Service(directory, session="e" * 32, snapshot_minimum=1 << 40)
    store, snapshots = service.log.store, service.log.snapshots
    recorder = Recorder(service)
    payloads: List[Any] = []
    for number in range(36):
        payloads.append(c.KvSet(f"k{number % 7}", b'"' + b"%d" % number * 120 + b'"'))
        payloads.append(c.QueuePublish("q", b"%d" % number))
        payloads.append(c.QueueConsume("q", ack_deadline=80_000) if number % 3 else c.StreamPublish("r", "e", b"1"))
    for number, payload in enumerate(payloads):
        service.do(payload)
        recorder.answered(service)
        if number % 20 == 7:
            service.log.do(lambda: bool(store.checkpoint()))
        if number % 40 == 30:
            taken = snapshots.taken
            with service.lock:
                snapshots.begin()
            service.wait_until(lambda taken=taken: snapshots.taken > taken and not snapshots.has_cleanup())  # type: ignore[misc]
    moments = list(recorder.moments)
    service.close()
    return moments, recorder.truths


def test_every_state_that_a_power_loss_can_leave_is_allowed(tmp_path: Any) -> None:
    moments, truths = drive(str(tmp_path / "data"))
    assert sum("wal_checkpoint" in moment.sql for moment in moments) > 6
    assert sum("INSERT INTO snapshot" in moment.sql for moment in moments) >= 2
    assert sum("DELETE" in moment.sql for moment in moments) >= 2
    chance = random.Random(8)
    scratch = str(tmp_path / "found")
    known = {tuple(truth): number for number, truth in reversed(list(enumerate(truths)))}
    synced = moments[0]
    seen = set()
    for moment in moments[1:]:
        for _ in range(MIXTURES):
            files = {name: mixture(chance, synced.files.get(name, b""), new) for name, new in moment.files.items()}
            # The mark is written without a sync: it may be as old as anything.
            files[MARK] = chance.choice([synced.files[MARK], moment.files[MARK], moments[0].files[MARK]])
            put(scratch, files)
            found = known.get(tuple(contents_of(scratch)))
            assert found is not None, f"a state that never was, after {moment.sql}"
            # Everything that was answered by then, and perhaps what was under way.
            allowed = [truths[number] for number in range(moment.answered, min(moment.answered + 2, len(truths)))]
            assert truths[found] in allowed, f"state {found} found, {moment.answered} answered, after {moment.sql}"
            seen.add(found)
        if moment.synced:
            synced = moment
    assert len(seen) > 50


def test_an_answered_commit_that_is_not_there_is_noticed(tmp_path: Any) -> None:
    """A disk that confirms what it doesn't keep, a file that was cut: as long as the mark knows better, it is
    refused.
    """
    moments, _ = drive(str(tmp_path / "data"))
    scratch = str(tmp_path / "found")
    commits = [moment for moment in moments if moment.synced and moment.sql.startswith("INSERT INTO log")]
    for earlier, later in zip(commits[:-3:4], commits[3::4]):
        # The mark names the commit before the one just written, so `earlier` lacks two that were answered.
        put(scratch, {**earlier.files, MARK: later.files[MARK]})
        with pytest.raises(Damaged, match="were answered"):
            contents_of(scratch)
