"""Leases that are renewed, by themselves."""

from __future__ import annotations

import asyncio
from typing import Any, List

import pytest

from synap import AsyncSynapClient
from synap.worker import Message
from synap.worker import leases as leases_module
from synap.worker.leases import Leases
from tests.helpers.patience import PATIENCE


async def test_a_message_that_was_settled_and_came_again_meanwhile_has_lost_no_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost: List[Message] = []
    async with AsyncSynapClient(url="memory://") as client:
        leases = Leases(client, 30.0, lost.append)

        async def leased() -> Message:
            message = await client.queue.consume("queue")
            assert message is not None
            return Message.of(message, "json")

        await client.queue.publish("queue", 1)
        first = await leased()
        leases.add(first)
        first.expires -= 15.0  # so that its lease is renewed
        await client.queue.nack("queue", first.message_id)
        call, executed, late = client._calls.call, asyncio.Event(), asyncio.Event()

        async def call_late(*arguments: Any) -> Any:
            answer = await call(*arguments)
            executed.set()
            await late.wait()
            return answer

        monkeypatch.setattr(client._calls, "call", call_late)
        renewing = asyncio.ensure_future(leases.renew())
        await asyncio.wait_for(executed.wait(), PATIENCE)
        leases.remove(first)
        again = await leased()
        leases.add(again)
        late.set()
        await asyncio.wait_for(renewing, PATIENCE)
        assert not lost
        assert not first.lost
        assert again.message_id == first.message_id


async def test_a_lease_that_expires_while_its_renewal_waits_for_an_answer_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost: List[Message] = []
    over = asyncio.Event()

    def note(message: Message) -> None:
        lost.append(message)
        over.set()

    async def never(*arguments: Any) -> Any:
        await asyncio.Event().wait()

    async with AsyncSynapClient(url="memory://") as client:
        await client.queue.publish("queue", 1)
        found = await client.queue.consume("queue")
        assert found is not None
        message = Message.of(found, "json")
        monkeypatch.setattr(client._calls, "call", never)
        leases = Leases(client, 0.3, note)
        leases.add(message)
        renewing = asyncio.ensure_future(leases.run())
        await asyncio.wait_for(over.wait(), PATIENCE)
        assert lost == [message]
        assert message.lost
        renewing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await renewing


async def test_more_leases_than_a_request_may_have_commands_are_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker with 10,000 places and prefetched messages lost them all."""
    monkeypatch.setattr(leases_module, "MAX_BATCH", 2)
    lost: List[Message] = []
    async with AsyncSynapClient(url="memory://") as client:
        leases = Leases(client, 30.0, lost.append)
        for value in range(5):
            await client.queue.publish("many", value)
        found = [Message.of(one, "json") for one in await client.queue.consume_many(["many"], max=5)]
        for message in found:
            leases.add(message)
            message.expires -= 15.0  # so that its lease is renewed
        call, sizes = client._calls.call, []

        async def noting(command: Any, payload: Any) -> Any:
            sizes.append(len(payload.commands))
            return await call(command, payload)

        monkeypatch.setattr(client._calls, "call", noting)
        before = [message.expires for message in found]
        await leases.renew()
        assert all(message.expires > earlier for message, earlier in zip(found, before))
    assert sizes == [2, 2, 1]
    assert not lost
