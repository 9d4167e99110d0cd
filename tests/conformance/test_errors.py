"""Every refusal says what was wrong and what would be right, and leaves the client usable."""

from __future__ import annotations

import pickle
from typing import Any, Dict

import pytest

import synap
from synap import (
    AsyncSynapClient,
    KeyNotFoundError,
    MessageNotFoundError,
    QueueNotFoundError,
    RoomNotFoundError,
    SynapError,
)
from synap.commands import COMMANDS


async def incr_text(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, "text")
    await client.kv.incr(name)


async def overflow(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, 2**63 - 1)
    await client.kv.incr(name)


async def overfill(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name, max_depth=1)
    await client.queue.publish(name, 1)
    await client.queue.publish(name, 2)


async def unknown_message(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name)
    await client.queue.ack(name, "none")


async def too_large(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, "x" * (11 * 1024 * 1024))


REFUSALS: Dict[str, Any] = {
    "KEY_NOT_FOUND": (lambda client, name: client.kv.ttl(name), KeyNotFoundError),
    "QUEUE_NOT_FOUND": (lambda client, name: client.queue.stats(name), QueueNotFoundError),
    "ROOM_NOT_FOUND": (lambda client, name: client.stream.history(name), RoomNotFoundError),
    "MESSAGE_NOT_FOUND": (unknown_message, MessageNotFoundError),
    "INVALID_PAYLOAD": (lambda client, name: client.kv.set(name, 1, ttl=0), SynapError),
    "WRONG_TYPE": (incr_text, SynapError),
    "INTEGER_OVERFLOW": (overflow, SynapError),
    "QUEUE_FULL": (overfill, SynapError),
    "PAYLOAD_TOO_LARGE": (too_large, SynapError),
}


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_refusal_is_raised_as_its_class_and_the_client_goes_on(
    client: AsyncSynapClient, name: str, code: str
) -> None:
    call, kind = REFUSALS[code]
    with pytest.raises(SynapError) as caught:
        await call(client, name)
    error = caught.value
    assert error.code == code
    assert type(error) is kind
    assert error.message
    assert code in str(error)
    assert not error.may_have_happened
    assert await client.kv.incr(f"{name}:after") == 1


async def test_an_error_can_be_pickled(client: AsyncSynapClient, name: str) -> None:
    with pytest.raises(KeyNotFoundError) as caught:
        await client.kv.ttl(name)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), copy.code, copy.message, copy.details) == (
        KeyNotFoundError,
        caught.value.code,
        caught.value.message,
        caught.value.details,
    )


async def test_connection_errors_are_builtin_ones_too() -> None:
    assert issubclass(synap.ConnectionError, ConnectionError)
    assert issubclass(synap.TimeoutError, TimeoutError)
    assert issubclass(synap.TimeoutError, synap.ConnectionError)


@pytest.mark.parametrize("command", sorted(name for name, entry in COMMANDS.items() if entry.batchable))
@pytest.mark.only("memory", "native", "websocket")
async def test_an_unknown_field_is_an_error(client: AsyncSynapClient, command: str) -> None:
    [result] = await client.batch([{"command": command, "payload": {"surprise": 1}}])
    assert result.error
    assert result.error["code"] == "INVALID_PAYLOAD"
    assert "surprise" in result.error["message"]


async def test_an_unknown_command_is_an_error_with_the_nearest_name(client: AsyncSynapClient) -> None:
    [result] = await client.batch([{"command": "kv.gett", "payload": {"key": "a"}}])
    assert result.error
    assert result.error["code"] == "INVALID_COMMAND"
    assert "kv.get" in result.error["message"]


@pytest.mark.parametrize("call", ["kv.set", "queue.publish", "stream.publish", "pubsub.publish"])
async def test_an_argument_that_does_not_exist_is_a_type_error(client: AsyncSynapClient, call: str) -> None:
    group, _, method = call.partition(".")
    with pytest.raises(TypeError):
        await getattr(getattr(client, group), method)("a", "b", surprise=1)


NAN, INFINITY = float("nan"), float("inf")

NUMBERS: Dict[str, Any] = {
    "ttl": lambda client, name, number: client.kv.set(name, 1, ttl=number),
    "pairs[0].ttl": lambda client, name, number: client.kv.mset({name: 1}, ttl=number),
    "amount": lambda client, name, number: client.kv.incr(name, number),
    "count": lambda client, name, number: client.kv.scan(count=number),
    "priority": lambda client, name, number: client.queue.publish(name, 1, priority=number),
    "delay": lambda client, name, number: client.queue.publish(name, 1, delay=number),
    "timeout": lambda client, name, number: client.queue.consume(name, timeout=number),
    "ack_deadline": lambda client, name, number: client.queue.consume(name, ack_deadline=number),
    "config.ack_deadline": lambda client, name, number: client.queue.create(name, ack_deadline=number),
    "config.max_depth": lambda client, name, number: client.queue.create(name, max_depth=number),
    "from_offset": lambda client, name, number: client.stream.history(name, from_offset=number),
    "limit": lambda client, name, number: client.queue.redrive(name, limit=number),
}


@pytest.mark.without("crashing")
@pytest.mark.parametrize("field", NUMBERS)
async def test_no_number_may_be_nan_or_infinite(client: AsyncSynapClient, name: str, field: str) -> None:
    for number in (NAN, INFINITY, -INFINITY):
        with pytest.raises(SynapError) as caught:
            await NUMBERS[field](client, name, number)
        assert caught.value.code == "INVALID_PAYLOAD"
        assert f"{field} must be" in caught.value.message
        assert str(number) in caught.value.message
    assert (await client.kv.get(name)).found is False
    assert name not in await client.queue.list()


@pytest.mark.without("crashing")
@pytest.mark.parametrize("field", NUMBERS)
async def test_a_number_beyond_64_bits_is_refused_by_name(client: AsyncSynapClient, name: str, field: str) -> None:
    for number in (2**64, -(2**63) - 1):
        with pytest.raises(SynapError) as caught:
            await NUMBERS[field](client, name, number)
        if caught.value.code != "QUEUE_NOT_FOUND":  # JSON can hold it, and it is a limit like any other
            assert (caught.value.code, caught.value.details) == ("INVALID_PAYLOAD", {"field": field})
            assert f"{field} must be" in caught.value.message
