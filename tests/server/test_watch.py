"""`admin.watch` and `admin.clients`: figures while somebody looks, who is connected, and disconnecting."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from synap import SynapClient
from synap.server import watch
from synap.testing.server import ThrowawayServer
from tests.helpers.inside import line, service
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Http, request
from tests.server.conftest import name

pytestmark = pytest.mark.usefixtures("endless_turns")

Open = Callable[[], ClientConnection]


@pytest.fixture
def websocket(server: ThrowawayServer) -> Iterator[Open]:
    with ExitStack() as opened:

        def start() -> ClientConnection:
            url = f"ws://127.0.0.1:{server.port}/api/v1/ws"
            connection: ClientConnection = opened.enter_context(connect(url, max_size=None, proxy=None))
            return connection

        yield start


@pytest.fixture
def client(server: ThrowawayServer) -> Iterator[SynapClient]:
    with SynapClient(url=server.url) as connected:
        yield connected


def call(connection: ClientConnection, command: str, **payload: Any) -> Any:
    """Send a command and return its answer; what is pushed meanwhile is dropped."""
    request_id = name()
    connection.send(json.dumps({"command": command, "payload": payload, "request_id": request_id}))
    while True:
        message = json.loads(connection.recv(timeout=PATIENCE))
        if message.get("request_id") == request_id:
            return message["payload"] if message["success"] else message["error"]


def push(connection: ClientConnection) -> Any:
    message = json.loads(connection.recv(timeout=PATIENCE))
    assert message["type"] == "message"
    assert message["topic"] == "admin.watch"
    return message["message"]


def push_with(connection: ClientConnection, queue: str) -> Any:
    """Return the first push that has figures of `queue`."""
    while True:
        figures = push(connection)
        if queue in figures["queues"]:
            return figures


def test_the_first_push_has_everything_and_later_ones_what_changed(websocket: Open, client: SynapClient) -> None:
    queue, still = name(), name()
    client.queue.publish(still, 1)
    connection = websocket()
    assert call(connection, "admin.watch")["watching"] is True
    first = push(connection)
    assert first["whole"] is True
    assert first["queues"][still]["depth"] == 1
    client.queue.publish(queue, 1)
    second = push_with(connection, queue)
    assert second["whole"] is False
    assert still not in second["queues"]
    assert second["queues"][queue]["depth"] == 1
    assert second["queues"][queue]["oldest"] == pytest.approx(time.time(), abs=PATIENCE)
    assert second["queues"][queue]["max_depth"] == 100_000
    client.queue.delete(queue)
    while queue not in push(connection)["queues_gone"]:
        pass


def test_totals_say_what_is_done_and_how_long_it_takes(websocket: Open, client: SynapClient) -> None:
    connection = websocket()
    call(connection, "admin.watch")
    before = push(connection)["totals"]
    for number in range(50):
        client.kv.set(name(), number)
    while (after := push(connection)["totals"])["operations"]["kv"] < before["operations"].get("kv", 0) + 50:
        pass
    while after["answer_ms"] is None:
        after = push(connection)["totals"]
    assert 0 <= after["answer_ms"]["p50"] <= after["answer_ms"]["p99"] <= after["answer_ms"]["max"]
    assert after["connections"] >= 2
    assert after["health"]["status"] == "ok"


def test_looking_adds_no_requests(websocket: Open) -> None:
    connection = websocket()
    call(connection, "admin.watch")
    before, after = push(connection), push(connection)
    counted = {group: count for group, count in before["totals"]["operations"].items() if group != "admin"}
    assert {group: after["totals"]["operations"][group] for group in counted} == counted


def test_who_looks_away_gets_nothing_more(websocket: Open) -> None:
    connection = websocket()
    call(connection, "admin.watch")
    push(connection)
    assert call(connection, "admin.watch", enabled=False)["watching"] is False
    assert call(connection, "admin.watch", enabled=False)["subscription_id"] == 0
    with pytest.raises(TimeoutError):
        connection.recv(timeout=1.5)


async def test_figures_are_computed_only_while_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "EVERY", 0.01)
    monkeypatch.setattr(watch, "PROBE_EVERY", 0.001)
    place = service()
    looks = probes = 0
    survey, probe = place.survey, place.watch._ask

    def look(most: int) -> Any:
        nonlocal looks
        looks += 1
        return survey(most)

    def ask(began: float) -> None:
        nonlocal probes
        probes += 1
        probe(began)

    async def computes() -> bool:
        """Say whether figures are computed, and answers measured, within many times the time between pushes."""
        before = looks, probes
        await asyncio.sleep(0.2)
        assert (looks > before[0]) == (probes > before[1])
        return looks > before[0]

    monkeypatch.setattr(place, "survey", look)
    monkeypatch.setattr(place.watch, "_ask", ask)
    first, second = line(place), line(place)
    assert not await computes()
    first.receive(request(1, "admin.watch"))
    second.receive(request(1, "admin.watch"))
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not (looks and probes) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.01)
    assert place.watch.on
    first.receive(request(2, "admin.watch", enabled=False))
    assert place.watch.on, "one still looks"
    second.abort()  # without a word
    while place.watch.on and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.01)
    assert not await computes()
    first.receive(request(3, "admin.watch"))
    before = looks
    while looks == before and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.01)
    assert looks > before, "whoever looks again is shown again"
    first.abort()
    place.watch.stop()


def test_the_lag_of_durable_subscriptions_is_among_the_figures(websocket: Open, client: SynapClient) -> None:
    room = name()
    for number in range(5):
        client.stream.publish(room, "tick", number)
    client.stream.commit(room, "billing", 2)
    connection = websocket()
    call(connection, "admin.watch")
    assert push(connection)["rooms"][room]["lag"] == {"billing": 2}
    client.stream.commit(room, "billing", 4)
    while (figures := push(connection)["rooms"].get(room)) is None:
        pass
    assert figures["lag"] == {"billing": 0}


def test_watching_needs_something_to_push_on(http: Http) -> None:
    reply = http.do("admin.watch")
    assert reply.status == 400
    assert "connection" in reply.error["message"]


def test_clients_are_listed_with_what_they_wait_for(websocket: Open, client: SynapClient) -> None:
    queue, topic = name(), name()
    waits, listens = websocket(), websocket()
    waits.send(json.dumps({"command": "queue.consume", "payload": {"queue": queue, "timeout": PATIENCE}}))
    call(listens, "pubsub.subscribe", topics=[topic])
    asking = websocket()

    def find(what: Callable[[Any], bool]) -> Any:
        while True:
            found = [one for one in call(asking, "admin.clients")["clients"] if what(one)]
            if found:
                return found[0]

    assert find(lambda one: queue in one["waits"])["lane"] == "websocket"
    assert find(lambda one: topic in one["subscriptions"])["waits"] == []
    assert find(lambda one: one["you"])["since"] <= time.time()
    client.connect()
    assert find(lambda one: one["lane"] == "native")["session"]


def test_a_request_over_http_is_listed_with_what_it_waits_for(http: Http, server: ThrowawayServer) -> None:
    queue = name()
    with closing(socket.create_connection(("127.0.0.1", server.port), PATIENCE)) as connection:
        body = json.dumps({"command": "queue.consume", "payload": {"queue": queue, "timeout": PATIENCE}})
        head = "POST /api/v1/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())

        def clients() -> list[Any]:
            return list(http.do("admin.clients").payload["clients"])

        while not (waiting := [one for one in clients() if queue in one["waits"]]):
            pass
        assert (waiting[0]["lane"], waiting[0]["you"]) == ("http", False)
        assert waiting[0]["address"] == "{}:{}".format(*connection.getsockname())
        assert [one["waits"] for one in clients() if one["you"]] == [[]]
        http.do("queue.publish", queue=queue, message=1)
        assert b"200" in connection.makefile("rb").readline()


def test_clients_come_in_pages(websocket: Open) -> None:
    others = [websocket() for _ in range(3)]
    first = call(others[0], "admin.clients", limit=2)
    assert len(first["clients"]) == 2
    assert first["has_more"] is True
    second = call(others[0], "admin.clients", after=first["clients"][-1]["id"])
    assert all(one["id"] > first["clients"][-1]["id"] for one in second["clients"])


def test_a_websocket_can_be_disconnected(websocket: Open) -> None:
    admin, guest = websocket(), websocket()
    guest_id = next(one["id"] for one in call(guest, "admin.clients")["clients"] if one["you"])
    assert call(admin, "admin.clients", disconnect=guest_id)["disconnected"] is True
    with pytest.raises(ConnectionClosed) as closed:
        guest.recv(timeout=PATIENCE)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    while any(one["id"] == guest_id for one in call(admin, "admin.clients")["clients"]):
        pass
    assert call(admin, "admin.clients", disconnect=guest_id)["disconnected"] is False


def test_an_event_stream_is_listed_and_can_be_disconnected(
    websocket: Open, client: SynapClient, server: ThrowawayServer
) -> None:
    room, admin = name(), websocket()
    client.stream.publish(room, "e", 1)

    def listed() -> list[Any]:
        return [one for one in call(admin, "admin.clients")["clients"] if one["lane"] in ("events", "http")]

    with closing(socket.create_connection(("127.0.0.1", server.port), PATIENCE)) as connection:
        before = {one["id"] for one in listed()}
        ask = f"GET /api/v1/stream/subscribe?room={room} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n"
        connection.sendall(ask.encode())
        answer = connection.makefile("rb")
        assert b"200" in answer.readline()
        while b"listening" not in answer.readline():
            pass
        [stream] = [one for one in listed() if one["id"] not in before]
        assert stream["lane"] == "events"
        assert stream["subscriptions"] == [room]
        assert stream["address"] == "{}:{}".format(*connection.getsockname())
        assert call(admin, "admin.clients", disconnect=stream["id"])["disconnected"] is True
        while answer.readline() != b"0\r\n":
            pass


def test_a_native_client_that_was_disconnected_comes_back(websocket: Open, client: SynapClient) -> None:
    client.kv.set("mine", 1)
    admin = websocket()
    native = [one for one in call(admin, "admin.clients")["clients"] if one["lane"] == "native"]
    for one in native:
        assert call(admin, "admin.clients", disconnect=one["id"])["disconnected"] is True
    assert client.kv.get("mine").value == 1
