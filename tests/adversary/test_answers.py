"""Bytes that no service should say: a client has documented errors for them, in time, and doesn't come running back."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Awaitable, Callable, Dict, List, NamedTuple, Optional

import pytest

from synap import AsyncSynapClient, SynapError
from synap.commands import BY_CODE
from synap.errors import CODES
from synap.wire.codec import CODECS
from synap.wire.frames import HEADER, MAX_ANSWER, Kind, frame
from tests.adversary.test_faults import COLOURS, LATE, connect
from tests.adversary.test_fuzz import spoiled
from tests.helpers.patience import PATIENCE, impatient, in_time
from tests.helpers.scripted import Gone, Peer, ScriptedService

pytestmark = pytest.mark.usefixtures("nothing_known")

ROUNDS = 60
AT_ONCE = 10
TIMEOUT = 0.5
SEED = "bytes that no service should say"


class Case(NamedTuple):
    """A call, and what a service that is in its right mind would answer."""

    call: Callable[[AsyncSynapClient], Awaitable[Any]]
    answer: Dict[str, Any]


EVENT: Dict[str, Any] = {
    "event_id": "log-0",
    "offset": 0,
    "event_type": "type",
    "data": {"a": [1, 2.5, None, "text"]},
    "timestamp": 1,
    "metadata": {"k": "v"},
    "room": "room",
}
MESSAGE: Dict[str, Any] = {"topic": "a.b", "message": [1], "metadata": {}, "timestamp": 1, "message_id": "m"}
CASES: Dict[str, Case] = {
    "kv.get": Case(lambda client: client.kv.get("key"), {"found": True, "value": {"a": [1, 2.5, None]}, "ttl": 3}),
    "kv.set": Case(lambda client: client.kv.set("key", [1]), {"success": True, "key": "key", "previous": None}),
    "kv.incr": Case(lambda client: client.kv.incr("key"), {"value": 3}),
    "kv.mget": Case(lambda client: client.kv.mget("a"), {"values": [{"found": True, "value": 1, "ttl": None}]}),
    "kv.scan": Case(lambda client: client.kv.scan(), {"keys": ["a", "b"], "cursor": "b", "has_more": True}),
    "queue.publish": Case(lambda client: client.queue.publish("queue", 1), {"message_id": "m", "position": 1}),
    "queue.consume": Case(
        lambda client: client.queue.consume("queue", timeout=0.1),
        {
            "message_id": "m",
            "message": {"n": 1},
            "priority": 5,
            "retry_count": 0,
            "headers": {"h": "v"},
            "lease": 1,
            "deadline": 1.5,
        },
    ),
    "stream.history": Case(
        lambda client: client.stream.history("room"), {"events": [EVENT], "oldest_offset": 0, "newest_offset": 0}
    ),
    "batch": Case(
        lambda client: client.batch([{"command": "kv.get", "payload": {"key": "key"}}]),
        {"results": [{"status": "success", "payload": {"found": True, "value": 1, "ttl": None}}]},
    ),
}


def listen(peer: Peer) -> None:
    """Take what comes and say nothing more."""
    while True:
        peer.frame()


def nonsense(dice: random.Random, format: str) -> bytes:
    """Make up what a service might say that is out of its mind."""
    codec = CODECS[format]
    said = b""
    for _ in range(dice.randrange(1, 5)):
        kind = dice.randrange(6)
        body = codec.encode(dice.choice([EVENT, MESSAGE, {}, [], None, *(case.answer for case in CASES.values())]))
        if kind == 0:
            said += bytes(dice.randrange(256) for _ in range(dice.randrange(1, 300)))
        elif kind == 1:
            said += frame(dice.randrange(16), dice.randrange(4), body, dice.randrange(200), dice.randrange(8))
        elif kind == 2:
            said += spoiled(dice, frame(dice.randrange(1, 12), dice.randrange(4), body))
        elif kind == 3:
            said += HEADER.pack(dice.choice([1000, MAX_ANSWER, MAX_ANSWER + 1, 2**32 - 1]), Kind.ANSWER, 0, 0, 1)
        elif kind == 4:
            said += frame(dice.choice([Kind.GOAWAY, Kind.PONG, Kind.PING, Kind.ENDED]), dice.randrange(4), body)
        else:
            said += frame(Kind.ERROR, dice.randrange(2), body)
    return said


async def outcome_of(
    case: Case, script: Callable[[Peer], None], colour: str, format: str, retries: int, timeout: float = TIMEOUT
) -> Optional[SynapError]:
    """Make one call to a service that says what `script` does; returns its error.

    See that it ends in time, and that the client comes once for each attempt. The first attempt may find what it began
    with gone before anything was sent, and begin anew.
    """
    with ScriptedService(script) as service:
        client = connect(
            colour,
            url=service.url,
            format=format,
            timeout=timeout,
            transport="native",
            retries=retries,
            retry_delay=0.01,
            retry_max_delay=0.02,
        )
        error: Optional[SynapError] = None
        began = time.monotonic()
        try:
            await case.call(client)
        except SynapError as raised:
            error = raised
        assert time.monotonic() - began < (1 + retries) * (timeout + 0.1) + LATE
        assert len(service.peers) <= 2 + retries
        assert service.peers or (error is not None and error.code == "TIMEOUT")  # on a busy machine it may never come
        await client.close()
    return error


async def in_company(rounds: List[Awaitable[None]]) -> None:
    """Do some at the same time, for many of them wait for a timeout. The event loop must not get to see an error."""
    escaped: List[Dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: escaped.append(context))
    for start in range(0, len(rounds), AT_ONCE):
        await asyncio.gather(*rounds[start : start + AT_ONCE])
    assert escaped == []


@pytest.mark.parametrize("format", ["json", "msgpack"])
@pytest.mark.parametrize("colour", COLOURS)
async def test_the_answers_that_are_spoiled_here_are_answers(colour: str, format: str) -> None:
    for name, case in CASES.items():

        def script(peer: Peer, case: Case = case, name: str = name) -> None:
            peer.hello()
            request = peer.request()
            assert BY_CODE[request.code].name == name
            peer.say(frame(Kind.ANSWER, request.id, CODECS[format].encode(case.answer)))
            listen(peer)

        assert (await outcome_of(case, script, colour, format, 0, PATIENCE)) is None


LOST = ("CONNECTION_FAILED", "CONNECTION_LOST")
CONSENTED: Dict[str, bytes] = {
    "nothing": b"",
    "garbage": b"\xff" * 50,
    "text": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "goaway": frame(Kind.GOAWAY),
    "goaway and garbage": frame(Kind.GOAWAY) + b"\xff" * 50,
    "an error of the connection": frame(Kind.ERROR, 0, b'{"code":"INVALID_REQUEST","message":"no"}'),
    "an error that is none": frame(Kind.ERROR, 0, b"{"),
    "a frame of a client": frame(Kind.REQUEST, 1, b"{}", 1),
    "half a frame": frame(Kind.ANSWER, 1, b"{}")[:7],
}


@pytest.mark.parametrize("said", CONSENTED)
@pytest.mark.parametrize("stays", [False, True], ids=["and goes", "and stays"])
@pytest.mark.parametrize("colour", COLOURS)
async def test_a_service_that_consents_and_is_of_no_use_is_not_asked_again_and_again(
    colour: str, said: str, stays: bool
) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        peer.say(CONSENTED[said])
        if stays:
            listen(peer)

    for retries in (0, 2):
        timeout = TIMEOUT if stays else PATIENCE
        error = await outcome_of(CASES["kv.incr"], script, colour, "json", retries, timeout)
        assert error is not None
        assert error.code in (LOST if not stays else (*LOST, "TIMEOUT"))


@pytest.mark.parametrize("said", CONSENTED)
@pytest.mark.parametrize("colour", COLOURS)
async def test_a_service_that_has_become_of_no_use_is_asked_once_for_each_attempt(colour: str, said: str) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        if peer.number == 0:
            peer.answer(peer.request(), CASES["kv.incr"].answer)
        else:
            peer.say(CONSENTED[said])

    for retries in (0, 2):
        with ScriptedService(script) as service:
            client = connect(colour, url=service.url, retries=retries, retry_delay=0.01)
            assert await client.kv.incr("key") == 3
            with impatient(client, 5), pytest.raises(SynapError) as caught:
                await client.kv.incr("key")
            assert caught.value.code in LOST
            assert len(service.peers) <= 1 + 1 + retries
            await client.close()


@pytest.mark.parametrize("colour", COLOURS)
async def test_nonsense_after_the_handshake_gives_documented_errors(colour: str) -> None:
    dice = random.Random(SEED)

    async def round(number: int) -> None:
        format, retries, stays = dice.choice(["json", "msgpack"]), number % 3, dice.random() < 0.2
        said, name = nonsense(dice, format), dice.choice(list(CASES))

        def script(peer: Peer) -> None:
            peer.hello()
            peer.say(said)
            if stays:
                listen(peer)

        error = await outcome_of(CASES[name], script, colour, format, retries)
        assert error is not None, (name, said)
        assert error.code in (*LOST, "TIMEOUT"), (name, said)

    await in_company([round(number) for number in range(ROUNDS)])


@pytest.mark.parametrize("colour", COLOURS)
async def test_spoiled_answers_give_documented_errors_or_are_answers_all_the_same(colour: str) -> None:
    dice = random.Random(SEED)
    errors: List[SynapError] = []

    async def round(number: int) -> None:
        format, retries, stays = dice.choice(["json", "msgpack"]), number % 3, dice.random() < 0.1
        name, throw = dice.choice(list(CASES)), dice.random()
        case = CASES[name]
        spoiling = random.Random(f"{SEED}{number}")

        def script(peer: Peer) -> None:
            peer.hello()
            while True:
                request = peer.request()
                whole = frame(Kind.ANSWER, request.id, CODECS[format].encode(case.answer))
                if throw < 0.3:
                    said = spoiled(spoiling, whole)
                elif throw < 0.6:  # only what the codec reads
                    said = frame(Kind.ANSWER, request.id, spoiled(spoiling, whole[HEADER.size :]))
                elif throw < 0.7:
                    said = frame(Kind.ANSWER, request.id, CODECS[format].encode(spoiling.choice([{}, [], None, 1])))
                elif throw < 0.8:
                    said = frame(Kind.ANSWER, request.id, whole[HEADER.size :], flags=spoiling.randrange(1, 256))
                else:
                    said = nonsense(spoiling, format) + whole
                peer.say(said)
                if not stays:
                    raise Gone

        error = await outcome_of(case, script, colour, format, retries)
        if error is not None:
            errors.append(error)
            assert error.code in (*LOST, "TIMEOUT"), (name, number)

    await in_company([round(number) for number in range(ROUNDS * 2)])
    assert len(errors) > ROUNDS / 2, "hardly anything was spoiled"


@pytest.mark.parametrize("colour", COLOURS)
async def test_spoiled_errors_give_errors(colour: str) -> None:
    dice = random.Random(SEED)
    envelope = {"code": "KEY_NOT_FOUND", "message": "no key", "details": {"key": "key"}}

    async def round(number: int) -> None:
        format, retries = dice.choice(["json", "msgpack"]), number % 3
        body = spoiled(dice, CODECS[format].encode(envelope))

        def script(peer: Peer) -> None:
            peer.hello()
            peer.say(frame(Kind.ERROR, peer.request().id, body))

        error = await outcome_of(CASES["kv.get"], script, colour, format, retries)
        assert error is not None
        assert isinstance(error.code, str), body  # one that this client doesn't know may be of a newer service
        assert isinstance(error.message, str), body
        assert isinstance(error.details, dict), body

    await in_company([round(number) for number in range(ROUNDS)])


@pytest.mark.parametrize("kind", ["room", "topics"])
@pytest.mark.parametrize("colour", COLOURS)
async def test_a_subscriber_gets_over_spoiled_pushes(colour: str, kind: str) -> None:
    dice = random.Random(SEED)
    ends: List[SynapError] = []

    async def round(number: int) -> None:
        format = dice.choice(["json", "msgpack"])
        codec = CODECS[format]
        push = Kind.EVENT if kind == "room" else Kind.MESSAGE

        def item(offset: int, value: Any) -> bytes:
            if kind == "room":
                return frame(push, 7, codec.encode({**EVENT, "event_id": "log-1", "offset": offset, "data": value}))
            return frame(push, 7, codec.encode({**MESSAGE, "message": value}))

        bad = b"".join(
            spoiled(dice, item(offset, offset)) if dice.random() < 0.7 else nonsense(dice, format)
            for offset in range(1, dice.randrange(2, 6))
        )
        spoilt = False

        def script(peer: Peer) -> None:
            nonlocal spoilt
            peer.hello()
            while True:
                request = peer.request()
                asked = codec.decode(request.body)
                name = BY_CODE[request.code].name
                if name == "stream.history":
                    answer: Dict[str, Any] = {"events": [], "oldest_offset": 0, "newest_offset": 2**62}
                elif name.endswith(".unsubscribe"):
                    answer = {"unsubscribed": True}
                else:
                    answer = {"subscription_id": 7, "room": "room", "topics": ["a.*"], "next_offset": 0}
                peer.say(frame(Kind.ANSWER, request.id, codec.encode(answer)))
                if name.endswith(".subscribe"):
                    start = asked.get("from_offset") or 0
                    if not spoilt:
                        spoilt = True
                        peer.say(item(start, "first") + bad)
                        return
                    peer.say(item(start, "last"))

        with ScriptedService(script) as service:
            client = connect(
                colour, url=service.url, format=format, transport="native", retry_delay=0.01, retry_max_delay=0.05
            )

            async def until_the_last() -> None:
                subscription: Any = await (
                    client.stream.subscribe("room") if kind == "room" else client.pubsub.subscribe(["a.*"])
                )
                async for pushed in in_time(subscription):
                    if (pushed.data if kind == "room" else pushed[1]) == "last":
                        break

            try:
                await asyncio.wait_for(until_the_last(), PATIENCE)
            except SynapError as error:  # the service may have seemed to end it
                ends.append(error)
            assert len(service.peers) <= 4, bad
            await client.close()

    await in_company([round(number) for number in range(ROUNDS)])
    assert {error.code for error in ends} <= set(CODES)
    assert len(ends) < ROUNDS / 2, "hardly anybody got over it"
