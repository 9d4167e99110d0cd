"""The load, and the account of it.

Each message, event and increment is answered with success, answered with an error that says that nothing happened, or
left open. What was answered must be there once; what was left open may be.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any, Callable, Coroutine, Dict, List, Sequence, Set

from synap import AsyncSynapClient
from synap.errors import EventsLostError, MessageNotFoundError, SynapError

__all__ = ["Account", "run"]

QUEUES = [f"q{number}" for number in range(24)]
ROOMS = [f"r{number}" for number in range(6)]
COUNTERS = [f"c{number}" for number in range(24)]
LEASE = 3.0

Nemesis = Callable[[], Coroutine[Any, Any, None]]


class Account:
    """What was sent, what came, and what was said about it."""

    def __init__(self) -> None:
        self.sent: Set[int] = set()
        self.open: Set[int] = set()
        self.ids: Dict[int, Set[str]] = {}
        self.acked: Set[int] = set()
        self.acked_open: Set[int] = set()
        self.settled: Set[int] = set()
        """Those whose acknowledgement was refused because they were settled."""
        self.returned = 0
        self.added: Counter[str] = Counter()
        self.added_open: Counter[str] = Counter()
        self.events: Dict[str, Set[int]] = {room: set() for room in ROOMS}
        self.events_open: Dict[str, Set[int]] = {room: set() for room in ROOMS}
        self.events_lost_said = 0
        self.errors: Counter[str] = Counter()
        self.gap = 0.0
        self.findings: List[str] = []

    def failed(self, error: SynapError) -> bool:
        """Count an error; returns whether its request may have happened."""
        self.errors[error.code] += 1
        return error.may_have_happened

    @property
    def lost(self) -> int:
        """Acknowledged publishes that were never delivered."""
        return len(self.sent - set(self.ids))

    @property
    def twice(self) -> int:
        """Publishes that became two messages."""
        return sum(len(ids) > 1 for ids in self.ids.values())


async def run(
    url: str,
    durability: str,
    nemesis: Nemesis,
    seconds: float,
    *,
    patience: float = 15.0,
    services: Sequence[str] = (),
) -> Account:
    """Put load on a cluster for at least `seconds`, let `nemesis` happen meanwhile, and settle the account.

    Half of the load goes directly to the cluster, where there are gateways (`services`): the rest through them.
    """
    account = Account()
    options = {"durability": durability, "patience": patience}
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncSynapClient(url=url, engine=options, timeout=60.0, retries=8))
        clients = [
            client,
            *[await stack.enter_async_context(AsyncSynapClient(url=url, timeout=60.0, retries=30)) for url in services],
        ]
        stop = asyncio.Event()
        turn = itertools.cycle(clients if len(clients) == 1 else [client, clients[1], client, clients[-1]])
        workers = [
            *(_produce(next(turn), account, stop, number) for number in range(12)),
            *(_consume(next(turn), account, stop, queue) for queue in QUEUES),
            *(_count(next(turn), account, stop, number) for number in range(6)),
            *(_tell(next(turn), account, stop, room) for room in ROOMS),
            *(_follow(next(turn), account, stop, room) for room in ROOMS),
        ]
        tasks = [asyncio.ensure_future(worker) for worker in workers]
        began = time.monotonic()
        try:
            await asyncio.sleep(1.0)
            await nemesis()
            await asyncio.sleep(max(0.0, seconds - (time.monotonic() - began)))
        finally:
            stop.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        account.findings += [f"a worker ended: {result!r}" for result in results if isinstance(result, Exception)]
        await asyncio.gather(*(_drain(client, account, queue) for queue in QUEUES))
        await _settle(client, account)
    return account


async def _produce(client: AsyncSynapClient, account: Account, stop: asyncio.Event, producer: int) -> None:
    number = producer * 10_000_000
    last = time.monotonic()
    while not stop.is_set():
        number += 1
        try:
            await client.queue.publish(QUEUES[number % len(QUEUES)], number)
        except SynapError as error:
            if account.failed(error):
                account.open.add(number)
        else:
            account.sent.add(number)
            now = time.monotonic()
            account.gap = max(account.gap, now - last)
            last = now
        await asyncio.sleep(0.002)


async def _consume(client: AsyncSynapClient, account: Account, stop: asyncio.Event, queue: str) -> None:
    while not stop.is_set():
        await _consume_one(client, account, queue, 0.5)


async def _consume_one(client: AsyncSynapClient, account: Account, queue: str, timeout: float) -> bool:
    try:
        message = await client.queue.consume(queue, timeout=timeout, ack_deadline=LEASE)
    except SynapError as error:
        account.failed(error)
        return True
    if message is None:
        return False
    number = message.message
    account.ids.setdefault(number, set()).add(message.message_id.partition("@")[0])
    if number in account.acked:
        account.returned += 1
    try:
        await client.queue.ack(queue, message.message_id)
    except MessageNotFoundError as error:
        account.errors["MESSAGE_NOT_FOUND"] += 1
        if error.details["reason"] == "settled":
            account.settled.add(number)
    except SynapError as error:
        if account.failed(error):
            account.acked_open.add(number)
    else:
        account.acked.add(number)
    return True


async def _drain(client: AsyncSynapClient, account: Account, queue: str) -> None:
    """Consume until nothing is left, also of what is leased or delayed."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if await _consume_one(client, account, queue, 0.2):
            continue
        try:
            stats = await client.queue.stats(queue)
        except SynapError as error:
            account.failed(error)
            continue
        if stats.depth + stats.pending + stats.delayed == 0:
            return
    account.findings.append(f"{queue} did not drain")


async def _count(client: AsyncSynapClient, account: Account, stop: asyncio.Event, worker: int) -> None:
    turn = worker
    while not stop.is_set():
        turn += 1
        key = COUNTERS[turn % len(COUNTERS)]
        try:
            await client.kv.incr(key)
        except SynapError as error:
            if account.failed(error):
                account.added_open[key] += 1
        else:
            account.added[key] += 1
        await asyncio.sleep(0.003)


async def _tell(client: AsyncSynapClient, account: Account, stop: asyncio.Event, room: str) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        try:
            await client.stream.publish(room, "e", number)
        except SynapError as error:
            if account.failed(error):
                account.events_open[room].add(number)
        else:
            account.events[room].add(number)
        await asyncio.sleep(0.004)


async def _follow(client: AsyncSynapClient, account: Account, stop: asyncio.Event, room: str) -> None:
    """Follow a room, and note where an event is missing or comes twice."""
    expected = 0
    while not stop.is_set():
        try:
            subscription = await client.stream.subscribe(room, from_offset=expected)
        except SynapError as error:
            account.failed(error)
            continue
        try:
            while not stop.is_set():
                try:
                    event = await asyncio.wait_for(subscription.__anext__(), 0.5)
                except asyncio.TimeoutError:
                    continue
                if event.offset != expected:
                    account.findings.append(f"{room}: event {event.offset} came where {expected} was due")
                expected = event.offset + 1
        except StopAsyncIteration:
            pass
        except EventsLostError as error:
            account.events_lost_said += 1
            expected = int(error.details["from"])
        except SynapError as error:
            account.failed(error)
        finally:
            await subscription.unsubscribe()


async def _settle(client: AsyncSynapClient, account: Account) -> None:
    """Compare counters, rooms and refused acknowledgements with what was answered."""
    own = account.settled - account.acked - account.acked_open
    if own:
        account.findings.append(f"{len(own)} acknowledgements were refused for having been done")
    for key in COUNTERS:
        found = await client.kv.get(key)
        value = int(found.value or 0)
        least = account.added[key]
        if not least <= value <= least + account.added_open[key]:
            account.findings.append(f"{key} is {value}; {least} were answered and {account.added_open[key]} left open")
    for room in ROOMS:
        seen: List[int] = []
        offset = 0
        while True:
            page = await client.stream.history(room, from_offset=offset, limit=1000)
            if not page.events:
                break
            seen += [event.data for event in page.events]
            offset = page.events[-1].offset + 1
        missing = account.events[room] - set(seen)
        if missing:
            account.findings.append(f"{room}: {len(missing)} events that were answered are not there")
        if len(seen) != len(set(seen)):
            account.findings.append(f"{room}: an event is there twice")
