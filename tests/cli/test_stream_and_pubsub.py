"""`synap stream` and `synap pubsub`, as far as they end by themselves."""

from __future__ import annotations

from tests.cli.conftest import Synap


def test_events_are_published_counted_and_read_back(synap: Synap, name: str) -> None:
    first = synap("stream", "publish", name, "message", '{"text": "hi"}', "--metadata", "by=alice").document
    assert (first["offset"], first["subscribers_notified"]) == (0, 0)
    synap("stream", "publish", name, "line", "--lines", "--string", stdin=b"1\n2\n3\n")
    events = synap("stream", "history", name).documents
    assert [(event["offset"], event["event_type"], event["data"]) for event in events] == [
        (0, "message", {"text": "hi"}),
        (1, "line", "1"),
        (2, "line", "2"),
        (3, "line", "3"),
    ]
    assert events[0]["metadata"] == {"by": "alice"}
    between = synap("stream", "history", name, "--from", "1", "--to", "2").documents
    assert [event["offset"] for event in between] == [1, 2]
    assert [event["offset"] for event in synap("stream", "history", name, "--from", "-1").documents] == [3]
    assert len(synap("stream", "history", name, "--limit", "2").documents) == 2


def test_tail_begins_where_it_is_told(synap: Synap, name: str) -> None:
    synap("stream", "publish", name, "line", "--lines", stdin=b"0\n1\n2\n3\n")

    def offsets(*args: str) -> list[int]:
        return [event["offset"] for event in synap("stream", "tail", name, *args).documents]

    assert offsets("--replay", "--count", "4") == [0, 1, 2, 3]
    assert offsets("--last", "2", "--count", "2") == [2, 3]
    assert offsets("--from", "1", "--count", "1") == [1]
    assert offsets("--from", "-3", "--count", "3") == [1, 2, 3]
    assert synap("stream", "tail", name, "--replay", "--last", "1").code == 2


def test_rooms_are_listed_described_and_deleted(synap: Synap, name: str) -> None:
    synap("stream", "publish", name, "message", "1")
    assert name in synap("stream", "rooms").documents
    assert name.encode() in synap("stream", "rooms", "--raw").out.splitlines()
    stats = synap("stream", "stats", name).document
    assert (stats["room"], stats["events"], stats["newest_offset"]) == (name, 1, 0)
    assert synap("stream", "delete", name).document == {"deleted": True}
    for command in ("history", "stats", "delete"):
        ended = synap("stream", command, name)
        assert (ended.code, ended.err.startswith("synap: [ROOM_NOT_FOUND]")) == (1, True), command


def test_a_topic_message_nobody_waits_for_says_so(synap: Synap, name: str) -> None:
    published = synap("pubsub", "publish", f"{name}.a", '{"x": 1}').document
    assert (published["topic"], published["subscribers_matched"]) == (f"{name}.a", 0)
    assert synap("pubsub", "topics", f"{name}.#").documents == []
    assert synap("pubsub", "stats").document["published_total"] >= 1


def test_the_service_tells_how_it_is(synap: Synap) -> None:
    pings = synap("ping", "--count", "3").documents
    assert len(pings) == 3
    assert all(ping["ok"] and ping["ms"] > 0 for ping in pings)
    health = synap("health")
    assert (health.code, health.document["status"]) == (0, "ok")
    stats = synap("stats")
    assert stats.code == 0
    assert stats.document["requests_total"] > 0
