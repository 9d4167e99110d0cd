"""A queue and the order in it.

Ten lanes, one per priority. A lane is a deque of messages in the order they came, and beside it a heap of those that
came back from a lease and have others before them; the next one out is the lesser of the two fronts. An entry of
either whose message is not ready any more is stale, and skipped when it comes to the front. A message's `sequence` is
its place.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from heapq import heappop, heappush
from typing import Any, Deque, Dict, List, Optional, Tuple

from msgspec import Struct

from synap.commands import QueueConfig

__all__ = ["DELAYED", "GONE", "LEASED", "READY", "TOTALS", "Contents", "Message", "Queue"]

READY, LEASED, DELAYED, GONE = range(4)

MESSAGE_COST = 300
"""Bytes that a message is estimated to take beside its value and headers."""

TOTALS = ("published", "consumed", "acked", "nacked", "dead_lettered", "dropped")
"""What a queue counts; `dropped` are the oldest dead letters that a full dead-letter queue let go."""


class Message(Struct, gc=False, eq=False):
    """A message; `deadline` is the end of its lease, or of its delay, `ripe` when its first delay ended (0: it had
    none).
    """

    number: int
    sequence: int
    priority: int
    value: bytes
    headers: Optional[Dict[str, str]]
    published: float
    retry_count: int = 0
    state: int = READY
    deadline: float = 0.0
    lease: int = 0
    holder: str = ""
    ripe: float = 0.0

    def age(self, now: float) -> float:
        """Return for how long it could have been taken; a delay is no age."""
        return max(now - (self.ripe or self.published), 0.0)

    def cost(self) -> int:
        cost = MESSAGE_COST + len(self.value)
        if self.headers:
            cost += sum(len(name) + len(text) + 120 for name, text in self.headers.items())
        return cost


class _Lane:
    __slots__ = ("back", "count", "fresh")

    def __init__(self) -> None:
        self.fresh: Deque[Message] = deque()
        self.back: List[Tuple[int, Message]] = []
        self.count = 0

    def first(self) -> Message:
        """Look at the next one out; the lane is not empty."""
        fresh, back = self.fresh, self.back
        while fresh and fresh[0].state:
            fresh.popleft()
        while back and (back[0][1].state or back[0][1].sequence != back[0][0]):
            heappop(back)
        if back and (not fresh or back[0][0] < fresh[0].sequence):
            return back[0][1]
        return fresh[0]


Contents = Tuple[List[Optional[_Lane]], int, int, Dict[str, Message], Dict[int, Message], int]


class Queue:
    """What is in one queue, what it counts, and how it was configured."""

    __slots__ = (
        "acked",
        "config",
        "consumed",
        "dead_lettered",
        "delayed",
        "dropped",
        "incarnation",
        "lanes",
        "leased",
        "mask",
        "messages",
        "nacked",
        "name",
        "next_number",
        "next_sequence",
        "prefix",
        "published",
        "ready",
        "used",
        "waiters",
    )

    def __init__(self, name: str, incarnation: int, config: QueueConfig) -> None:
        self.name = name
        self.incarnation = incarnation
        self.prefix = f"{incarnation:x}-"
        self.config = config
        self.next_number = self.next_sequence = 1
        self.published = self.consumed = self.acked = self.nacked = self.dead_lettered = self.dropped = 0
        self.waiters: OrderedDict[Any, None] = OrderedDict()
        self.messages: Dict[int, Message] = {}
        """All messages by number, while records are replayed; empty afterwards."""
        self.set_contents(([None] * 10, 0, 0, {}, {}, 0))

    # ------------------------------------------------------------------------------------------ as a whole

    def contents(self) -> Contents:
        return self.lanes, self.mask, self.ready, self.leased, self.delayed, self.used

    def set_contents(self, contents: Contents) -> None:
        self.lanes, self.mask, self.ready, self.leased, self.delayed, self.used = contents

    @property
    def depth(self) -> int:
        """Messages that count against `max_depth`: ready, leased and delayed."""
        return self.ready + len(self.leased) + len(self.delayed)

    def listing(self) -> List[Message]:
        """List what is in the queue, in no order; some may be listed twice, and some that are gone."""
        found: List[Message] = []
        for lane in self.lanes:
            if lane is not None:
                found += lane.fresh
                found += [message for _, message in lane.back]
        found += self.delayed.values()
        found += self.leased.values()
        return found

    # ------------------------------------------------------------------------------------------ ready messages

    def enter(self, message: Message) -> None:
        """Put a message at the end of its lane."""
        priority = message.priority
        lane = self.lanes[priority]
        if lane is None:
            lane = self.lanes[priority] = _Lane()
        lane.fresh.append(message)
        lane.count += 1
        self.ready += 1
        self.mask |= 1 << priority

    def put_back(self, message: Message) -> None:
        """Put a message back at the place its sequence says."""
        priority = message.priority
        lane = self.lanes[priority]
        if lane is None:
            lane = self.lanes[priority] = _Lane()
        fresh = lane.fresh
        if not fresh or message.sequence < fresh[0].sequence:
            fresh.appendleft(message)
        else:
            heappush(lane.back, (message.sequence, message))
        lane.count += 1
        self.ready += 1
        self.mask |= 1 << priority

    def position(self, priority: int) -> int:
        """Count the ready messages that leave no later than the last one of a lane."""
        mask = self.mask
        if mask >> priority << priority == mask:
            return self.ready
        return sum(lane.count for lane in self.lanes[priority:] if lane is not None)

    def take(self) -> Message:
        """Take the next one out; there is one."""
        priority = self.mask.bit_length() - 1
        lane = self.lanes[priority]
        assert lane is not None
        fresh = lane.fresh
        if lane.back or fresh[0].state:
            message = lane.first()
            if fresh and fresh[0] is message:
                fresh.popleft()
            else:
                heappop(lane.back)
        else:
            message = fresh.popleft()
        self._left(lane, priority)
        return message

    def withdraw(self, message: Message, state: int) -> None:
        """Take a ready message out of wherever it is; the caller knows that it is in."""
        message.state = state
        lane = self.lanes[message.priority]
        assert lane is not None
        if lane.fresh and lane.fresh[-1] is message:
            lane.fresh.pop()
        self._left(lane, message.priority)

    def _left(self, lane: _Lane, priority: int) -> None:
        lane.count -= 1
        self.ready -= 1
        if not lane.count:
            self.mask &= ~(1 << priority)
            if lane.back:
                lane.back = []
            if lane.fresh:
                lane.fresh.clear()

    def oldest(self) -> Optional[Message]:
        """Look at the ready message that entered first, of whatever priority."""
        fronts = [lane.first() for lane in self.lanes if lane is not None and lane.count]
        return min(fronts, key=lambda message: message.sequence) if fronts else None
