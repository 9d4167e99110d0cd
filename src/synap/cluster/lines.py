"""The lines of consumers that wait at this gateway, one for each queue."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Callable, Dict, List, Optional

from synap.cluster.calls import Refused
from synap.cluster.joining import Wanted
from synap.cluster.memory import Request
from synap.cluster.queues import Delivery
from synap.cluster.running import Pending, Running
from synap.engine.queuestore import no_queue
from synap.errors import SynapError

if TYPE_CHECKING:
    from synap.cluster.waiting import Consumers

POLL = 1.0
"""Seconds after which waiters ask without a hint, give or take a fifth."""
POLLS = 100
"""Queues that a gateway asks without a hint in a second; where it waits for more, it asks each less often."""
FEW, TOGETHER = 2, 50
"""Waiters that the first call asks for, and the most that one does: twice as many as long as all get something. Of two,
the second mostly finds nothing, which registers the gateway again."""


class Waiter:
    """A caller that waits for up to `most` messages of any of some queues."""

    __slots__ = ("known", "most", "own", "queues", "requests", "result")

    def __init__(self, request: Request, queues: List[str], lease: bytes, most: int) -> None:
        self.requests = {queue: request.piece(place) if place else request for place, queue in enumerate(queues)}
        """What each queue is asked under: two of one partition are remembered side by side."""
        self.queues = queues
        self.most = most
        self.own = (lease, request.kin, b"%d" % most, b"", b"")
        self.known: Dict[str, bytes] = {}
        """The inc of each queue that it was seen to be empty under."""
        self.result = Pending()

    def served_by(self, queue: str) -> bool:
        """Whether it got messages of this queue."""
        found: List[Delivery] = self.result.value or []
        return bool(found) and found[0].queue == queue


class Line:
    """The waiters of this gateway for one queue, in the order of their arrival."""

    def __init__(self, consumers: Consumers, queue: str) -> None:
        self.consumers = consumers
        self.queue = queue
        self.waiters: Dict[Waiter, None] = {}
        self.asking: Optional[Running] = None
        self.again = False
        self._forget_timer: Callable[[], None] = lambda: None

    def ask(self) -> None:
        """Consume for those who wait; while that is under way, once more afterwards."""
        if self.asking is not None:
            self.again = True
            return
        self.asking = running = Running(self._ask())

        def done() -> None:
            self.asking = None
            if running.error is not None and not isinstance(running.error, (SynapError, Refused)):
                raise running.error
            if self.again and self.waiters:
                self.again = False
                self.ask()

        running.start().when_done(done)

    async def _ask(self) -> None:
        consumers = self.consumers
        due, few = 0, FEW
        while self.waiters:
            self.again = False
            present = [waiter for waiter in self.waiters if not waiter.result.done]
            if not present:
                break
            known = present[0].known.get(self.queue, b"")
            some = [waiter for waiter in present[:few] if waiter.known.get(self.queue, b"") == known]
            try:
                answers, inc, due = await consumers.take(
                    self.queue,
                    [Wanted(waiter.requests[self.queue], waiter.own) for waiter in some],
                    len(self.waiters),
                    known=known,
                )
            except (SynapError, Refused) as error:
                for waiter in some:
                    self.leave(waiter)
                    waiter.result.finish(error=error)
                break  # the others ask again later: the hint that this may have answered does not come again
            for waiter, deliveries in zip(some, answers):
                if deliveries:
                    if waiter.result.done:
                        for delivery in deliveries:
                            consumers.queues.give_back(delivery)
                    else:
                        waiter.result.finish(deliveries)
                        consumers.remove(waiter)
            for waiter in present:
                seen = waiter.known.get(self.queue, inc)
                if seen != inc and (inc or seen == known):  # it was deleted; of others than `known`, none says nothing
                    waiter.result.finish(error=no_queue(self.queue))
                elif inc:
                    waiter.known[self.queue] = inc
            few = min(2 * few, TOGETHER) if all(answers) else FEW
            if inc and not all(answers) and not self.again:
                break
        if self.waiters:
            self._look_again(due)

    def _look_again(self, due: int) -> None:
        """Set the timer of the next poll: when something is due, in so many ms, and after `POLL` at the latest."""
        self._forget_timer()
        delay = max(POLL, len(self.consumers.lines) / POLLS) * random.uniform(0.8, 1.2)
        if due:
            delay = min(delay, due / 1000 + 0.001)

        def ring() -> None:
            if self.waiters:
                self.ask()

        self._forget_timer = self.consumers.link.later(delay, ring)

    def leave(self, waiter: Waiter) -> None:
        """Remove a waiter from the line. Where a call served it, that call has told the queue already."""
        if waiter not in self.waiters:
            return
        del self.waiters[waiter]
        if not self.waiters:
            self._forget_timer()
            if self.consumers.lines.get(self.queue) is self:
                del self.consumers.lines[self.queue]
        if not waiter.result.done or waiter.result.error is not None or not waiter.served_by(self.queue):
            self.consumers.withdraw(self)
