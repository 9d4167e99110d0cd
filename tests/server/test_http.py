"""The plain lane: `POST /api/v1/command`, as any program could speak it."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from typing import Any

import msgpack
import pytest

from synap.testing.server import ThrowawayServer
from tests.helpers.raw import Http, dial, wait_for
from tests.server.conftest import name

PACK = "application/msgpack"


# -------------------------------------------------------------------------------------- requests and answers


def test_a_request_is_answered_in_an_envelope(http: Http) -> None:
    key = name()
    answer = http.post(
        {"command": "kv.set", "payload": {"key": key, "value": 1}, "request_id": "mine", "type": "request"}
    )
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.document == {
        "type": "response",
        "request_id": "mine",
        "success": True,
        "status": "success",
        "payload": {"success": True, "key": key},
    }


def test_a_request_without_an_id_is_given_one(http: Http) -> None:
    first, second = (http.do("kv.get", key="nothing").document["request_id"] for _ in range(2))
    assert first
    assert first != second


def test_a_consume_that_finds_nothing_answers_null(http: Http) -> None:
    assert http.do("queue.consume", queue=name()).payload is None


def test_a_payload_may_be_left_out_where_it_has_no_fields(http: Http) -> None:
    assert http.post({"command": "queue.list"}).payload["queues"] is not None


def test_a_batch_answers_each_command_in_order(http: Http) -> None:
    key = name()
    answer = http.post(
        {
            "type": "batch",
            "request_id": "b1",
            "commands": [
                {"command": "kv.set", "payload": {"key": key, "value": "x"}},
                {"command": "kv.incr", "payload": {"key": key}},
                {"command": "kv.get", "payload": {"key": key}},
                {"command": "kv.fly", "payload": {}},
            ],
        }
    )
    assert answer.status == 200
    assert answer.document["type"] == "batch_response"
    assert answer.document["request_id"] == "b1"
    statuses = [result["status"] for result in answer.document["results"]]
    assert statuses == ["success", "error", "success", "error"]
    assert answer.document["results"][1]["error"]["code"] == "WRONG_TYPE"
    assert answer.document["results"][2]["payload"]["value"] == "x"
    assert answer.document["results"][3]["error"]["code"] == "INVALID_COMMAND"


def test_an_atomic_batch_changes_nothing_where_one_command_fails(http: Http) -> None:
    key = name()
    commands = [
        {"command": "kv.set", "payload": {"key": key, "value": "x"}},
        {"command": "kv.incr", "payload": {"key": key}},
    ]
    results = http.post({"type": "batch", "atomic": True, "commands": commands}).document["results"]
    assert [result["error"]["code"] for result in results] == ["BATCH_ABORTED", "WRONG_TYPE"]
    assert http.do("kv.get", key=key).payload["found"] is False


def test_messagepack_in_and_out(http: Http) -> None:
    key = name()
    body = msgpack.packb({"command": "kv.set", "payload": {"key": key, "value": b"\x00\xff"}})
    answer = http.post(body, content_type=PACK, accept=PACK)
    assert answer.headers["content-type"] == PACK
    assert msgpack.unpackb(answer.body)["success"] is True
    body = msgpack.packb({"command": "kv.get", "payload": {"key": key}})
    assert msgpack.unpackb(http.post(body, content_type=PACK).body)["payload"]["value"] == b"\x00\xff"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/json", "application/json"),
        (PACK, PACK),
        ("*/*", "application/json"),
        ("text/html, application/msgpack;q=0.9, */*;q=0.1", PACK),
        ("application/msgpack;q=0.2, application/json;q=0.9", "application/json"),
        ("application/*", "application/json"),
    ],
)
def test_accept_chooses_the_format_of_the_answer(http: Http, accept: str, expected: str) -> None:
    answer = http.post({"command": "queue.list", "payload": {}}, accept=accept)
    assert answer.headers["content-type"] == expected


def test_an_error_comes_in_the_accepted_format_too(http: Http) -> None:
    answer = http.post(b"not json", accept=PACK)
    assert answer.status == 400
    assert msgpack.unpackb(answer.body)["error"]["code"] == "INVALID_REQUEST"


def test_gzip_both_ways(http: Http) -> None:
    key, value = name(), "x" * 5000
    body = gzip.compress(json.dumps({"command": "kv.set", "payload": {"key": key, "value": value}}).encode())
    assert http.post(body, content_encoding="gzip").payload["success"] is True
    answer = http.post({"command": "kv.get", "payload": {"key": key}}, accept_encoding="gzip")
    assert answer.headers["content-encoding"] == "gzip"
    assert len(answer.body) < 1000
    assert json.loads(gzip.decompress(answer.body))["payload"]["value"] == value


@pytest.mark.parametrize("refused", ["gzip;q=0", "br, gzip ; q=0.000, identity", "identity", "GZIP;Q=0"])
def test_an_answer_is_not_compressed_for_who_refuses_that(http: Http, refused: str) -> None:
    key = name()
    http.do("kv.set", key=key, value="x" * 5000)
    answer = http.post({"command": "kv.get", "payload": {"key": key}}, accept_encoding=refused)
    assert "content-encoding" not in answer.headers
    assert answer.payload["value"] == "x" * 5000
    accepted = http.post({"command": "kv.get", "payload": {"key": key}}, accept_encoding="br;q=0, gzip;q=0.5")
    assert accepted.headers["content-encoding"] == "gzip"


def test_small_answers_are_not_compressed(http: Http) -> None:
    answer = http.post({"command": "kv.get", "payload": {"key": "k"}}, accept_encoding="gzip")
    assert "content-encoding" not in answer.headers


# -------------------------------------------------------------------------------------- every row of the error table


def failing(http: Http) -> dict[str, tuple[int, Any]]:
    """A request for each error code that a service of its own isn't needed for."""
    text, queue = name(), name()
    http.do("kv.set", key=text, value="text")
    http.do("kv.set", key=text + "n", value=2**63 - 1)
    http.do("queue.create", queue=queue, config={"max_depth": 1})
    http.do("queue.publish", queue=queue, message=1)
    return {
        "INVALID_REQUEST": (400, {"type": "riddle"}),
        "INVALID_COMMAND": (400, {"command": "kv.fly", "payload": {}}),
        "KEY_NOT_FOUND": (404, {"command": "kv.ttl", "payload": {"key": name()}}),
        "QUEUE_NOT_FOUND": (404, {"command": "queue.stats", "payload": {"queue": name()}}),
        "ROOM_NOT_FOUND": (404, {"command": "stream.history", "payload": {"room": name()}}),
        "MESSAGE_NOT_FOUND": (404, {"command": "queue.ack", "payload": {"queue": queue, "message_id": "nope"}}),
        "INVALID_PAYLOAD": (422, {"command": "kv.set", "payload": {"key": "", "value": 1}}),
        "WRONG_TYPE": (422, {"command": "kv.incr", "payload": {"key": text}}),
        "INTEGER_OVERFLOW": (422, {"command": "kv.incr", "payload": {"key": text + "n"}}),
        "QUEUE_FULL": (507, {"command": "queue.publish", "payload": {"queue": queue, "message": 2}}),
    }


@pytest.mark.parametrize(
    "code",
    [
        "INVALID_REQUEST",
        "INVALID_COMMAND",
        "KEY_NOT_FOUND",
        "QUEUE_NOT_FOUND",
        "ROOM_NOT_FOUND",
        "MESSAGE_NOT_FOUND",
        "INVALID_PAYLOAD",
        "WRONG_TYPE",
        "INTEGER_OVERFLOW",
        "QUEUE_FULL",
    ],
)
def test_an_error_has_its_status_and_the_connection_goes_on(http: Http, code: str) -> None:
    status, document = failing(http)[code]
    answer = http.post({**document, "request_id": "e1"})
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.document["request_id"] == "e1"
    assert answer.error["message"]
    assert isinstance(answer.error["details"], dict)
    assert http.do("queue.list").status == 200


def test_a_full_memory_is_507(serve: Any) -> None:
    with_limit = Http(serve("--memory-limit", "2MB"))
    answers = [with_limit.do("kv.set", key=f"k{index}", value="x" * 200_000) for index in range(20)]
    refused = answers[-1]
    assert (refused.status, refused.error["code"]) == (507, "MEMORY_LIMIT")
    assert with_limit.do("kv.get", key="k0").payload["found"] is True
    with_limit.close()


# -------------------------------------------------------------------------------------- once


def test_a_write_that_is_sent_again_takes_effect_once(http: Http) -> None:
    key, session = name(), name()
    document = {"command": "kv.incr", "payload": {"key": key}, "request_id": f"{session}:1"}
    assert [http.post(document).payload["value"] for _ in range(3)] == [1, 1, 1]
    document["request_id"] = f"{session}:2"
    assert http.post(document).payload["value"] == 2


def test_an_id_of_ones_own_works_as_well(http: Http) -> None:
    key = name()
    document = {"command": "kv.incr", "payload": {"key": key}, "request_id": f"order {key}"}
    assert [http.post(document).payload["value"] for _ in range(2)] == [1, 1]


def test_another_request_under_the_same_id_is_done(http: Http) -> None:
    key = name()
    first = {"command": "kv.incr", "payload": {"key": key}, "request_id": "again"}
    assert http.post(first).payload["value"] == 1
    assert http.post({**first, "payload": {"key": key, "amount": 5}}).payload["value"] == 6


def test_a_consumer_that_hangs_up_takes_no_message_with_it(server: ThrowawayServer) -> None:
    queue = name()
    http = Http(server)
    body = json.dumps({"command": "queue.consume", "payload": {"queue": queue, "timeout": 30}}).encode()
    with dial(server) as waiting:
        waiting.sendall(
            b"POST /api/v1/command HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        wait_for(lambda: http.do("queue.stats", queue=queue).document.get("payload", {}).get("consumers") == 1)
    wait_for(lambda: http.do("queue.stats", queue=queue).payload["consumers"] == 0)
    http.do("queue.publish", queue=queue, message="still here")
    assert http.do("queue.consume", queue=queue).payload["message"] == "still here"
    http.close()


def test_a_consumer_that_waits_is_given_what_comes(server: ThrowawayServer) -> None:
    queue = name()
    http, other = Http(server), Http(server)
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(http.do("queue.consume", queue=queue, timeout=20)))
    waiting.start()
    wait_for(lambda: other.do("queue.stats", queue=queue).document.get("payload", {}).get("consumers") == 1)
    other.do("queue.publish", queue=queue, message="here")
    waiting.join()
    assert answers[0].payload["message"] == "here"
    http.close()
    other.close()


def test_a_connection_that_breaks_in_the_middle_of_a_body_disturbs_nobody(server: ThrowawayServer, http: Http) -> None:
    for _ in range(5):
        with dial(server) as connection:
            connection.sendall(b"POST /api/v1/command HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
            connection.shutdown(socket.SHUT_WR)
    assert http.do("queue.list").status == 200
