"""Large values for readers of the other format: translated in turns, in order, once for all subscribers."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from websockets.sync.client import connect

from synap.commands import COMMANDS, GetAnswer, KvGet
from synap.errors import SynapError
from synap.server import native_output, translations
from synap.server.app import App
from synap.server.service import Service
from synap.testing.server import ThrowawayServer
from synap.wire import translate
from synap.wire.frames import Kind, frame
from synap.wire.large import Steps
from tests.adversary.blunt_client import Client
from tests.helpers.frames import Frame
from tests.helpers.inside import Line, line, service
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Http, wait_for

LARGE = [[number, "text"] for number in range(20_000)]
OTHER = {"json": "msgpack", "msgpack": "json"}
DECODE: dict[str, Callable[[bytes], Any]] = {"json": msgspec.json.decode, "msgpack": msgspec.msgpack.decode}
ENCODE: dict[str, Callable[[Any], bytes]] = {"json": msgspec.json.encode, "msgpack": msgspec.msgpack.encode}


class Speaker:
    """One native connection in a format of its own."""

    def __init__(self, to: Service, format: str) -> None:
        self.line: Line = line(to, format)
        self.format = format
        self.number = 0
        self.got: list[Frame] = []

    def send(self, command: str, **payload: Any) -> None:
        self.number += 1
        self.line.receive(frame(Kind.REQUEST, self.number, ENCODE[self.format](payload), COMMANDS[command].code))

    async def take(self, count: int = 1) -> list[Any]:
        """The next frames: (kind, what is in it)."""
        while len(self.got) < count:
            await asyncio.sleep(0)
            self.got += self.line.frames()
        taken, self.got = self.got[:count], self.got[count:]
        return [(one.kind, DECODE[self.format](one.body)) for one in taken]

    async def do(self, command: str, **payload: Any) -> Any:
        self.send(command, **payload)
        ((kind, answer),) = await self.take()
        assert kind == Kind.ANSWER, answer
        return answer


@pytest.fixture(params=["json", "msgpack"])
def format(request: pytest.FixtureRequest) -> str:
    """The format that readers speak; the value is written in the other."""
    return str(request.param)


async def until(done: Callable[[], bool]) -> None:
    """Let the event loop go on until it is so."""
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end
        await asyncio.sleep(0)


class Translated:
    """Notes what is translated."""

    def __init__(self) -> None:
        self.formats: list[str] = []
        self.steps = 0
        self.held = False
        """Whether nothing of it gets done."""

    def content(self, content: Any, format: str) -> Any:
        self.formats.append(format)
        inner = translate.translate_content(content, format)
        while self.held:
            yield 0
        while True:
            try:
                made = next(inner)
            except StopIteration as done:
                return done.value
            self.steps += 1
            yield made


@pytest.fixture
def translated(monkeypatch: pytest.MonkeyPatch) -> Translated:
    noted = Translated()
    monkeypatch.setattr(translations, "translate_content", noted.content)
    return noted


async def test_a_large_answer_comes_in_the_reader_s_format_and_others_are_answered_meanwhile(format: str) -> None:
    place = service()
    writer, reader = Speaker(place, OTHER[format]), Speaker(place, format)
    await writer.do("kv.set", key="k", value=LARGE)
    reader.send("kv.get", key="k")
    assert reader.line.frames() == [], "it is translated in a turn of its own"
    assert await writer.do("kv.exists", key="k")
    assert reader.line.session.promised > 0, "it counts as on its way"
    ((kind, answer),) = await reader.take()
    assert (kind, answer["value"]) == (Kind.ANSWER, LARGE)
    assert reader.line.session.promised == 0
    assert (await writer.do("kv.get", key="k"))["value"] == LARGE


async def test_many_small_values_of_one_answer_are_translated_in_turns_too(format: str, translated: Translated) -> None:
    place = service()
    writer, reader = Speaker(place, OTHER[format]), Speaker(place, format)
    await writer.do("kv.set", key="k", value=LARGE[:300])
    answer = await reader.do("kv.mget", keys=["k"] * 1000)
    assert [one["value"] for one in answer["values"]] == [LARGE[:300]] * 1000
    assert translated.steps >= 10


async def test_what_is_pushed_stays_in_order_and_is_translated_once(format: str, translated: Translated) -> None:
    place = service()
    writer, readers = Speaker(place, OTHER[format]), [Speaker(place, format) for _ in range(3)]
    for reader in readers:
        await reader.do("stream.subscribe", room="r")
        await reader.do("pubsub.subscribe", topics=["t"])
    for number, value in enumerate([1, LARGE, 2, 3, LARGE, 4]):
        await writer.do("stream.publish", room="r", event_type=str(number), data=value)
    for reader in readers:
        assert [one["data"] for _, one in await reader.take(6)] == [1, LARGE, 2, 3, LARGE, 4]
    assert translated.formats == [format] * 2, "once for all three"
    translated.formats.clear()
    for value in [1, LARGE, 2, 3, LARGE, 4]:
        await writer.do("pubsub.publish", topic="t", message=value)
    for reader in readers:
        assert [one["message"] for _, one in await reader.take(6)] == [1, LARGE, 2, 3, LARGE, 4]
        assert reader.line.session.promised == 0
        assert not reader.line.session._behind
    assert translated.formats == [format] * 2


async def test_history_of_a_room_that_has_large_events_comes_whole(format: str) -> None:
    place = service()
    writer, reader = Speaker(place, OTHER[format]), Speaker(place, format)
    sent = [LARGE, 1, LARGE, 2]
    for value in sent:
        await writer.do("stream.publish", room="r", event_type="t", data=value)
    reader.send("stream.subscribe", room="r", from_offset=0)
    got = await reader.take(5)
    assert got[0][0] == Kind.ANSWER
    assert [one["data"] for _, one in got[1:]] == sent


async def test_who_leaves_or_unsubscribes_meanwhile_gets_nothing_and_disturbs_nobody(format: str) -> None:
    place = service()
    writer, leaver, quitter = Speaker(place, OTHER[format]), Speaker(place, format), Speaker(place, format)
    await leaver.do("pubsub.subscribe", topics=["t"])
    subscribed = await quitter.do("pubsub.subscribe", topics=["t"])
    await writer.do("pubsub.publish", topic="t", message=LARGE)
    await writer.do("pubsub.publish", topic="t", message=1)
    leaver.line.abort()
    await quitter.do("pubsub.unsubscribe", subscription_id=subscribed["subscription_id"])
    await writer.do("kv.set", key="k", value=LARGE)
    assert (await quitter.do("kv.get", key="k"))["value"] == LARGE
    assert quitter.line.session.promised == 0
    assert not place.translations._under_way


async def test_a_value_that_an_earlier_version_stored_too_deep_is_an_error_to_its_reader(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = service()
    writer, reader = Speaker(place, OTHER[format]), Speaker(place, format)
    await writer.do("kv.set", key="k", value=LARGE)
    subscribed = await reader.do("pubsub.subscribe", topics=["t"])
    monkeypatch.setattr(translate, "MAX_DEPTH", 1)
    reader.send("kv.get", key="k")
    ((kind, error),) = await reader.take()
    assert (kind, error["code"]) == (Kind.ERROR, "WRONG_TYPE")
    for message in (LARGE, 1):
        await writer.do("pubsub.publish", topic="t", message=message)
    ((kind, error),) = await reader.take()
    assert (kind, error["code"]) == (Kind.ENDED, "WRONG_TYPE"), "a subscription whose item can't be delivered ends"
    assert subscribed["subscription_id"] not in reader.line.session.subscriptions
    assert (await reader.do("kv.exists", key="k"))["exists"] is True
    assert reader.line.session.promised == 0


async def test_large_watched_figures_come_to_readers_of_either_format(format: str) -> None:
    place = service()
    reader = Speaker(place, format)
    for number in range(400):
        await reader.do("queue.publish", queue=f"{number}-{'q' * 200}", message=1)
    await reader.do("admin.watch")
    ((kind, figures),) = await reader.take()
    assert (kind, len(figures["message"]["queues"])) == (Kind.MESSAGE, 400)
    reader.line.abort()


# ------------------------------------------------------------------------------------------ what it costs


async def begun(place: Service, format: str) -> Speaker:
    """A reader whose answer is being translated."""
    writer, reader = Speaker(place, OTHER[format]), Speaker(place, format)
    await writer.do("kv.set", key="k", value=LARGE)
    reader.send("kv.get", key="k")
    assert place.translations._under_way
    return reader


async def test_what_nobody_waits_for_any_more_is_not_translated_to_its_end(format: str, translated: Translated) -> None:
    place = service()
    reader = await begun(place, format)
    reader.line.session.connection_lost(None)
    before = translated.steps
    await until(lambda: not place.translations._under_way)
    assert translated.steps == before
    assert not place.transit.bodies


async def test_what_is_made_counts_as_in_flight_and_may_be_ended_for_others(format: str) -> None:
    place = service()
    reader = await begun(place, format)
    [one] = place.translations._under_way.values()
    held = dict(place.transit._held())
    assert held[one] + held[reader.line.session] == one.weight, "it counts from its beginning"
    one.made = 3 * one.weight
    place.translations._count(one, 0)
    held = dict(place.transit._held())
    assert held[one] + held[reader.line.session] == one.made
    place.transit.limit = one.made - 1
    place.transit.look()
    ((kind, error),) = await reader.take()
    assert (kind, error["code"]) == (Kind.ERROR, "SERVICE_UNAVAILABLE")
    assert not place.transit.bodies
    assert reader.line.session.promised == 0


class Waiting:
    """Waits for a translation."""

    outcome: Any = None

    def wanted(self) -> bool:
        return True

    def translated(self, outcome: Any) -> None:
        self.outcome = outcome


@pytest.mark.parametrize("turns", [1, 5])
async def test_what_is_made_counts_as_in_flight_as_soon_as_it_is_much_or_a_turn_is_over(
    monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    place, waiting = service(), Waiting()
    counted: list[int] = []
    now = 0.0
    size = translations.COUNTED + 1 if turns == 1 else 10
    monkeypatch.setattr(translations, "time", SimpleNamespace(perf_counter=lambda: now))

    def steps() -> Steps:
        nonlocal now
        for _ in range(5):
            if turns > 1:
                now += 1
            yield size
            counted.append(sum(place.transit.bodies.values()))
        return "done"

    place.translations.begin("a key", None, [], "json", waiting, 0, steps=steps())
    await until(lambda: not place.translations._under_way)
    assert counted == [size, 2 * size, 3 * size, 4 * size, 5 * size]
    assert not place.transit.bodies


async def test_an_answer_that_becomes_too_large_is_given_up(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = service()
    reader = await begun(place, format)
    monkeypatch.setattr(translations, "MAX_ANSWER", 1000)
    ((kind, error),) = await reader.take()
    assert (kind, error["code"]) == (Kind.ERROR, "PAYLOAD_TOO_LARGE")
    monkeypatch.setattr(native_output, "MAX_ANSWER", 1000)
    reader.send("kv.get", key="k")
    assert not place.translations._under_way, "one that is too large as it is stored is not begun"
    ((kind, error),) = await reader.take()
    assert (kind, error["code"]) == (Kind.ERROR, "PAYLOAD_TOO_LARGE")


async def test_a_long_list_of_values_is_encoded_in_turns_with_others_between(format: str) -> None:
    place = service()
    writer, reader = Speaker(place, format), Speaker(place, format)
    await writer.do("kv.set", key="k", value="x" * 3000)
    reader.send("kv.mget", keys=["k"] * 3000)
    assert reader.line.frames() == []
    assert await writer.do("kv.exists", key="k")
    ((kind, answer),) = await reader.take()
    assert kind == Kind.ANSWER
    assert [one["value"] for one in answer["values"]] == ["x" * 3000] * 3000
    assert not place.transit.bodies
    assert (reader.line.session.promised, reader.line.session.elsewhere) == (0, 0)


async def test_of_one_websocket_one_answer_is_translated_at_a_time(translated: Translated) -> None:
    place = service()
    writer = Speaker(place, "msgpack")
    await writer.do("kv.set", key="k", value=LARGE)
    owner, told = object(), []

    class Reader:
        def __init__(self, name: str) -> None:
            self.name = name

        def wanted(self) -> bool:
            return True

        def translated(self, outcome: Any) -> None:
            told.append((self.name, list(translated.formats)))

    stored = place.host.engine.execute(KvGet("k"), 0.0, writer.line.session, 1)  # type: ignore[attr-defined]
    for name in ("first", "second"):
        content = GetAnswer(True, stored.value)
        place.translations.begin("key", owner, content, "json", Reader(name), len(stored.value))
        translated.formats.append(name)
    await until(lambda: len(told) == 2)
    assert told == [("first", ["first", "second", "json"]), ("second", ["first", "second", "json", "json"])]


class Asgi:
    """One request to the application, without a network."""

    def __init__(self, place: Service, body: bytes, **headers: str) -> None:
        given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self.sent: list[Any] = []
        self._messages = [{"type": "http.request", "body": body}]
        self.gone = asyncio.Event()
        scope = {"type": "http", "method": "POST", "path": "/api/v1/command", "query_string": b""}
        scope |= {"headers": [(b"host", b"localhost"), *given], "client": ("127.0.0.1", 1)}
        self.task = asyncio.ensure_future(App(place)(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        if not self._messages:
            await self.gone.wait()
            return {"type": "http.disconnect"}
        return self._messages.pop()

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


async def test_over_http_what_counts_is_the_format_of_the_answer(format: str, translated: Translated) -> None:
    place = service()
    await Speaker(place, OTHER[format]).do("kv.set", key="k", value=LARGE)
    body = ENCODE[OTHER[format]]({"command": "kv.get", "payload": {"key": "k"}})
    asked = Asgi(place, body, content_type=f"application/{OTHER[format]}", accept=f"application/{format}")
    await asyncio.wait_for(asked.task, PATIENCE)
    assert DECODE[format](asked.sent[-1]["body"])["payload"]["value"] == LARGE
    assert translated.formats == [format]


async def test_over_http_a_caller_that_leaves_or_loses_the_key_ends_it(format: str, translated: Translated) -> None:
    place = service()
    await Speaker(place, OTHER[format]).do("kv.set", key="k", value=LARGE)
    body = ENCODE[format]({"command": "kv.get", "payload": {"key": "k"}})
    translated.held = True
    for leaves in (True, False):
        asked = Asgi(place, body, content_type=f"application/{format}")
        await until(lambda: bool(place.waiting))
        if leaves:
            asked.gone.set()
        else:
            for request in list(place.waiting):
                request.take_back(SynapError("UNAUTHORIZED", "gone"))
        await asyncio.wait_for(asked.task, PATIENCE)
        assert [one.get("status") for one in asked.sent if "status" in one] == ([] if leaves else [401])
        await until(lambda: not place.translations._under_way)
        assert not place.transit.bodies


@pytest.mark.parametrize("small", [0, 127, 128, True, "text"])
async def test_a_small_value_beside_a_large_one_is_translated_too(format: str, small: Any) -> None:
    place = service()
    writer, reader = Speaker(place, OTHER[format]), Speaker(place, format)
    await writer.do("kv.mset", pairs=[{"key": "large", "value": LARGE}, {"key": "small", "value": small}])
    answer = await reader.do("kv.mget", keys=["large", "small"])
    assert [found["value"] for found in answer["values"]] == [LARGE, small]


# ------------------------------------------------------------------------------------------ other lanes


@pytest.fixture(scope="module")
def server() -> Any:
    with ThrowawayServer() as running:
        yield running


def test_http_and_websocket_readers_get_large_values_of_the_other_format(server: ThrowawayServer) -> None:
    url = server.url.replace("http", "ws") + "/api/v1/ws"
    text, packed = "application/json", "application/msgpack"
    http = Http(server)
    body = msgspec.msgpack.encode({"command": "kv.set", "payload": {"key": "k", "value": LARGE}})
    assert http.post(body, content_type=packed).status == 200
    asked = {"command": "kv.get", "payload": {"key": "k"}}
    assert http.post(asked, accept=text).payload["value"] == LARGE
    http.post({"command": "kv.set", "payload": {"key": "k", "value": LARGE}})
    reply = http.post(asked, accept=packed)
    assert msgspec.msgpack.decode(reply.body)["payload"]["value"] == LARGE
    http.close()
    with connect(url, open_timeout=PATIENCE, max_size=None) as socket:
        socket.send(msgspec.msgpack.encode(asked))
        assert msgspec.msgpack.decode(socket.recv(PATIENCE, decode=False))["payload"]["value"] == LARGE
        socket.send(msgspec.msgpack.encode({"command": "stream.subscribe", "payload": {"room": "r"}}))
        socket.recv(PATIENCE)
        socket.send(msgspec.json.encode({"command": "pubsub.subscribe", "payload": {"topics": ["t"]}}).decode())
        socket.recv(PATIENCE)
        http = Http(server)
        for value in (LARGE, 1):
            http.do("stream.publish", room="r", event_type="t", data=value)
        for value in (LARGE, 1):
            assert msgspec.msgpack.decode(socket.recv(PATIENCE, decode=False))["data"] == value
        for value in (LARGE, 1):
            message = {"command": "pubsub.publish", "payload": {"topic": "t", "message": value}}
            http.post(msgspec.msgpack.encode(message), content_type=packed)
        for value in (LARGE, 1):
            assert msgspec.json.decode(socket.recv(PATIENCE))["message"] == value
        http.close()


def test_a_stop_lets_translations_under_way_be_answered() -> None:
    count = 500_000
    body = b"\x82\xa3key\xa1k\xa5value\xdd" + count.to_bytes(4, "big") + b"\x90" * count
    with ThrowawayServer(arguments=["--drain-timeout", str(PATIENCE)]) as stopping:
        writer, native = Client(stopping, format="msgpack"), Client(stopping)
        writer.again(frame(Kind.REQUEST, 1, body, COMMANDS["kv.set"].code))
        http, watching = Http(stopping), Http(stopping)
        asked = json.dumps({"command": "kv.get", "payload": {"key": "k"}})
        url = stopping.url.replace("http", "ws") + "/api/v1/ws"
        with connect(url, open_timeout=PATIENCE, max_size=None) as socket:
            socket.send(asked)
            native.send(native.write("kv.get", key="k"), native.write("kv.exists", key="k"))
            answered = threading.Thread(target=lambda: answers.append(http.post(json.loads(asked)).payload["value"]))
            answers: list[Any] = []
            answered.start()
            come = b'synap_requests_total{command="kv.get"} 3.0'
            wait_for(lambda: come in watching.request("GET", "/metrics").body)
            stopping.signal(signal.SIGTERM)
            answers.append(json.loads(socket.recv(PATIENCE))["payload"]["value"])
            answered.join(PATIENCE)
            [got] = [one for one in native.read(3) if one.kind == Kind.ANSWER and len(one.body) > count]
            answers.append(json.loads(got.body)["value"])
        for one in (writer.socket, native.socket, http, watching):
            one.close()
        assert stopping.wait_ended() == 0  # a second signal would end it at once
        assert [len(value) for value in answers] == [count] * 3
