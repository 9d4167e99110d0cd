"""What docs/protocol.md gives clients of plain HTTP to be as exact as those of the native lane, and where lanes end."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from synap.testing.server import ThrowawayServer
from synap.wire.handshake import SUBPROTOCOL, Hello, greet
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Http, dial, read_head, wait_for
from tests.server.conftest import Serve


@pytest.fixture
def session() -> str:
    return os.urandom(16).hex()


def numbered(key: str, *numbers: int) -> list[dict[str, Any]]:
    return [{"command": "kv.incr", "payload": {"key": key}, "number": number} for number in numbers]


def counted(http: Http, body: dict[str, Any]) -> list[int]:
    reply = http.post(body)
    assert reply.status == 200, reply.body
    return [result["payload"]["value"] for result in reply.document["results"]]


def test_numbered_commands_of_a_batch_are_each_remembered_by_themselves(http: Http, session: str) -> None:
    batch = {"type": "batch", "request_id": f"{session}:9"}
    assert counted(http, {**batch, "commands": numbered(session, 5, 6)}) == [1, 2]
    assert counted(http, {**batch, "commands": numbered(session, 6, 7)}) == [2, 3]
    alone = {"command": "kv.incr", "payload": {"key": session}, "request_id": f"{session}:7"}
    assert http.post(alone).payload == {"value": 3}


@pytest.mark.parametrize("more", [{"atomic": True}, {"commands": "one without"}])
def test_either_all_commands_of_a_batch_have_a_number_or_none_and_none_of_an_atomic_one(
    http: Http, session: str, more: dict[str, Any]
) -> None:
    commands = numbered(session, 1, 2)
    if "commands" in more:
        del commands[0]["number"]
        more = {}
    reply = http.post({"type": "batch", "request_id": f"{session}:9", "commands": commands, **more})
    assert reply.status in (400, 422)
    assert http.do("kv.exists", key=session).payload == {"exists": False}


def test_synap_done_lets_the_service_forget(serve: Serve, session: str) -> None:
    http = Http(serve())

    def remembered() -> int:
        replies: int = http.do("admin.stats").payload["replies"]
        return replies

    for number in (1, 2, 3):
        http.post({"command": "kv.incr", "payload": {"key": "k"}, "request_id": f"{session}:{number}"})
    assert remembered() == 3
    http.post({"command": "kv.get", "payload": {"key": "k"}, "request_id": f"{session}:4"}, synap_done="3")
    assert remembered() == 1
    http.close()


def test_a_request_that_waits_is_taken_back_by_delete_and_takes_no_message(
    server: ThrowawayServer, http: Http, session: str
) -> None:
    waits = {"command": "queue.consume", "payload": {"queue": session, "timeout": 600}, "request_id": f"{session}:1"}
    answers: list[Any] = []

    def wait() -> None:
        other = Http(server)
        answers.append(other.post(waits))
        other.close()

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_for(lambda: http.do("queue.stats", queue=session).document.get("payload", {}).get("consumers") == 1)
    assert http.request("DELETE", f"/api/v1/command?request_id={session}:1").status == 200
    wait_for(lambda: http.do("queue.stats", queue=session).payload["consumers"] == 0)
    http.do("queue.publish", queue=session, message="for another")
    assert http.do("queue.consume", queue=session).payload["message"] == "for another"
    waiting.join(PATIENCE)
    assert [answer.error["code"] for answer in answers] == ["INVALID_REQUEST"]


def test_so_it_is_where_the_request_came_in_a_websocket(server: ThrowawayServer, http: Http, session: str) -> None:
    waits = {"command": "queue.consume", "payload": {"queue": session, "timeout": 600}, "request_id": f"{session}:1"}
    with connect(f"ws://127.0.0.1:{server.port}/api/v1/ws", proxy=None) as carrier:
        carrier.send(json.dumps(waits))
        wait_for(lambda: http.do("queue.stats", queue=session).document.get("payload", {}).get("consumers") == 1)
        http.request("DELETE", f"/api/v1/command?request_id={session}:1")
        answer = json.loads(carrier.recv(timeout=PATIENCE))
    assert (answer["request_id"], answer["error"]["code"]) == (f"{session}:1", "INVALID_REQUEST")
    assert http.do("queue.stats", queue=session).payload["consumers"] == 0


def test_a_message_that_was_given_goes_back_and_what_is_read_later_is_refused(http: Http, session: str) -> None:
    http.do("queue.publish", queue=session, message=1)
    took = {"command": "queue.consume", "payload": {"queue": session}, "request_id": f"{session}:1"}
    assert http.post(took).payload["message"] == 1
    assert http.request("DELETE", f"/api/v1/command?request_id={session}:1").status == 200
    assert http.do("queue.stats", queue=session).payload["depth"] == 1
    assert http.do("queue.peek", queue=session).payload["messages"][0]["retry_count"] == 0
    late = http.post({**took, "request_id": f"{session}:2"})
    assert late.payload["message"] == 1
    http.request("DELETE", f"/api/v1/command?request_id={session}:3")
    assert http.post({**took, "request_id": f"{session}:3"}).error["code"] == "INVALID_REQUEST"


def test_an_upgrade_has_to_be_the_first_request_of_its_connection(server: ThrowawayServer, session: str) -> None:
    with dial(server) as peer:
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = read_head(peer)
        assert head.startswith(b"HTTP/1.1 200 ")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while length:
            length -= len(peer.recv(length))
        peer.sendall(greet("localhost", Hello(session, "json", False, None)))
        assert not read_head(peer).startswith(b"HTTP/1.1 101 ")


def test_a_text_message_ends_a_websocket_of_native_frames(server: ThrowawayServer, session: str) -> None:
    url = f"ws://127.0.0.1:{server.port}/api/v1/ws"
    greeting = {"Synap-Session": session, "Synap-Format": "json"}
    with connect(url, subprotocols=[SUBPROTOCOL], additional_headers=greeting, proxy=None) as carrier:  # type: ignore[list-item]
        assert carrier.response is not None
        assert carrier.response.headers["Synap-Version"]
        assert int(carrier.response.headers["Synap-Max-Body"]) == 10 * 1024 * 1024
        carrier.send(json.dumps({"command": "kv.get", "payload": {"key": "k"}}))
        with pytest.raises(ConnectionClosed) as closed:
            carrier.recv(timeout=PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1003
