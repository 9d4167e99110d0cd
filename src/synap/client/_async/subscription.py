"""Subscriptions: deliver pushed items to a callback or an iterator, and resubscribe after a lost connection.

Items go into a bounded mailbox; a worker (a task; in the sync client a thread) takes them out for the callback, or the
user's iteration does. Each time it subscribes there is a new *feed*, so that late items of an earlier one are dropped.

A full mailbox has different consequences for rooms and topics. Events stay in their room: the subscription is ended at
the service, and made again at the next offset once the mailbox is empty. Topic messages are stored nowhere: the
subscription ends with `SLOW_CONSUMER`.
"""

from __future__ import annotations

import itertools
import logging
from contextlib import suppress
from functools import partial
from typing import Any, Callable, Generic, List, Optional, Tuple, TypeVar

from msgspec import Struct

from synap import commands as c
from synap.client._async.calls import AsyncCalls
from synap.client._async.commits import AsyncCommits
from synap.client._async.hooked import async_hooked_delivery
from synap.client.handlers import async_finish
from synap.client.retry import is_transient, retry_after
from synap.errors import SynapError, TimeoutError
from synap.lanes._async.base import AsyncLane
from synap.lanes.errors import (
    client_closed,
    loop_ended,  # ASYNC
)
from synap.lanes.io import AsyncEvent, AsyncLock, AsyncMailbox, AsyncRaised, Closed, async_sleep, async_spawn, monotonic
from synap.lanes.io.aio import async_home, cancels_task  # ASYNC
from synap.wire.conversation import Listener

T = TypeVar("T")

log = logging.getLogger("synap.client")

STABLE = 10.0
"""Seconds that a connection has to last for the backoff to start again at its shortest pause."""
BURST = 64
"""Items handed to a callback before the event loop has a turn."""


class _Feed(Listener):
    """The listener of one subscribe request; stale once the subscription has a newer one."""

    __slots__ = ("_subscription",)

    def __init__(self, subscription: Subscription[Any]) -> None:
        self._subscription = subscription

    def push(self, item: Any) -> None:
        if self._subscription._feed is self:
            self._subscription._arrived(item)

    def ended(self, error: SynapError) -> None:
        if self._subscription._feed is self:
            self._subscription._end(error)

    def lost(self, error: SynapError) -> None:
        if self._subscription._feed is self:
            self._subscription._lost(error)


class Subscription(Generic[T]):
    """What `subscribe` returns. End it with `unsubscribe()`, or use it with `async with`.

    Without a callback it is an iterator, for one `async for` at a time. It survives lost connections, however long they
    last; it ends with `unsubscribe()`, with the client's `close()`, and with an error that can't be retried, which is
    raised by the iterator and passed to `on('error')` handlers.
    """

    def __init__(
        self, calls: AsyncCalls, command: c.Command, callback: Optional[Callable[..., Any]], name: str
    ) -> None:
        self._calls = calls
        self._command = command
        self._callback = callback
        self._name = name
        self._mailbox: AsyncMailbox[Any] = AsyncMailbox(calls.config.buffer)
        self._feed: Optional[_Feed] = None
        self._held: Optional[Tuple[AsyncLane, Any]] = None
        """The lane that delivers items, and its handle of this subscription."""
        self._behind = False
        """Whether the mailbox was full, so that nothing is pushed until it is empty."""
        self._catching_up = AsyncLock()
        self._over = AsyncEvent()
        self._paused = AsyncEvent()
        """Ends the pause before another attempt to resubscribe."""
        self._since = monotonic()
        """When it was last subscribed."""
        self._attempts = 0
        """Attempts to resubscribe since a connection last lasted `STABLE` seconds."""
        self._error: Optional[SynapError] = None
        self._commits: Optional[AsyncCommits] = None
        """Commits the position of a durable subscription."""
        if True:  # ASYNC
            self._home: object = None
            """The event loop that delivers items."""

    @property
    def room(self) -> str:
        """The room; empty for a subscription to topics."""
        return ""

    @property
    def topics(self) -> List[str]:
        """The topics; empty for a subscription to a room."""
        return []

    async def start(self) -> None:
        """Subscribe, retrying like a request; raises `SynapError`."""
        deadline = monotonic() + self._calls.timeout
        await self._calls.retrying(lambda: self._subscribe(deadline), deadline)
        if True:  # ASYNC
            self._home = async_home()
        self._calls.at_close.add(self.end)
        if self._calls.closed:  # while it subscribed, so that nobody else ends it
            self.end()
            raise client_closed()
        if self._callback is not None:
            if self._calls.hooks:
                give: Any = async_hooked_delivery(self._invoke, self.room, self._calls.target, self._calls.hooks)
                self._invoke = give  # type: ignore[method-assign]  # see `synap.client.hooks`
            try:
                async_spawn(self._deliver, name=f"synap {self._name}", cancelled=self._orphaned)
            except RuntimeError:  # no thread can be started
                await self.unsubscribe()
                raise

    async def unsubscribe(self) -> None:
        """End the subscription. Undelivered items are dropped, and no callback begins afterwards."""
        self.end()
        await self._leave()

    def end(self, *, discard: bool = True) -> None:
        """End it locally; for the service it ends with the connection. `discard`: also what has arrived."""
        self._mailbox.close(discard=discard)
        self._feed = None
        self._over.set()
        self._paused.set()
        self._calls.at_close.discard(self.end)

    async def __aenter__(self) -> Subscription[T]:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.unsubscribe()

    def __aiter__(self) -> Subscription[T]:
        if self._callback is not None:
            raise SynapError("INVALID_REQUEST", "this subscription has a callback, so it can't be iterated over")
        return self

    async def __anext__(self) -> T:
        if True:  # ASYNC
            if self._home is not async_home():
                self._orphaned()
        try:
            item: T = await self._take()
            return item
        except Closed:
            pass
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise StopAsyncIteration

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}{' ended' if self._over.is_set() else ''}>"

    # ------------------------------------------------------------------------------------------ for subclasses

    def _request(self) -> Struct:
        """Return the payload of the next subscribe request."""
        raise NotImplementedError

    async def _check_log(self) -> None:
        """Check, after resubscribing, whether the subscription continues at the right place."""

    def _subscribed(self, answer: Any) -> None:
        """Process the answer to the subscribe request. Items may have arrived before."""

    def _arrived(self, item: Any) -> None:
        """Process a pushed item; must not block."""
        raise NotImplementedError

    def _invoke(self, item: T) -> Any:
        """Call the callback."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------ delivering

    async def _take(self) -> Any:
        """Return the next item; raises `Closed` after the last one."""
        if self._behind and not len(self._mailbox):  # apart: who waits may be cancelled, and ask again
            name = f"synap {self._name} catching up"
            async_spawn(self._catch_up, name=name, or_here=True, cancelled=self._orphaned)
        return await self._mailbox.get()

    async def _deliver(self) -> None:
        """Call the callback for each item, one after the other."""
        poll = self._mailbox.poll
        for handed in itertools.count(1):
            if not handed % BURST:
                await async_sleep(0)
            item = poll()
            if item is None:
                try:
                    item = await self._take()
                except Closed:
                    return
            try:
                outcome = self._invoke(item)
                if outcome is not None:
                    await async_finish(outcome)
                if self._commits is not None:
                    self._commits.done(item.offset)
            except AsyncRaised as error:
                if True:  # ASYNC
                    if cancels_task(error):
                        raise
                self._calls.handlers.report(f"the callback of {self._name} raised", error)

    # ------------------------------------------------------------------------------------------ beginning and ending

    async def _subscribe(self, deadline: Optional[float] = None) -> None:
        """Make one attempt to subscribe with a new feed."""
        if deadline is None:
            deadline = monotonic() + self._calls.timeout
        feed = self._feed = _Feed(self)
        try:
            lane, handle, answer = await self._calls.subscribe(self._command, self._request(), feed, deadline)
        except BaseException:
            if self._feed is feed:
                self._feed = None
            raise
        self._subscribed(answer)
        # It may have ended or its mailbox have been full meanwhile, or a newer feed have replaced this one.
        if self._over.is_set() or self._feed is not feed:
            await self._end_at_service((lane, handle))
        else:
            self._held = lane, handle

    async def _end_at_service(self, held: Optional[Tuple[AsyncLane, Any]]) -> None:
        if held is not None:
            lane, handle = held
            with suppress(SynapError):  # the connection is gone, and the subscription with it
                await lane.unsubscribe(handle)

    async def _leave(self) -> None:
        """End the subscription at the service."""
        held, self._held = self._held, None
        await self._end_at_service(held)

    def _end(self, error: SynapError) -> None:
        """End with an error. Items that arrived before are still delivered."""
        if self._over.is_set():
            return
        self._fail(error)
        # Reported before the iterator raises it, on another thread.
        self._calls.handlers.report_aside(f"{self._name} ended", error, partial(self.end, discard=False))
        async_spawn(self._leave, name=f"synap {self._name} leaving")

    def _fail(self, error: SynapError) -> None:
        self._error = error
        self._feed = None
        self._over.set()
        self._paused.set()

    def _orphaned(self) -> None:
        """End where the event loop has ended that this works in, or has cancelled its tasks: no other takes them over.

        The service isn't told, which needs that event loop. For it, this ends with the connection.
        """
        if True:  # ASYNC
            if not self._over.is_set():
                error = loop_ended()
                self._fail(error)
                self._calls.handlers.report_orphan(f"{self._name} ended", error)
                self.end(discard=False)

    # ------------------------------------------------------------------------------------------ lost connections

    def _lost(self, error: SynapError) -> None:
        self._feed = None
        self._held = None
        name = f"synap {self._name} resubscribing"
        async_spawn(self._resubscribe, error, name=name, or_here=True, cancelled=self._orphaned)

    async def _resubscribe(self, error: SynapError) -> None:
        """Resubscribe, with backoff, until it works or an error is final.

        There is a pause before the first attempt too: a connection may be lost right after each successful handshake.
        """
        if monotonic() - self._since > STABLE:
            self._attempts = 0
        brought_about = await self._wait(self._calls.policy.backed_off(self._attempts), error)
        while not self._over.is_set():
            if not is_transient(error) and not isinstance(error, TimeoutError):
                if error.details.get("closed"):
                    self._mailbox.close()
                else:
                    self._end(error)
                return
            self._since = monotonic()  # before subscribing too: the connection may be lost before that returns
            self._attempts += 1
            try:
                if brought_about:
                    await self._calls.pauses.follow(self._subscribe)
                else:
                    await self._subscribe()
                self._since = monotonic()
                await self._check_log()
                return
            except SynapError as failure:
                error = failure
            pause = max(self._calls.policy.backed_off(self._attempts), retry_after(error))
            log.debug("%s: %s, again in %.3f s", self._name, error.message, pause)
            brought_about = await self._wait(pause, error)

    async def _wait(self, pause: float, error: SynapError) -> bool:
        """Pause before another attempt; returns whether this has ended meanwhile, or a connection is there again."""
        self._paused = AsyncEvent()
        return self._over.is_set() or await self._calls.pauses.wait(self._paused, pause, error)

    # ------------------------------------------------------------------------------------------ slow callbacks

    def _pause(self) -> None:
        """Pause the subscription until the mailbox is empty."""
        self._feed = None
        self._behind = True
        held, self._held = self._held, None
        name = f"synap {self._name} pausing"
        async_spawn(self._pause_at_service, held, name=name, cancelled=self._orphaned)

    async def _pause_at_service(self, held: Optional[Tuple[AsyncLane, Any]]) -> None:
        await self._end_at_service(held)
        if not len(self._mailbox):  # it may have been emptied just before `_behind` was set
            await self._catch_up()

    async def _catch_up(self) -> None:
        """Subscribe again at the next offset."""
        async with self._catching_up:
            if not self._behind or self._over.is_set():
                return
            self._behind = False
            try:
                await self._subscribe()
                await self._check_log()
            except SynapError as error:
                await self._resubscribe(error)
