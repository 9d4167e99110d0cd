"""Locks: `client.lock()`.

    lock:<name>            the key: who holds the lock, or who may take it next; it expires unless it is renewed
    lock:<name>:fence      a counter that grows with each holder
    lock:<name>:waiting    the queue on which later callers wait, first come first served; deleted when nobody waits

A holder that finds waiters hands the lock over: it sets the key to a random note and publishes that note as a message,
so that only the waiter that gets the message can take the lock. So there is no polling and no overtaking. A holder that
dies leaves a key that expires; waiters try again then.
"""

from __future__ import annotations

import asyncio  # ASYNC
import math
import os
import secrets
import socket
from contextlib import suppress
from typing import Any, Optional, Union

from msgspec import UNSET, UnsetType
from typing_extensions import Self

from synap.client._async.calls import AsyncCalls
from synap.client._async.kv import AsyncKeyValue
from synap.client._async.pipeline import Pipeline
from synap.client._async.queue import AsyncQueue
from synap.client.colocation import colocated
from synap.client.handles import Handle
from synap.errors import LockLostError, MessageNotFoundError, QueueNotFoundError, SynapError, TimeoutError, invalid
from synap.lanes.io import AsyncEvent, async_spawn, monotonic
from synap.results import GetResult, QueueMessage

HANDOVER_TIMEOUT = 5
"""Seconds within which the next holder has to take a lock that was handed over."""
HANDOVER_PREFIX = "handover:"
"""The prefix of the value that reserves the key for the next holder."""
FREE = "free"
"""The message that lets the longest waiter try, where the lock was not handed over."""
FIRST_CHECK = 0.25
"""Seconds after which a new waiter checks whether the lock was released just before it began to wait."""
CHECK_INTERVAL = 30.0
"""Seconds after which a waiter tries again at the latest, whatever the key's ttl is."""


class Lock:
    """A distributed lock: `async with client.lock('report'):`.

    It is held for `ttl` seconds and renewed while the block runs. If it was lost all the same (this process stood
    still, or could not reach the service for so long), the block is cancelled and `LockLostError` raised.
    `fence` is a number that grows with each holder: a resource that remembers the greatest it has seen and
    refuses smaller ones is safe even from a holder that doesn't know yet that it has lost the lock.
    """

    def __init__(self, calls: AsyncCalls, name: str, ttl: int, wait: Optional[float]) -> None:
        _check_name(name)
        if isinstance(ttl, bool) or not isinstance(ttl, int) or ttl < 1:
            raise invalid("ttl", "whole seconds, 1 or more", ttl)
        _check_wait(wait)
        self.name = name
        self.key = f"lock:{name}"
        self.fence = 0
        """The fencing token of the last time this object held it; 0 before the first."""
        self._ttl = ttl
        self._wait = wait
        self._calls = calls
        self._kv = AsyncKeyValue(calls)
        self._queue = AsyncQueue(calls)
        self._fence_key = colocated(self.key, ":fence")
        self._waiting = colocated(self.key, ":waiting")
        self._token: Optional[str] = None
        self._until = 0.0
        """When it has certainly expired unless it is renewed, by this process's monotonic clock."""
        self._released = AsyncEvent()
        self._lost = False
        if True:  # ASYNC
            self._block: Optional[asyncio.Task[object]] = None
            self._cancelled = False
            self._cancels = 0
            """How often the block's task had been cancelled before the block."""

    @property
    def held(self) -> bool:
        """Whether this object holds the lock, as far as it knows."""
        return self._token is not None and not self.lost

    @property
    def lost(self) -> bool:
        """Whether the lock was lost while it was held."""
        return self._lost or (self._token is not None and monotonic() >= self._until)

    # ------------------------------------------------------------------------------------------ taking

    async def acquire(self, *, wait: Union[float, UnsetType, None] = UNSET) -> bool:
        """Take the lock; returns whether it was free within `wait` seconds (None: as long as it takes).

        Left out, `wait` is what `client.lock` was given.
        For those who can't use a block: call `release` when done.
        """
        if self._token is not None:
            raise SynapError("INVALID_REQUEST", f"this object holds the lock {self.name!r} already, make another one")
        if wait is UNSET:
            wait = self._wait
        _check_wait(wait)
        token = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
        give_up = monotonic() + wait if isinstance(wait, (int, float)) else math.inf
        released = AsyncEvent()
        try:
            if not await self._acquire(token, give_up):
                return False
            self._lost = False
            async_spawn(self._renew, token, released, name=f"synap lock {self.name}")
            if True:  # ASYNC
                async_spawn(self._watch, released, name=f"synap lock {self.name}")
            self._token, self._released = token, released
        except BaseException:
            # The lock may have been taken all the same.
            released.set()
            if self._token == token:  # not that of somebody else who shares this object
                self._token = None
            async_spawn(self._release_abandoned, token, name=f"synap lock {self.name}", or_here=True)
            raise
        return True

    async def _acquire(self, token: str, give_up: float) -> bool:
        while True:
            began = monotonic()
            async with Pipeline(self._calls, atomic=True) as p:
                fence = p.kv.incr(self._fence_key)
                taken = p.kv.set(self.key, token, ttl=self._ttl, nx=True)
                found = p.kv.get(self.key)
            _succeeded(fence, taken, found)
            if taken.result().success:
                self._acquired(fence.result(), began)
                return True
            holder: GetResult = found.result()
            left = give_up - monotonic()
            handed = isinstance(holder.value, str) and holder.value.startswith(HANDOVER_PREFIX)
            if left <= 0 and not handed:
                return False
            pause = CHECK_INTERVAL if holder.ttl is None else min(CHECK_INTERVAL, holder.ttl)
            message = await self._await_handover(max(0.0, min(pause, left)))
            if message is not None:
                if await self._accept_handover(token, str(message.message), message.message_id):
                    return True
            elif left <= 0:
                return False

    async def _await_handover(self, timeout: float) -> Optional[QueueMessage]:
        """Wait on the waiters' queue for the lock to be handed over."""
        done = AsyncEvent()
        if timeout > FIRST_CHECK:
            async_spawn(self._check_missed_release, done, name=f"synap lock {self.name}")
        try:
            return await self._queue.consume(self._waiting, timeout, HANDOVER_TIMEOUT)
        except QueueNotFoundError:  # deleted by a holder that saw no other waiter
            return None
        finally:
            done.set()

    async def _check_missed_release(self, done: AsyncEvent) -> None:
        """Check once that the lock was not released just before this one began to wait, unseen by its holder.

        If so, the longest waiter gets a message; the order of waiters stays.
        """
        if await done.wait(FIRST_CHECK):
            return
        try:
            if not await self._kv.exists(self.key) and not done.is_set():
                await self._queue.publish(self._waiting, FREE)
        except SynapError:
            pass  # waiters try again when the key would have expired

    async def _accept_handover(self, token: str, note: str, message_id: str) -> bool:
        """Take a lock that was handed over; returns False where that has expired."""
        began = monotonic()
        async with Pipeline(self._calls, atomic=True) as p:
            fence = p.kv.incr(self._fence_key)
            taken = p.kv.set(self.key, token, ttl=self._ttl, if_value=note)
            acked = p.queue.ack(self._waiting, message_id)
        try:
            _succeeded(fence, taken, acked)
        except (MessageNotFoundError, QueueNotFoundError):  # so slow that the note went to another
            return False
        if not taken.result().success:
            return False
        self._acquired(fence.result(), began)
        return True

    def _acquired(self, fence: int, began: float) -> None:
        self.fence = fence
        self._until = began + self._ttl

    async def _release_abandoned(self, token: str) -> None:
        """Release the lock that a failed call may have taken, or not given back."""
        with suppress(SynapError):  # it expires
            await self._hand_over(token)

    # ------------------------------------------------------------------------------------------ holding

    async def _renew(self, token: str, released: AsyncEvent) -> None:
        """Renew the lock every third of its ttl until it is released or lost."""
        pause = self._ttl / 3
        while not await released.wait(max(0.0, min(pause, self._until - monotonic()))):
            began = monotonic()
            if began >= self._until:
                break
            try:
                renewed = await self._kv.set(self.key, token, ttl=self._ttl, if_value=token)
            except SynapError:
                pause = min(1.0, self._ttl / 10)  # try again soon, until it has expired for sure
                continue
            if released.is_set():
                return
            if not renewed.success:
                break
            self._until = began + self._ttl
            pause = self._ttl / 3
        else:
            return
        self._lose(released)

    if True:  # ASYNC

        async def _watch(self, released: AsyncEvent) -> None:
            """Notice that the lock has expired also while a renewal waits for its answer."""
            while not await released.wait(max(0.0, self._until - monotonic())):
                if monotonic() >= self._until:
                    self._lose(released)

    def _lose(self, released: AsyncEvent) -> None:
        released.set()  # nobody renews it any more
        self._lost = True
        if True:  # ASYNC
            if self._block is not None:
                self._cancelled = True
                self._block.cancel()

    # ------------------------------------------------------------------------------------------ giving back

    async def release(self) -> None:
        """Release the lock; raises `LockLostError` where it was lost meanwhile, whether or not another holds it."""
        token, self._token = self._token, None
        if token is None:
            raise SynapError("INVALID_REQUEST", f"this object doesn't hold the lock {self.name!r}")
        self._released.set()
        try:
            held = not self._lost and await self._hand_over(token)
        except BaseException:
            async_spawn(self._release_abandoned, token, name=f"synap lock {self.name}", or_here=True)
            raise
        if not held:
            raise self._loss()

    async def _hand_over(self, token: str) -> bool:
        """Hand the lock to the longest waiter, or delete it; returns False where this object no longer holds it."""
        async with Pipeline(self._calls, atomic=False) as p:
            waiters = p.queue.stats(self._waiting)
            holder = p.kv.get(self.key)
        try:
            _succeeded(waiters, holder)
        except QueueNotFoundError:  # there were no waiters
            return await self._kv.delete(self.key, if_value=token) == 1
        if holder.result().value != token:  # a note would cost the longest waiter its place in the line
            return False
        if not waiters.result().consumers:
            async with Pipeline(self._calls, atomic=False) as p:
                deleted = p.kv.delete(self.key, if_value=token)
                p.queue.delete(self._waiting)
            return deleted.result() == 1
        note = HANDOVER_PREFIX + secrets.token_hex(8)
        async with Pipeline(self._calls, atomic=True) as p:
            handed = p.kv.set(self.key, note, ttl=HANDOVER_TIMEOUT, if_value=token)
            published = p.queue.publish(self._waiting, note)
        _succeeded(handed, published)
        return handed.result().success

    def _loss(self) -> LockLostError:
        message = f"the lock {self.name!r} was lost while it was held: another may have it"
        return LockLostError("LOCK_LOST", message, {"lock": self.name, "fence": self.fence})

    # ------------------------------------------------------------------------------------------ blocks

    async def __aenter__(self) -> Self:
        if not await self.acquire():
            message = f"the lock {self.name!r} was not free within {self._wait:g} seconds"
            raise TimeoutError("TIMEOUT", message, {"lock": self.name})
        if True:  # ASYNC
            self._cancelled = False
            self._block = asyncio.current_task()
            self._cancels = _cancels(self._block)
        return self

    async def __aexit__(self, kind: object, error: Optional[BaseException], trace: object) -> None:
        if True:  # ASYNC
            alone = await self._settle(error)
            if alone and self._cancelled and isinstance(error, asyncio.CancelledError):
                self._token = None
                raise self._loss() from None
        try:
            await self.release()
        except SynapError:
            if error is None:
                raise

    if True:  # ASYNC

        async def _settle(self, error: Optional[BaseException]) -> bool:
            """Take back the cancellation by which the block learned that the lock is lost.

            Returns whether it is the only one: another's, such as a timeout's around the block, has to go on.
            """
            task, self._block = self._block, None
            if not self._cancelled or task is None:
                return True
            if hasattr(task, "uncancel"):  # Python 3.11 and newer count
                task.uncancel()
            alone = _cancels(task) <= self._cancels
            if alone and error is None:  # it came too late for the block, and is due at the next `await`
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
            return alone

    def __repr__(self) -> str:
        state = f"held, fence {self.fence}" if self.held else "lost" if self.lost else "not held"
        return f"<{type(self).__name__} {self.name!r}: {state}>"


if True:  # ASYNC

    def _cancels(task: Any) -> int:
        """Return how often a task was cancelled; 0 where this Python doesn't count (before 3.11)."""
        return task.cancelling() if hasattr(task, "cancelling") else 0


def _succeeded(*handles: Handle[Any]) -> None:
    """Raise the error of the command that failed, if one did, and not that of those which it took along."""
    errors = []
    for handle in handles:
        try:
            handle.result()
        except SynapError as error:
            errors.append(error)
    if errors:
        raise next((error for error in errors if error.code != "BATCH_ABORTED"), errors[0])


def _check_name(name: Any) -> None:
    try:
        fits = isinstance(name, str) and 0 < len(name.encode()) <= 200
    except UnicodeEncodeError:  # half of a pair of surrogates
        fits = False
    if not fits:
        raise invalid("name", "a string of 1 to 200 bytes of UTF-8", name)


def _check_wait(wait: object) -> None:
    number = isinstance(wait, (int, float)) and not isinstance(wait, bool)
    if wait is not None and not (number and 0 <= wait < math.inf):  # type: ignore[operator]  # `number` says so
        raise invalid("wait", "a number of seconds, 0 or more, or None", wait)
