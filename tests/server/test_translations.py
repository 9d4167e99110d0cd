"""Large values for readers of the other format: translated in turns, in order, once for all subscribers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from websockets.sync.client import connect

from synap.commands import COMMANDS
from synap.server import translations
from synap.server.service import Service
from synap.testing.server import ThrowawayServer
from synap.wire import translate
from synap.wire.frames import Frame, Kind, frame
from tests.helpers.inside import Line, line, service
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Http

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


class Translated:
    """Notes what is translated."""

    def __init__(self) -> None:
        self.formats: list[str] = []
        self.steps = 0

    def content(self, content: Any, format: str) -> Any:
        self.formats.append(format)
        inner = translate.translate_content(content, format)
        while True:
            try:
                next(inner)
            except StopIteration as done:
                return done.value
            self.steps += 1
            yield


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
