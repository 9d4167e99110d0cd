"""Collects what a subscription is pushed, from whatever thread it comes."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Callable, List

from tests.helpers.patience import PATIENCE


class Seen:
    """A callback that remembers: `await seen.first(3)` waits until three items came and returns what came."""

    def __init__(self) -> None:
        self.items: List[Any] = []
        self._loop = asyncio.get_running_loop()
        self._more = asyncio.Event()

    def __call__(self, *item: Any) -> None:
        self._loop.call_soon_threadsafe(self._add, item[0] if len(item) == 1 else item)

    def _add(self, item: Any) -> None:
        self.items.append(item)
        self._more.set()

    async def first(self, count: int) -> List[Any]:
        """Wait until at least `count` items came, and return all that came."""

        async def enough() -> None:
            while len(self.items) < count:
                self._more.clear()
                await self._more.wait()

        try:
            await asyncio.wait_for(enough(), PATIENCE)
        except asyncio.TimeoutError:
            raise AssertionError(f"{len(self.items)} of {count} items came: {self.items!r:.500}") from None
        return list(self.items)

    async def until(self, wanted: Any) -> List[Any]:
        """Wait until `wanted` (an item, or a predicate on one) came, and return all that came."""
        matches = wanted if callable(wanted) else lambda item: item == wanted

        async def there() -> None:
            while not any(matches(item) for item in self.items):
                self._more.clear()
                await self._more.wait()

        try:
            await asyncio.wait_for(there(), PATIENCE)
        except asyncio.TimeoutError:
            raise AssertionError(f"what was waited for didn't come, but: {self.items!r:.500}") from None
        return list(self.items)


class Gate:
    """Holds callbacks up until it is opened."""

    def __init__(self, colour: str) -> None:
        self.colour = colour
        self._open = threading.Event()
        self._open_async = asyncio.Event()

    def open(self) -> None:
        """Let everybody through."""
        self._open.set()
        self._open_async.set()

    def before(self, callback: Callable[..., None]) -> Callable[..., Any]:
        """Make a callback that waits at the gate, as the colour can: in a thread, or in the event loop."""

        def hold(*item: Any) -> None:
            self._open.wait(PATIENCE)
            callback(*item)

        async def hold_async(*item: Any) -> None:
            await self._open_async.wait()
            callback(*item)

        return hold_async if self.colour == "async" else hold
