"""Subscriptions of the HTTP lane."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Callable, Dict

import pytest
from websockets.server import ServerProtocol

from synap.commands import (
    KV_INCR,
    PUBSUB_PUBLISH,
    PUBSUB_STATS,
    PUBSUB_SUBSCRIBE,
    STREAM_DELETE,
    STREAM_PUBLISH,
    STREAM_STATS,
    STREAM_SUBSCRIBE,
    KvIncr,
    PubSubPublish,
    PubSubStats,
    PubSubSubscribe,
    StreamDelete,
    StreamPublish,
    StreamStats,
    StreamSubscribe,
)
from synap.errors import AuthenticationError, ConnectionError, SynapError
from synap.lanes._async.websocket import AsyncWebSocket
from synap.lanes._sync.websocket import WebSocket
from synap.testing.server import ThrowawayServer
from tests.fault_proxy import Fault, FaultProxy
from tests.lanes.canned import CannedPeer, http_answer
from tests.lanes.lanes import DrivenLane, Heard, http_lane, made

Names = Callable[[], str]


def publish(lane: DrivenLane, room: str, data: Any) -> None:
    lane.call(STREAM_PUBLISH, made(StreamPublish, room, "type", data))


@pytest.mark.parametrize("options", [{}, {"format": "msgpack"}], ids=str)
def test_history_then_what_comes_in_order(
    service: ThrowawayServer, colour: str, name: Names, options: Dict[str, Any]
) -> None:
    room, heard = name(), Heard()
    with http_lane(service.url, colour, **options) as lane:
        for number in range(50):
            publish(lane, room, {"n": number})
        handle, answer = lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(room, from_offset=10), heard)
        assert answer.next_offset == 10
        for number in range(50, 100):
            publish(lane, room, {"n": number})
        heard.wait(items=90)
        assert [event.offset for event in heard.items] == list(range(10, 100))
        assert [event.data["n"] for event in heard.items] == list(range(10, 100))
        assert heard.items[0].room == room
        lane.unsubscribe(handle)
        assert lane.call(STREAM_STATS, StreamStats(room)).subscribers == 0
        assert (heard.ends, heard.losses) == ([], [])


def test_a_topics_messages_reach_those_who_asked(service: ThrowawayServer, colour: str, name: Names) -> None:
    topic, one, all_ = name(), Heard(), Heard()
    with http_lane(service.url, colour) as lane:
        lane.subscribe(PUBSUB_SUBSCRIBE, PubSubSubscribe([f"{topic}.one"]), one)
        handle, _ = lane.subscribe(PUBSUB_SUBSCRIBE, PubSubSubscribe([f"{topic}.#"]), all_)
        for word in ("one", "two"):
            lane.call(PUBSUB_PUBLISH, made(PubSubPublish, f"{topic}.{word}", word))
        all_.wait(items=2)
        one.wait(items=1)
        assert [(item.topic, item.message) for item in all_.items] == [(f"{topic}.one", "one"), (f"{topic}.two", "two")]
        assert [item.message for item in one.items] == ["one"]
        lane.unsubscribe(handle)
        lane.unsubscribe(handle)
        lane.call(PUBSUB_PUBLISH, made(PubSubPublish, f"{topic}.one", "more"))
        one.wait(items=2)
        assert len(all_.items) == 2


def test_the_service_says_when_it_ends_a_subscription(service: ThrowawayServer, colour: str, name: Names) -> None:
    room, heard = name(), Heard()
    with http_lane(service.url, colour) as lane:
        lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(room), heard)
        lane.call(STREAM_DELETE, StreamDelete(room))
        heard.wait(ends=1)
        assert heard.losses == []


def test_a_subscription_that_is_refused_says_why(service: ThrowawayServer, colour: str) -> None:
    with http_lane(service.url, colour) as lane:
        with pytest.raises(SynapError) as caught:
            lane.subscribe(PUBSUB_SUBSCRIBE, PubSubSubscribe(["a..b"]), Heard())
        assert caught.value.code == "INVALID_PAYLOAD"


@pytest.mark.parametrize("reset", [False, True])
def test_listeners_learn_that_the_connection_is_lost_and_the_next_subscription_stands(
    service: ThrowawayServer, colour: str, name: Names, reset: bool
) -> None:
    room, first, second = name(), Heard(), Heard()
    with FaultProxy("127.0.0.1", service.port) as proxy, http_lane(proxy.url, colour) as lane:
        lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(room), first)
        publish(lane, room, 0)
        first.wait(items=1)
        proxy.drop_all(reset=reset)
        first.wait(losses=1)
        assert isinstance(first.losses[0], ConnectionError)
        lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(room, from_offset=1), second)
        publish(lane, room, 1)
        second.wait(items=1)
        assert [event.data for event in second.items] == [1]
        assert (len(first.items), len(first.losses)) == (1, 1)


@pytest.mark.parametrize("cut", [0, 1, 5, 40, 100])
def test_a_connection_that_breaks_off_anywhere_is_a_lost_one(
    service: ThrowawayServer, colour: str, name: Names, cut: int
) -> None:
    room, heard = name(), Heard()
    with FaultProxy("127.0.0.1", service.port) as proxy, http_lane(proxy.url, colour, timeout=5) as lane:
        lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(room), heard)
        proxy.fail(down=Fault(cut=cut))
        with http_lane(service.url, colour) as other:
            publish(other, room, "x" * 200)
        heard.wait(losses=1)
        assert heard.items == []
        with pytest.raises(ConnectionError):
            lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(room), Heard())
        proxy.heal()
        lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(room, replay=True), heard)
        heard.wait(items=1)


def test_byte_by_byte_is_as_good(service: ThrowawayServer, colour: str, name: Names) -> None:
    room, heard = name(), Heard()
    with FaultProxy("127.0.0.1", service.port) as proxy, http_lane(proxy.url, colour) as lane:
        proxy.fail(up=Fault(drip=True), down=Fault(drip=True))
        lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(room), heard)
        publish(lane, room, "ü" * 50)
        heard.wait(items=1)
        assert heard.items[0].data == "ü" * 50


def test_a_service_that_is_silent_is_asked_and_then_given_up(
    service: ThrowawayServer, colour: str, name: Names
) -> None:
    room, heard = name(), Heard()
    with FaultProxy("127.0.0.1", service.port) as proxy, http_lane(proxy.url, colour) as lane:
        kind = AsyncWebSocket if colour == "async" else WebSocket
        socket: Any = kind(lane.lane.config, lane.lane.target, lane.lane.codec, None, silence=0.1)
        lane.do(lambda: socket.connect(5.0))
        lane.do(lambda: socket.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(room), heard, 5.0))
        with http_lane(service.url, colour) as other:
            for number in range(3):  # the answers to pings keep it alive
                assert not heard.losses
                threading.Event().wait(0.15)
                publish(other, room, number)
        heard.wait(items=3)
        proxy.fail(down=Fault(swallow=True))
        heard.wait(losses=1)
        assert "not a word" in heard.losses[0].message
        lane.do(socket.close)


def test_a_subscription_in_a_blackhole_times_out(service: ThrowawayServer, colour: str, name: Names) -> None:
    with FaultProxy("127.0.0.1", service.port) as proxy, http_lane(proxy.url, colour, timeout=0.3) as lane:
        lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(name()), Heard())
        proxy.fail(up=Fault(swallow=True))
        with pytest.raises(TimeoutError):
            lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(name()), Heard())


async def test_a_cancelled_subscription_leaves_none_behind(service: ThrowawayServer, name: Names) -> None:
    lane = http_lane(service.url, "async").lane
    room = name()

    async def call(command: Any, payload: Any) -> Any:
        return await lane.call(command, payload, ticket=lane.ticket(), timeout=10.0)

    await lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(name()), Heard())
    for turn in range(12):
        subscribing = asyncio.ensure_future(lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(room), Heard()))
        for _ in range(turn):
            await asyncio.sleep(0)
        subscribing.cancel()
        try:
            handle, _ = await subscribing
        except asyncio.CancelledError:
            continue
        await lane.unsubscribe(handle)
    heard = Heard()
    handle, _ = await lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(room), heard)
    while (await call(STREAM_STATS, StreamStats(room))).subscribers != 1:
        pass
    await lane.unsubscribe(handle)
    await lane.close()


def test_a_wrong_key_is_refused(colour: str) -> None:
    with ThrowawayServer(arguments=["--api-key", "right"]) as server:
        with http_lane(server.url, colour, api_key="wrong") as lane, pytest.raises(AuthenticationError):
            lane.subscribe(PUBSUB_SUBSCRIBE, PubSubSubscribe(["a"]), Heard())
        with http_lane(server.url, colour, api_key="right") as lane:
            lane.subscribe(PUBSUB_SUBSCRIBE, PubSubSubscribe(["a"]), Heard())
            assert lane.call(PUBSUB_STATS, PubSubStats()).subscriptions == 1


def test_closing_ends_subscriptions_at_the_service_and_tells_no_listener(
    service: ThrowawayServer, colour: str, name: Names
) -> None:
    room, heard = name(), Heard()
    with http_lane(service.url, colour) as lane, http_lane(service.url, colour) as other:
        lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(room), heard)
        lane.close()
        while other.call(STREAM_STATS, StreamStats(room)).subscribers:
            pass
        assert heard.losses == []
        lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(room), heard)
        assert other.call(STREAM_STATS, StreamStats(room)).subscribers == 1


def test_what_is_no_websocket_is_a_failed_connection(colour: str) -> None:
    answers = {
        "text/html": http_answer(b"<html>", "404 Not Found", "text/html"),
        "plain": b"hello\r\n\r\n",
        "nothing": b"",
        "proxy": http_answer(b'{"error": "upgrade"}', "426 Upgrade Required"),
    }
    for answer in answers.values():
        with CannedPeer(answer, ends=True) as peer, http_lane(peer.url, colour) as lane:
            with pytest.raises(ConnectionError) as caught:
                lane.subscribe(PUBSUB_SUBSCRIBE, PubSubSubscribe(["a"]), Heard())
            assert caught.value.code == "CONNECTION_FAILED"


NONSENSE = {
    "an unknown push": b"\x81\x02[]",
    "not JSON": b"\x81\x05{nope",
    "not MessagePack": b"\x82\x01\xc1",
    "a reserved bit": b"\xf1\x02{}",
    "an unknown opcode": b"\x83\x00",
    "text that is no UTF-8": b"\x81\x02\xff\xfe",
    "beyond all measure": b"\x82\x7f\x00\x00\x00\x7f\x00\x00\x00\x00",
    "a masked frame": b"\x81\x82\x00\x00\x00\x00{}",
    "goodbye": b"\x88\x02\x03\xe9",
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=list(NONSENSE))
def test_nonsense_on_a_websocket_is_a_lost_connection(nonsense: bytes, colour: str) -> None:
    def reply(request: bytes) -> bytes:
        protocol = ServerProtocol()
        protocol.receive_data(request)
        accepted: Any = protocol.events_received()[0]
        protocol.send_response(protocol.accept(accepted))
        return b"".join(protocol.data_to_send()) + nonsense

    with CannedPeer(reply) as peer, http_lane(peer.url, colour) as lane:
        with pytest.raises(ConnectionError):
            lane.subscribe(PUBSUB_SUBSCRIBE, PubSubSubscribe(["a"]), Heard())


def test_threads_subscribe_and_call_at_once(service: ThrowawayServer, name: Names) -> None:
    room = name()
    heard = [Heard() for _ in range(8)]
    with http_lane(service.url, "sync") as lane:

        def work(listener: Heard) -> None:
            lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe(room, from_offset=0), listener)
            for _ in range(10):
                publish(lane, room, lane.call(KV_INCR, KvIncr(room)).value)

        threads = [threading.Thread(target=work, args=(listener,)) for listener in heard]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        for listener in heard:
            listener.wait(items=80)
            assert sorted(event.data for event in listener.items) == list(range(1, 81))
            assert [event.offset for event in listener.items] == list(range(80))
