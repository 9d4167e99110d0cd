"""The channels of one process of Django Channels: an inbox for each, and the groups they are in."""

from __future__ import annotations

import asyncio
import collections
import threading
import time
from contextlib import contextmanager
from typing import Any, Callable, Deque, Dict, Iterator, Set, Tuple

from msgspec import msgpack

__all__ = ["Inbox", "Inboxes"]


class Inbox:
    """Messages for one channel of this process, and the futures that wait for them, with their event loops."""

    def __init__(self, capacity: int, expiry: float) -> None:
        self._capacity = capacity
        self._expiry = expiry
        self._lock = threading.Lock()
        self._messages: Deque[Tuple[float, bytes]] = collections.deque()
        self._waiting: Deque[Tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = collections.deque()
        self.receivers = 0
        """Callers that are about to receive, or do."""
        self.left = time.monotonic()
        """When the last of them went, or the channel joined a group."""

    @property
    def empty(self) -> bool:
        """Whether there is no message that has not expired."""
        with self._lock:
            self._drop_expired()
            return not self._messages

    def put(self, message: bytes) -> bool:
        """Add an encoded message and wake a waiter; a full inbox drops the message and returns False."""
        with self._lock:
            self._drop_expired()
            if len(self._messages) >= self._capacity:
                return False
            self._messages.append((time.monotonic(), message))
            self._wake()
        return True

    async def get(self) -> Any:
        """Return the oldest message, waiting for one."""
        while True:
            loop = asyncio.get_running_loop()
            with self._lock:
                self._drop_expired()
                if self._messages:
                    _, message = self._messages.popleft()
                    if self._messages:
                        self._wake()
                    return msgpack.decode(message)  # each member of a group has its own, which it may change
                waiter = loop.create_future()
                place = (loop, waiter)
                self._waiting.append(place)
            try:
                await waiter
            except BaseException:
                with self._lock:
                    if place in self._waiting:
                        self._waiting.remove(place)
                    elif self._messages:  # this one was woken for a message: wake another instead
                        self._wake()
                raise

    def _wake(self) -> None:
        while self._waiting:
            loop, waiter = self._waiting.popleft()
            try:
                loop.call_soon_threadsafe(_settle, waiter)
            except RuntimeError:
                continue  # that event loop is closed, and its waiter gone
            return

    def _drop_expired(self) -> None:
        oldest = time.monotonic() - self._expiry
        while self._messages and self._messages[0][0] < oldest:
            self._messages.popleft()


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Inboxes:
    """The inboxes of a process, by the name of the channel, and its groups.

    `capacity`: of a channel. `expiry`: seconds until a message is dropped. `group_expiry`: seconds until a channel from
    which nobody receives leaves its groups. Nobody says when a channel ends, and messages may come to one that has. So
    those without a use are looked for, at most once in each `expiry` seconds, when there is a new one. `emptied` is
    called with a group that has lost its last member by that.
    """

    def __init__(
        self,
        capacity: Callable[[str], int],
        expiry: float,
        group_expiry: float,
        emptied: Callable[[str], None],
    ) -> None:
        self._capacity = capacity
        self._expiry = expiry
        self._group_expiry = group_expiry
        self._emptied = emptied
        self._lock = threading.Lock()
        self._inboxes: Dict[str, Inbox] = {}
        self._groups: Dict[str, Set[str]] = {}
        self._swept = time.monotonic()

    def __len__(self) -> int:
        return len(self._inboxes)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._inboxes))

    def put(self, channel: str, message: Any) -> bool:
        """Add a message for a channel; returns False, and drops it, where that is at capacity."""
        with self._lock:
            return self._of(channel).put(msgpack.encode(message))

    def put_all(self, group: str, message: Any) -> Tuple[int, int]:
        """Add a message for each member of a group; returns how many are at capacity, of how many."""
        with self._lock:
            members = self._groups.get(group, ())
            encoded = msgpack.encode(message)
            return sum(not self._inboxes[channel].put(encoded) for channel in members), len(members)

    @contextmanager
    def receiving(self, channel: str) -> Iterator[Inbox]:
        """Keep the inbox of a channel while somebody receives from it."""
        with self._lock:
            inbox = self._of(channel)
            inbox.receivers += 1
        try:
            yield inbox
        except asyncio.CancelledError:
            # Channels doesn't say when a channel ends; but when a consumer ends, its `receive` is cancelled.
            with self._lock:
                if inbox.receivers == 1 and not any(channel in members for members in self._groups.values()):
                    self._inboxes.pop(channel, None)
            raise
        finally:
            with self._lock:
                inbox.receivers -= 1
                inbox.left = time.monotonic()

    def join(self, group: str, channel: str) -> None:
        """Make a channel a member of a group."""
        with self._lock:
            self._of(channel).left = time.monotonic()
            self._groups.setdefault(group, set()).add(channel)

    def leave(self, group: str, channel: str) -> bool:
        """End a channel's membership, if it is a member; returns whether the group has lost its last member."""
        with self._lock:
            members = self._groups.get(group, set())
            members.discard(channel)
            if members or group not in self._groups:
                return False
            del self._groups[group]
            return True

    def has_members(self, group: str) -> bool:
        """Return whether a group has members."""
        with self._lock:
            return group in self._groups

    def clear(self) -> None:
        """Remove all channels and groups."""
        with self._lock:
            self._inboxes.clear()
            self._groups.clear()

    def _of(self, channel: str) -> Inbox:
        """Return the inbox of a channel, making it first. The caller holds the lock, and uses it before it lets go."""
        inbox = self._inboxes.get(channel)
        if inbox is None:
            now = time.monotonic()
            if now - self._swept >= self._expiry:
                self._swept = now
                self._sweep(now)
            inbox = self._inboxes[channel] = Inbox(self._capacity(channel), self._expiry)
        return inbox

    def _sweep(self, now: float) -> None:
        for group, members in list(self._groups.items()):
            members -= {channel for channel in members if self._abandoned(self._inboxes[channel], now)}
            if not members:
                del self._groups[group]
                self._emptied(group)
        grouped = {channel for members in self._groups.values() for channel in members}
        for channel, inbox in list(self._inboxes.items()):
            if not inbox.receivers and channel not in grouped and inbox.empty:
                del self._inboxes[channel]

    def _abandoned(self, inbox: Inbox, now: float) -> bool:
        return not inbox.receivers and now - inbox.left >= self._group_expiry
