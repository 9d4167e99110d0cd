"""Client managers for python-socketio: several servers, and processes that aren't servers, emit to all clients.

server = socketio.AsyncServer(client_manager=AsyncSynapManager("http://localhost:15500"))
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, AsyncIterator, Dict, Iterator, Optional, Type

from socketio.async_pubsub_manager import AsyncPubSubManager
from socketio.pubsub_manager import PubSubManager

from synap import AsyncSynapClient, SynapClient, SynapError

__all__ = ["AsyncSynapManager", "SynapManager"]

PAUSE = 1.0
"""Seconds before resubscribing after an error."""


class _WithClient:
    """The constructor of both managers, which creates the client."""

    make: Type[Any]

    def __init__(
        self,
        url: Optional[str] = None,
        channel: str = "socketio",
        write_only: bool = False,
        logger: Any = None,
        json: Any = None,
        *,
        options: Optional[Dict[str, Any]] = None,
    ) -> None:
        super().__init__(channel=channel, write_only=write_only, logger=logger, json=json)  # type: ignore[call-arg]  # python-socketio's own class
        self.client = self.make(url=url, **(options or {}))


class AsyncSynapManager(_WithClient, AsyncPubSubManager):
    """A client manager for `socketio.AsyncServer`.

    `url`, `options` (fields of `ClientConfig`): of the client. `channel`: the topic that all servers share, by default
    'socketio'. `write_only`: for processes that only emit, by default False. `logger`, `json`: as for python-socketio's
    own managers.
    """

    name = "asyncsynap"
    make = AsyncSynapClient

    async def _publish(self, data: Any) -> None:
        await self.client.pubsub.publish(self.channel, self.json.dumps(data))

    async def _listen(self) -> AsyncIterator[Any]:
        while True:
            try:
                async with await self.client.pubsub.subscribe([self.channel]) as subscription:
                    async for _, message in subscription:
                        yield message
                return
            except SynapError as error:
                if error.details.get("closed"):
                    return
                self._get_logger().error("Cannot receive from synap, retrying: %s", error)
                await asyncio.sleep(PAUSE)


class SynapManager(_WithClient, PubSubManager):
    """A client manager for `socketio.Server` with threads; the arguments are those of `AsyncSynapManager`."""

    name = "synap"
    make = SynapClient

    def _publish(self, data: Any) -> None:
        self.client.pubsub.publish(self.channel, self.json.dumps(data))

    def _listen(self) -> Iterator[Any]:
        while True:
            try:
                with self.client.pubsub.subscribe([self.channel]) as subscription:
                    for _, message in subscription:
                        yield message
                return
            except SynapError as error:
                if error.details.get("closed"):
                    return
                self._get_logger().error("Cannot receive from synap, retrying: %s", error)
                time.sleep(PAUSE)
