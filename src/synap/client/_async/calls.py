"""Send requests through a lane, retry them, and replace the lane when the server stops offering it."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from msgspec import Struct

from synap.client._async.hooked import async_hooked_call
from synap.client._async.pauses import AsyncPauses
from synap.client.handlers import AsyncHandlers
from synap.client.hooks import current_hooks
from synap.client.retry import RetryPolicy, is_repeatable, is_transient, leaves_doubt
from synap.commands import Command
from synap.config import ClientConfig, parse_url, warn_of_plain_key
from synap.errors import SynapError, add_to_message
from synap.forks import watch
from synap.lanes._async.base import AsyncLane
from synap.lanes._async.open_lane import async_open_lane
from synap.lanes.errors import NotOffered, client_closed
from synap.lanes.io import AsyncEvent, AsyncLock, async_home, monotonic
from synap.lanes.io.network import AsyncNetwork, async_network
from synap.wire.codec import CODECS
from synap.wire.conversation import Listener

log = logging.getLogger("synap.client")

FAREWELL = 1.0
"""Seconds that `close` waits for the last commits of durable subscriptions."""


class AsyncCalls:
    """Opens the lane with the first call, and repeats requests on it until they succeed or the policy gives up."""

    def __init__(self, config: ClientConfig, handlers: AsyncHandlers) -> None:
        self.config = config
        self.handlers = handlers
        self.policy = RetryPolicy(config)
        self.timeout = config.timeout
        self.target = parse_url(config.url or "")
        warn_of_plain_key(config, self.target)
        self.network: AsyncNetwork = async_network
        """Connects lanes. Tests replace it before the first call."""
        self.lane: Optional[AsyncLane] = None
        self.closed = False
        self.at_close: Set[Callable[[], None]] = set()
        """What the client calls when it closes: the `end` of each of its subscriptions."""
        self.unfinished: Set[Callable[[], AsyncEvent]] = set()
        """What the client calls before it closes its lanes, and whose events it waits for then: the `finish` of
        durable subscriptions' commits."""
        self.pauses = AsyncPauses()
        self._lanes: List[AsyncLane] = []
        """Every lane that isn't closed: the current one, one being opened, earlier ones."""
        self._opening: Dict[object, AsyncLock] = {}
        self.hooks = current_hooks()
        if self.hooks:  # without hooks, calls pay nothing for them
            self.call = async_hooked_call(self.call, self.target, self.hooks)  # type: ignore[method-assign]  # see above
        watch(self)

    # ------------------------------------------------------------------------------------------ requests

    async def call(self, command: Command, payload: Any, wait: float = 0) -> Any:
        """Make a request and return its decoded result; raises `SynapError`.

        `wait`: seconds the service may wait before it answers, in addition to the client's `timeout`.
        """
        began = monotonic()
        lane = self.lane
        if lane is None:
            return await self._retry(_Request(self, command, payload, wait, began))
        ticket = lane.ticket()
        try:
            return await lane.call(command, payload, ticket, began, self.timeout + wait)
        except SynapError as error:
            if not is_transient(error):
                raise
            return await self._retry(_Request(self, command, payload, wait, began, lane, ticket), error)
        finally:
            lane.drop(ticket)

    async def _retry(self, request: _Request, error: Optional[SynapError] = None) -> Any:
        """Open a lane if needed and repeat the request until the policy gives up. `error`: how it failed first."""
        try:
            return await self.retrying(request.attempt, request.deadline, error, request.may_repeat)
        except SynapError as last:
            request.explain(last)
            raise
        finally:
            request.drop()

    async def retrying(
        self,
        attempt: Callable[[], Any],
        deadline: float,
        error: Optional[SynapError] = None,
        may_repeat: Optional[Callable[[SynapError], bool]] = None,
    ) -> Any:
        """Repeat `attempt` until it succeeds or the policy gives up, which raises the last error.

        `error`: of an attempt before these. `may_repeat(error)` returns whether another attempt is safe. No attempt
        begins after `deadline`.
        """
        failures = free = 0
        brought_about = False
        while True:
            if error is not None:
                pause = self.policy.pause(error, failures, free)
                if pause is None or self.closed or monotonic() + pause >= deadline:
                    raise error
                if may_repeat is not None and not may_repeat(error):
                    raise error
                log.debug("%s: retry %d in %.3f s", error.message, failures + 1, pause)
                brought_about = await self.pauses.wait(AsyncEvent(), pause, error)  # by another's connection
                if brought_about:
                    free += 1
                else:
                    failures += 1
                if self.closed:
                    raise error
            try:
                if brought_about:
                    return await self.pauses.follow(attempt)
                return await attempt()
            except SynapError as failure:
                error = failure

    async def subscribe(
        self, command: Command, payload: Struct, listener: Listener, deadline: float
    ) -> Tuple[AsyncLane, Any, Any]:
        """Make one attempt to subscribe; returns the lane, its handle for `unsubscribe`, and the answer."""
        lane = self.lane or await self.open(deadline)
        try:
            handle, answer = await lane.subscribe(command, payload, listener, deadline)
        except NotOffered:
            self.replace_lane(lane)
            raise
        return lane, handle, answer

    async def health(self) -> Dict[str, Any]:
        """Return the health of the service, retrying like a request."""
        deadline = monotonic() + self.timeout

        async def attempt() -> Any:
            lane = self.lane or await self.open(deadline)
            return await lane.health(deadline)

        figures: Dict[str, Any] = await self.retrying(attempt, deadline)
        return figures

    async def connect(self) -> None:
        """Open the lane, retrying like a request."""
        deadline = monotonic() + self.timeout

        async def attempt() -> None:
            lane = await self.open(deadline)
            await lane.connect(deadline)

        await self.retrying(attempt, deadline)

    # ------------------------------------------------------------------------------------------ the lane

    async def open(self, deadline: float) -> AsyncLane:
        """Return the lane, opening it where there is none; raises `ConnectionError`, `AuthenticationError`."""
        lane = self.lane
        if lane is not None:
            return lane
        events: List[Tuple[Any, ...]] = []
        try:
            return await self._open(deadline, lambda *event: events.append(event))
        finally:
            for event in events:
                self.handlers.emit(*event)

    async def _open(self, deadline: float, emit: Callable[..., None]) -> AsyncLane:
        """Open the lane, or wait for who opens it. Events go to `emit`: a handler may need the lock that is held."""
        async with self._opening_lock():
            if self.closed:
                raise client_closed()
            lane = self.lane
            if lane is None:
                lane = await async_open_lane(
                    self.config,
                    self.target,
                    CODECS[self.config.format],
                    self.network,
                    partial(self._begin, emit),
                    self._forget,
                    deadline,
                )
                if self.lane is not None or self.closed:  # another event loop was faster, or `close()`
                    self._forget(lane)
                    await lane.close()
                    lane = self.lane
                    if lane is None:
                        raise client_closed()
                else:
                    self._tell(self.handlers.emit, lane)
                    self.lane = lane
        return lane

    def _begin(self, emit: Callable[..., None], lane: AsyncLane) -> None:
        """Register a lane before it connects, so that `close` and forks reach it."""
        self._tell(emit, lane)
        self._lanes.append(lane)

    def _tell(self, emit: Callable[..., None], lane: AsyncLane) -> None:
        """Have `emit` called with the lane's events."""
        lane.connected = partial(_connected, self.pauses, emit)
        lane.disconnected = partial(emit, "disconnected")

    def _forget(self, lane: AsyncLane) -> None:
        with suppress(ValueError):  # closed meanwhile
            self._lanes.remove(lane)

    def _opening_lock(self) -> AsyncLock:
        """Return the lock for opening a lane, one for each event loop: an asyncio lock belongs to one loop."""
        here = async_home()
        lock = self._opening.get(here)
        if lock is None:
            lock = self._opening.setdefault(here, AsyncLock())
        return lock

    async def close(self) -> None:
        """End subscriptions and close all lanes, for good; an attempt to connect is aborted."""
        self.closed = True
        for end in list(self.at_close):
            end()
        self.pauses.close()
        try:
            until = monotonic() + FAREWELL
            for finished in [finish() for finish in list(self.unfinished)]:
                await finished.wait(max(0.0, until - monotonic()))
        finally:
            self.lane = None
            for lane in list(self._lanes):
                await lane.close()
                self._forget(lane)

    def forked(self) -> None:
        """In a forked child: drop connections, locks and subscriptions, which belong to the parent."""
        for lane in self._lanes:
            lane.abandon()
        self._lanes = [] if self.lane is None else [self.lane]
        self.at_close = set()
        self.unfinished = set()
        self._opening = {}

    def replace_lane(self, lane: AsyncLane) -> None:
        """Open a new lane for further requests. Those in flight stay on `lane`."""
        if self.lane is lane:
            self.lane = None


def _connected(pauses: AsyncPauses, emit: Callable[..., None]) -> None:
    """Let all who pause go on. Of the client itself, which a lane must not keep, this holds nothing."""
    pauses.connected()
    emit("connected")


class _Request:
    """One request, with all its attempts."""

    def __init__(
        self,
        calls: AsyncCalls,
        command: Command,
        payload: Any,
        wait: float,
        began: float,
        lane: Optional[AsyncLane] = None,
        ticket: Any = None,
    ) -> None:
        self._calls = calls
        self._command = command
        self._payload = payload
        self._wait = wait
        self._began = began
        self._until = began + wait
        self._timeout = calls.timeout + wait
        self._lane = lane
        self._ticket = ticket
        self._own: Optional[AsyncLane] = None
        """The lane whose ticket this request has to drop."""
        self._doubtful = False
        """Whether an earlier attempt may have taken effect."""
        self.deadline = began + self._timeout

    async def attempt(self) -> Any:
        """Make one attempt, on the same lane as the last one where that is still usable."""
        calls = self._calls
        lane = self._lane
        if lane is None:
            lane = await calls.open(self.deadline)
            self._ticket = lane.ticket()
            self._lane = self._own = lane
        return await lane.call(self._command, self._payload, self._ticket, self._began, self._timeout)

    def may_repeat(self, error: SynapError) -> bool:
        """Return whether another attempt after `error` is safe, and prepare it."""
        self._note(error)
        if not is_repeatable(self._command, error):
            return False
        if isinstance(error, NotOffered) and self._lane is not None:
            self._calls.replace_lane(self._lane)
            if self._doubtful:  # only the session that sent it knows whether it was executed
                return False
            self.drop()
            self._lane = None
        if self._wait:
            self._payload.timeout = self._wait = max(0.0, self._until - monotonic())
        return True

    def _note(self, error: SynapError) -> None:
        unknown = leaves_doubt(error)
        self._doubtful = unknown and (self._doubtful or error.may_have_happened)

    def explain(self, error: SynapError) -> None:
        """Set `may_have_happened` on the final error: true if any attempt may have been applied, false for reads."""
        self._note(error)
        if not self._command.has_effects:
            error.may_have_happened = False
        elif self._doubtful and not error.may_have_happened:
            error.may_have_happened = True
            add_to_message(error, "; an earlier attempt may have taken effect")

    def drop(self) -> None:
        if self._own is not None:
            self._own.drop(self._ticket)
            self._own = None
