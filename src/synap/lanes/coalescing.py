"""Calls that are made in the same turn of the event loop travel as one request.

A lone call goes as it is, in the caller's own task. Several become a bundle: a batch whose items keep their numbers, so
that each succeeds or fails by itself, is done once however often it is sent, and may be sent again by itself.
"""

from __future__ import annotations

import asyncio
from typing import Any, Awaitable, Callable, List, Optional, Union

from synap.commands import Command
from synap.errors import SynapError
from synap.lanes import errors
from synap.lanes.io.aio import AsyncPromise, async_spawn

__all__ = ["Call", "Coalescer"]

MOST_CALLS = 128
"""Calls in one bundle."""
MOST_BYTES = 1024 * 1024
"""Bytes of payloads in one bundle; a larger payload travels by itself."""


class Call:
    """A call that waits to be sent, then for its answer."""

    __slots__ = ("body", "command", "number", "promise", "timeout")

    def __init__(self, command: Command, body: bytes, number: int, timeout: Optional[float]) -> None:
        self.command = command
        self.body = body
        self.number = number
        self.timeout = timeout
        self.promise: AsyncPromise[Any] = AsyncPromise()


class Refused(Exception):
    """The service can't answer these calls in one bundle, and did none of them."""


Outcome = Union[SynapError, Any]


class Coalescer:
    """Gathers the calls of a turn. `alone` sends one; `together` several, and returns their outcomes in order.

    `together` raises `Refused` where calls must go one by one.
    """

    def __init__(
        self,
        alone: Callable[[Call], Awaitable[Any]],
        together: Callable[[List[Call], Optional[float]], Awaitable[List[Outcome]]],
    ) -> None:
        self._alone = alone
        self._together = together
        self._gathered: List[Call] = []

    async def call(self, command: Command, body: bytes, number: int, timeout: Optional[float]) -> Any:
        """Make a call; returns its result or raises its error."""
        call = Call(command, body, number, timeout)
        gathered = self._gathered
        gathered.append(call)
        if len(gathered) == 1:
            # The first of a turn lets the others of that turn come in, and looks after all of them.
            try:
                await asyncio.sleep(0)
            except BaseException:
                self._gathered = []
                gathered.remove(call)
                self._dispatch(gathered)
                raise
            self._gathered = []
            if len(gathered) == 1:
                return await self._alone(call)
            self._dispatch(gathered)
        try:
            return await call.promise.wait(timeout)
        except TimeoutError as error:
            if isinstance(error, SynapError):
                raise
            raise errors.timed_out(command, True, timeout) from None

    def abandon(self) -> None:
        """Forget what was gathered: it belongs to an event loop that is gone."""
        self._gathered = []

    def _dispatch(self, calls: List[Call]) -> None:
        bundle: List[Call] = []
        size = 0
        for call in calls:
            if bundle and (len(bundle) >= MOST_CALLS or size + len(call.body) > MOST_BYTES):
                async_spawn(self._send, bundle, name="synap bundle")
                bundle, size = [], 0
            bundle.append(call)
            size += len(call.body)
        if bundle:
            async_spawn(self._send, bundle, name="synap bundle")

    async def _send(self, calls: List[Call]) -> None:
        if len(calls) == 1:
            await self._send_alone(calls[0])
            return
        timeouts = [call.timeout for call in calls if call.timeout is not None]
        timeout = max(timeouts) if len(timeouts) == len(calls) else None
        try:
            outcomes = await self._together(calls, timeout)
        except Refused:
            for call in calls:
                async_spawn(self._send_alone, call, name="synap call")
            return
        except BaseException as error:
            # Not an answer but a defect, or the end of the event loop: nobody may be left waiting.
            for call in calls:
                call.promise.fail(errors.lost(call.command, True, error))
            raise
        for call, outcome in zip(calls, outcomes):
            if isinstance(outcome, SynapError):
                call.promise.fail(outcome)
            else:
                call.promise.resolve(outcome)

    async def _send_alone(self, call: Call) -> None:
        try:
            call.promise.resolve(await self._alone(call))
        except SynapError as error:
            call.promise.fail(error)
        except BaseException as error:
            call.promise.fail(errors.lost(call.command, True, error))
            raise
