"""Requests that fail on their way: what is sent again, how it is marked, and what the error says."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Callable, Dict, List, Set, Tuple

import pytest

from synap import AsyncSynapClient, ConnectionError, RateLimitError, SynapError, TimeoutError
from synap.wire.conversation import CONFIRM_EVERY
from synap.wire.frames import GZIP, HEADER, RETRY, Kind, frame
from tests.client.conftest import Make
from tests.helpers.at_once import AT_ONCE
from tests.helpers.frames import Frame
from tests.helpers.patience import PATIENCE, impatient
from tests.helpers.scripted import Gone, Peer, ScriptedService, name_of, payload_of


class Seen:
    """The requests of a script's connections: session, number, whether marked as sent before."""

    def __init__(self) -> None:
        self.requests: List[Tuple[str, int, bool]] = []


def is_lost(peer: Peer, request: Frame) -> None:
    peer.reset()
    raise Gone


def can_not_be_read(peer: Peer, request: Frame) -> None:
    peer.answer(request, {"value": "many"})


def is_that_the_disk_refused(peer: Peer, request: Frame) -> None:
    """What a disk refused may be found on it after a restart, so only the service knows whether it was done."""
    peer.refuse(request, "SERVICE_UNAVAILABLE", retry_after=0.01, reason="io_error")


@pytest.mark.parametrize("answer", [is_lost, can_not_be_read, is_that_the_disk_refused])
async def test_a_write_is_sent_again_as_the_same_request_where_its_answer(
    make: Make, answer: Callable[[Peer, Frame], None]
) -> None:
    seen = Seen()

    def script(peer: Peer) -> None:
        hello = peer.hello()
        while True:
            request = peer.request()
            seen.requests.append((hello.session, request.id, bool(request.flags & RETRY)))
            if len(seen.requests) < 3:
                answer(peer, request)
            else:
                peer.answer(request, {"value": 1})

    with ScriptedService(script) as service:
        assert await make(service.url).kv.incr("n") == 1
    (session, number, _), *later = seen.requests
    assert seen.requests[0][2] is False
    assert later == [(session, number, True)] * 2


async def test_after_the_last_attempt_the_error_says_that_a_write_may_have_happened(make: Make) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        peer.request()

    with ScriptedService(script) as service:
        client = make(service.url, retries=1)
        with pytest.raises(ConnectionError, match="it may have taken effect") as caught:
            await client.kv.incr("n")
        assert (caught.value.code, caught.value.may_have_happened) == ("CONNECTION_LOST", True)
        with pytest.raises(ConnectionError) as caught:
            await client.kv.get("n")
        assert (caught.value.code, caught.value.may_have_happened) == ("CONNECTION_LOST", False)


async def test_a_service_that_can_not_tell_whether_a_write_was_done_says_so(make: Make) -> None:
    asked: List[str] = []

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            request = peer.request()
            asked.append(name_of(request))
            if len(asked) > 3:
                peer.answer(request, {"found": False, "value": None, "ttl": None})
            else:
                peer.refuse(request, "SERVICE_UNAVAILABLE", may_have_happened=True)

    with ScriptedService(script) as service:
        client = make(service.url, retries=0)
        with pytest.raises(SynapError) as write:
            await client.kv.incr("n")
        assert write.value.may_have_happened
        with pytest.raises(SynapError) as read:
            await client.kv.get("n")
        assert not read.value.may_have_happened
        patient = make(service.url, retries=1, retry_delay=0.01)
        assert not (await patient.kv.get("n")).found, "what only reads is asked again"
    assert asked == ["kv.incr", "kv.get", "kv.get", "kv.get"]


async def test_a_doubt_stays_when_later_attempts_do_not_even_connect(make: Make) -> None:
    def script(peer: Peer) -> None:
        if peer.number == 0:
            peer.hello()
            peer.request()
        else:
            peer.reset()

    with ScriptedService(script) as service:
        with pytest.raises(ConnectionError, match="an earlier attempt may have taken effect") as caught:
            await make(service.url, retries=2).kv.set("key", 1)
    assert (caught.value.code, caught.value.may_have_happened) == ("CONNECTION_FAILED", True)


async def test_a_doubt_stays_when_the_time_runs_out_while_connecting_again(make: Make) -> None:
    def script(peer: Peer) -> None:
        if peer.number == 0:
            peer.hello()
            peer.request()
        else:
            peer.head()
            peer.frame()

    with ScriptedService(script) as service:
        client = make(service.url, retries=2)
        await client.connect()
        earlier = pytest.raises(TimeoutError, match="an earlier attempt may have taken effect")
        with impatient(client, 3), earlier as caught:
            await client.kv.set("key", 1)
    assert (caught.value.code, caught.value.may_have_happened) == ("TIMEOUT", True)


async def test_a_service_that_takes_up_no_connection_costs_one_timeout(make: Make) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.frame()

    with ScriptedService(script) as service:
        with pytest.raises(TimeoutError, match=r"no answer within 2 seconds; nothing was sent") as caught:
            await make(service.url, retries=3, timeout=2).kv.set("key", 1)
        assert len(service.peers) == 1
    assert (caught.value.code, caught.value.may_have_happened) == ("TIMEOUT", False)


async def test_a_doubt_is_over_once_the_service_has_answered(make: Make) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        request = peer.request()
        if peer.number > 0:
            peer.refuse(request, "WRONG_TYPE")

    with ScriptedService(script) as service:
        with pytest.raises(SynapError) as caught:
            await make(service.url).kv.incr("key")
    assert (caught.value.code, caught.value.may_have_happened) == ("WRONG_TYPE", False)


async def test_a_topic_message_that_may_have_gone_out_is_not_sent_again(make: Make) -> None:
    requests: List[str] = []

    def script(peer: Peer) -> None:
        peer.hello()
        requests.append(name_of(peer.request()))

    with ScriptedService(script) as service:
        with pytest.raises(ConnectionError) as caught:
            await make(service.url).pubsub.publish("topic", 1)
    assert caught.value.may_have_happened
    assert requests == ["pubsub.publish"]


async def test_a_service_that_is_busy_is_asked_again_when_it_says(make: Make) -> None:
    times: List[float] = []

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            request = peer.request()
            times.append(time.monotonic())
            if len(times) == 1:
                peer.refuse(request, "SERVICE_UNAVAILABLE", retry_after=0.3)
            else:
                peer.answer(request, {"value": 1})

    with ScriptedService(script) as service:
        assert await make(service.url).kv.incr("n") == 1
    assert times[1] - times[0] >= 0.3


async def test_a_limit_that_asks_for_too_much_patience_goes_to_the_caller(make: Make) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            peer.refuse(peer.request(), "RATE_LIMIT_EXCEEDED", retry_after=60)

    with ScriptedService(script) as service:
        with pytest.raises(RateLimitError) as caught:
            await make(service.url, retry_max_delay=1.0).kv.get("key")
    assert caught.value.details["retry_after"] == 60


async def test_a_consume_that_is_sent_again_waits_only_for_the_rest(make: Make) -> None:
    waits: List[float] = []

    def script(peer: Peer) -> None:
        peer.hello()
        request = peer.request()
        waits.append(payload_of(request)["timeout"])
        if peer.number == 0:
            time.sleep(0.25)
        else:
            peer.answer(request, None)

    with ScriptedService(script) as service:
        assert await make(service.url).queue.consume("queue", timeout=300) is None
    assert waits[0] == 300
    assert 200 < waits[1] <= 299.75


async def test_no_answer_in_time_is_a_timeout_and_is_not_repeated(make: Make) -> None:
    requests: List[str] = []

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            requests.append(name_of(peer.request()))

    with ScriptedService(script) as service:
        client = make(service.url)
        await client.connect()
        with impatient(client, 2):
            with pytest.raises(
                TimeoutError, match=r"kv\.set was not answered within .* seconds; it may have"
            ) as caught:
                await client.kv.set("key", 1)
            assert caught.value.may_have_happened
            with pytest.raises(TimeoutError, match=r"kv\.get was not answered within") as caught:
                await client.kv.get("key")
            assert not caught.value.may_have_happened
    assert requests == ["kv.set", "kv.get"]


async def test_a_late_answer_reaches_no_other_call(make: Make) -> None:
    held: List[Tuple[Peer, Frame]] = []

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            request = peer.request()
            if name_of(request) == "kv.get":
                held.append((peer, request))
                continue
            for former, late in held:
                try:
                    former.answer(late, {"found": True, "value": "late", "ttl": None})
                except OSError:
                    pass  # the client has closed that connection
            peer.answer(
                request,
                {
                    "message_id": "m",
                    "message": "right",
                    "priority": 5,
                    "retry_count": 0,
                    "headers": {},
                    "lease": 1,
                    "deadline": 1.0,
                },
            )

    with ScriptedService(script) as service:
        client = make(service.url)
        await client.connect()
        with impatient(client, 0.5), pytest.raises(TimeoutError):
            await client.kv.get("a")
        message = await client.queue.consume("b", timeout=PATIENCE)
        assert message is not None
        assert message.message == "right"


GARBAGE: Dict[str, Callable[[int], bytes]] = {
    "a frame of no known kind": lambda number: HEADER.pack(2, 255, 0, 0, number) + b"{}",
    "a frame longer than anything": lambda number: HEADER.pack(2**32 - 1, Kind.ANSWER, 0, 0, number),
    "a gzip that is none": lambda number: HEADER.pack(2, Kind.ANSWER, GZIP, 0, number) + b"{}",
    "an answer to something else": lambda number: frame(Kind.ANSWER, number, b'{"found":"perhaps"}'),
    "an answer cut short": lambda number: frame(Kind.ANSWER, number, b"{"),
    "an error that is none": lambda number: frame(Kind.ERROR, number, b"[]"),
    "no frame at all": lambda number: b"HTTP/1.1 200 OK\r\n\r\n",
}


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_is_a_lost_connection_and_the_next_call_is_right(make: Make, garbage: str) -> None:
    said: List[bytes] = []

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            request = peer.request()
            if not said:
                said.append(GARBAGE[garbage](request.id))
                peer.say(said[0])
            else:
                peer.answer(request, {"found": False, "value": None, "ttl": None})

    with ScriptedService(script) as service:
        client = make(service.url, retries=0)
        with pytest.raises(ConnectionError) as caught:
            await client.kv.get("key")
        assert caught.value.code == "CONNECTION_LOST"
        assert (await client.kv.get("key")).found is False


async def test_health_that_can_not_be_read_is_a_failed_connection_and_asked_for_again(make: Make) -> None:
    said: List[bytes] = []

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            ping = peer.frame()
            if ping.kind == Kind.PING:
                said.append(b'{"status"' if len(said) < 2 else b'{"status":"ok"}')
                peer.say(frame(Kind.PONG, ping.id, said[-1]))

    with ScriptedService(script) as service:
        with pytest.raises(ConnectionError, match="no connection to"):
            await make(service.url, retries=0).health()
        assert await make(service.url).health() == {"status": "ok"}


async def test_a_service_that_drains_is_left_for_a_new_connection(make: Make) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        peer.answer(peer.request(), {"value": peer.number})
        if peer.number == 0:
            peer.say(frame(Kind.GOAWAY))
            return
        while True:
            peer.answer(peer.request(), {"value": peer.number})

    with ScriptedService(script) as service:
        client = make(service.url)
        assert [await client.kv.incr("n") for _ in range(3)] == [0, 1, 1]


async def test_a_connection_that_ends_right_after_its_handshake_is_a_failed_one(make: Make, colour: str) -> None:
    """The next is tried, and nobody waits on that one, or hears that it is there."""
    heard: List[str] = []

    def script(peer: Peer) -> None:
        peer.hello()
        if 1 <= peer.number <= 5:
            return
        peer.answer(peer.request(), {"value": peer.number})
        while peer.number:
            peer.request()

    with ScriptedService(script) as service:
        client = make(service.url, retries=10)
        client.on("connected")(lambda: heard.append("connected"))
        lost = asyncio.Event()

        def gone(reason: str) -> None:
            heard.append("disconnected")
            lost.set()

        client.on("disconnected")(gone)
        assert await client.kv.incr("n") == 0
        if colour == "async":
            await asyncio.wait_for(lost.wait(), PATIENCE)
        assert (await client.health())["status"] == "ok"
        if colour == "async":
            assert heard == ["connected", "disconnected"] * (len(heard) // 2) + ["connected"]
            [channel] = client._calls.lane._channels.values()  # type: ignore[union-attr]  # the native one
            assert len(channel.connections) == 1


@AT_ONCE
async def test_a_call_that_never_left_is_made_again_and_not_in_doubt(make: Make, colour: str) -> None:
    """The connection ends in the turn in which the call is made: it waits to be sent, and is."""
    if colour == "sync":
        pytest.skip("a call of the sync client is sent before anything else is read")
    published: List[int] = []

    def script(peer: Peer) -> None:
        peer.hello()
        request = peer.request()
        if name_of(request) == "kv.get":
            answer = frame(Kind.ANSWER, request.id, b'{"found":false,"value":null,"ttl":null}')
            peer.say(answer + frame(Kind.CANCEL, request.id))  # which is nothing that a service says
            return
        published.append(peer.number)
        peer.answer(request, {"message_id": "m", "topic": "topic", "subscribers_matched": 0})

    with ScriptedService(script) as service:
        client = make(service.url)
        await client.kv.get("key")  # its answer and the end of the connection come in one piece
        await client.pubsub.publish("topic", 1)
        hasty = make(service.url, retries=0)
        await hasty.kv.get("key")
        with pytest.raises(ConnectionError) as caught:
            await hasty.kv.incr("n")
    assert (caught.value.code, caught.value.may_have_happened) == ("CONNECTION_LOST", False)
    assert published == [1]


async def pausing(client: AsyncSynapClient) -> None:
    """Wait until something of the client's pauses before it tries again."""
    while not client._calls.pauses._homes:
        await asyncio.sleep(0.001)


def loses_increments(count: int, seen: List[Frame]) -> Callable[[Peer], None]:
    """Make a script that ends the connection at the first so many increments."""

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            request = peer.request()
            if name_of(request) == "kv.get":
                peer.answer(request, {"found": False, "value": None, "ttl": None})
                continue
            seen.append(request)
            if len(seen) <= count:
                peer.reset()
                return
            peer.answer(request, {"value": 1})

    return script


HOURS: Dict[str, Any] = {"retry_delay": 3600.0, "retry_max_delay": 3600.0, "timeout": 9000.0}


async def test_a_pause_ends_once_another_call_has_a_connection(make: Make) -> None:
    with ScriptedService(loses_increments(1, [])) as service:
        client = make(service.url, **HOURS)
        lost = asyncio.ensure_future(client.kv.incr("n"))
        await pausing(client)
        await client.kv.get("key")
        assert await asyncio.wait_for(lost, PATIENCE) == 1


async def test_a_try_that_another_call_brought_about_is_none_of_the_retries() -> None:
    """A service that comes and goes would use them up at once."""
    seen: List[Frame] = []
    with ScriptedService(loses_increments(5, seen)) as service:
        async with AsyncSynapClient(url=service.url, retries=1, **HOURS) as client:
            lost = asyncio.ensure_future(client.kv.incr("n"))
            others = []
            for tries in range(1, 6):
                while len(seen) < tries:
                    await asyncio.sleep(0.001)
                await pausing(client)
                others.append(asyncio.ensure_future(client.kv.get("key")))  # which is lost with it, and goes on with it
            assert await asyncio.wait_for(lost, PATIENCE) == 1
            await asyncio.gather(*others)


async def test_a_request_that_will_be_sent_again_is_not_confirmed_by_those_after_it(make: Make) -> None:
    """What is confirmed is forgotten: the service would do it twice."""
    others = 3 * CONFIRM_EVERY
    confirmed: Dict[str, int] = {}
    """The number below which everything is, by session."""
    tries: Set[Tuple[str, int]] = set()
    forgotten: List[int] = []
    answered: List[int] = []

    def script(peer: Peer) -> None:
        session = peer.hello().session
        while True:
            request = peer.frame()
            if request.kind == Kind.DONE:
                confirmed[session] = request.id
            elif request.kind == Kind.REQUEST and name_of(request) == "kv.incr":
                tries.add((session, request.id))
                forgotten.extend([request.id] if confirmed.get(session, 0) > request.id else [])
                if len(answered) < others:
                    peer.refuse(request, "SERVICE_UNAVAILABLE", retry_after=0.01)
                else:
                    peer.answer(request, {"value": 1})
            elif request.kind == Kind.REQUEST:
                peer.answer(request, {"found": False, "value": None, "ttl": None})
                answered.append(request.id)

    with ScriptedService(script) as service:
        client = make(service.url, retries=10_000, retry_max_delay=0.02, timeout=60.0)
        counting = asyncio.ensure_future(client.kv.incr("n"))
        while not tries:
            await asyncio.sleep(0.001)
        for _ in range(others):
            await client.kv.get("key")
        assert await counting == 1
    assert len(tries) == 1
    assert not forgotten


async def test_a_call_that_pauses_before_another_try_ends_when_the_client_closes(make: Make) -> None:
    client = make("http://127.0.0.1:1", timeout=10 * PATIENCE, retry_delay=5 * PATIENCE, retry_max_delay=5 * PATIENCE)
    call = asyncio.ensure_future(client.kv.get("key"))
    pauses: Any = getattr(client, "_inner", client)._calls.pauses
    while not pauses._homes:
        await asyncio.sleep(0.01)
    await client.close()
    with pytest.raises(SynapError) as caught:
        await asyncio.wait_for(call, PATIENCE)
    assert caught.value.code == "CONNECTION_FAILED"
