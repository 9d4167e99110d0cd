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


def noted(monkeypatch: pytest.MonkeyPatch) -> List[int]:
    """Return how many events each read of a log brings, as they come."""
    history, sizes = Rooms._history, []

    async def read(self: Rooms, *given: Any) -> Any:
        found = await history(self, *given)
        sizes.append(len(found[3]))
        return found

    monkeypatch.setattr(Rooms, "_history", read)
    return sizes


async def test_who_is_behind_events_that_a_failover_took_back_reads_to_the_end_once(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(asking, count=8)
    listener, reads = Listener(), noted(monkeypatch)
    subscription = await follow(asking, listener)
    rooms_of(asking).received("r", b"%s 9 0 lost" % subscription.inc)  # the node that has the room now lacks it
    listener.room = 100
    rooms_of(asking).resume(subscription)
    while subscription.reading is not None and len(reads) < 10:
        await asyncio.sleep(0)
    assert (reads, subscription.reading) == ([8], None)
    assert (listener.got, listener.over) == (list(range(8)), [])
    await publish(asking)
    while len(listener.got) < 9:
        await asyncio.sleep(0)
    assert listener.got[-1] == 8


async def test_who_takes_events_in_portions_has_most_of_them_read_once(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(asking, b'"' + b"x" * 10_000 + b'"', count=100)
    listener, reads = Listener(), noted(monkeypatch)
    subscription = await follow(asking, listener)
    while len(listener.got) < 100:
        listener.room = 12  # a gateway's session takes 128 KB in a turn
        rooms_of(asking).resume(subscription)
        while subscription.reading is not None:
            await asyncio.sleep(0)
    assert listener.got == list(range(100))
    assert sum(reads) < 150
