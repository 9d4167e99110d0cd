"""Pauses before another try, which end as soon as a connection is there again, whoever made it."""

from __future__ import annotations

from typing import Dict

from synap.errors import ConnectionError, SynapError
from synap.lanes.io import AsyncEvent, async_home


class AsyncPauses:
    """The pauses of a client's requests and subscriptions."""

    def __init__(self) -> None:
        self._homes: Dict[AsyncEvent, object] = {}
        """Pauses that a connection ends, and where one has to be for that."""

    async def wait(self, pause: AsyncEvent, seconds: float, error: SynapError) -> bool:
        """Wait until a pause after `error` is over; returns whether something ended it before `seconds` had passed."""
        if isinstance(error, ConnectionError):
            self._homes[pause] = async_home()
        try:
            return await pause.wait(seconds)
        finally:
            self._homes.pop(pause, None)

    def connected(self) -> None:
        """End the pauses of all who had lost the connection, or had got none."""
        here = async_home()
        for pause, where in self._homes.copy().items():
            if where == here:
                pause.set()
