"""How long tests wait for what must happen, and how they see, on a busy machine too, that something took too long."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import replace
from types import TracebackType
from typing import Any, AsyncIterable, AsyncIterator, Iterator, Optional, Type, TypeVar

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds within which anything that is to happen has happened; only failing tests wait as long."""

_LOOK = 0.02


async def in_time(items: AsyncIterable[T]) -> AsyncIterator[T]:
    """Go through what a subscription gives; fails where nothing more comes, and it doesn't end, within `PATIENCE`."""
    iterator = items.__aiter__()
    while True:
        try:
            item = await asyncio.wait_for(iterator.__anext__(), PATIENCE)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise AssertionError(f"nothing more came within {PATIENCE:g} seconds") from None
        yield item


def about(seconds: int) -> range:
    """Return what may be left of a time to live of so many seconds that was given a moment ago."""
    return range(seconds - 60, seconds + 1)


STEADY = 60_000
"""Milliseconds that a cluster's node may be kept from running before others take it for dead, where none is to die."""


@contextlib.contextmanager
def impatient(client: Any, seconds: float) -> Iterator[None]:
    """Have a client's calls give up after so many seconds in a block: those that are to fail.

    What comes before and after them is to succeed, and has all of the client's timeout.
    """
    calls = getattr(client, "_inner", client)._calls
    patient = calls.config

    def give(config: Any) -> None:
        calls.config, calls.timeout = config, config.timeout
        if calls.lane is not None:
            calls.lane.config = config

    give(replace(patient, timeout=seconds))
    try:
        yield
    finally:
        give(patient)


class Stopwatch:
    """Counts the seconds of a block in which this process could run.

    A process that gets no CPU for a while is not slow for that: an upper bound on `seconds` holds on a busy machine
    too, while one that waits, as it shouldn't, is seen.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Stopwatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._over.wait(_LOOK):
            now = time.monotonic()
            self.seconds += min(now - last, 2 * _LOOK)
            last = now
