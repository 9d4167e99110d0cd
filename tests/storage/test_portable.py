"""Content travels as JSON lines and is the same at the other end."""

from __future__ import annotations

import io
import json
import os
import time
from base64 import b64encode
from typing import Any, Dict, List

import pytest

from synap import forks
from synap.engine.limits import Limits
from synap.errors import SynapError
from synap.storage import Unusable, portable
from synap.storage.doctor import repair
from synap.storage.layout import DATABASE, LOCK
from synap.storage.portable import as_commands, export_directory, import_directory, parse
from synap.wire.codec import JSON, MSGPACK, find
from tests.helpers.driver import Service, c, contents


@pytest.fixture
def directory(tmp_path: Any) -> str:
    directory = str(tmp_path / "data")
    with Service(directory, session="a" * 32) as service:
        service.do(c.KvSet("text", b'"hello \xc3\xa4"'))
        service.do(c.KvSet("whole", b"1"))
        service.do(c.KvSet("float", b"1.0"))
        service.do(c.KvSet("packed", b"\x82\xa1a\x01\xa1b\xc3"))
        service.do(c.KvSet("bytes", b"\xc4\x03\x00\xff\x01"))
        service.do(c.KvSet("short", b"null", ttl=86_000))
        service.do(c.QueueCreate("work", c.QueueConfig(max_retries=7, ack_deadline=5, max_depth=50, dead_letter=False)))
        for number in range(10):
            service.do(c.QueuePublish("work", b"%d" % number, priority=number % 3, headers={"n": str(number)}))
        service.do(c.QueuePublish("work", b'"later"', delay=5000))
        message = service.do(c.QueueConsume("work"))
        service.do(c.QueueNack("work", message.message_id, True, message.lease))
        service.do(c.QueueConsume("work", ack_deadline=5000))
        for number in range(5):
            service.do(c.StreamPublish("chat", "said", b"%d" % number, {"who": "me"}))
        service.do(c.StreamSubscribe("empty"))
    return directory


def exported(directory: str) -> bytes:
    out = io.BytesIO()
    export_directory(directory, out)
    return out.getvalue()


def without_header(content: bytes) -> List[bytes]:
    return sorted(content.splitlines()[1:])


def test_a_room_of_more_events_than_services_keep_by_default_is_saved_whole(tmp_path: Any) -> None:
    count = Limits.room_events + 1
    event = b'{"type":"event","room":"r","offset":%d,"event_type":"e","data":1,"timestamp":1}\n'
    lines = [event % offset for offset in range(count)]
    whole = [b'{"type":"header","format":1,"exported":1}\n', *lines, b'{"type":"end","lines":%d}\n' % count]
    made, repaired = str(tmp_path / "made"), str(tmp_path / "repaired")
    import_directory(whole, made)
    repair(made, repaired)
    assert exported(repaired).count(b'"type":"event"') == count


def test_what_is_made_counts_as_a_database_only_once_it_is_whole(
    directory: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = exported(directory).splitlines(keepends=True)
    renamed: List[str] = []
    replace = os.replace

    def note(before: str, name: str) -> None:
        renamed.append(os.path.basename(name))
        replace(before, name)

    monkeypatch.setattr(os, "replace", note)
    import_directory(lines, str(tmp_path / "made"))
    assert renamed == [DATABASE]


def test_every_line_is_an_object_that_says_what_it_is(directory: str) -> None:
    documents = [json.loads(line) for line in exported(directory).splitlines()]
    kinds: Dict[str, int] = {}
    for document in documents:
        kinds[document["type"]] = kinds.get(document["type"], 0) + 1
    assert kinds == {"header": 1, "key": 6, "queue": 1, "message": 11, "room": 2, "event": 5, "end": 1}
    assert documents[0]["format"] == 1
    assert documents[-1] == {"type": "end", "lines": len(documents) - 2}
    keys = {document["key"]: document for document in documents if document["type"] == "key"}
    assert keys["text"]["value"] == "hello ä"
    assert keys["packed"]["value"] == {"a": 1, "b": True}
    assert keys["bytes"]["value_msgpack"] == "xAMA/wE="
    assert keys["short"]["expires"] > 1_600_000_000
    queue = next(document for document in documents if document["type"] == "queue")
    assert (queue["max_retries"], queue["ack_deadline"], queue["dead_letter"]) == (7, 5, False)


def test_a_directory_comes_back_from_its_lines(directory: str, tmp_path: Any) -> None:
    content = exported(directory)
    target = str(tmp_path / "imported")
    lines = import_directory(io.BytesIO(content), target)
    assert lines == len(content.splitlines()) - 2
    assert without_header(exported(target)) == without_header(content)
    with Service(target) as service:
        assert service.do(c.KvGet("bytes")).value == b"\xc4\x03\x00\xff\x01"
        assert service.do(c.KvGet("float")).value == b"1.0"
        assert service.do(c.KvGet("short")).ttl > 80_000
        found = [service.do(c.QueueConsume("work")) for _ in range(10)]
        assert [message.message for message in found] == [b"2", b"5", b"8", b"1", b"4", b"7", b"0", b"3", b"6", b"9"]
        assert found[0].retry_count == 1
        assert found[0].headers == {"n": "2"}
        assert service.do(c.QueueStats("work")).delayed == 1
        history = service.do(c.StreamHistory("chat"))
        assert [event.offset for event in history.events] == [0, 1, 2, 3, 4]
        assert history.events[0].metadata == {"who": "me"}
        assert service.do(c.StreamPublish("chat", "said", b"5")).offset == 5


def test_a_directory_in_use_can_be_exported(directory: str) -> None:
    with Service(directory) as service:
        before = contents(service.host.engine)
        assert len(exported(directory).splitlines()) > 20
        assert contents(service.host.engine) == before


def test_lines_become_commands_for_a_running_service(directory: str, tmp_path: Any) -> None:
    commands = list(as_commands(parse(io.BytesIO(exported(directory))), 0.0))
    names = [name for name, _ in commands]
    assert names.count("kv.set") == 6
    assert names.count("queue.publish") == 11
    assert names.count("stream.publish") == 5
    assert ("kv.set", {"key": "bytes", "value": b"\x00\xff\x01"}) in commands
    assert names.index("queue.create") < names.index("queue.publish")


def test_what_expired_is_not_exported(tmp_path: Any) -> None:
    directory = str(tmp_path / "data")
    with Service(directory, clock=lambda: 1000.0) as service:
        service.do(c.KvSet("old", b"1", ttl=5))
        service.do(c.KvSet("kept", b"1"))
    assert [json.loads(line).get("key") for line in exported(directory).splitlines()[1:-1]] == ["kept"]


EVENT = b'{"type":"event","room":"r","offset":%d,"event_type":"e","data":1,"timestamp":%d}\n'
HEADER = b'{"type":"header","format":1,"exported":0}\n'


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "line 1: the export ends without its last line"),
        (b"no json\n", "line 1: not a line of an export"),
        (b"\x1f\x8b\x08\x08\n", "it is compressed: gunzip it first"),
        (b'{"type":"key","key":"a","value":1}\n', "line 1: an export has its header in the first line"),
        (HEADER, "line 2: the export ends without its last line: it was cut"),
        (HEADER + b'{"type":"end","lines":3}\n', "line 2: 3 lines were exported and 0 came"),
        (HEADER + b'{"type":"key","key":"a"}\n', "line 2: value is missing"),
        (HEADER + b'{"type":"key","key":"","value":1}\n', "line 2: not a line of an export"),
        (HEADER + b'{"type":"key","key":"a","value_msgpack":"?"}\n', "line 2: value can't be read"),
        *(
            (
                HEADER + b'{"type":"key","key":"a","value_msgpack":"%s"}\n' % b64encode(value + b"more"),
                "line 2: value can't",
            )
            for value in (
                b"\x01",
                b"\x01" * 70_000,
                b"\xda\xff\xff" + b"x" * 65_535,
                b"\xdc\xff\xff" + b"\x01" * 65_535,
            )
        ),
        (HEADER + b'{"type":"thing"}\n', "line 2: not a line of an export: Invalid value 'thing'"),
        (HEADER + b'{"type":"message","queue":"q","message":1,"priority":12}\n', "line 2: .*priority"),
        (HEADER + b'{"type":"end","lines":0}\n' + HEADER, "line 3: there is something behind the end"),
        (b'{"type":"header","format":2,"exported":0}\n', "line 1: made by a newer version"),
        (HEADER + b'{"type":"key","key":"%s","value":1}\n' % (b"\xc3\xa4" * 600), "line 2: key must be .*1,024 bytes"),
        (HEADER + b'{"type":"queue","queue":"%s"}\n' % (b"\xc3\xa4" * 200), "line 2: queue must be .*256 bytes"),
        (HEADER + b'{"type":"queue","queue":"%s"}\n' % (b"q" * 255), "line 2: queue .unless dead_letter is false"),
        (HEADER + b'{"type":"room","room":"%s"}\n' % (b"\xc3\xa4" * 200), "line 2: room must be"),
        (HEADER + b'{"type":"room","room":"r","oldest_offset":9223372036854775807}\n', "line 2: .*oldest_offset"),
        (HEADER + EVENT % (2**63 - 1, 0), "line 2: .*offset"),
        (HEADER + EVENT % (0, -(10**20)), "line 2: .*timestamp"),
        (HEADER + EVENT % (0, 0) + EVENT % (7, 0), "line 3: offset must be 1, the next one, got 7"),
        (HEADER + b'{"type":"key","key":"a","value":1,"expires":1e300}\n', "line 2: .*expires"),
        (HEADER + 2 * b'{"type":"queue","queue":"q"}\n', "line 3: the queue 'q' has lines already"),
        (HEADER + 2 * b'{"type":"room","room":"r"}\n', "line 3: the room 'r' has lines already"),
    ],
)
def test_a_bad_line_is_named_and_nothing_counts(content: bytes, told: str, tmp_path: Any) -> None:
    target = str(tmp_path / "imported")
    with pytest.raises(SynapError, match=told):
        import_directory(io.BytesIO(content), target)
    assert not os.path.exists(target)
    assert import_directory(io.BytesIO(HEADER + b'{"type":"end","lines":0}\n'), target) == 0


def test_a_refused_import_leaves_an_empty_directory_empty(tmp_path: Any) -> None:
    with pytest.raises(SynapError, match="it was cut"):
        import_directory(io.BytesIO(HEADER), str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_lock_that_was_left_behind_is_no_data(tmp_path: Any) -> None:
    (tmp_path / LOCK).touch()
    assert import_directory(io.BytesIO(HEADER + b'{"type":"end","lines":0}\n'), str(tmp_path)) == 0


def test_lines_written_by_hand_need_no_line_for_their_queue_or_room(tmp_path: Any) -> None:
    content = (
        HEADER
        + b'{"type":"message","queue":"q","message":1}\n'
        + EVENT % (5, int(time.time()))
        + b'{"type":"end","lines":2}\n'
    )
    target = str(tmp_path / "imported")
    import_directory(io.BytesIO(content), target)
    with Service(target) as service:
        assert service.do(c.QueueConsume("q")).message == b"1"
        assert service.do(c.StreamHistory("r")).oldest_offset == 5


def test_a_dead_letter_with_all_the_headers_there_can_be_is_imported(tmp_path: Any) -> None:
    source, target = str(tmp_path / "data"), str(tmp_path / "imported")
    headers = {f"header-{number}": "x" for number in range(128)}
    with Service(source) as service:
        service.do(c.QueuePublish("q", b"1", headers=headers))
        message = service.do(c.QueueConsume("q"))
        service.do(c.QueueNack("q", message.message_id, False))
    import_directory(io.BytesIO(exported(source)), target)
    with Service(target) as service:
        letter = service.do(c.QueueConsume("q.dlq"))
    assert {**letter.headers, **headers} == letter.headers
    assert letter.headers["x-dead-letter-reason"] == "rejected"
    published = dict(as_commands(parse(io.BytesIO(exported(source))), 0.0))["queue.publish"]
    assert JSON.decode_payload(find("queue.publish"), JSON.encode(published)).headers == letter.headers


def test_an_import_needs_a_new_directory(directory: str) -> None:
    with pytest.raises(Unusable, match="is not empty"):
        import_directory(io.BytesIO(exported(directory)), directory)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("module", [os, forks, portable], ids=["locking", "locked", "writing"])
def test_an_import_that_is_interrupted_leaves_what_was_there(
    directory: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, module: Any, there: bool
) -> None:
    name = {os: "ftruncate", forks: "watch", portable: "write_engine"}[module]
    target, source = tmp_path / "new", exported(directory)
    if there:
        target.mkdir()
    original, once = getattr(module, name), iter([interrupt])
    with monkeypatch.context() as patch:
        patch.setattr(module, name, lambda *given: next(once, original)(*given))
        with pytest.raises(KeyboardInterrupt):
            import_directory(io.BytesIO(source), str(target))
    assert target.exists() is there
    assert not there or os.listdir(target) == []
    assert import_directory(io.BytesIO(source), str(target)) > 1


def test_what_somebody_has_there_stays_where_an_import_is_interrupted(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(os.listdir(directory))
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", interrupt)
        with pytest.raises(KeyboardInterrupt):
            import_directory(io.BytesIO(b""), directory)
    assert sorted(os.listdir(directory)) == before


def test_there_must_be_something_to_export(tmp_path: Any) -> None:
    with pytest.raises(Unusable, match="holds no data"):
        exported(str(tmp_path))


def test_a_queue_that_holds_more_than_it_may_now_is_taken_by_a_service_whole(tmp_path: Any) -> None:
    source = str(tmp_path / "data")
    with Service(source) as service:
        for number in range(7):
            for queue in ("a", "full", "z"):
                service.do(c.QueuePublish(queue, b"%d" % number))
        for queue in ("full", "z"):
            service.do(c.QueueCreate(queue, c.QueueConfig(max_depth=3)))
    with Service(str(tmp_path / "other")) as service:
        for name, fields in as_commands(parse(io.BytesIO(exported(source))), 0.0):
            service.do(MSGPACK.decode_payload(find(name), MSGPACK.encode(fields)))
        queues = service.host.engine.store.queues
        assert {name: (queue.ready, queue.config.max_depth) for name, queue in queues.items()} == {
            "a": (7, 100_000),
            "full": (7, 3),
            "z": (7, 3),
        }
