"""Lanes of both colours, driven in one way: by blocking calls."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Any, Awaitable, Callable, Coroutine, List, Optional, Tuple, Type, Union

from msgspec import Struct

from synap.commands import Command
from synap.config import ClientConfig, parse_url
from synap.errors import SynapError
from synap.lanes._async.base import Listener as AsyncListener
from synap.lanes._async.http import AsyncHttpLane
from synap.lanes._sync.base import Listener
from synap.lanes._sync.http import HttpLane
from synap.wire.codec import CODECS

__all__ = ["COLOURS", "DrivenLane", "Heard", "http_lane", "made"]

COLOURS = ("async", "sync")


class Heard(Listener, AsyncListener):
    """Keeps what is pushed, and lets a test wait for it."""

    def __init__(self) -> None:
        self.items: List[Any] = []
        self.ends: List[SynapError] = []
        self.losses: List[SynapError] = []
        self._changed = threading.Condition()

    def push(self, item: Any) -> None:
        self._note(self.items, item)

    def ended(self, error: SynapError) -> None:
        self._note(self.ends, error)

    def lost(self, error: SynapError) -> None:
        self._note(self.losses, error)

    def _note(self, where: List[Any], what: Any) -> None:
        with self._changed:
            where.append(what)
            self._changed.notify_all()

    def wait(self, *, items: int = 0, ends: int = 0, losses: int = 0) -> None:
        """Wait until that many have come; fails the test after 10 seconds."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: len(self.items) >= items and len(self.ends) >= ends and len(self.losses) >= losses, 10
            ), f"heard {self.items} {self.ends} {self.losses}"


class DrivenLane:
    """A lane of either colour. The async one lives in an event loop on a thread of its own."""

    def __init__(self, lane: Any, colour: str) -> None:
        self.lane = lane
        self.colour = colour
        self.loop: Optional[asyncio.AbstractEventLoop] = None

    def __enter__(self) -> DrivenLane:
        if self.colour == "async":
            self.loop = asyncio.new_event_loop()
            threading.Thread(target=self.loop.run_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()
        loop = self.loop
        if loop is not None:
            self.run(_cancel_all)
            stopped = threading.Event()
            loop.call_soon_threadsafe(loop.stop)
            while loop.is_running():
                stopped.wait(0.001)
            loop.close()

    def run(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run a coroutine function in the lane's event loop."""
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(function(), self.loop).result(30)

    def do(self, function: Callable[[], Union[Awaitable[Any], Any]]) -> Any:
        """Call `function`, in the event loop where it is one for that colour."""
        if self.loop is None:
            return function()

        async def run() -> Any:
            return await function()

        return self.run(run)

    def call(self, command: Command, payload: Struct, *, ticket: Any = None, timeout: Optional[float] = 10.0) -> Any:
        """Make one attempt at a request: the only one, where no `ticket` is given."""
        number = self.lane.ticket() if ticket is None else ticket
        try:
            return self.do(lambda: self.lane.call(command, payload, ticket=number, timeout=timeout))
        finally:
            if ticket is None:
                self.lane.drop(number)

    def subscribe(self, command: Command, payload: Struct, listener: Heard) -> Tuple[Any, Any]:
        outcome: Tuple[Any, Any] = self.do(lambda: self.lane.subscribe(command, payload, listener))
        return outcome

    def unsubscribe(self, handle: Any) -> None:
        self.do(lambda: self.lane.unsubscribe(handle))

    def health(self) -> Any:
        return self.do(lambda: self.lane.health())

    def connect(self) -> None:
        self.do(lambda: self.lane.connect())

    def close(self) -> None:
        self.do(lambda: self.lane.close())


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def made(kind: Any, *values: Any, **more: Any) -> Any:
    """Make a payload as a client does: the values in it are the user's objects."""
    return kind(*values, **more)


def http_lane(url: str, colour: str, **options: Any) -> DrivenLane:
    """Make an HTTP lane to `url`."""
    config = ClientConfig(url=url, **options)
    kind = AsyncHttpLane if colour == "async" else HttpLane
    return DrivenLane(kind(config, parse_url(url), CODECS[config.format]), colour)
