"""Pauses before another try, which end once a connection is there again, whoever made it, or the client closes.

A connection tells that the service is back. The tries that it brings about make connections of their own (in the sync
client each thread has one), which tell nothing more: if those ended pauses too, callers whose requests lose each
connection would end each other's in turn, and nobody would pause.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Callable, Dict, Optional

from synap.errors import ConnectionError, SynapError
from synap.lanes.io import AsyncEvent, async_home


class _Try:
    """A try that another's connection brought about."""

    __slots__ = ("over",)

    def __init__(self) -> None:
        self.over = False


_brought_about: ContextVar[Optional[_Try]] = ContextVar("synap_brought_about", default=None)
"""The try that is being made. What begins in it, such as a task, keeps it beyond its end."""


class AsyncPauses:
    """The pauses of a client's requests and subscriptions."""

    def __init__(self) -> None:
        self._homes: Dict[AsyncEvent, object] = {}
        """Pauses, and where a connection has to be to end them; None where none does."""
        self._over = False

    async def wait(self, pause: AsyncEvent, seconds: float, error: SynapError) -> bool:
        """Wait until a pause after `error` is over; returns whether something ended it before `seconds` had passed."""
        self._homes[pause] = async_home() if isinstance(error, ConnectionError) else None
        try:
            if self._over:  # looked at last: another thread may close the client
                return True
            return await pause.wait(seconds)
        finally:
            self._homes.pop(pause, None)

    async def follow(self, attempt: Callable[[], Any]) -> Any:
        """Make an attempt that another's connection brought about."""
        before, this = _brought_about.get(), _Try()
        _brought_about.set(this)
        try:
            return await attempt()
        finally:
            this.over = True
            _brought_about.set(before)

    def connected(self) -> None:
        """End the pauses of all who had lost the connection, or had got none, unless this one is no news."""
        brought_about = _brought_about.get()
        if brought_about is not None and not brought_about.over:
            return
        here = async_home()
        for pause, where in self._homes.copy().items():
            if where == here:
                pause.set()

    def close(self) -> None:
        """End all pauses, and those that are yet to begin."""
        self._over = True
        for pause in self._homes.copy():
            pause.set()
