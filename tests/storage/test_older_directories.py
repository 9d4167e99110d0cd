"""A directory that version 0.1.0 wrote, with a process that was killed at the end, is opened as if nothing had been.

`written_by_0_1.tar.gz` is that directory. It isn't made again: what it shows is that old bytes are still read.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Iterator, List

import pytest

from synap.engine import records as r
from synap.engine.journal import Record
from synap.errors import KeyNotFoundError
from synap.storage.rows import SLICE, checksum, pack, seal, seal_map
from synap.storage.snapshot import digest
from synap.storage.store import CURRENT, Current, Store, create, slice_id
from tests.helpers.driver import Service, c

ARCHIVE = Path(__file__).with_name("written_by_0_1.tar.gz")
WRITTEN = 1_795_751_005.0
"""When it was written: leases, delays and the memory of answers depend on it."""
SESSION = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def directory(tmp_path: Path) -> str:
    with tarfile.open(ARCHIVE) as archive:
        for member in archive.getmembers():
            data = archive.extractfile(member)
            assert data is not None
            (tmp_path / member.name).write_bytes(data.read())
    return str(tmp_path)


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
