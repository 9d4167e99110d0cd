"""Whether the nodes of the cluster serve: what a gateway's health and its log say of them."""

from __future__ import annotations

import asyncio
import logging
from typing import Callable, Dict, Optional

import hiredis

from synap.cluster.calls import unanswered, unavailable
from synap.cluster.link import Link
from synap.cluster.options import Address
from synap.cluster.topology import converse
from synap.errors import SynapError

log = logging.getLogger("synap.cluster")

LOOK_EVERY = 2.0
"""Seconds between two looks at the primaries."""
_ELSEWHERE = ("MOVED", "ASK", "TRYAGAIN")
"""First words of answers of a node that serves, but hasn't that partition any more."""


class Condition:
    """Looks at each primary regularly. One that doesn't serve for longer than calls are tried (`patience`), such as
    while the others agree on a failover, is trouble."""

    def __init__(self, link: Link, judged: Callable[[Optional[SynapError], bool], None]) -> None:
        """`judged` is called after each look: with what is wrong, in words that name no machines, since strangers are
        shown them, and whether other primaries serve."""
        self._link = link
        self._judged = judged
        self._since: Dict[Optional[Address], float] = {}
        """By the address of a primary that doesn't serve (None: partitions that no node has): when that was noticed."""
        self._told: Dict[Optional[Address], str] = {}
        """Those whose trouble was logged, and why."""
        self._looks = False

    def look(self) -> None:
        """Look at the primaries in the background."""
        if not self._looks:
            self._looks = True
            self._link.soon(lambda: self._link.spawn(self._look()))

    async def _look(self) -> None:
        try:
            owners = self._link.topology.owners
            first = {owner: partition for partition, owner in reversed(list(enumerate(owners)))}
            asked = [self._ask(address, partition) for address, partition in first.items()]
            why = {address: text for address, text in zip(first, await asyncio.gather(*asked)) if text}
        finally:
            self._looks = False
        with self._link.guard:
            self._note(why, len(first))
        if why:
            self._link.refresh()

    async def _ask(self, address: Optional[Address], partition: int) -> str:
        """Return why the partition can't be written to at this node; an empty text where it can."""
        link = self._link
        if address is None:
            return "some slots have no node"
        key = link.places.bases[partition] + b"kx"
        try:
            info, answer = await converse(address, link.options, ("INFO", "replication"), ("EXISTS", key))
        except (OSError, asyncio.TimeoutError, hiredis.ReplyError) as error:
            return unanswered(address, error)
        for given in (info, answer):
            if isinstance(given, Exception) and not str(given).startswith(_ELSEWHERE):
                return f"{address} answers {str(given)!r}"
        replicas = info.count(b"state=online") if isinstance(info, bytes) else 0
        if replicas < link.options.copies:
            return f"{address} has {replicas} of the {link.options.copies} replicas that must confirm a write"
        return ""

    def _note(self, why: Dict[Optional[Address], str], of: int) -> None:
        now = self._link.loop.time()
        self._since = {address: self._since.get(address, now) for address in why}
        lasting = [address for address, since in self._since.items() if now - since >= self._link.options.patience]
        for address in lasting:
            if address not in self._told:
                self._told[address] = why[address]
                log.warning("writes to a part of the cluster fail: %s", why[address])
        for address in [address for address in self._told if address not in why]:
            log.warning("writes to that part of the cluster work again (%s)", self._told.pop(address))
        text = f"{len(lasting)} of the cluster's {of} primaries can't take writes; the service's log says why"
        self._judged(unavailable(text) if lasting else None, len(lasting) < of)
