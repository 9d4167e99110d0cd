"""A queue and the order in it.

Ten lanes, one per priority. A lane is a deque of messages in the order they came, and beside it a heap of those that
came back from a lease and have others before them; the next one out is the lesser of the two fronts. An entry of
either whose message is not ready any more is stale, and skipped when it comes to the front. A message's `sequence` is
its place.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from heapq import heappop, heappush, nsmallest
from itertools import islice
from typing import Any, Deque, Dict, List, Optional, Tuple

from msgspec import UNSET, Struct, structs

from synap.commands import QueueConfig
from synap.engine.callers import Steps

__all__ = ["DELAYED", "GONE", "LEASED", "READY", "TOTALS", "Contents", "Message", "Queue", "Rules", "headers_cost"]

READY, LEASED, DELAYED, GONE = range(4)

MESSAGE_COST = 300
"""Bytes that a message is estimated to take beside its value and headers."""

TOTALS = ("published", "consumed", "acked", "nacked", "dead_lettered", "dropped")
"""What a queue counts; `dropped` are the oldest dead letters that a full dead-letter queue let go."""


LOOKS = 2000
"""Messages that are looked at in one step."""


class Rules(Struct, frozen=True):
    """How a queue is configured: `ack_deadline` and delays in seconds."""

    max_retries: int = 3
    ack_deadline: float = 30
    max_depth: int = 100_000
    dead_letter: bool = True
    retry_delay: float = 0
    retry_backoff: float = 2
    retry_max_delay: float = 3600

    def changed(self, config: Optional[QueueConfig]) -> Rules:
        """Return the rules with what is given in `config`."""
        given = {} if config is None else {k: v for k, v in structs.asdict(config).items() if v is not UNSET}
        return structs.replace(self, **given) if given else self

    def delay(self, retry_count: int) -> float:
        """Return the seconds that a message waits which was given back for the `retry_count`th time."""
        if not self.retry_delay:
            return 0.0
        return min(self.retry_delay * self.retry_backoff ** min(retry_count - 1, 64), self.retry_max_delay)


def headers_cost(headers: Dict[str, str]) -> int:
    """Estimate the bytes that headers take."""
    return sum(len(name) + len(text) + 120 for name, text in headers.items())


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
            cost += headers_cost(self.headers)
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

    def page(self, behind: int, limit: int) -> List[Message]:
        """List up to `limit` ready messages whose sequence is above `behind`, in order."""
        fresh = self.fresh
        low, high = 0, len(fresh)
        while low < high:  # bisect takes a key from Python 3.10 on only
            middle = (low + high) // 2
            if fresh[middle].sequence <= behind:
                low = middle + 1
            else:
                high = middle
        found = list(islice((m for m in islice(fresh, low, None) if not m.state), limit))
        if self.back:
            back = {m.sequence: m for place, m in self.back if not m.state and m.sequence == place > behind}
            found = nsmallest(limit, [*found, *back.values()], key=lambda message: message.sequence)
        return found

    def find(self, number: int) -> Steps:
        """Look for a ready message by its number, in steps; nothing may enter or leave meanwhile."""
        for done, message in enumerate(self.fresh, 1):
            if message.number == number and not message.state:
                return message
            if not done % LOOKS:
                yield
        for done, (place, message) in enumerate(self.back, 1):
            if message.number == number and not message.state and message.sequence == place:
                return message
            if not done % LOOKS:
                yield
        return None


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
        "passing",
        "prefix",
        "published",
        "ready",
        "used",
        "waiters",
    )

    def __init__(self, name: str, incarnation: int, config: Rules) -> None:
        self.name = name
        self.incarnation = incarnation
        self.prefix = f"{incarnation:x}-"
        self.config = config
        self.passing = False
        """Whether it was made by use alone."""
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

    def page(self, after: Optional[Message], limit: int) -> List[Message]:
        """List up to `limit` ready messages in the order they would leave, from behind `after` on."""
        found: List[Message] = []
        for lane in reversed(self.lanes[: 10 if after is None else after.priority + 1]):
            if lane is None or not lane.count:
                continue
            behind = after.sequence if after is not None and lane is self.lanes[after.priority] else -1
            found += lane.page(behind, limit - len(found))
            if len(found) == limit:
                break
        return found

    def find_ready(self, number: int) -> Steps:
        """Look for a ready message by its number, in steps; nothing may enter or leave meanwhile."""
        for lane in self.lanes:
            if lane is not None and lane.count:
                message = yield from lane.find(number)
                if message is not None:
                    return message
        return None

    def oldest(self) -> Optional[Message]:
        """Look at the ready message that entered first, of whatever priority."""
        fronts = [lane.first() for lane in self.lanes if lane is not None and lane.count]
        return min(fronts, key=lambda message: message.sequence) if fronts else None
