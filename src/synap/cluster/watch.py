"""A link's background work: learn who has the slots, notice silent nodes, load the library where it is missing."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Dict, Optional, Set

import hiredis

from synap.cluster.node import Node
from synap.cluster.options import Address
from synap.cluster.topology import converse
from synap.errors import SynapError

if TYPE_CHECKING:
    from synap.cluster.link import Link

log = logging.getLogger("synap.cluster")

SILENCE = 1.0
"""Seconds that a node may be silent before the others are asked whether it still has its slots."""
DEAD = 3.0
"""Seconds that a connection may carry nothing before it is given up, where its node answers on another."""
EVERY = 0.25
"""Seconds between two checks of the nodes: one timer for all of them, none for each call."""
RELEARN = 30.0
"""Seconds after which the topology is learned again in any case."""


class Watch:
    """Keeps a link's topology up to date, and gives up dead connections."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._refreshing: Optional[asyncio.Task[None]] = None
        self._ticker: Optional[asyncio.TimerHandle] = None

    def end(self) -> None:
        """Stop checking."""
        if self._ticker is not None:
            self._ticker.cancel()

    # ------------------------------------------------------------------------------------------ who has the slots

    def refresh(self) -> None:
        """Learn the topology anew; one refresh at a time."""
        if self._refreshing is None and not self._link.closed:
            self._link.soon(self._start_refreshing)

    def _start_refreshing(self) -> None:
        if self._refreshing is None and not self._link.closed:
            task = self._refreshing = self._link.spawn(self._learn())
            task.add_done_callback(self._refreshed)

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None

    async def _learn(self) -> None:
        link = self._link
        silent = [node.address for node in link.nodes.values() if self._silent(node)]
        try:
            changed = await link.topology.learn(link.places, silent)
        except SynapError as error:
            log.debug("no node says who has the slots: %s", error.message)
        else:
            with link.guard:
                if changed:
                    link.moved()
                for address in silent:
                    node = link.nodes.get(address)
                    if node is not None and self._silent(node) and address not in link.topology.owners:
                        log.warning("%s is silent and has no slots any more; its calls go elsewhere", address)
                        node.abort()
                link.turned()
        for address in silent:
            node = link.nodes.get(address)
            if node is not None and self._silent(node, DEAD):
                await self._try_another(node)
        await asyncio.sleep(0.05)

    # ------------------------------------------------------------------------------------------ silent nodes

    async def _try_another(self, node: Node) -> None:
        """Give up a silent connection whose node answers on another: a middlebox may have dropped its state."""
        link, before = self._link, node.last_active
        try:
            await converse(node.address, link.options, ("PING",), timeout=1.0)
        except (OSError, asyncio.TimeoutError, hiredis.ReplyError):
            return  # the node is busy, or gone, which the others will report
        await asyncio.sleep(0.25)
        if node.last_active == before and node.waiting:
            log.warning("a connection to %s carries nothing any more; its calls go over another", node.address)
            with link.guard:
                node.abort()

    def _silent(self, node: Node, seconds: float = SILENCE) -> bool:
        return bool(node.waiting) and self._link.loop.time() - node.last_active > seconds

    def check(self) -> None:
        """Check for silent nodes and for calls whose time is up, from now on every `EVERY` seconds."""
        link = self._link
        if link.closed:
            return
        self._ticker = link.loop.call_later(EVERY, self.check)
        now = link.loop.time()
        if now - link.topology.learned > RELEARN:
            self.refresh()
        with link.guard:
            for node in list(link.nodes.values()):
                if node.moves():
                    node.last_active = now
                if self._silent(node):
                    self.refresh()
                    link.late(node, now)
            link.check(now)
            link.turned()


class Loader:
    """Loads the function library at nodes that lack it, one load of a node at a time."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: Dict[Address, Set[int]] = {}

    def load(self, address: Address, partition: int) -> None:
        """Load the library at a node, and have the link send the partition's calls again that missed it."""
        waiting = self._waiting.get(address)
        if waiting is not None:
            waiting.add(partition)
            return
        self._waiting[address] = {partition}
        self._link.soon(lambda: self._link.spawn(self._load(address)))

    async def _load(self, address: Address) -> None:
        link, error = self._link, ""
        try:
            await link.topology.load(address)
        except (OSError, asyncio.TimeoutError, hiredis.ReplyError) as refused:
            error = str(refused)
        with link.guard:
            link.loaded(self._waiting.pop(address, set()), error)
            link.turned()
