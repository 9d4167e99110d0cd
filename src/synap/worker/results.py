"""What a job that was enqueued has come to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic
from typing import Any

from synap.client._async.client import AsyncSynapClient
from synap.client.beside import beside
from synap.errors import SynapError, TimeoutError

__all__ = ["Enqueued", "result_key"]


def result_key(queue: str, message_id: str) -> str:
    """Return the key under which the result of a message's handler is: beside its queue, since both change at once."""
    return beside(queue, f":result:{message_id}")


@dataclass(frozen=True)
class Enqueued:
    """A message that waits for its handler."""

    message_id: str
    queue: str
    client: AsyncSynapClient
    keeps_result: bool = False

    async def result(self, *, timeout: float = 30.0, type: Any = None) -> Any:
        """Wait for what the handler returned; its `result_ttl` says that, and how long, it is kept.

        Raises `TimeoutError` where it isn't there after `timeout` seconds: not done yet, failed for good, or gone.
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
