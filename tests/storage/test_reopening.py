"""What was answered is there when the directory is opened again, exactly as it was."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any, Callable, Iterator, List

import pytest

from synap import SynapClient
from synap.engine.engine import Engine, Limits
from synap.errors import KeyNotFoundError, MessageNotFoundError, QueueNotFoundError
from synap.host import EngineHost
from synap.storage import backup, doctor, durable, open_host, portable
from synap.storage.commit import DiskLog
from synap.storage.store import Store
from tests.helpers.driver import Service, c, contents, contents_of
from tests.helpers.patience import PATIENCE

pytestmark = pytest.mark.usefixtures("commits")

SESSION = "5" * 32
Open = Callable[..., Service]


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(tmp_path: Any) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def start(directory: str, clock: Clock) -> Iterator[Open]:
    """Open the directory, or open it anew after closing or abandoning what was open before."""
    running: List[Service] = []

    def open_again(*, session: str = SESSION, **options: Any) -> Service:
        for service in running:
            service.close()
        running.append(Service(directory, session=session, clock=clock, **options))
        return running[-1]

    yield open_again
    for service in running:
        service.close()


def test_keys_come_back_with_the_moment_they_expire(start: Open, clock: Clock) -> None:
    service = start()
    service.do(c.KvSet("for ever", b'"a"'))
    service.do(c.KvSet("a while", b"[1,2]", ttl=100))
    service.do(c.KvSet("gone", b"0"))
    service.do(c.KvDel(["gone"]))
    service.do(c.KvIncr("count", 41))
    service.do(c.KvIncr("count"))
    clock.now += 30.5
    service = start()
    assert service.do(c.KvGet("for ever")) == c.GetAnswer(True, b'"a"', None)
    assert service.do(c.KvGet("a while")) == c.GetAnswer(True, b"[1,2]", 70)
    assert service.do(c.KvGet("gone")).found is False
    assert service.do(c.KvGet("count")).value == b"42"
    clock.now += 69.4
    assert service.do(c.KvGet("a while")).ttl == 1
    clock.now += 0.1
    assert service.do(c.KvGet("a while")).found is False


def test_keys_whose_time_ran_out_meanwhile_are_gone(start: Open, clock: Clock, directory: str) -> None:
    service = start(session="")
    service.do(c.KvSet("short", b"1", ttl=10))
    service.close()
    clock.now += 11
    service = start(session="")
    assert service.do(c.KvExists("short")).exists is False
    with pytest.raises(KeyNotFoundError):
        service.do(c.KvTtl("short"))
    service.close()
    assert not any("short" in record for record in contents_of(directory))


def test_a_queue_comes_back_with_its_order_settings_and_totals(start: Open, clock: Clock) -> None:
    service = start()
    service.do(c.QueueCreate("work", c.QueueConfig(max_retries=1, ack_deadline=7, max_depth=9)))
    for number in range(6):
        service.do(c.QueuePublish("work", b"%d" % number, priority=number % 2, headers={"n": str(number)}))
    first = service.do(c.QueueConsume("work"))
    service.do(c.QueueAck("work", first.message_id, first.lease))
    before = service.do(c.QueueStats("work"))
    service = start()
    assert service.do(c.QueueStats("work")) == before
    found = [service.do(c.QueueConsume("work")) for _ in range(5)]
    assert [message.message for message in found] == [b"3", b"5", b"0", b"2", b"4"]
    assert found[0].headers == {"n": "3"}
    assert found[0].deadline == clock.now + 7


def test_a_lease_goes_on_over_a_restart(start: Open, clock: Clock) -> None:
    service = start()
    service.do(c.QueuePublish("work", b"1"))
    leased = service.do(c.QueueConsume("work", ack_deadline=60))
    clock.now += 20
    service = start()
    assert service.do(c.QueueConsume("work")) is None
    service.do(c.QueueExtend("work", leased.message_id, 100, leased.lease))
    clock.now += 90
    service = start()
    assert service.do(c.QueueAck("work", leased.message_id, leased.lease)).success


def test_a_lease_that_ran_out_while_it_was_down_is_back_in_its_place(start: Open, clock: Clock) -> None:
    service = start()
    for number in range(3):
        service.do(c.QueuePublish("work", b"%d" % number))
    leased = service.do(c.QueueConsume("work", ack_deadline=10))
    service.close()
    clock.now += 3600
    service = start()
    with pytest.raises(MessageNotFoundError):
        service.do(c.QueueAck("work", leased.message_id, leased.lease))
    again = service.do(c.QueueConsume("work"))
    assert (again.message_id, again.message, again.retry_count) == (leased.message_id, b"0", 1)


def test_retry_counts_and_dead_letters_are_kept(start: Open, clock: Clock) -> None:
    service = start()
    service.do(c.QueueCreate("work", c.QueueConfig(max_retries=1)))
    service.do(c.QueuePublish("work", b'"bad"', headers={"kind": "x"}))
    message = service.do(c.QueueConsume("work"))
    assert service.do(c.QueueNack("work", message.message_id, True, message.lease)).action == "requeued"
    service = start()
    message = service.do(c.QueueConsume("work"))
    assert message.retry_count == 1
    assert service.do(c.QueueNack("work", message.message_id, True, message.lease)).action == "dead_lettered"
    service = start()
    letter = service.do(c.QueueConsume("work.dlq"))
    assert letter.message == b'"bad"'
    assert letter.headers["kind"] == "x"
    assert service.do(c.QueueStats("work")).dead_lettered_total == 1


def test_a_delayed_message_comes_when_it_is_due(start: Open, clock: Clock) -> None:
    service = start()
    service.do(c.QueuePublish("work", b"1", delay=50))
    clock.now += 49
    service = start()
    assert service.do(c.QueueConsume("work")) is None
    clock.now += 2
    service = start()
    assert service.do(c.QueueConsume("work")).message == b"1"


def test_a_deleted_queue_and_a_purged_one_stay_that_way(start: Open) -> None:
    service = start()
    service.do(c.QueuePublish("deleted", b"1"))
    service.do(c.QueuePublish("purged", b"1"))
    service.do(c.QueueDelete("deleted"))
    service.do(c.QueuePurge("purged"))
    service = start()
    with pytest.raises(QueueNotFoundError):
        service.do(c.QueueStats("deleted"))
    assert service.do(c.QueueStats("purged")).depth == 0


def test_rooms_come_back_with_offsets_ids_and_metadata(start: Open) -> None:
    service = start()
    for number in range(5):
        service.do(c.StreamPublish("chat", "said", b"%d" % number, {"who": "me"}))
    before = service.do(c.StreamHistory("chat"))
    service = start()
    assert service.do(c.StreamHistory("chat")) == before
    assert service.do(c.StreamPublish("chat", "said", b"5")).offset == 5


def test_what_retention_removed_stays_removed(start: Open, clock: Clock) -> None:
    service = start()
    service.do(c.StreamPublish("chat", "said", b"0"))
    clock.now += 86_000
    service.do(c.StreamPublish("chat", "said", b"1"))
    clock.now += 1000
    service = start()
    history = service.do(c.StreamHistory("chat"))
    assert [event.offset for event in history.events] == [1]
    assert history.oldest_offset == 1


def test_a_request_sent_again_after_a_restart_is_answered_and_not_done(start: Open) -> None:
    service = start()
    first = service.do(c.KvIncr("count"), 7)
    published = service.do(c.QueuePublish("work", b"1"), 8)
    leased = service.do(c.QueueConsume("work"), 9)
    service = start()
    assert service.do(c.KvIncr("count"), 7, retried=True) == first
    assert service.do(c.QueuePublish("work", b"1"), 8, retried=True) == published
    assert service.do(c.QueueConsume("work"), 9, retried=True) == leased
    assert service.do(c.KvGet("count")).value == b"1"
    assert service.do(c.QueueStats("work")).published_total == 1


def test_a_scan_goes_on_over_a_restart(start: Open) -> None:
    service = start()
    for number in range(10):
        service.do(c.KvSet(f"k{number}", b"0"))
    page = service.do(c.KvScan(count=4))
    service = start()
    assert service.do(c.KvScan(count=100, cursor=page.cursor)).keys == [f"k{number}" for number in range(4, 10)]


def test_an_atomic_batch_that_failed_leaves_nothing(start: Open, directory: str) -> None:
    service = start()
    before = contents(service.host.engine)
    with service.lock:
        items = [c.KvSet("a", b"1"), c.KvIncr("a"), c.KvSet("t", b'"x"'), c.KvIncr("t")]
        answer = service.host.engine.execute_atomic(items, service.host.clock(), service.client, 1)
        service.host.end_turn()
    assert answer.results[3].status == "error"
    service.close()
    assert contents_of(directory) == before


@pytest.mark.parametrize("fsync", ["always", "everysec", "no"])
def test_everything_is_there_after_a_clean_stop_in_every_mode(start: Open, fsync: str) -> None:
    service = start(fsync=fsync)
    for number in range(500):
        service.do(c.KvSet(f"k{number}", b"%d" % number))
    before = contents(service.host.engine)
    service = start(fsync=fsync)
    assert contents(service.host.engine) == before


def test_snapshots_taken_meanwhile_change_nothing(start: Open) -> None:
    service = start(snapshot_minimum=20_000)
    for number in range(300):
        service.do(c.KvSet(f"k{number % 40}", b'"' + b"v" * 200 + b'"'))
        service.do(c.QueuePublish("work", b"%d" % number))
        if number % 2:
            message = service.do(c.QueueConsume("work"))
            if number % 4 == 1:
                service.do(c.QueueAck("work", message.message_id, message.lease))
        service.do(c.StreamPublish("room", "n", b"%d" % number))
    service.wait_until(lambda: service.log.snapshots.taken >= 3)
    before = contents(service.host.engine)
    service = start()
    assert contents(service.host.engine) == before


def test_an_empty_directory_is_made_with_its_parents(tmp_path: Any) -> None:
    directory = str(tmp_path / "a" / "b" / "c")
    Service(directory).close()
    assert sorted(os.listdir(directory)) == ["synap.db", "synap.lock", "synap.mark"]


def test_a_program_that_forgets_to_close_still_writes_what_was_answered(tmp_path: Any) -> None:
    directory = str(tmp_path / "data")
    program = f"""
import threading
from tests.helpers.driver import Service
from synap import commands as c
service = Service({directory!r}, fsync="everysec")
for number in range(200):
    service.do(c.KvSet(f"k{{number}}", b"1"))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)
    with Service(directory) as service:
        assert len(service.do(c.KvScan(count=1000)).keys) == 200


@pytest.mark.parametrize("fsync", ["always", "everysec", "no"])
def test_what_comes_once_the_program_s_directories_are_closed_is_refused(tmp_path: Any, fsync: str) -> None:
    url = f"file://{tmp_path / 'data'}"
    program = f"""
import atexit

def late():
    print(client.kv.get("a").value)
    try:
        client.kv.set("late", 1)
    except SynapError as error:
        print(error.code, error.details["reason"], error.may_have_happened)

atexit.register(late)  # before that of the storage, which is imported later: so it runs after that
from synap import SynapClient, SynapError
client = SynapClient({url!r}, fsync={fsync!r}, timeout={PATIENCE}, retries=0)
client.kv.set("a", 1)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=2 * PATIENCE, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout.splitlines() == ["1", "SERVICE_UNAVAILABLE closed False"]
    with SynapClient(url) as client:
        assert client.kv.get("a").value == 1
        assert not client.kv.get("late").found


def test_closing_twice_does_no_harm(tmp_path: Any) -> None:
    opened = open_host(str(tmp_path / "data"), call=lambda function, *arguments: function(*arguments))
    opened.close()
    opened.close()


def held_open(directory: str) -> List[str]:
    """Name what this process has open in a directory."""
    names = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # it is the listing's own
            path = os.readlink(f"/proc/self/fd/{number}")
            if path.startswith(directory):
                names.append(os.path.basename(path))
    return sorted(names)


class Broken(BaseException):
    """What nobody expects."""


def breaks(*arguments: Any, **options: Any) -> Any:
    raise Broken


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (Engine, "restore_all"),
        (Engine, "restored"),
        (Store, "checkpoint"),
        (Store, "update"),
        (durable, "_resume"),
        (durable, "Snapshots"),
        (durable, "DiskLog"),
        (durable, "EngineHost"),
        (durable, "_places"),
        (DiskLog, "attach"),
        (EngineHost, "wake"),
    ],
    ids=lambda place: getattr(place, "__name__", place),
)
def test_whatever_breaks_while_a_directory_is_opened_leaves_nothing_of_it_open(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, where: Any, what: str
) -> None:
    directory = str(tmp_path / "data")
    with Service(directory) as service:
        service.do(c.KvSet("k", b"1"))
        service.do(c.QueuePublish("q", b"1"))
    threads = set(threading.enumerate())
    with monkeypatch.context() as broken:
        broken.setattr(where, what, breaks)
        with pytest.raises(Broken):
            Service(directory)
    assert held_open(directory) == []
    assert set(threading.enumerate()) <= threads
    with Service(directory) as service:
        assert service.do(c.KvGet("k")).value == b"1"
        assert held_open(directory)


def test_a_room_that_was_kept_for_longer_is_trimmed_by_who_keeps_it_for_less_and_not_by_tools(
    start: Open, directory: str, clock: Clock, tmp_path: Any
) -> None:
    """As `docs/operations.md` says of a program that opens a service's directory as `file://`."""
    service = start(limits=Limits(room_age=1e9))
    service.do(c.StreamPublish("r", "t", b"1"))
    clock.now += 2 * Limits.room_age
    service.do(c.StreamPublish("r", "t", b"2"))
    service.close()
    out = io.BytesIO()
    portable.export_directory(directory, out, now=clock.now)
    assert out.getvalue().count(b'"type":"event"') == 2
    copies = [str(tmp_path / "copy"), str(tmp_path / "saved"), str(tmp_path / "imported")]
    backup.copy(directory, copies[0])
    doctor.repair(directory, copies[1])
    portable.import_directory(io.BytesIO(out.getvalue()), copies[2], now=clock.now)
    for copy in copies:
        with Service(copy, clock=clock, limits=Limits(room_age=1e9)) as kept:
            assert len(kept.do(c.StreamHistory("r")).events) == 2
    assert [event.data for event in start().do(c.StreamHistory("r")).events] == [b"2"]
    assert [event.data for event in start(limits=Limits(room_age=1e9)).do(c.StreamHistory("r")).events] == [b"2"]
