"""`synap queue`."""

from __future__ import annotations

from tests.cli.conftest import Synap


def test_a_message_goes_its_way_from_the_shell(synap: Synap, name: str) -> None:
    published = synap(
        "queue", "publish", name, '{"type": "mail"}', "--priority", "8", "--header", "source=cron"
    ).document
    assert published["position"] == 1
    message = synap("queue", "consume", name).document
    assert message["message_id"] == published["message_id"]
    assert message["message"] == {"type": "mail"}
    assert (message["priority"], message["retry_count"], message["headers"]) == (8, 0, {"source": "cron"})
    assert synap("queue", "ack", name, message["message_id"]).code == 0
    again = synap("queue", "ack", name, message["message_id"])
    assert again.code == 1
    assert again.err.startswith("synap: [MESSAGE_NOT_FOUND]")


def test_what_consume_printed_is_what_ack_and_nack_read(synap: Synap, name: str) -> None:
    synap("queue", "publish", name, "--lines", stdin=b"1\n2\n3\n")
    taken = synap("queue", "consume", name, "--count", "3").out
    first, rest = taken.split(b"\n", 1)
    assert synap("queue", "ack", name, "-", stdin=first).code == 0
    nacks = synap("queue", "nack", name, "-", stdin=rest)
    assert [row["action"] for row in nacks.documents] == ["requeued", "requeued"]
    stats = synap("queue", "stats", name).document
    assert (stats["acked_total"], stats["nacked_total"], stats["depth"]) == (1, 2, 2)
    assert synap("queue", "ack", name, "-", stdin=b"no document\n").code == 2


def test_the_id_alone_stands_for_the_current_lease(synap: Synap, name: str) -> None:
    synap("queue", "publish", name, "1")
    for action in ("requeued", "dead_lettered"):
        taken = synap("queue", "consume", name).document["message_id"]
        assert synap("queue", "extend", name, taken, "60").code == 0
        requeue = "--requeue" if action == "requeued" else "--no-requeue"
        assert synap("queue", "nack", name, taken, requeue).document["action"] == action
    assert synap("queue", "extend", name, taken, "60").code == 1


def test_an_earlier_lease_acknowledges_nothing(synap: Synap, name: str) -> None:
    synap("queue", "publish", name, "1")
    first = synap("queue", "consume", name).document
    synap("queue", "nack", name, first["message_id"], "--lease", str(first["lease"]))
    second = synap("queue", "consume", name).document
    assert second["retry_count"] == 1
    assert synap("queue", "ack", name, first["message_id"], "--lease", str(first["lease"])).code == 1
    assert synap("queue", "ack", name, second["message_id"], "--lease", str(second["lease"])).code == 0


def test_no_message_is_exit_code_1(synap: Synap, name: str) -> None:
    ended = synap("queue", "consume", name)
    assert (ended.code, ended.out) == (1, b"")
    assert ended.err.startswith("synap: [NO_MESSAGE]")
    assert synap("queue", "consume", name, "--timeout", "0.05").code == 1


def test_consume_takes_several_and_acknowledges_what_it_printed(synap: Synap, name: str) -> None:
    synap("queue", "publish", name, "--lines", stdin=b'1\n"two"\n\n{"n": 3}\n')
    taken = synap("queue", "consume", name, "--count", "10", "--ack")
    assert taken.code == 0
    assert [row["message"] for row in taken.documents] == [1, "two", {"n": 3}]
    stats = synap("queue", "stats", name).document
    assert (stats["depth"], stats["pending"], stats["acked_total"]) == (0, 0, 3)


def test_raw_prints_the_message_alone(synap: Synap, name: str) -> None:
    synap("queue", "publish", name, "--lines", "--string", stdin=b"42\n")
    assert synap("queue", "consume", name, "--ack", "--raw").out == b"42\n"


def test_refused_messages_are_dead_lettered_and_redriven(synap: Synap, name: str) -> None:
    synap("queue", "publish", name, "1")
    message = synap("queue", "consume", name).document
    lease = ["--lease", str(message["lease"])]
    nack = synap("queue", "nack", name, message["message_id"], "--no-requeue", *lease).document
    assert nack == {"success": True, "action": "dead_lettered"}
    assert f"{name}.dlq" in synap("queue", "list").documents
    assert synap("queue", "redrive", name).document == {"redriven": 1}
    assert synap("queue", "consume", name, "--ack").document["message"] == 1


def test_a_lease_is_extended(synap: Synap, name: str) -> None:
    synap("queue", "publish", name, "1")
    message = synap("queue", "consume", name, "--ack-deadline", "5").document
    assert synap("queue", "extend", name, message["message_id"], "120", "--lease", str(message["lease"])).code == 0
    assert synap("queue", "extend", name, "no-such-id", "120").code == 1


def test_queues_are_made_purged_and_deleted(synap: Synap, name: str) -> None:
    made = synap("queue", "create", name, "--max-depth", "2", "--no-dead-letter")
    assert (made.code, made.document) == (0, {"created": True})
    there = synap("queue", "create", name, "--max-depth", "2", "--no-dead-letter")
    assert (there.code, there.document) == (1, {"created": False})
    synap("queue", "publish", name, "1")
    synap("queue", "publish", name, "2", "--delay", "60")
    full = synap("queue", "publish", name, "3")
    assert full.code == 4
    assert full.err.startswith("synap: [QUEUE_FULL]")
    assert name.encode() in synap("queue", "list", "--raw").out.splitlines()
    assert synap("queue", "purge", name).document == {"purged": 2}
    assert synap("queue", "delete", name).document == {"deleted": True}
    for command in ("purge", "delete", "stats", "redrive"):
        ended = synap("queue", command, name)
        assert (ended.code, ended.err.startswith("synap: [QUEUE_NOT_FOUND]")) == (1, True), command


def test_what_the_service_finds_senseless_is_exit_code_2_and_says_what_would_be_right(synap: Synap, name: str) -> None:
    ended = synap("queue", "publish", name, "1", "--priority", "12")
    assert ended.code == 2
    assert "0..9" in ended.err
    assert "12" in ended.err
    assert synap("queue", "publish", name).code == 2
    assert synap("queue", "publish", name, "x", "--lines").code == 2
    assert synap("queue", "publish", name, "x", "--header", "no-equals-sign").code == 2
    assert synap("queue", "consume", name, "--timeout", "nan").code == 2


def test_peek_shows_as_many_as_asked_for_however_large(synap: Synap, name: str) -> None:
    for _ in range(4):
        synap("queue", "publish", name, "-", "--string", stdin=b"x" * 5_000_000)  # a page ends after 8 MiB
    assert len(synap("queue", "peek", name, "--limit", "3").documents) == 3
    assert len(synap("queue", "peek", name).documents) == 4


def test_peek_and_tail_show_messages_and_take_none(synap: Synap, name: str) -> None:
    synap("queue", "publish", name, "--lines", stdin=b"1\n2\n3\n")
    assert [row["message"] for row in synap("queue", "peek", name, "--limit", "2").documents] == [1, 2]
    assert [row["message"] for row in synap("queue", "tail", name, "--count", "3").documents] == [1, 2, 3]
    assert synap("queue", "stats", name).document["consumed_total"] == 0
    assert synap("queue", "tail", f"{name}-missing", "--count", "1").code == 1
