"""Whether the cluster takes writes: what a gateway's health and its log say of the nodes."""

from __future__ import annotations

import logging
from typing import Callable, Dict, List, Optional

from synap.cluster.calls import Call, Refused, unavailable
from synap.cluster.link import Link
from synap.cluster.options import Address
from synap.cluster.running import Running
from synap.errors import SynapError

log = logging.getLogger("synap.cluster")

LOOK_EVERY = 2.0
"""Seconds between two looks at the primaries."""


class Condition:
    """Regularly sends each primary a write that changes nothing, over the connections that calls use and with their
    patience, so that it is refused where they are. A failover that calls wait for is no trouble."""

    def __init__(self, link: Link, judged: Callable[[Optional[SynapError], bool], None]) -> None:
        """`judged` is called after each look: with what is wrong, in words that name no machines, since strangers are
        shown them, and whether other primaries take writes."""
        self._link = link
        self._judged = judged
        self._calls: List[Call] = []
        self._running: Optional[Running] = None
        self._told: Dict[Optional[Address], List[str]] = {}
        """Those whose trouble was logged, and each reason that was."""

    @property
    def under_way(self) -> int:
        """Calls of a look that are not answered yet."""
        return sum(not call.done for call in self._calls)

    def look(self) -> None:
        """Look at the primaries in the background, unless the last look still waits for one."""
        if self._running is None or self._running.done:
            self._running = Running(self._look())
            self._running.start()

    async def _look(self) -> None:
        link, places = self._link, self._link.places
        partitions = {owner: partition for partition, owner in enumerate(link.topology.owners)}
        calls = {
            owner: link.command(partition, "UNLINK", places.bases[partition] + b"none", changes=True)
            for owner, partition in partitions.items()
        }
        self._calls = list(calls.values())
        why: Dict[Optional[Address], str] = {}
        for owner, call in calls.items():
            try:
                await call
            except (SynapError, Refused) as error:
                why[owner] = f"{owner}: {error}" if owner else str(error)
        self._note(why, len(calls))

    def _note(self, why: Dict[Optional[Address], str], of: int) -> None:
        for address, text in why.items():
            told = self._told.setdefault(address, [])
            if text not in told:
                told.append(text)
                log.warning("writes to a part of the cluster fail: %s", text)
        for address in [address for address in self._told if address not in why]:
            log.warning("writes to that part of the cluster work again (%s)", self._told.pop(address)[-1])
        text = f"{len(why)} of the cluster's {of} primaries can't take writes; the service's log says why"
        self._judged(unavailable(text) if why else None, len(why) < of)
