"""A directory that version 0.1.0 wrote, with a process that was killed at the end, is opened as if nothing had been.

`written_by_0_1.tar.gz` is that directory. It isn't made again: what it shows is that old bytes are still read.
"""

from __future__ import annotations

import io
import logging
import os
import sqlite3
import tarfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence

import pytest

from synap.engine import records as r
from synap.engine.journal import Record
from synap.errors import KeyNotFoundError
from synap.storage import Unusable, backup, doctor, portable, store
from synap.storage.layout import DATABASE, FORMAT
from synap.storage.recovery import identify, read_directory
from synap.storage.rows import SLICE, checksum, pack, seal, seal_map
from synap.storage.snapshot import digest
from synap.storage.store import CURRENT, IDENTITY, Current, Store, create, slice_id
from tests.helpers.driver import Service, c
from tests.storage.conftest import put

ARCHIVE = Path(__file__).with_name("written_by_0_1.tar.gz")
WRITTEN = 1_795_751_005.0
"""When it was written: leases, delays and the memory of answers depend on it."""
SESSION = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def directory(tmp_path: Path) -> str:
    directory = tmp_path / "data"
    directory.mkdir()
    with tarfile.open(ARCHIVE) as archive:
        for member in archive.getmembers():
            data = archive.extractfile(member)
            assert data is not None
            (directory / member.name).write_bytes(data.read())
    return str(directory)


@pytest.fixture
def service(directory: str) -> Iterator[Service]:
    with Service(directory, session=SESSION, clock=lambda: WRITTEN):
        pass  # so that each test reads what this version has written of it, too
    with Service(directory, session=SESSION, clock=lambda: WRITTEN) as service:
        yield service


def test_keys(service: Service) -> None:
    found = {key: service.do(c.KvGet(key), 1000).value for key in service.do(c.KvScan(), 1001).keys}
    assert found == {
        "text": rb'"text \u00fc again"',
        "object": b'{"a": [1, 2.5, null, true]}',
        "expiring": b"1",
        "number": b"43",
        "b": b"2",
        "bytes": bytes.fromhex("c402ff00"),
    }
    assert 9_999_999_990 <= service.do(c.KvTtl("expiring"), 1002).ttl <= 10**10
    assert service.do(c.KvTtl("object"), 1003).ttl is None


def test_queues(service: Service) -> None:
    stats = service.do(c.QueueStats("jobs"), 1000)
    assert (stats.depth, stats.pending, stats.published_total, stats.dead_lettered_total) == (2, 1, 4, 1)
    leased = service.do(c.QueuePeek("jobs", "leased"), 1001).messages
    assert [(one.message, one.headers) for one in leased] == [(b'{"job": 0}', {"n": "0"})]
    assert service.do(c.QueueAck("jobs", leased[0].message_id, 1), 1002).success
    taken = service.do(c.QueueConsume("jobs"), 1003)
    assert (taken.message, taken.priority, taken.headers) == (b'{"job": 2}', 7, {"n": "2"})
    dead = service.do(c.QueueConsume("jobs.dlq"), 1004)
    assert dead.message == b'{"job": 1}'
    assert dead.headers["n"] == "1"
    later = service.do(c.QueuePeek("later", "delayed"), 1005).messages
    assert [(one.message, one.due > WRITTEN + 30_000_000) for one in later] == [(b'"delayed"', True)]


def test_rooms(service: Service) -> None:
    history = service.do(c.StreamHistory("room"), 1000)
    assert [(event.offset, event.data, event.metadata) for event in history.events] == [
        (number, b'{"event": %d}' % number, {"m": "x"}) for number in range(3)
    ]
    assert service.do(c.StreamPublish("room", "t", b"1"), 1001).offset == 3


def test_answers_that_are_asked_for_again(service: Service) -> None:
    def again(number: int, payload: object) -> object:
        return service.do(payload, number, retried=True)  # type: ignore[arg-type]  # payloads are structs

    assert again(1, c.KvSet("text", b'"text"')).success  # type: ignore[attr-defined]
    assert again(5, c.KvIncr("number", 41)) == c.NumberAnswer(41)
    assert again(6, c.KvIncr("number")) == c.NumberAnswer(42)
    assert again(7, c.KvMSet([])) == c.SuccessAnswer(True)
    assert again(8, c.KvDel(["b"])) == c.DeletedAnswer(1)
    assert again(9, c.QueueCreate("jobs")) == c.CreatedAnswer(True, True)
    assert again(13, c.QueuePublish("jobs", b"1")) == c.PublishAnswer("afbfec3cec788bd1-4", 4)
    consumed = again(14, c.QueueConsume("jobs"))
    assert (consumed.message_id, consumed.lease) == ("afbfec3cec788bd1-1", 1)  # type: ignore[attr-defined]
    assert again(16, c.QueueNack("jobs", "afbfec3cec788bd1-2")) == c.NackAnswer(True, "dead_lettered")
    assert again(20, c.StreamPublish("room", "t", b"1")) == c.PublishEventAnswer("a2ec102458c26fa4-2", 2, 0)
    assert again(22, c.KvExpire("b", 5)) == c.SuccessAnswer(True)
    batch = again(21, c.BatchRequest([]))
    told = [outcome.payload or outcome.error for outcome in batch.results]  # type: ignore[attr-defined]
    assert told == [
        c.NumberAnswer(43),
        c.ErrorAnswer("KEY_NOT_FOUND", "there is no key 'none'", {"key": "none"}),
    ]
    with pytest.raises(KeyNotFoundError):
        service.do(c.KvTtl("none"), 1000)


def test_a_snapshot_with_a_record_for_each_key(tmp_path: Path) -> None:
    """As version 0.1 wrote them; the archive has none."""
    keys = [(r.KEY, f"k{number}", b"%d" % number, WRITTEN + 60 if number % 3 else None) for number in range(1000)]
    records: List[List[Record]] = [[(r.SECRET, b"s" * 32), *keys[:600]], keys[600:]]
    directory = str(tmp_path)
    create(directory)
    parts = [seal(SLICE, 1, part, [pack(slice)]) for part, slice in enumerate(records)]
    store = Store(directory)
    sums = 0
    for part, body in enumerate(parts):
        store.execute("INSERT INTO snapshot VALUES(?, ?)", (slice_id(1, part), body))
        sums = digest(sums, checksum(body))
    current = Current(1, len(parts), sums, sum(map(len, parts)), 1)
    store.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (CURRENT, seal_map(CURRENT, list(current))), safe=True)
    store.close()
    for _ in range(2):  # as it was, and with what this version wrote of it
        with Service(directory, clock=lambda: WRITTEN) as service:
            keystore = service.host.engine.keys
            assert keystore.values == {key: value for _, key, value, _ in keys}
            assert keystore.expires == {key: due for _, key, _, due in keys if due is not None}
            with service.lock:
                service.log.snapshots.begin()
            service.wait_until(lambda: service.log.snapshots.taken == 1)


# ---------------------------------------------------------------------------------------------- the way back


def files(directory: str) -> Dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(directory).iterdir() if not path.name.endswith("-shm")}


def format_of(directory: str) -> int:
    return identify(directory).format


def kinds_in(directory: str) -> List[int]:
    kinds: List[int] = []
    read_directory(directory, lambda records: kinds.extend(record[0] for record in records))
    return kinds


def change(service: Service) -> None:
    """Have records written that version 0.1 doesn't know, in the log and in a snapshot."""
    service.do(c.KvSet("new", b"1"), 2000)
    taken = service.log.snapshots.taken
    with service.lock:
        service.log.snapshots.begin()
    service.wait_until(lambda: service.log.snapshots.taken > taken)
    service.do(c.KvSet("newer", b"1"), 2001)


def test_whatever_stops_it_no_new_record_stands_in_a_directory_that_says_it_is_old(
    directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files as they are before and after each statement are what a kill leaves there."""
    states: List[Dict[str, bytes]] = []
    execute = Store.execute

    def run(store: Store, sql: str, parameters: Sequence[Any] = (), *, safe: bool = False) -> List[Any]:
        states.append(files(directory))
        try:
            return execute(store, sql, parameters, safe=safe)
        finally:
            states.append(files(directory))

    assert format_of(directory) == 1
    monkeypatch.setattr(Store, "execute", run)
    with Service(directory, session=SESSION, clock=lambda: WRITTEN) as service:
        change(service)
    monkeypatch.undo()
    formats = []
    for number, state in enumerate(states):
        place = str(tmp_path / f"state{number}")
        put(place, state)
        formats.append(format_of(place))
        kinds = kinds_in(place)
        assert formats[-1] == FORMAT or not {r.KEY_SET, r.KEYS} & set(kinds)
        if number % 7 == 0:
            with Service(place, session=SESSION, clock=lambda: WRITTEN) as service:
                assert service.do(c.KvGet("number"), 3000).value == b"43"
            assert format_of(place) == FORMAT
    assert formats == sorted(formats)
    assert {r.KEY_SET, r.KEYS} <= set(kinds_in(directory))


@pytest.mark.parametrize("fsync", ["always", "everysec", "no"])
@pytest.mark.parametrize("full", ["for the checkpoint", "for the note"])
def test_a_full_disk_at_the_start_is_no_way_round(
    directory: str, monkeypatch: pytest.MonkeyPatch, fsync: str, full: str
) -> None:
    execute = Store.execute
    refused: List[str] = []

    def run(store: Store, sql: str, parameters: Sequence[Any] = (), *, safe: bool = False) -> List[Any]:
        if "checkpoint" in sql if full == "for the checkpoint" else parameters[:1] == (IDENTITY,):
            refused.append(sql)
            raise sqlite3.OperationalError("database or disk is full")
        return execute(store, sql, parameters, safe=safe)

    monkeypatch.setattr(Store, "execute", run)
    with Service(directory, session=SESSION, clock=lambda: WRITTEN, fsync=fsync) as service:
        assert service.do(c.KvGet("number"), 1000).value == b"43"
        service.wait_until(lambda: len(refused) > 1)  # tried again, and no room yet
        assert service.host.unavailable is not None
        assert format_of(directory) == 1
        monkeypatch.undo()
        service.wait_until(lambda: service.host.unavailable is None)
        assert format_of(directory) == FORMAT
        change(service)
    assert r.KEYS in kinds_in(directory)


def opened(directory: str, beside: str) -> None:
    Service(directory)


def repaired(directory: str, beside: str) -> None:
    doctor.repair(directory, beside)


def exported(directory: str, beside: str) -> None:
    portable.export_directory(directory, io.BytesIO())


OLDER_WAYS: Dict[str, Callable[[str, str], object]] = {
    "open": opened,
    "check": lambda directory, beside: doctor.check(directory),
    "repair": repaired,
    "copy": backup.copy,
    "stream": lambda directory, beside: list(backup.stream(directory)),
    "export": exported,
}


@pytest.mark.parametrize("way", OLDER_WAYS)
def test_an_older_version_refuses_what_this_one_has_opened(
    directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    Service(directory, clock=lambda: WRITTEN).close()
    before = (Path(directory) / DATABASE).read_bytes()
    monkeypatch.setattr(store, "FORMAT", FORMAT - 1)  # an older one differs in this as far as it reads
    with pytest.raises(Unusable, match=f"newer version .format {FORMAT}, this one knows {FORMAT - 1}"):
        OLDER_WAYS[way](directory, str(tmp_path / "beside"))
    assert (Path(directory) / DATABASE).read_bytes() == before
    assert not os.path.exists(tmp_path / "beside")


def test_what_can_not_be_undone_is_told_once(directory: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "synap.storage"):
        for _ in range(2):
            Service(directory, session=SESSION, clock=lambda: WRITTEN).close()
    assert caplog.messages == [f"{directory} is of format {FORMAT} now, which older versions refuse"]


def test_looking_at_an_older_directory_or_copying_it_leaves_it_and_the_copy_to_the_older_version(
    directory: str, tmp_path: Path
) -> None:
    before = files(directory)
    assert doctor.check(directory).figures["format"] == 1
    portable.export_directory(directory, io.BytesIO())
    copy = str(tmp_path / "copy")
    backup.copy(directory, copy)
    assert format_of(copy) == 1
    assert {r.KEY_SET, r.KEYS}.isdisjoint(kinds_in(copy))
    assert {name: content for name, content in files(directory).items() if name in before} == before
    repaired_to = str(tmp_path / "repaired")
    doctor.repair(directory, repaired_to)
    assert format_of(repaired_to) == FORMAT
