"""What a subscription to a room reads of its log."""

from __future__ import annotations

import asyncio
from typing import Any, List

import pytest

from synap import commands as c
from synap.cluster.rooms import Rooms, RoomSubscription
from synap.cluster.running import Running
from synap.engine.callers import Caller
from synap.errors import SynapError
from tests.cluster.asking import Asking, result

pytestmark = pytest.mark.usefixtures("only_what_is_asked")


class Listener(Caller):
    """Takes events while it has room for them."""

    def __init__(self) -> None:
        super().__init__()
        self.room = 0
        self.got: List[int] = []
        self.over: List[str] = []

    def push(self, subscription_id: int, item: Any) -> bool:
        if self.room <= 0:
            return False
        self.room -= 1
        self.got.append(item.offset)
        return True

    def ended(self, subscription_id: int, error: SynapError) -> None:
        self.over.append(error.code)


def rooms_of(asking: Asking) -> Rooms:
    return asking.host.facilities.rooms


async def publish(asking: Asking, data: bytes = b"1", count: int = 1) -> None:
    value: Any = data
    for _ in range(count):
        await result(Running(rooms_of(asking).publish(c.StreamPublish("r", "t", value), asking.request())).start())


async def follow(asking: Asking, listener: Listener) -> RoomSubscription:
    """Subscribe to all events; the first is pushed once the listener is resumed."""
    answer = await result(Running(rooms_of(asking).subscribe(c.StreamSubscribe("r", replay=True), listener)).start())
    found = listener.subscriptions[answer.subscription_id]
    assert isinstance(found, RoomSubscription)
    return found


async def test_who_is_behind_events_that_a_failover_took_back_reads_to_the_end_once(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(asking, count=8)
    listener, reads = Listener(), 0
    subscription = await follow(asking, listener)
    rooms_of(asking).received("r", b"%s 9 0 lost" % subscription.inc)  # the node that has the room now lacks it
    history = Rooms._history

    async def counted(self: Rooms, *given: Any) -> Any:
        nonlocal reads
        reads += 1
        return await history(self, *given)

    monkeypatch.setattr(Rooms, "_history", counted)
    listener.room = 100
    rooms_of(asking).resume(subscription)
    while subscription.reading is not None and reads < 10:
        await asyncio.sleep(0)
    assert (reads, subscription.reading) == (1, None)
    assert (listener.got, listener.over) == (list(range(8)), [])
    await publish(asking)
    while len(listener.got) < 9:
        await asyncio.sleep(0)
    assert listener.got[-1] == 8
