"""The order of calls within a partition, whatever has some of them sent again.

Calls leave in the order in which they were made, and a connection keeps it. One that must be sent again goes back to
its place in the backlog of its partition, and new calls go behind it. They leave again when nothing of the partition is
under way any more: first one alone, which finds out whether the node takes calls now, then all.

What a node takes of the calls that are under way, behind one that it refuses, comes before that one: no client can
prevent it without waiting for each answer.
"""

from __future__ import annotations

import logging
import random
from bisect import insort
from typing import TYPE_CHECKING, Callable, Dict, Iterable, List, Optional, Sequence

from synap.cluster.calls import Call, unavailable
from synap.cluster.options import Address

if TYPE_CHECKING:
    from synap.cluster.link import Link

log = logging.getLogger("synap.cluster")


class Backlog:
    """Calls of one partition that wait until they may be sent."""

    __slots__ = ("calls", "due", "first", "loading", "partition", "prevent", "together", "why")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.calls: List[Call] = []
        """Those that wait, in the order in which they were made."""
        self.first: Optional[Call] = None
        """The one that was sent ahead of them."""
        self.together = False
        """Whether all are sent next, none ahead."""
        self.due = 0.0
        self.prevent: Optional[Callable[[], None]] = None
        """Ends the pause that lasts until `due`; None where there is none."""
        self.loading = False
        """Whether a node that lacks the library is being given it."""
        self.why = "calls before it"
        """What the calls wait for."""


class Order:
    """The backlogs of a link, by partition: none where all goes well."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.backlogs: Dict[int, Backlog] = {}
        self.under_way = [0] * link.places.count
        """Calls that have no result yet by partition, those in its backlog included."""

    # ------------------------------------------------------------------------------------------ into a backlog

    def _put(self, call: Call) -> Backlog:
        """Put a call that was sent, or was about to be, back to its place."""
        backlog = self.backlogs.get(call.partition)
        if backlog is None:
            backlog = self.backlogs[call.partition] = Backlog(call.partition)
        if backlog.first is call:
            backlog.first = None
        call.asking = False
        insort(backlog.calls, call)
        return backlog

    def again(self, call: Call, reason: str, *, uncertain: bool = False, together: bool = False) -> None:
        """Send a call again after a while, if there is time.

        `together`: others may be taken though this one was refused, such as reads, so none waits for another.
        """
        link = self._link
        if uncertain and call.once:
            text = f"it may have taken effect, so it is not sent again ({reason})"
            link.fail(call, unavailable(text, may_have_happened=True))
            return
        link.count(reason)
        if uncertain:
            call.mark()
        backlog = self.backlogs.get(call.partition)
        if backlog is not None and backlog.prevent is not None:
            due = backlog.due
        else:
            due = link.loop.time() + min(0.02 * 1.6**call.attempts, 0.4) * random.uniform(0.5, 1.0)
        call.attempts += 1
        late = link.closed or due > call.deadline
        if not late:
            backlog = self._put(call)
        if backlog is not None and not link.closed:
            self._pause(backlog, due, reason, together)
        if late:
            link.fail(call, unavailable(f"the cluster did not take it in time ({reason})"))
            return
        log.debug("%s again: %s", call.function.decode(), reason)
        link.refresh()

    def _pause(self, backlog: Backlog, due: float, why: str, together: bool) -> None:
        """Send nothing until `due`; where there is a pause already, until that is over."""
        backlog.why = why
        if backlog.prevent is None:
            backlog.due = due
            backlog.together = together
            backlog.prevent = self._link.later(due - self._link.loop.time(), self._over, backlog)
        else:
            backlog.together = backlog.together and together

    def moved(self, call: Call) -> None:
        """Send a call again at once, where its partition is now."""
        backlog = self._put(call)
        backlog.together = False
        self._go_on(backlog)

    def asks(self, call: Call) -> bool:
        """Return whether a call may follow a redirect for itself alone; else it waits for those before it."""
        backlog = self.backlogs.get(call.partition)
        if backlog is None or backlog.first is call:
            return True
        self._put(call)
        self._go_on(backlog)
        return False

    def load(self, call: Call) -> None:
        """Have a call wait until its node was given the library."""
        backlog = self._put(call)
        backlog.loading = True
        backlog.together = False
        backlog.why = "the library is being loaded"

    def loaded(self, partitions: Iterable[int], error: str) -> None:
        """Send calls again that missed the library; `error` is why it can't be loaded."""
        for partition in partitions:
            backlog = self.backlogs.get(partition)
            if backlog is None or not backlog.loading:
                continue
            backlog.loading = False
            if not error:
                self._go_on(backlog)
                continue
            calls, backlog.calls = backlog.calls, []
            for call in calls:
                self.again(call, f"the library can't be loaded: {error}", together=True)

    def move(self, before: Sequence[Optional[Address]], after: Sequence[Optional[Address]]) -> None:
        """Hold back what is sent to partitions that have another node now, until what is under way to them is over."""
        if len(before) != len(after):  # they are not in use yet
            self.under_way += [0] * (len(after) - len(self.under_way))
            return
        for partition, (old, new) in enumerate(zip(before, after)):
            if old != new and self.under_way[partition] and partition not in self.backlogs:
                self.backlogs[partition] = Backlog(partition)
        held: Dict[int, Backlog] = {}
        for address, calls in self._link.parked.items():  # it may take long until that node is found to be away
            elsewhere = [call for call in calls if not call.asking and after[call.partition] != address]
            if elsewhere:
                calls[:] = [call for call in calls if call.asking or after[call.partition] == address]
                held.update((call.partition, self._put(call)) for call in elsewhere)
        for backlog in held.values():
            self._go_on(backlog)

    def admit(self, calls: List[Call]) -> List[Call]:
        """Take back of the calls that are about to leave those that others come before."""
        admitted: List[Call] = []
        held: Dict[int, Backlog] = {}
        for call in calls:
            backlog = self.backlogs.get(call.partition)
            if backlog is None or backlog.first is call:
                admitted.append(call)
            else:
                held[call.partition] = self._put(call)
        for backlog in held.values():
            self._go_on(backlog)
        return admitted

    # ------------------------------------------------------------------------------------------ out of a backlog

    def _over(self, backlog: Backlog) -> None:
        """End a pause."""
        backlog.prevent = None
        self._go_on(backlog)

    def ended(self, partition: int) -> None:
        """Note that a call has its result."""
        backlog = self.backlogs.get(partition)
        if backlog is not None:
            self._go_on(backlog)

    def _go_on(self, backlog: Backlog) -> None:
        """Send what waits, if it may."""
        partition, calls = backlog.partition, backlog.calls
        if self.backlogs.get(partition) is not backlog or self.under_way[partition] > len(calls):
            return
        if not calls:
            if backlog.prevent is not None:
                backlog.prevent()
            del self.backlogs[partition]
        elif backlog.prevent is None and not backlog.loading:
            if not backlog.together:
                backlog.together = True
                backlog.first = calls.pop(0)
                self._link.dispatch(backlog.first)
                return
            del self.backlogs[partition]
            for call in calls:
                self._link.dispatch(call)

    def check(self, now: float) -> None:
        """Fail the calls that waited for too long."""
        for backlog in list(self.backlogs.values()):
            late = [call for call in backlog.calls if call.done or call.deadline < now]
            if late:
                backlog.calls = [call for call in backlog.calls if not call.done and call.deadline >= now]
                for call in late:
                    self._link.fail(call, unavailable(f"the cluster did not take it in time ({backlog.why})"))

    def close(self) -> None:
        """Fail all calls that wait."""
        while self.backlogs:
            _, backlog = self.backlogs.popitem()
            for call in backlog.calls:
                self._link.fail(call, unavailable("the connection to the cluster was closed"))
