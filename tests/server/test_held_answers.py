"""Answers wait for the disk: a service whose log does what a test says, and when."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from uvicorn.server import ServerState

from synap.engine.engine import Engine
from synap.errors import SynapError
from synap.host import Batch, EngineHost, Log
from synap.server.run import uvicorn_config
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.server.sniff import Sniffer
from synap.storage import open_host
from synap.wire.frames import MAX_ANSWER, Kind, frame
from synap.wire.handshake import Hello, greet
from tests.helpers.driver import AlwaysInline
from tests.helpers.frames import Frame, FrameReader
from tests.helpers.inside import Line, line
from tests.helpers.raw import request
from tests.helpers.streams import stop_listening


class Gate(Log):
    """A log that is as slow as a test wants, and fails when told."""

    def __init__(self) -> None:
        self.host: EngineHost
        self.batches: list[Batch] = []
        self.stalled = False
        self.came = asyncio.Event()

    def submit(self, batch: Batch, alone: bool) -> bool:
        self.batches.append(batch)
        self.came.set()
        return False

    async def waiting(self) -> None:
        """Wait until there is something to commit."""
        await self.came.wait()

    def commit(self) -> None:
        batches, self.batches = self.batches, []
        self.came.clear()
        for batch in batches:
            self.host.committed(batch)

    def fail(self) -> None:
        self.batches.clear()
        self.came.clear()
        self.host.failed(SynapError("SERVICE_UNAVAILABLE", "the disk is full", {"retry_after": 1.0}))


class Place:
    """A service in this process."""

    def __init__(self) -> None:
        self.log = Gate()
        numbers = iter(range(10**9))
        self.host = self.log.host = EngineHost(Engine(ids=lambda: next(numbers)), log=self.log)
        self.service = Service(self.host, ServerConfig())
        self.clients: list[Client] = []
        self.lines: list[Line] = []

    async def start(self) -> None:
        config = uvicorn_config(self.service.config, self.service)
        config.load()
        state = ServerState()
        self.service.connections = state.connections
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: Sniffer(self.service, config, state, {}), "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def attach(self, session: str | None = None) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        client.writer.write(greet("x", Hello(session or os.urandom(16).hex(), "json", False, None)))
        await client.reader.readuntil(b"\r\n\r\n")
        return client

    def line(self) -> Line:
        made = line(self.service)
        self.lines.append(made)
        return made

    async def stop(self) -> None:
        for inside in self.lines:
            inside.abort()
        for client in self.clients:
            client.writer.close()
        await stop_listening(self.server)
        while self.service.connections:  # uvicorn's set tells nobody
            await asyncio.sleep(0)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.frames: list[Frame] = []
        self.cut = FrameReader(MAX_ANSWER)

    def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def read(self) -> Frame:
        while not self.frames:
            data = await self.reader.read(65536)
            if not data:
                raise EOFError
            self.frames += self.cut.feed(data)
        return self.frames.pop(0)

    async def answer(self) -> Any:
        told = await self.read()
        assert told.kind == Kind.ANSWER, told
        return json.loads(told.body)

    async def error(self) -> Any:
        told = await self.read()
        assert told.kind == Kind.ERROR, told
        return json.loads(told.body)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    started = Place()
    await started.start()
    yield started
    await started.stop()


async def settle(place: Place) -> None:
    """Let everything happen that can happen without the disk: a ping travels to the service and back."""
    client = await place.attach()
    client.send(frame(Kind.PING, 1))
    assert (await client.read()).kind == Kind.PONG


async def test_a_write_is_answered_once_it_is_safe(place: Place) -> None:
    client = await place.attach()
    client.send(request(1, "kv.set", key="k", value=1))
    await place.log.waiting()
    await settle(place)
    assert not client.frames
    place.log.commit()
    assert await client.answer() == {"success": True, "key": "k"}


async def test_a_ping_before_a_lone_request_is_answered_before_it_in_one_write(place: Place) -> None:
    client = place.line()
    client.receive(frame(Kind.PING, 1), request(2, "kv.exists", key="k"))
    assert len(client.writes) == 1
    assert [(told.id, told.kind) for told in client.frames()] == [(1, Kind.PONG), (2, Kind.ANSWER)]
    assert client.session.promised == 0


async def test_what_others_read_of_it_waits_too(place: Place) -> None:
    writer, reader = await place.attach(), await place.attach()
    writer.send(request(1, "kv.set", key="k", value=1))
    await place.log.waiting()
    reader.send(request(1, "kv.get", key="k"))
    told = asyncio.ensure_future(reader.read())
    await settle(place)
    assert not told.done()
    place.log.commit()
    assert json.loads((await told).body)["value"] == 1


async def test_a_refused_write_is_an_error_and_never_was(place: Place) -> None:
    client = await place.attach()
    client.send(request(1, "kv.set", key="k", value=1))
    await place.log.waiting()
    place.log.fail()
    error = await client.error()
    assert (error["code"], error["details"]["retry_after"]) == ("SERVICE_UNAVAILABLE", 1.0)
    client.send(request(2, "kv.get", key="k"), request(3, "kv.set", key="k", value=1))
    assert (await client.answer())["found"] is False
    assert (await client.error())["code"] == "SERVICE_UNAVAILABLE"
    client.send(frame(Kind.PING, 4))
    assert json.loads((await client.read()).body)["status"] == "degraded"
    place.host.recovered()
    client.send(request(5, "kv.set", key="k", value=2))
    await place.log.waiting()
    place.log.commit()
    assert (await client.answer())["success"] is True


async def test_a_subscriber_whose_events_were_taken_back_has_to_subscribe_anew(place: Place) -> None:
    subscriber, publisher = await place.attach(), await place.attach()
    subscriber.send(request(1, "stream.subscribe", room="r"))
    await place.log.waiting()
    place.log.commit()
    await subscriber.answer()
    publisher.send(request(1, "stream.publish", room="r", event_type="t", data=1))
    await place.log.waiting()
    place.log.fail()
    assert (await publisher.error())["code"] == "SERVICE_UNAVAILABLE"
    with pytest.raises((EOFError, ConnectionResetError)):
        await subscriber.read()


async def test_what_was_pushed_and_taken_back_is_promised_to_nobody(place: Place) -> None:
    subscriber, publisher = place.line(), place.line()
    subscriber.receive(request(1, "stream.subscribe", room="r"))
    place.log.commit()
    subscriber.frames()
    publisher.receive(request(1, "stream.publish", room="r", event_type="t", data="x" * 1000))
    assert subscriber.session.promised > 1000
    place.log.fail()
    assert subscriber.session.promised == 0


async def test_a_long_history_comes_whole_and_in_order_through_commits(place: Place) -> None:
    publisher, subscriber = await place.attach(), await place.attach()
    text = "x" * 1000
    for number in range(1, 1001):
        publisher.send(request(number, "stream.publish", room="r", event_type="t", data=text))
    subscriber.send(request(1, "stream.subscribe", room="none"))
    committing = asyncio.ensure_future(commit_as_it_comes(place))
    for _ in range(1000):
        await publisher.answer()
    await subscriber.answer()
    subscriber.send(request(2, "stream.subscribe", room="r", from_offset=0))
    assert (await subscriber.answer())["next_offset"] == 0
    offsets = [json.loads((await subscriber.read()).body)["offset"] for _ in range(1000)]
    assert offsets == list(range(1000))
    committing.cancel()


async def commit_as_it_comes(place: Place) -> None:
    while True:
        await place.log.waiting()
        place.log.commit()


async def test_a_log_that_has_fallen_behind_stops_the_reading(place: Place) -> None:
    client = await place.attach()
    place.log.stalled = True
    client.send(request(1, "kv.set", key="k", value=1))
    await place.log.waiting()
    client.send(request(2, "kv.set", key="k", value=2))
    await settle(place)
    assert len(place.log.batches) == 1
    place.log.stalled = False
    place.log.commit()
    assert (await client.read()).id == 1
    await place.log.waiting()
    place.log.commit()
    assert (await client.read()).id == 2


async def answers(place: Place, client: Client, count: int) -> list[Frame]:
    """What comes when the disk does its work."""
    committing = asyncio.ensure_future(commit_as_it_comes(place))
    told = [await client.read() for _ in range(count)]
    committing.cancel()
    return told


def held(place: Place) -> int:
    """How many answers wait for the disk."""
    return sum(len(said) for batch in place.log.batches for _, said in batch.held)


LONG = "n" * 240

FLOODS: dict[str, tuple[list[bytes], bytes, int]] = {
    "kv.get": ([request(1, "kv.set", key="k", value="x" * 500_000)], request(0, "kv.get", key="k"), 10),
    "kv.set": (
        [request(1, "kv.set", key="k", value="x" * 60_000)],
        request(0, "kv.set", key="k", value="x" * 60_000),
        30,
    ),
    "kv.scan": (
        [request(1, "kv.mset", pairs=[{"key": f"{LONG}{index}", "value": 0} for index in range(4000)])],
        request(0, "kv.scan", count=4000),
        10,
    ),
    "queue.list": (
        [request(index, "queue.create", queue=f"{LONG}{index}") for index in range(1, 401)],
        request(0, "queue.list"),
        50,
    ),
    "stream.rooms": (
        [request(index, "stream.publish", room=f"{LONG}{index}", event_type="t", data=1) for index in range(1, 401)],
        request(0, "stream.rooms"),
        50,
    ),
    "stream.history": (
        [request(1, "stream.publish", room="r", event_type="t", data=1, metadata={"m": "x" * 500_000})],
        request(0, "stream.history", room="r"),
        10,
    ),
    "batch": (
        [request(1, "kv.set", key="k", value=1)],
        request(0, "batch", commands=[{"command": "kv.exists", "payload": {"key": "k"}}] * 1000),
        100,
    ),
    "kv.exists": ([request(1, "kv.set", key="k", value=1)], request(0, "kv.exists", key="k"), 20_000),
    "queue.stats": ([request(1, "queue.create", queue="q")], request(0, "queue.stats", queue="q"), 20_000),
    "an error": ([request(1, "kv.set", key="k", value=1)], request(0, "queue.stats", queue="none"), 5_000),
}
"""What there is, what is asked again and again, and how many answers to it may wait at most."""


def numbered(asked: bytes, number: int) -> bytes:
    return asked[:8] + number.to_bytes(4, "big") + asked[12:]


@pytest.mark.parametrize("kind", FLOODS)
async def test_answers_of_every_kind_are_bounded_while_they_wait(place: Place, kind: str) -> None:
    before, asked, most = FLOODS[kind]
    client = await place.attach()
    client.send(*before)
    await answers(place, client, len(before))
    times = 2 * most
    first = len(before) + 1
    client.send(
        request(first, "kv.set", key="other", value=1),
        *(numbered(asked, number) for number in range(first + 1, first + 1 + times)),
    )
    await place.log.waiting()
    await settle(place)
    assert held(place) <= most
    told = await answers(place, client, times + 1)
    assert [answer.id for answer in told] == list(range(first, first + 1 + times))


async def test_answers_are_bounded_also_where_each_request_comes_by_itself(place: Place) -> None:
    client = await place.attach()
    client.send(request(1, "kv.set", key="k", value="x" * 500_000))
    await answers(place, client, 1)
    client.send(request(2, "kv.set", key="other", value=1))
    await place.log.waiting()
    for number in range(3, 53):
        client.send(request(number, "kv.get", key="k"))
        await settle(place)
    assert held(place) < 10
    assert [answer.id for answer in await answers(place, client, 51)] == list(range(2, 53))


async def test_an_error_that_waits_does_not_keep_what_its_request_brought(place: Place) -> None:
    client = await place.attach()
    client.send(request(1, "kv.set", key="k", value=1), request(2, "kv.set", key="k", value="x" * 9999, surprise=1))
    await place.log.waiting()
    await settle(place)
    [told] = [entry[2] for batch in place.log.batches for _, said in batch.held for entry in said if entry[1] == 2]
    assert told.code == "INVALID_PAYLOAD"
    assert told.__traceback__ is told.__context__ is None
    place.log.commit()
    await client.answer()
    assert (await client.error())["code"] == "INVALID_PAYLOAD"


NONSENSE = [frame(Kind.GOAWAY), frame(255)]


async def last_word(client: Client) -> None:
    """See that the error about the connection comes, and then its end."""
    told = await client.read()
    assert (told.kind, told.id) == (Kind.ERROR, 0)
    with pytest.raises(EOFError):
        await client.read()


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_what_was_asked_before_nonsense_is_answered_once_it_is_safe(place: Place, nonsense: bytes) -> None:
    client = await place.attach()
    client.send(request(1, "kv.set", key="k", value=1), request(2, "kv.get", key="k"), nonsense)
    await place.log.waiting()
    told = asyncio.ensure_future(client.read())
    await settle(place)
    assert not told.done()
    client.send(request(3, "kv.set", key="k", value=2))
    await settle(place)
    place.log.commit()
    assert (await told).id == 1
    assert (await client.answer())["value"] == 1
    await last_word(client)
    assert not place.log.batches


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_what_was_refused_before_nonsense_is_told_too(place: Place, nonsense: bytes) -> None:
    client = await place.attach()
    client.send(request(1, "kv.set", key="k", value=1), nonsense)
    await place.log.waiting()
    place.log.fail()
    assert (await client.error())["code"] == "SERVICE_UNAVAILABLE"
    await last_word(client)


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_who_talks_nonsense_waits_for_messages_no_more(place: Place, nonsense: bytes) -> None:
    client, other = await place.attach(), await place.attach()
    client.send(request(1, "kv.set", key="k", value=1), request(2, "queue.consume", queue="q", timeout=60), nonsense)
    await place.log.waiting()
    await settle(place)
    other.send(request(1, "queue.publish", queue="q", message="m"), request(2, "queue.consume", queue="q"))
    told = await answers(place, other, 2)
    assert json.loads(told[1].body)["message"] == "m"
    assert (await client.read()).id == 1
    await last_word(client)


async def test_plain_http_waits_as_well(place: Place) -> None:
    client = Client(*await asyncio.open_connection("127.0.0.1", place.port))
    place.clients.append(client)
    body = b'{"command":"kv.set","payload":{"key":"k","value":1}}'
    client.send(
        b"POST /api/v1/command HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    told = asyncio.ensure_future(client.reader.readuntil(b"\r\n\r\n"))
    await place.log.waiting()
    await settle(place)
    assert not told.done()
    place.log.commit()
    assert (await told).startswith(b"HTTP/1.1 200 ")


async def test_a_retry_over_a_new_connection_before_the_commit_is_answered_once_with_the_first(place: Place) -> None:
    session = os.urandom(16).hex()
    first = await place.attach(session)
    first.send(request(1, "kv.incr", key="n"))
    await place.log.waiting()
    second = await place.attach(session)
    second.send(request(1, "kv.incr", 1, key="n"))
    await settle(place)
    place.log.commit()
    assert await second.answer() == {"value": 1}


async def test_an_answer_to_a_lone_writer_leaves_in_the_turn_that_commits_for_it(tmp_path: Any) -> None:
    loop = asyncio.get_running_loop()
    durable = open_host(str(tmp_path / "data"), call=loop.call_soon_threadsafe, soon=loop.call_soon)
    durable.log.inline = AlwaysInline()
    writer, reader = (line(Service(durable.host, ServerConfig())) for _ in range(2))
    try:
        reader.receive(request(1, "pubsub.subscribe", topics=["t"]))
        reader.frames()
        writer.receive(request(1, "kv.set", key="k", value=1))
        assert [told.kind for told in writer.frames()] == [Kind.ANSWER]
        writer.receive(
            request(2, "kv.incr", key="k"),
            request(3, "pubsub.publish", topic="t", message="m"),
            request(4, "kv.get", key="k"),
        )
        assert [told.id for told in writer.frames()] == [2, 3, 4]
        assert [told.kind for told in reader.frames()] == [Kind.MESSAGE]
        assert durable.log.inline.count == durable.log.commits == 2
    finally:
        durable.close()


@pytest.mark.parametrize("existing", [True, False])
async def test_a_subscription_that_the_disk_refused_is_none(place: Place, existing: bool) -> None:
    client, publisher = place.line(), place.line()
    if existing:
        publisher.receive(request(1, "stream.publish", room="r", event_type="t", data=1))
        place.log.commit()
    publisher.receive(request(2, "kv.set", key="k", value=1))
    client.receive(request(1, "stream.subscribe", room="r"), request(2, "pubsub.subscribe", topics=["t"]))
    place.log.fail()
    assert [told.kind for told in client.frames()] == [Kind.ERROR, Kind.ERROR]
    assert not client.session.subscriptions
    place.host.recovered()
    publisher.receive(request(3, "stream.publish", room="r", event_type="t", data=2))
    publisher.receive(request(4, "pubsub.publish", topic="t", message=2))
    place.log.commit()
    assert client.frames() == []


async def test_a_watch_that_the_disk_refused_is_none_and_one_whose_end_it_refused_goes_on(place: Place) -> None:
    client, publisher = place.line(), place.line()

    def refused(number: int, **payload: Any) -> None:
        publisher.receive(request(number, "kv.set", key="k", value=1))
        client.receive(request(number, "admin.watch", **payload))
        place.log.fail()
        assert [told.kind for told in client.frames()] == [Kind.ERROR]
        place.host.recovered()

    watch = place.service.watch
    refused(1)
    assert not watch.on
    client.receive(request(2, "admin.watch"))
    [told] = client.frames()
    number = json.loads(told.body)["subscription_id"]
    for again, payload in enumerate(({"enabled": False}, {}), 3):
        refused(again, **payload)
        assert [one.number for one in watch._watchers.values()] == [number]
    client.receive(request(5, "admin.watch", enabled=False))
    assert json.loads(client.frames()[0].body) == {"subscription_id": number, "watching": False}
    refused(6, enabled=False)
    assert not watch.on


async def test_the_end_of_a_subscription_is_told_also_where_the_disk_refuses_what_was_done_meanwhile(
    place: Place,
) -> None:
    client, publisher = place.line(), place.line()
    client.receive(request(1, "pubsub.subscribe", topics=["t"]))
    client.frames()
    publisher.receive(request(1, "kv.set", key="k", value=1))
    client.session.stalled = True
    client.session._pubsub_buffer = -1
    publisher.receive(request(2, "pubsub.publish", topic="t", message="x" * 1000))
    assert not client.session.subscriptions
    place.log.fail()
    [told] = client.frames()
    assert (told.kind, json.loads(told.body)["code"]) == (Kind.ENDED, "SLOW_CONSUMER")


async def test_a_room_whose_deletion_the_disk_refused_keeps_its_subscribers(place: Place) -> None:
    client, other = place.line(), place.line()
    client.receive(request(1, "stream.subscribe", room="r"))
    place.log.commit()
    client.frames()
    other.receive(request(1, "stream.delete", room="r"))
    place.log.fail()
    assert client.frames() == []
    assert client.session.subscriptions
    place.host.recovered()
    other.receive(request(2, "stream.publish", room="r", event_type="t", data=1))
    place.log.commit()
    assert [told.kind for told in client.frames()] == [Kind.EVENT]
