"""Background work of the cluster, done by one gateway at a time: dead letters, delays, expired entries, retention."""

from __future__ import annotations

from typing import Any, Optional

from synap.cluster.calls import Call
from synap.cluster.link import Link
from synap.cluster.queues import Queues
from synap.cluster.running import Running, begin_each
from synap.engine.limits import Limits
from synap.errors import SynapError

LEASE = 3000
"""Milliseconds for which a gateway that sweeps is the only one."""
SLOW = 16
"""Partitions whose keys and rooms are looked at in one round; queues are looked at in all of them."""


class Sweeper:
    """Sweeps once a second, where this gateway is the one that does."""

    def __init__(self, link: Link, queues: Queues, gateway: bytes, limits: Limits) -> None:
        self.link = link
        self.queues = queues
        self.gateway = gateway
        self.limits = limits
        self._partition = 0
        self._running: Optional[Running] = None

    def sweep(self) -> None:
        """Begin a round, unless one is under way."""
        if self._running is None or self._running.done:
            self._running = Running(self._sweep()).start()

    async def _sweep(self) -> None:
        link, places = self.link, self.link.places
        try:
            key = places.bases[0] + b"sweeper"
            if not await link.call(0, "syn_sweeper", (key,), (self.gateway, b"%d" % LEASE)):
                return
            dues = [link.call(q, "syn_dues", (base + b"QD",), changes=False) for q, base in enumerate(places.bases)]
            names = [await self._tried(call) for call in dues]
            due = [name.decode() for some in names for name in some or ()]
            for call in await begin_each(self.queues.settle, due, link.soon):
                await self._tried(call)
            for _ in range(min(SLOW, places.count)):
                partition = self._partition
                self._partition = (partition + 1) % places.count  # the next round is not to end here, too
                if names[partition] is not None:
                    await self._slow(partition)
        except SynapError:
            pass  # the next round tries again

    async def _tried(self, call: Call) -> Any:
        """Return a call's answer, None where it fails: the node of a partition may be away, and others are there."""
        try:
            return await call
        except SynapError:
            return None

    async def _slow(self, partition: int) -> None:
        link, places = self.link, self.link.places
        await link.call(partition, "syn_sweep", places.index(partition))
        for room in await link.command(partition, "SMEMBERS", places.bases[partition] + b"R"):
            name = room.decode()
            keys = (places.memory(partition, b""), *places.room(partition, name))
            age = b"%d" % (self.limits.room_age * 1000)
            await link.call(partition, "syn_s_trim", keys, (b"", b"", room, age))
