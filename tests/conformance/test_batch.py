"""Batches: several commands, in order."""

from __future__ import annotations

import asyncio
from typing import Any, Dict, List

import pytest

from synap import AsyncSynapClient, SynapError
from synap.commands import COMMANDS
from tests.conformance.test_queue import wait_for_consumers
from tests.helpers.patience import PATIENCE
from tests.helpers.seen import Seen


def command(name: str, **payload: Any) -> Dict[str, Any]:
    return {"command": name, "payload": payload}


async def test_results_come_in_order_one_for_each_command(client: AsyncSynapClient, name: str) -> None:
    results = await client.batch(
        [
            command("kv.set", key=name, value="Alice"),
            command("kv.get", key=name),
            command("kv.incr", key=f"{name}:n", amount=2),
            command("queue.publish", queue=name, message={"n": 1}),
            command("stream.publish", room=name, event_type="type", data=[1]),
            command("queue.list"),
        ]
    )
    assert [result.status for result in results] == ["success"] * 6
    assert all(result.error is None for result in results)
    payloads: List[Any] = [result.payload for result in results]
    assert payloads[0]["success"] is True
    assert payloads[1] == {"found": True, "value": "Alice", "ttl": None}
    assert payloads[2] == {"value": 2}
    assert payloads[3]["position"] == 1
    assert payloads[4]["offset"] == 0
    assert name in payloads[5]["queues"]


async def test_one_that_fails_does_not_stop_the_rest(client: AsyncSynapClient, name: str) -> None:
    results = await client.batch(
        [
            command("kv.set", key=name, value="text"),
            command("kv.incr", key=name),
            command("kv.ttl", key=f"{name}:none"),
            command("kv.set", key=name, value=1, ttl=0),
            command("kv.sett", key=name),
            command("kv.incr", key=f"{name}:n"),
        ]
    )
    assert [result.status for result in results] == ["success", "error", "error", "error", "error", "success"]
    errors = [result.error for result in results[1:5]]
    codes = [error["code"] for error in errors if error]
    assert codes == ["WRONG_TYPE", "KEY_NOT_FOUND", "INVALID_PAYLOAD", "INVALID_COMMAND"]
    assert errors[1]
    assert errors[1]["details"] == {"key": f"{name}:none"}
    assert results[1].payload is None
    assert (await client.kv.get(name)).value == "text"


@pytest.mark.parametrize("atomic", [False, True])
async def test_a_batch_may_only_read(client: AsyncSynapClient, name: str, atomic: bool) -> None:
    await client.kv.set(name, 1)
    results = await client.batch([command("kv.get", key=name), command("kv.exists", key=name)], atomic=atomic)
    assert [result.payload for result in results] == [{"found": True, "value": 1, "ttl": None}, {"exists": True}]


async def test_an_empty_batch_has_no_results(client: AsyncSynapClient) -> None:
    assert await client.batch([]) == []


async def test_a_batch_takes_thousands(client: AsyncSynapClient, name: str) -> None:
    results = await client.batch([command("kv.incr", key=name) for _ in range(3_000)])
    assert [result.payload["value"] for result in results if result.payload] == list(range(1, 3_001))


@pytest.mark.once_per_place
@pytest.mark.only("memory", "native")
async def test_a_batch_of_10_001_is_refused(client: AsyncSynapClient, name: str) -> None:
    with pytest.raises(SynapError) as caught:
        await client.batch([command("kv.incr", key=name)] * 10_001)
    assert caught.value.code in ("INVALID_PAYLOAD", "INVALID_REQUEST")
    assert "10,000" in caught.value.message
    assert not await client.kv.exists(name)


async def test_a_batch_that_is_not_one_is_refused(client: AsyncSynapClient, name: str) -> None:
    wrong: List[Any] = [
        ["kv.get"],
        [{"payload": {"key": name}}],
        [{"command": "kv.get", "payload": {"key": name}, "extra": 1}],
        [{"command": 7}],
    ]
    for commands in wrong:
        with pytest.raises(SynapError) as caught:
            await client.batch(commands)
        assert caught.value.code in ("INVALID_PAYLOAD", "INVALID_REQUEST")
    assert await client.kv.exists(name) is False


async def test_values_in_a_batch_are_checked(client: AsyncSynapClient, name: str) -> None:
    with pytest.raises(SynapError) as caught:
        await client.batch([command("kv.set", key=name, value=[float("nan")])])
    assert caught.value.code == "INVALID_PAYLOAD"


WAITING = sorted(name for name, entry in COMMANDS.items() if entry.waits or entry.pushes)


@pytest.mark.parametrize("refused", WAITING)
@pytest.mark.parametrize("atomic", [False, True])
async def test_commands_that_wait_or_subscribe_are_refused(
    client: AsyncSynapClient, name: str, refused: str, atomic: bool
) -> None:
    payload: Any = {
        "kv.clear": {"prefix": name},
        "queue.consume": {"queue": name, "timeout": 5},
        "queue.consume_many": {"queues": [name], "timeout": 5},
        "stream.subscribe": {"room": name},
        "pubsub.subscribe": {"topics": [name]},
        "admin.watch": {},
    }[refused]
    results = await client.batch(
        [command("kv.incr", key=name), {"command": refused, "payload": payload}], atomic=atomic
    )
    assert results[1].status == "error"
    assert results[1].error
    assert results[1].error["code"] in ("INVALID_REQUEST", "INVALID_COMMAND")
    assert refused in results[1].error["message"]
    assert await client.kv.exists(name) is not atomic


# ---- atomic


async def test_an_atomic_batch_does_all(client: AsyncSynapClient, name: str) -> None:
    results = await client.batch(
        [command("kv.incr", key=name), command("kv.incr", key=name), command("queue.publish", queue=name, message=1)],
        atomic=True,
    )
    assert [result.status for result in results] == ["success"] * 3
    assert (await client.kv.get(name)).value == 2
    assert (await client.queue.stats(name)).depth == 1


@pytest.mark.parametrize("atomic", [False, True])
async def test_a_batch_reads_the_figures_of_dead_letters(client: AsyncSynapClient, name: str, atomic: bool) -> None:
    await client.queue.publish(name, "dies")
    message = await client.queue.consume(name, timeout=PATIENCE)
    assert message is not None
    await client.queue.nack(name, message.message_id, requeue=False)
    stats = command("queue.stats", queue=f"{name}.dlq")
    both = await client.batch([command("queue.publish", queue=name, message="lives"), stats], atomic=atomic)
    alone = await client.batch([stats], atomic=atomic)
    assert [one.payload["depth"] for one in (both[1], alone[0]) if one.payload is not None] == [1, 1]


@pytest.mark.parametrize("again", [False, True])
async def test_a_room_that_one_batch_makes_and_deletes_is_gone(
    client: AsyncSynapClient, name: str, again: bool
) -> None:
    publish = command("stream.publish", room=name, event_type="e", data="old")
    delete = command("stream.delete", room=name)
    renewed = [command("stream.publish", room=name, event_type="e", data="new")] if again else []
    results = await client.batch([publish, publish, delete, *renewed], atomic=True)
    assert {result.status for result in results} == {"success"}
    assert (name in await client.stream.rooms()) is again
    published = await client.stream.publish(name, "e", "newer")
    assert published.offset == len(renewed)
    found = await client.stream.history(name)
    assert [event.data for event in found.events] == ["new", "newer"][-1 - len(renewed) :]


async def test_an_atomic_batch_that_fails_changes_nothing(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(f"{name}:old", "old", ttl=600)
    await client.kv.set(f"{name}:n", 5)
    await client.queue.publish(name, "first")
    message = await client.queue.consume(name)
    assert message is not None
    await client.stream.publish(name, "type", 0)
    results = await client.batch(
        [
            command("kv.set", key=f"{name}:new", value=1),
            command("kv.set", key=f"{name}:old", value="new"),
            command("kv.del", keys=[f"{name}:n"]),
            command("kv.mset", pairs=[{"key": f"{name}:pair", "value": 1}]),
            command("queue.publish", queue=name, message="second"),
            command("queue.ack", queue=name, message_id=message.message_id),
            command("queue.create", queue=f"{name}-made"),
            command("stream.publish", room=name, event_type="type", data=1),
            command("stream.publish", room=f"{name}-made", event_type="type", data=1),
            command("kv.incr", key=f"{name}:old"),
            command("kv.set", key=f"{name}:after", value=1),
        ],
        atomic=True,
    )
    codes = [result.error["code"] for result in results if result.error]
    assert codes == ["BATCH_ABORTED"] * 9 + ["WRONG_TYPE"] + ["BATCH_ABORTED"]
    assert all(result.status == "error" and result.payload is None for result in results)
    found = await client.kv.mget(*(f"{name}:{key}" for key in ("new", "old", "n", "pair", "after")))
    assert [result.value for result in found] == [None, "old", 5, None, None]
    assert found[1].ttl in range(590, 601)
    stats = await client.queue.stats(name)
    assert (stats.depth, stats.pending, stats.published_total, stats.acked_total) == (0, 1, 1, 0)
    await client.queue.ack(name, message.message_id)
    assert f"{name}-made" not in await client.queue.list()
    assert f"{name}-made" not in await client.stream.rooms()
    assert (await client.stream.publish(name, "type", 1)).offset == 1


async def test_what_an_aborted_batch_would_have_pushed_is_not_pushed(client: AsyncSynapClient, name: str) -> None:
    seen = Seen()
    await client.stream.subscribe(name, seen, from_offset=0)
    await client.batch(
        [
            command("stream.publish", room=name, event_type="type", data="never"),
            command("kv.ttl", key=name),
        ],
        atomic=True,
    )
    await client.stream.publish(name, "type", "first")
    assert [(event.offset, event.data) for event in await seen.first(1)] == [(0, "first")]


@pytest.mark.without("crashing")
async def test_what_an_aborted_batch_took_wakes_no_waiter(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    waiting = asyncio.create_task(other.queue.consume(name, timeout=PATIENCE))
    await wait_for_consumers(client, name, 1)
    await client.batch(
        [command("queue.publish", queue=name, message="never"), command("kv.ttl", key=name)], atomic=True
    )
    await client.queue.publish(name, "real")
    message = await waiting
    assert message is not None
    assert (message.message, message.retry_count) == ("real", 0)


async def test_a_condition_that_fails_does_not_abort_an_atomic_batch(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, 1)
    results = await client.batch(
        [command("kv.set", key=name, value=2, nx=True), command("kv.set", key=f"{name}:b", value=1)], atomic=True
    )
    assert [result.status for result in results] == ["success", "success"]
    assert results[0].payload
    assert results[0].payload["success"] is False
    assert await client.kv.exists(f"{name}:b")
