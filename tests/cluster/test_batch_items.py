"""Batches at a gateway: how their commands are decoded, and what is kept of them afterwards."""

from __future__ import annotations

import asyncio
import difflib
import json
from typing import Any, List

import pytest

from synap import commands as c
from synap.cluster import running
from synap.cluster.host import ClusterHost
from synap.host import ANSWER
from tests.cluster.callers import Noted, batch


async def answered(told: List[Any], count: int = 1) -> List[Any]:
    """Wait for so many answers; returns what the last is."""
    while len(told) < count:
        await asyncio.sleep(0.001)
    assert all(what == ANSWER for _, what, _, _ in told), told
    results: List[Any] = told[-1][3].results
    return results


async def test_what_the_commands_of_a_numbered_batch_were_answered_is_forgotten_as_that_of_single_ones_is(
    host: ClusterHost,
) -> None:
    """Neither its caller's word that it has it, nor ten minutes, did away with it."""
    told: List[Any] = []
    caller = Noted(host, told, "s" * 32)
    request = batch(
        ("kv.set", {"key": "{t}a", "value": 1}, 2), ("kv.get", {"key": "{t}a"}, 3), ("kv.incr", {"key": "{t}b"}, 4)
    )
    host.execute(caller, 1, c.BATCH, request, True, decoded=True)
    assert [outcome.status for outcome in await answered(told)] == ["success"] * 3
    partition = host.link.places.partition("{t}")
    assert [fields for _, _, fields in host.memory._late] == [[(partition, b"2")], [(partition, b"4")]]


async def test_atomic_batches_leave_nothing_behind_that_says_in_what_order_they_came(host: ClusterHost) -> None:
    """It grew with each whose caller had a name of its own, as one of plain HTTP has for each request."""
    told: List[Any] = []
    caller = Noted(host, told, "s" * 32)
    for number in range(3):
        request = batch(("queue.publish", {"queue": "q", "message": 1}, None), atomic=True)
        host.execute(caller, f"order {number}", c.BATCH, request, True, decoded=True)
        await answered(told, number + 1)
    assert [joiner._orders for joiner in host._recorded.queues.joiners] == [set()] * len(host._recorded.queues.joiners)


async def test_a_batch_of_misspelt_commands_says_of_some_what_was_meant(
    host: ClusterHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look for it took a gateway's others 0.3 ms each."""
    look, looks = difflib.get_close_matches, []

    def noted(*given: Any) -> List[str]:
        looks.append(given)
        return look(*given)

    monkeypatch.setattr(difflib, "get_close_matches", noted)
    told: List[Any] = []
    wrong: List[Any] = [("kv.gett", {}, None)] * 50 + [("kv.get", {"kex": 1}, None)] * 50
    host.execute(Noted(host, told, "s" * 32), 1, c.BATCH, batch(*wrong), decoded=True)
    messages = [outcome.error.message for outcome in await answered(told)]
    assert len(looks) == 20
    assert [message.endswith("did you mean 'kv.get'?") for message in messages] == [True] * 20 + [False] * 80


async def test_the_commands_of_a_long_batch_are_decoded_in_turns_with_other_callers_between(
    host: ClusterHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "SLICE", 0.0)
    told: List[Any] = []
    writer, other = Noted(host, told, "s" * 32), Noted(host, told)
    large = {"key": "{t}large", "value": [0] * 100_000}
    sets = [("kv.set", {"key": "{t}k", "value": number}, None) for number in range(50)]
    host.execute(writer, 1, c.BATCH, batch(*sets, ("kv.set", large, None)), decoded=True)
    assert (host.busy, host.working_for(writer), host.working_for(other)) == (True, True, False)
    while host.working_for(writer):
        assert writer.went_on == 0
        await asyncio.sleep(0)
    assert not host.busy
    host.execute(writer, 2, c.BATCH, batch(("kv.get", {"key": "{t}k"}, None)), decoded=True)
    (found,) = await answered(told, 2)
    assert found.payload.value == b"49"
    assert (len(told[0][3].results), writer.went_on > 0) == (51, True)


async def test_a_batch_whose_caller_leaves_while_it_is_decoded_is_not_done(
    host: ClusterHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "SLICE", 0.0)
    told: List[Any] = []
    writer, other = Noted(host, told, "s" * 32), Noted(host, told, "t" * 32)
    sets = [("kv.set", {"key": "{t}k", "value": number}, None) for number in range(20)]
    host.execute(writer, 1, c.BATCH, batch(*sets), decoded=True)
    host.leave(writer)
    assert (host.busy, writer.lost) == (False, [1])
    host.execute(other, 1, c.BATCH, batch(*[("kv.get", {"key": "{t}k"}, None)] * 40), decoded=True)
    assert not any(outcome.payload.found for outcome in await answered(told))
    assert [who for who, *_ in told] == [other]


@pytest.mark.parametrize(
    "first", [[("kv.set", {"key": "{t}k", "value": 0}, None)] * 250, [("queue.redrive", {"queue": "{t}q"}, None)]]
)
async def test_what_is_sent_behind_a_batch_is_done_behind_all_of_it(host: ClusterHost, first: List[Any]) -> None:
    """A hundred commands are under way at once; what came behind the batch overtook the rest of them."""
    told: List[Any] = []
    writer, other = Noted(host, told, "s" * 32), Noted(host, told)
    host.execute(writer, 1, c.BATCH, batch(*first, ("kv.set", {"key": "{t}k", "value": 1}, None)), decoded=True)
    assert (host.busy, host.working_for(writer), host.working_for(other)) == (True, True, False)
    while host.working_for(writer):
        await asyncio.sleep(0)
    host.execute(writer, 2, c.KV_SET, b'{"key":"{t}k","value":2}')
    while len(told) < 2:
        await asyncio.sleep(0.001)
    host.execute(writer, 3, c.KV_GET, b'{"key":"{t}k"}')
    while len(told) < 3:
        await asyncio.sleep(0.001)
    assert bytes(told[2][3].value) == b"2"
    assert (host.busy, writer.went_on > 0) == (False, True)


async def test_what_is_sent_behind_a_redrive_is_done_behind_all_of_it(host: ClusterHost) -> None:
    """It first looks at what is due, and a message that was published behind it came before what it put back."""
    told: List[Any] = []
    caller = Noted(host, told, "s" * 32)

    async def ask(number: int, command: c.Command, **payload: Any) -> Any:
        host.execute(caller, number, command, json.dumps({"queue": "q", **payload}).encode())
        while not any(what[2] == number for what in told):
            await asyncio.sleep(0.001)
        return told[-1][3]

    await ask(1, c.QUEUE_PUBLISH, message="dead")
    message = await ask(2, c.QUEUE_CONSUME)
    await ask(3, c.QUEUE_NACK, message_id=message.message_id, requeue=False)
    host.execute(caller, 4, c.QUEUE_REDRIVE, b'{"queue":"q"}')
    assert host.working_for(caller)
    while host.working_for(caller):
        await asyncio.sleep(0)
    await ask(5, c.QUEUE_PUBLISH, message="behind it")
    assert [bytes((await ask(number, c.QUEUE_CONSUME)).message) for number in (6, 7)] == [b'"dead"', b'"behind it"']
