"""Subscriptions as iterators, through lost connections, and with readers that are too slow."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from contextlib import suppress
from typing import Any, List

import pytest

from synap import AsyncSynapClient, RoomNotFoundError, StreamEvent, SynapClient, SynapError
from tests.client.conftest import Make
from tests.helpers.colour import in_thread
from tests.helpers.frames import Frame
from tests.helpers.listener import end
from tests.helpers.patience import PATIENCE, impatient, in_time
from tests.helpers.scripted import Peer, ScriptedService, event, event_body, message, name_of, payload_of, subscribe


async def collect(subscription: Any, into: List[Any]) -> None:
    """Take items until there are no more."""
    async for item in in_time(subscription):
        into.append(item)


async def test_iterating_gives_events_until_it_is_ended(make: Make) -> None:
    client = make("memory://")
    for number in range(5):
        await client.stream.publish("room", "number", number)
    subscription = await client.stream.subscribe("room", from_offset=-3)
    seen = []
    async for item in in_time(subscription):
        seen.append(item.data)
        if len(seen) == 3:
            await subscription.unsubscribe()
    assert seen == [2, 3, 4]
    assert subscription.room == "room"


async def test_iterating_over_topics_gives_topic_and_message(make: Make) -> None:
    client = make("memory://")
    subscription = await client.pubsub.subscribe(["a.*", "b.#"])
    assert subscription.topics == ["a.*", "b.#"]
    await client.pubsub.publish("a.b", 1)
    await client.pubsub.publish("b", 2)
    seen = []
    async for pair in in_time(subscription):
        seen.append(pair)
        if len(seen) == 2:
            break
    assert seen == [("a.b", 1), ("b", 2)]


async def test_closing_the_client_ends_an_iteration(make: Make) -> None:
    client = make("memory://")
    subscription = await client.stream.subscribe("room")

    async def iterate() -> List[Any]:
        seen: List[Any] = []
        await collect(subscription, seen)
        return seen

    iteration = asyncio.ensure_future(iterate())
    await asyncio.sleep(0)
    await client.close()
    assert await iteration == []


async def test_a_subscription_with_a_callback_is_no_iterator() -> None:
    async with AsyncSynapClient(url="memory://") as client:
        subscription = await client.stream.subscribe("room", print)
        with pytest.raises(SynapError, match="has a callback"):
            await collect(subscription, [])


async def test_leaving_its_context_ends_a_subscription() -> None:
    async with AsyncSynapClient(url="memory://") as client:
        async with await client.stream.subscribe("room"):
            assert (await client.stream.stats("room")).subscribers == 1
        assert (await client.stream.stats("room")).subscribers == 0


async def test_a_deleted_room_ends_its_subscriptions_with_an_error(make: Make) -> None:
    client = make("memory://")
    errors: List[Exception] = []
    client.on("error")(errors.append)
    subscription = await client.stream.subscribe("room")
    await client.stream.publish("room", "number", 1)
    await client.stream.delete("room")
    seen: List[Any] = []
    with pytest.raises(SynapError, match="deleted"):
        await collect(subscription, seen)
    assert [item.data for item in seen] == [1]
    assert len(errors) == 1


@pytest.mark.parametrize("end", ["orderly", "reset"])
async def test_a_room_is_taken_up_again_at_the_next_offset(make: Make, end: str) -> None:
    asked: List[Any] = []

    def script(peer: Peer) -> None:
        peer.hello()
        request = subscribe(peer)
        asked.append(payload_of(request).get("from_offset"))
        start = 10 if asked[-1] is None else asked[-1]
        peer.answer(request, {"subscription_id": 5, "room": "room", "next_offset": start})
        for offset in range(start, start + 3 if len(asked) < 4 else 25):
            event(peer, 5, offset)
        if len(asked) >= 4:
            peer.frame()
        elif end == "reset":
            peer.reset()

    with ScriptedService(script) as service:
        client = make(service.url, transport="native")
        seen = []
        async for item in in_time(await client.stream.subscribe("room")):
            seen.append(item.offset)
            if item.offset == 24:
                break
        await client.close()
    assert seen == list(range(10, 25))
    if end == "orderly":
        assert asked == [None, 13, 16, 19]


async def test_what_came_before_the_connection_was_lost_is_not_given_twice(make: Make) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        request = subscribe(peer)
        peer.answer(request, {"subscription_id": 1, "room": "room", "next_offset": 0})
        for offset in range(4 if peer.number else 2):  # a service that says again what it said
            event(peer, 1, offset)
        if len(service.peers) > 2:
            peer.frame()

    with ScriptedService(script) as service:
        client = make(service.url, transport="native")
        seen = []
        async for item in in_time(await client.stream.subscribe("room", replay=True)):
            seen.append(item.offset)
            if item.offset == 3:
                break
        await client.close()
    assert seen == [0, 1, 2, 3]


async def test_a_room_that_began_anew_is_read_from_its_beginning(make: Make) -> None:
    """The service kept nothing and was restarted: the old offsets mean nothing there."""
    asked: List[Any] = []

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            request = peer.request()
            if name_of(request) == "stream.history":
                peer.health = {"status": "ok", "durable": False}
                newest = {**event_body(9), "event_id": "new-9"}
                peer.answer(request, {"events": [newest], "oldest_offset": 0, "newest_offset": 9})
            elif name_of(request) == "stream.subscribe":
                asked.append(payload_of(request).get("from_offset"))
                peer.answer(request, {"subscription_id": 1, "room": "room", "next_offset": asked[-1] or 0})
                if len(asked) == 1:
                    for offset in (7, 8):
                        event(peer, 1, offset)
                    return
                for offset in [9] if asked[-1] else range(3):  # what the old offsets would be in the new log
                    event(peer, 1, offset, "new")
            else:
                peer.answer(request, {"exists": False})

    with ScriptedService(script) as service:
        client = make(service.url, transport="native")
        seen: List[Any] = []
        async for item in in_time(await client.stream.subscribe("room", replay=True)):
            seen.append(item.event_id)
            if len(seen) == 5:
                break
        await client.close()
    assert seen == ["e-7", "e-8", "new-0", "new-1", "new-2"]
    assert asked == [None, 9, 0]


@pytest.mark.parametrize("newest", [-1, 1])
async def test_who_asked_for_what_is_still_to_come_waits_for_it_on_a_new_connection_too(
    make: Make, newest: int
) -> None:
    again = threading.Event()
    subscribed: List[Peer] = []
    asked: List[Any] = []

    def script(peer: Peer) -> None:
        peer.health = {"status": "ok", "durable": True}
        peer.hello()
        while True:
            request = peer.request()
            if name_of(request) == "stream.history":
                events = [event_body(newest)] if newest >= 0 else []
                peer.answer(request, {"events": events, "oldest_offset": 0, "newest_offset": newest})
            elif name_of(request) == "stream.subscribe":
                asked.append(payload_of(request)["from_offset"])
                peer.answer(request, {"subscription_id": 1, "room": "room", "next_offset": asked[-1]})
                if len(asked) == 1:
                    return
                subscribed.append(peer)
                again.set()
            else:
                peer.answer(request, {"exists": False})
                if payload_of(request).get("key") == "last":
                    event(subscribed[0], 1, 5)

    with ScriptedService(script) as service:
        client = make(service.url, transport="native")
        subscription = await client.stream.subscribe("room", from_offset=5)
        assert await in_thread(again.wait, PATIENCE)
        for key in ("time", "to ask", "the last"):  # for what the room has, where it is asked
            await client.kv.exists(key)
        await client.kv.exists("last")
        async for item in in_time(subscription):
            assert item.offset == 5
            break
        await client.close()
    assert asked == [5, 5]


@pytest.mark.parametrize("durable", [True, False])
async def test_a_room_that_is_gone_was_deleted_where_data_is_kept(make: Make, durable: bool) -> None:
    asked: List[Any] = []

    def script(peer: Peer) -> None:
        peer.health = {"status": "ok", "durable": durable}
        peer.hello()
        while True:
            request = peer.request()
            if name_of(request) == "stream.history":
                peer.answer(request, {"events": [], "oldest_offset": 0, "newest_offset": -1})
            elif name_of(request) == "stream.subscribe":
                asked.append(payload_of(request).get("from_offset"))
                peer.answer(request, {"subscription_id": 1, "room": "room", "next_offset": asked[-1] or 0})
                if len(asked) != 2:
                    event(peer, 1, 0, f"log{len(asked)}")
                if len(asked) == 1:
                    return
            else:
                peer.answer(request, {"exists": False})

    with ScriptedService(script) as service:
        client = make(service.url, transport="native")
        subscription = await client.stream.subscribe("room", replay=True)
        seen: List[Any] = []
        if durable:
            with pytest.raises(RoomNotFoundError):
                await collect(subscription, seen)
        else:
            async for item in in_time(subscription):
                seen.append(item)
                if len(seen) == 2:
                    break
        await client.close()
    assert [item.event_id for item in seen] == (["log1-0"] if durable else ["log1-0", "log3-0"])
    assert asked == ([None, 1] if durable else [None, 1, 0])


async def test_topics_are_subscribed_again_and_handlers_told(make: Make) -> None:
    lost = threading.Event()

    def script(peer: Peer) -> None:
        peer.hello()
        request = subscribe(peer)
        peer.answer(request, {"subscription_id": 1, "topics": ["a.*"]})
        message(peer, 1, len(heard))
        if not lost.is_set():
            lost.set()
            return
        peer.frame()

    heard: List[str] = []
    with ScriptedService(script) as service:
        client = make(service.url, transport="native")
        client.on("disconnected")(lambda reason: heard.append("disconnected"))
        subscription = await client.pubsub.subscribe(["a.*"])
        seen = []
        async for _, number in in_time(subscription):
            seen.append(number)
            if len(seen) == 2:
                break
        assert "disconnected" in heard
        await client.close()


async def test_a_subscription_comes_back_when_the_service_does(make: Make) -> None:
    """However often that fails before: `retries` are for requests."""

    def script(peer: Peer) -> None:
        if 1 < peer.number < 8:
            peer.reset()
            return
        peer.hello()
        request = subscribe(peer)
        peer.answer(request, {"subscription_id": 1, "room": "room", "next_offset": peer.number})
        event(peer, 1, peer.number)
        if peer.number >= 8:
            peer.frame()

    with ScriptedService(script) as service:
        client = make(service.url, transport="native", retries=1, retry_max_delay=0.02)
        seen = []
        async for item in in_time(await client.stream.subscribe("room")):
            seen.append(item.offset)
            if item.offset >= 8:
                break
        await client.close()
    assert seen[-1] >= 8


async def test_a_subscription_comes_back_once_a_call_has_a_connection(make: Make) -> None:
    """It paused for up to half a minute after an outage whose end its client knew of."""
    subscribed: List[int] = []

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            request = subscribe(peer)
            subscribed.append(peer.number)
            peer.answer(request, {"subscription_id": 1, "room": "room", "next_offset": 0})
            if len(subscribed) == 1:
                for each in service.sockets():  # that of the sync client's calls too
                    end(each)
                return
            event(peer, 1, 0)

    with ScriptedService(script) as service:
        client = make(service.url, retry_delay=3600.0, retry_max_delay=3600.0)
        subscription = await client.stream.subscribe("room")
        while not client._calls.pauses._homes:
            await asyncio.sleep(0.001)
        with suppress(SynapError):  # the sync client finds only by it that its calls' connection has ended
            await client.kv.get("key")
        await client.kv.get("key")
        async for item in in_time(subscription):
            assert item.offset == 0
            break
        await subscription.unsubscribe()


@pytest.mark.parametrize("by", ["unsubscribe", "close"])
async def test_a_subscription_that_pauses_can_be_ended(make: Make, by: str) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        request = subscribe(peer)
        peer.answer(request, {"subscription_id": 1, "room": "room", "next_offset": 0})
        peer.reset()

    with ScriptedService(script) as service:
        client = make(service.url, retry_delay=3600.0, retry_max_delay=3600.0)
        subscription = await client.stream.subscribe("room")
        while not client._calls.pauses._homes:
            await asyncio.sleep(0.001)
        await (subscription.unsubscribe() if by == "unsubscribe" else client.close())
        while client._calls.pauses._homes:
            await asyncio.sleep(0.001)


async def test_a_refusal_that_waiting_can_not_cure_ends_a_subscription(make: Make) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        request = subscribe(peer)
        if len(asked) == 0:
            asked.append(request)
            peer.answer(request, {"subscription_id": 1, "room": "room", "next_offset": 0})
        else:
            peer.refuse(request, "FORBIDDEN")
            peer.frame()

    asked: List[Frame] = []
    with ScriptedService(script) as service:
        client = make(service.url, transport="native")
        subscription = await client.stream.subscribe("room")
        with pytest.raises(SynapError) as caught:
            await collect(subscription, [])
    assert caught.value.code == "FORBIDDEN"


async def test_a_slow_reader_of_a_room_loses_nothing_and_holds_little(make: Make) -> None:
    client = make("memory://", buffer=10)
    subscription = await client.stream.subscribe("room")
    for number in range(500):
        await client.stream.publish("room", "number", number)
    held = 0
    seen = []
    async for item in in_time(subscription):
        inner = getattr(subscription, "_inner", subscription)
        held = max(held, len(inner._mailbox))
        seen.append(item.offset)
        if len(seen) == 500:
            break
    assert seen == list(range(500))
    assert held <= 10


class Interrupt(BaseException):
    """What a signal handler raises."""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signals to threads")
async def test_a_slow_reader_that_gives_up_while_it_catches_up_can_go_on(colour: str) -> None:
    """Given up by a timeout, or in the sync client by the exception of a signal handler."""

    def stop(number: int, frame: Any) -> None:
        raise Interrupt

    client: Any = AsyncSynapClient("memory://", buffer=3) if colour == "async" else SynapClient("memory://", buffer=3)
    began, goes_on = threading.Event(), threading.Event()
    subscription: Any = None
    seen: List[int] = []

    async def held(*about: Any) -> Any:
        lane.subscribe = real
        began.set()
        await in_thread(goes_on.wait, PATIENCE)
        return await real(*about)

    def held_thread(*about: Any) -> Any:
        lane.subscribe = real
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        goes_on.wait(PATIENCE)
        return real(*about)

    async def finish(outcome: Any) -> Any:
        return await asyncio.wait_for(outcome, PATIENCE) if inspect.isawaitable(outcome) else outcome

    async def take() -> None:
        seen.append((await finish(subscription.__anext__() if colour == "async" else next(subscription))).offset)

    def pausing() -> bool:
        workers = [thread.name for thread in threading.enumerate()] + [task.get_name() for task in asyncio.all_tasks()]
        return any(name.endswith("pausing") for name in workers)

    subscription = await finish(client.stream.subscribe("room"))
    for number in range(8):
        await finish(client.stream.publish("room", "number", number))
    while (await finish(client.stream.stats("room"))).subscribers or pausing():  # its mailbox is full
        await asyncio.sleep(0.01)
    for _ in range(3):
        await take()
    lane = client._calls.lane
    real, lane.subscribe = lane.subscribe, held if colour == "async" else held_thread
    former = signal.signal(signal.SIGUSR1, stop)
    try:
        if colour == "async":
            waiting = asyncio.ensure_future(subscription.__anext__())
            await in_thread(began.wait, PATIENCE)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        else:
            with pytest.raises(Interrupt):
                next(subscription)
    finally:
        signal.signal(signal.SIGUSR1, former)
    goes_on.set()
    for _ in range(5):
        await take()
    assert seen == list(range(8))
    await finish(client.close())


async def test_a_slow_callback_of_a_room_gets_everything_in_order(make: Make) -> None:
    client = make("memory://", buffer=5)
    seen: List[int] = []
    done = threading.Event()

    async def on_event(item: StreamEvent) -> None:
        await asyncio.sleep(0)
        seen.append(item.offset)
        if item.offset == 199:
            done.set()

    await client.stream.subscribe("room", on_event)
    for number in range(200):
        await client.stream.publish("room", "number", number)
    await in_thread(done.wait, PATIENCE)
    assert seen == list(range(200))


async def test_a_slow_reader_reads_the_log_of_a_room_that_began_anew_while_it_was_behind(make: Make) -> None:
    client = make("memory://", buffer=5)
    subscription = await client.stream.subscribe("room")
    for number in range(20):
        await client.stream.publish("room", "number", number)
    while (await client.stream.stats("room")).subscribers:  # it ends at the service, as its mailbox is full
        await asyncio.sleep(0.01)
    await client.stream.delete("room")
    for number in range(3):
        await client.stream.publish("room", "number", f"new {number}")
    seen: List[Any] = []
    async for item in in_time(subscription):
        seen.append(item.data)
        if len(seen) == 8:
            break
    assert seen == [0, 1, 2, 3, 4, "new 0", "new 1", "new 2"]


async def test_events_that_come_while_a_durable_subscription_ends_do_not_begin_it_again(make: Make) -> None:
    """Its mailbox takes no more by then, which isn't the same as one that is full."""
    asked: List[str] = []

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            request = peer.request()
            asked.append(name_of(request))
            if name_of(request) == "stream.commit":  # never answered
                event(peer, 1, 1)
            elif name_of(request) == "stream.subscribe":
                peer.answer(request, {"subscription_id": 1, "room": "room", "next_offset": 0})
                event(peer, 1, 0)
            else:
                peer.answer(request, {"unsubscribed": True})

    with ScriptedService(script) as service:
        client = make(service.url, transport="native")
        subscription = await client.stream.subscribe("room", name="reader")
        async for _ in in_time(subscription):
            break
        with impatient(client, 1.0):
            await subscription.unsubscribe()
        await client.close()
    assert asked == ["stream.subscribe", "stream.commit", "stream.unsubscribe"]


async def test_a_slow_reader_of_topics_is_told_and_dropped(make: Make) -> None:
    client = make("memory://", buffer=10)
    errors: List[Any] = []
    client.on("error")(errors.append)
    subscription = await client.pubsub.subscribe(["a.*"])
    other = await client.pubsub.subscribe(["a.*"], lambda topic, message: None)
    for number in range(30):
        await client.pubsub.publish("a.b", number)
    while "ended" not in repr(subscription):  # in the sync client another thread brings the messages
        await asyncio.sleep(0.01)
    seen: List[Any] = []
    with pytest.raises(SynapError) as caught:
        await collect(subscription, seen)
    assert caught.value.code == "SLOW_CONSUMER"
    assert seen == [("a.b", number) for number in range(10)]
    assert [error.code for error in errors if error is not caught.value] in ([], ["SLOW_CONSUMER"])
    assert caught.value in errors
    await other.unsubscribe()


def test_the_sync_client_iterates_in_a_plain_loop() -> None:
    with SynapClient(url="memory://") as client:
        with client.stream.subscribe("room", replay=True) as subscription:
            client.stream.publish("room", "number", 1)
            for item in subscription:
                assert item.data == 1
                break


async def test_a_durable_subscription_of_a_closed_client_ends_without_an_error(make: Make) -> None:
    client = make("memory://")
    errors: List[Any] = []
    client.on("error")(errors.append)
    await client.stream.publish("room", "number", 1)
    subscription = await client.stream.subscribe("room", name="reader", replay=True)
    async for _ in in_time(subscription):
        break
    await client.close()
    await subscription.unsubscribe()
    assert errors == []


async def test_a_client_that_is_closed_just_when_the_answer_came_gives_no_subscription(make: Make) -> None:
    client = make("memory://")
    await client.connect()
    inner: Any = getattr(client, "_inner", client)
    real = inner._calls.lane.subscribe

    async def closing(*about: Any) -> Any:
        outcome = await real(*about)
        await inner.close()
        return outcome

    def closing_thread(*about: Any) -> Any:
        outcome = real(*about)
        inner.close()
        return outcome

    inner._calls.lane.subscribe = closing if inner is client else closing_thread
    with pytest.raises(SynapError, match="closed"):
        await client.stream.subscribe("room")
