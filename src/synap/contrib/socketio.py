"""Client managers for python-socketio: several servers, and processes that aren't servers, emit to all clients.

server = socketio.AsyncServer(client_manager=AsyncSynapManager("http://localhost:15500"))
"""

from __future__ import annotations

import time
from typing import Any, AsyncIterator, Dict, Iterator, Optional, Type

from socketio.async_pubsub_manager import AsyncPubSubManager
from socketio.pubsub_manager import PubSubManager

from synap import AsyncSynapClient, SynapClient, SynapError
from synap.contrib.sharing import PAUSE, Outage, topic_messages

__all__ = ["AsyncSynapManager", "SynapManager"]


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

    def _outage(self) -> Outage:
        return Outage(self._get_logger(), "receiving from synap")  # type: ignore[attr-defined]  # the other class's


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

    def _listen(self) -> AsyncIterator[Any]:
        return topic_messages(self.client, self.channel, self._outage())


class SynapManager(_WithClient, PubSubManager):
    """A client manager for `socketio.Server` with threads; the arguments are those of `AsyncSynapManager`."""

    name = "synap"
    make = SynapClient

    def _publish(self, data: Any) -> None:
        self.client.pubsub.publish(self.channel, self.json.dumps(data))

    def _listen(self) -> Iterator[Any]:
        outage = self._outage()
        while True:
            try:
                with self.client.pubsub.subscribe([self.channel]) as subscription:
                    outage.over()
                    for _, message in subscription:
                        yield message
                return
            except SynapError as error:
                if error.details.get("closed"):
                    return
                outage.goes_on(error)
                time.sleep(PAUSE)
