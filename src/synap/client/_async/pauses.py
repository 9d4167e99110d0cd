"""Pauses before another try, which end once a connection is there again, whoever made it, or the client closes."""

from __future__ import annotations

from typing import Dict

from synap.errors import ConnectionError, SynapError
from synap.lanes.io import AsyncEvent, async_home


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

    def connected(self) -> None:
        """End the pauses of all who had lost the connection, or had got none."""
        here = async_home()
        for pause, where in self._homes.copy().items():
            if where == here:
                pause.set()

    def close(self) -> None:
        """End all pauses, and those that are yet to begin."""
        self._over = True
        for pause in self._homes.copy():
            pause.set()
