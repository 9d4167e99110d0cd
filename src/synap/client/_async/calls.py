"""How a client's requests get to the service: over which lane, how often, and with what words when they don't."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Set, Tuple

from msgspec import Struct

from synap.client._async.hooked import async_hooked_call
from synap.client.forks import Forkable, watch
from synap.client.handlers import AsyncHandlers
from synap.client.hooks import current_hooks
from synap.client.retry import RetryPolicy, is_repeatable, is_transient
from synap.commands import Command
from synap.config import ClientConfig, parse_url
from synap.errors import SynapError, TimeoutError
from synap.lanes._async.base import AsyncLane, Listener
from synap.lanes._async.open_lane import async_open_lane
from synap.lanes.errors import NotOffered, closed
from synap.lanes.io import AsyncLock, async_home, async_sleep, monotonic
from synap.wire.codec import CODECS

__all__ = ["AsyncCalls", "Ending"]


class Ending:
    """Something that a client ends before it closes."""

    def end(self) -> None:
        """End it, without a word to the service."""
        raise NotImplementedError


class AsyncCalls(Forkable):
    """Carries requests to the service, and tries again where that is sound. Opens the lane when it is first needed."""

    def __init__(self, config: ClientConfig, handlers: AsyncHandlers) -> None:
        self.config = config
        self.handlers = handlers
        self.policy = RetryPolicy.of(config)
        self.timeout = config.timeout
        self.target = parse_url(config.url or "")
        self.lane: Optional[AsyncLane] = None
        self.closed = False
        self.endings: Set[Ending] = set()
        self._former: List[AsyncLane] = []
        self._opening: Dict[object, AsyncLock] = {}
        self.hooks = current_hooks()
        if self.hooks:  # most processes have none, and no call of theirs asks again
            self.call = async_hooked_call(self.call, self.target, self.hooks)  # type: ignore[method-assign]  # see above
        watch(self)

    # ------------------------------------------------------------------------------------------ requests

    async def call(self, command: Command, payload: Any, wait: float = 0) -> Any:
        """Make a request and return its decoded result; raises `SynapError`.

        `wait`: seconds the service may wait before it answers, beside the client's own `timeout`.
        """
        lane = self.lane
        if lane is None:
            return await self._persist(command, payload, wait, None, None, None)
        ticket = lane.ticket()
        try:
            return await lane.call(command, payload, ticket=ticket, timeout=self.timeout + wait)
        except SynapError as error:
            if not is_transient(error):
                raise
            return await self._persist(command, payload, wait, lane, ticket, error)
        finally:
            lane.drop(ticket)

    async def _persist(
        self,
        command: Command,
        payload: Any,
        wait: float,
        lane: Optional[AsyncLane],
        ticket: Any,
        error: Optional[SynapError],
    ) -> Any:
        """Go on with a request that has failed with `error`, or that has no lane yet."""
        until = monotonic() + wait
        doubtful = False
        attempt = 0
        ours: Optional[AsyncLane] = None
        try:
            while True:
                if error is not None:
                    unknown = is_transient(error) or isinstance(error, TimeoutError)
                    doubtful = unknown and (doubtful or error.may_have_happened)
                    pause = self.policy.pause(error, attempt)
                    if pause is None or self.closed or not is_repeatable(command, error):
                        raise _told(command, error, doubtful)
                    await async_sleep(pause)
                    if self.closed:
                        raise _told(command, error, doubtful)
                    attempt += 1
                    if isinstance(error, NotOffered) and lane is not None:
                        self._leave(lane)
                        if doubtful:  # only the lane that sent it could say whether it was done
                            raise _told(command, error, doubtful)
                        if ours is not None:
                            ours.drop(ticket)
                        lane = ours = None
                    if wait:
                        payload.timeout = wait = max(0.0, until - monotonic())
                try:
                    if lane is None:
                        lane = ours = await self.open()
                        ticket = lane.ticket()
                    return await lane.call(command, payload, ticket=ticket, timeout=self.timeout + wait)
                except SynapError as failure:
                    error = failure
        finally:
            if ours is not None:
                ours.drop(ticket)

    async def subscribe(self, command: Command, payload: Struct, listener: Listener) -> Tuple[AsyncLane, Any, Any]:
        """Make one attempt to subscribe; returns the lane, its handle for `unsubscribe`, and the answer."""
        lane = self.lane or await self.open()
        try:
            handle, answer = await lane.subscribe(command, payload, listener)
        except NotOffered:
            self._leave(lane)
            raise
        return lane, handle, answer

    async def health(self) -> Dict[str, Any]:
        """Ask for the state of the service; tries again like a request."""
        attempt = 0
        while True:
            try:
                lane = self.lane or await self.open()
                return await lane.health()
            except SynapError as error:
                pause = self.policy.pause(error, attempt)
                if pause is None:
                    raise
            attempt += 1
            await async_sleep(pause)

    # ------------------------------------------------------------------------------------------ the lane

    async def open(self) -> AsyncLane:
        """Return the lane, opening it where there is none; raises `ConnectionError`, `AuthenticationError`."""
        if self.lane is not None:
            return self.lane
        async with self._turn():
            if self.closed:
                raise closed()
            lane = self.lane
            if lane is None:
                lane = await async_open_lane(
                    self.config, self.target, CODECS[self.config.format], self._connected, self._disconnected
                )
                if self.lane is None:
                    self.lane = lane
                else:  # somebody in another event loop was faster
                    await lane.close()
                    lane = self.lane
        return lane

    def _turn(self) -> AsyncLock:
        """Return the lock under which a lane is opened: locks don't reach from one event loop to the other."""
        here = async_home()
        lock = self._opening.get(here)
        if lock is None:
            lock = self._opening.setdefault(here, AsyncLock())
        return lock

    async def connect(self) -> None:
        """Open the lane, trying again like a request."""
        attempt = 0
        while True:
            try:
                lane = await self.open()
                await lane.connect()
                return
            except SynapError as error:
                pause = self.policy.pause(error, attempt)
                if pause is None:
                    raise
            attempt += 1
            await async_sleep(pause)

    async def close(self) -> None:
        """End subscriptions and let go of the lane, for good. Silent where it has happened already."""
        self.closed = True
        for ending in list(self.endings):
            ending.end()
        async with self._turn():
            lane, self.lane = self.lane, None
            former, self._former = self._former, []
        for opened in former if lane is None else [lane, *former]:
            await opened.close()

    def forked(self) -> None:
        """Leave connections, locks and subscriptions to the parent process. What needs them makes its own."""
        for lane in self._former if self.lane is None else [self.lane, *self._former]:
            lane.abandon()
        self._former = []
        self.endings = set()
        self._opening = {}

    def _leave(self, lane: AsyncLane) -> None:
        """Use another lane than `lane` from now on. What is under way on it goes on there."""
        if self.lane is lane:
            self.lane = None
            self._former.append(lane)

    def _connected(self) -> None:
        self.handlers.tell("connected")

    def _disconnected(self, reason: str) -> None:
        self.handlers.tell("disconnected", reason)


def _told(command: Command, error: SynapError, doubtful: bool) -> SynapError:
    """Let the last error say what an earlier attempt left open, and of what only reads, that nothing is."""
    if not command.has_effects:
        error.may_have_happened = False
        return error
    if doubtful and not error.may_have_happened:
        error.may_have_happened = True
        error.message += "; an earlier attempt may have taken effect"
        error.args = (error.code, error.message, error.details)
    return error
