"""A queue and the order in it.

Ten levels, one for each priority. A level is a deque of messages in the order they came, and beside it a heap of those
that came back from a lease and have others before them; the next one out is the lesser of the two heads. An entry of
either whose message is no longer ready is stale, and skipped when it comes to the head. A message's `sequence` decides
its place.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from heapq import heappop, heappush, nsmallest
from itertools import chain, islice
from typing import Any, Deque, Dict, Iterator, List, Optional, Tuple

from msgspec import UNSET, Struct, structs

from synap.commands import QueueConfig
from synap.engine.callers import STEP, Steps

READY, LEASED, DELAYED, GONE = range(4)

MESSAGE_COST = 300
"""Bytes that a message is estimated to take beside its value and headers."""

TOTALS = ("published", "consumed", "acked", "nacked", "dead_lettered", "dropped")
"""Counters of a queue. `dropped`: messages discarded by a full dead-letter queue, or rejected without dead letters."""

USUAL = 5
"""The priority of most messages: its level is not made anew for each."""
EXAMINED = 2000
"""Messages that one step of a search examines."""


class Rules(Struct, frozen=True):
    """A queue's configuration: `ack_deadline` and delays in seconds."""

    max_retries: int = 3
    ack_deadline: float = 30
    max_depth: int = 100_000
    dead_letter: bool = True
    retry_delay: float = 0
    retry_backoff: float = 2
    retry_max_delay: float = 3600

    def changed(self, config: Optional[QueueConfig]) -> Rules:
        """Return a copy with the fields that `config` sets."""
        given = {} if config is None else {k: v for k, v in structs.asdict(config).items() if v is not UNSET}
        return structs.replace(self, **given) if given else self

    def delay(self, retry_count: int) -> float:
        """Return the backoff in seconds for a message that is requeued for the `retry_count`th time."""
        if not self.retry_delay:
            return 0.0
        return min(self.retry_delay * self.retry_backoff ** min(retry_count - 1, 64), self.retry_max_delay)


def headers_cost(headers: Dict[str, str]) -> int:
    """Estimate the bytes that headers take."""
    size = sum([len(name) + len(text) + 120 for name, text in headers.items()])
    for name, text in headers.items():
        if not (name.isascii() and text.isascii()):
            size += 3 * (len(name) + len(text))
    return size


class Message(Struct, gc=False, eq=False):
    """A message. `deadline`: end of its lease or delay. `ready_since`: end of its first delay (0: it had none)."""

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
    ready_since: float = 0.0

    def age(self, now: float) -> float:
        """Return the seconds it could have been taken; a first delay does not count."""
        return max(now - (self.ready_since or self.published), 0.0)

    def cost(self) -> int:
        cost = MESSAGE_COST + len(self.value)
        if self.headers:
            cost += headers_cost(self.headers)
        return cost


def taken_apart(contents: Contents) -> Steps:
    """Free messages in steps: a million of them take long to be freed at once."""
    levels, _, _, leased, delayed, _ = contents
    held: Tuple[Dict[Any, Message], ...] = (leased, delayed)
    for level in levels:
        if level is not None:
            while level.fresh:
                for _ in range(min(STEP, len(level.fresh))):
                    level.fresh.popleft()
                yield
            while level.returned:
                del level.returned[-STEP:]
                yield
    for messages in held:
        while messages:
            for _ in range(min(STEP, len(messages))):
                messages.popitem()
            yield


class _Level:
    __slots__ = ("count", "fresh", "returned", "stale")

    def __init__(self) -> None:
        self.fresh: Deque[Message] = deque()
        self.returned: List[Tuple[int, Message]] = []
        self.count = 0
        self.stale = 0
        """Bytes of the messages whose entries became stale since the last sweep, and may stay in memory for them."""

    def first(self) -> Message:
        """Return the next message out. The level is not empty."""
        fresh, returned = self.fresh, self.returned
        while fresh and fresh[0].state:
            fresh.popleft()
        while returned and (returned[0][1].state or returned[0][1].sequence != returned[0][0]):
            heappop(returned)
        if returned and (not fresh or returned[0][0] < fresh[0].sequence):
            return returned[0][1]
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
        if self.returned:
            ready = {m.sequence: m for m in found}  # some may be in both
            ready.update((place, m) for place, m in self.returned if not m.state and m.sequence == place > behind)
            found = nsmallest(limit, ready.values(), key=lambda message: message.sequence)
        return found

    def sweep(self) -> None:
        """Drop what is stale, or there twice."""
        self.fresh = deque(message for message in self.fresh if not message.state)
        there = {message.sequence for message in self.fresh}
        rest = {place: m for place, m in self.returned if not m.state and m.sequence == place and place not in there}
        self.returned = sorted(rest.items())
        self.stale = 0


Contents = Tuple[List[Optional[_Level]], int, int, Dict[str, Message], Dict[int, Message], int]


class Queue:
    """One queue: its messages, counters and configuration."""

    __slots__ = (
        "acked", "config", "consumed", "dead_lettered", "delayed", "dropped", "idle_check", "implicit", "incarnation",
        "leased", "levels", "mask", "messages", "nacked", "name", "next_number", "next_sequence", "prefix", "published",
        "ready", "used", "waiters",
    )  # fmt: skip

    def __init__(self, name: str, incarnation: int, config: Rules) -> None:
        self.name = name
        self.incarnation = incarnation
        self.prefix = f"{incarnation:x}-"
        self.config = config
        self.implicit = False
        """Whether it was made by its first use, not by `queue.create`."""
        self.idle_check = 0
        """The number of the only entry of `idle` that counts."""
        self.next_number = self.next_sequence = 1
        self.published = self.consumed = self.acked = self.nacked = self.dead_lettered = self.dropped = 0
        self.waiters: OrderedDict[Any, None] = OrderedDict()
        self.messages: Dict[int, Message] = {}
        """All messages by number, while records are replayed; empty afterwards."""
        self.set_contents(([None] * 10, 0, 0, {}, {}, 0))

    # ------------------------------------------------------------------------------------------ as a whole

    def contents(self) -> Contents:
        return self.levels, self.mask, self.ready, self.leased, self.delayed, self.used

    def set_contents(self, contents: Contents) -> None:
        self.levels, self.mask, self.ready, self.leased, self.delayed, self.used = contents

    @property
    def depth(self) -> int:
        """Messages that count against `max_depth`: ready, leased and delayed."""
        return self.ready + len(self.leased) + len(self.delayed)

    @property
    def returned(self) -> int:
        """Entries that a page has to be looked for in."""
        return sum([len(level.returned) for level in self.levels if level is not None])

    def listing(self) -> List[Message]:
        """List what is in the queue, in no order; some may be listed twice, and some that are gone."""
        return [*self._entries(), *self.delayed.values(), *self.leased.values()]

    def _entries(self) -> Iterator[Message]:
        """Go over what is ready, in no order; some may come twice, and some that aren't ready."""
        levels = [level for level in self.levels if level is not None]
        returned = ([message for _, message in level.returned] for level in levels)
        return chain(*[level.fresh for level in levels], chain.from_iterable(returned))

    # ------------------------------------------------------------------------------------------ ready messages

    def enter(self, message: Message) -> None:
        """Append a new message to its level."""
        priority = message.priority
        level = self.levels[priority]
        if level is None:
            level = self.levels[priority] = _Level()
        level.fresh.append(message)
        level.count += 1
        self.ready += 1
        self.mask |= 1 << priority

    def put_back(self, message: Message) -> None:
        """Put a message back where its sequence belongs."""
        priority = message.priority
        level = self.levels[priority]
        if level is None:
            level = self.levels[priority] = _Level()
        fresh = level.fresh
        if not fresh or message.sequence < fresh[0].sequence:
            fresh.appendleft(message)
        else:
            heappush(level.returned, (message.sequence, message))
        level.count += 1
        self.ready += 1
        self.mask |= 1 << priority

    def position(self, priority: int) -> int:
        """Return the place in line of the last message of a priority, counted from 1."""
        mask = self.mask
        if mask >> priority << priority == mask:
            return self.ready
        return sum(level.count for level in self.levels[priority:] if level is not None)

    def first(self) -> Message:
        """Return the next message out. There is one."""
        level = self.levels[self.mask.bit_length() - 1]
        assert level is not None
        return level.first()

    def take(self) -> Message:
        """Remove and return the next message out. There is one."""
        priority = self.mask.bit_length() - 1
        level = self.levels[priority]
        assert level is not None
        fresh = level.fresh
        if level.returned or fresh[0].state:
            message = level.first()
            if fresh and fresh[0] is message:
                fresh.popleft()
            else:
                heappop(level.returned)
        else:
            message = fresh.popleft()
        self.ready -= 1
        level.count -= 1
        if not level.count:
            self._emptied(level, priority)
        return message

    def withdraw(self, message: Message, state: int) -> None:
        """Remove a ready message, wherever it is."""
        message.state = state
        level = self.levels[message.priority]
        assert level is not None
        if level.fresh and level.fresh[-1] is message:
            level.fresh.pop()
        else:
            level.stale += message.cost()
        self.ready -= 1
        level.count -= 1
        if not level.count:
            self._emptied(level, message.priority)
        elif level.stale > MESSAGE_COST * level.count:  # as many entries are stale as aren't, or they hold much memory
            level.sweep()

    def _emptied(self, level: _Level, priority: int) -> None:
        """Drop a level without messages; the usual one stays, without what is stale in it."""
        self.mask &= ~(1 << priority)
        if priority != USUAL:
            self.levels[priority] = None
            return
        if level.returned:
            level.returned = []
        if level.fresh:
            level.fresh.clear()
        level.stale = 0

    def page(self, after: Optional[Message], limit: int) -> List[Message]:
        """List up to `limit` ready messages in the order they would leave, from behind `after` on."""
        found: List[Message] = []
        for level in reversed(self.levels[: 10 if after is None else after.priority + 1]):
            if level is None or not level.count:
                continue
            behind = after.sequence if after is not None and level is self.levels[after.priority] else -1
            found += level.page(behind, limit - len(found))
            if len(found) == limit:
                break
        return found

    def find_ready(self, number: int) -> Steps:
        """Find a ready message by its number, in steps. Others may enter and leave meanwhile."""
        for done, message in enumerate(list(self._entries()), 1):
            if message.number == number and not message.state:
                return message
            if not done % EXAMINED:
                yield
        return None

    def oldest(self) -> Optional[Message]:
        """Return the ready message that has waited longest, whatever its priority."""
        fronts = [level.first() for level in self.levels if level is not None and level.count]
        return min(fronts, key=lambda message: message.sequence) if fronts else None
