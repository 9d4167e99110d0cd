"""Wait for the result of an enqueued message."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic
from typing import Any

from synap.client._async.client import AsyncSynapClient
from synap.client.colocation import colocated
from synap.errors import SynapError, TimeoutError


def result_key(queue: str, message_id: str) -> str:
    """Return the key that holds the result of a message's handler: with its queue, since both change in one batch."""
    return colocated(queue, f":result:{message_id}")


@dataclass(frozen=True)
class Enqueued:
    """A published message: its `message_id` and `queue`.

    `client` fetches the result; `keeps_result` is whether there will be one.
    """

    message_id: str
    queue: str
    client: AsyncSynapClient
    keeps_result: bool = False

    async def result(self, *, timeout: float = 30.0, type: Any = None) -> Any:
        """Wait for what the handler returned, which is kept for the handler's `result_ttl` seconds.

        `type`: the type it is converted to, by default none. Raises `TimeoutError` where there is no result after
        `timeout` seconds (not done yet, failed for good, or expired), `INVALID_REQUEST` for a handler without
        `result_ttl`, `WRONG_TYPE` for a result that doesn't fit.
        """
        if not self.keeps_result:
            raise SynapError("INVALID_REQUEST", f"results of {self.queue} aren't kept: give its handler a result_ttl")
        key = result_key(self.queue, self.message_id)
        until = monotonic() + timeout
        pause = 0.01
        while True:
            found = await self.client.kv.get(key) if type is None else await self.client.kv.get(key, type=type)
            if found.found:
                return found.value
            left = until - monotonic()
            if left <= 0:
                raise TimeoutError("TIMEOUT", f"there is no result of {self.message_id} after {timeout:g} seconds")
            await asyncio.sleep(min(pause, left))
            pause = min(1.0, pause * 1.5)
