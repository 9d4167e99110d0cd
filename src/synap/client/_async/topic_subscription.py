"""Subscriptions to topics. A full mailbox ends one, since topic messages are stored nowhere."""

from __future__ import annotations

from typing import Any, Callable, List, Optional

from msgspec import Struct

from synap import commands as c
from synap.client._async.calls import AsyncCalls
from synap.client._async.subscription import Subscription
from synap.errors import SynapError
from synap.results import TopicMessage


class TopicSubscription(Subscription[TopicMessage]):
    """A subscription to topics."""

    def __init__(
        self, calls: AsyncCalls, topics: List[str], callback: Optional[Callable[..., Any]], with_metadata: bool
    ) -> None:
        super().__init__(calls, c.PUBSUB_SUBSCRIBE, callback, f"subscription to topics {', '.join(topics)[:200]}")
        self._topics = topics
        self._with_metadata = with_metadata

    @property
    def topics(self) -> List[str]:
        """The topics."""
        return list(self._topics)

    def _request(self) -> Struct:
        return c.PubSubSubscribe(self._topics)

    def _arrived(self, item: c.TopicMessageResult) -> None:
        if not self._mailbox.put(item) and not self._over.is_set():
            size = self._calls.config.buffer
            message = (
                f"the callback is slower than the topics: {size} messages wait for it, and there is no room for more"
            )
            self._end(SynapError("SLOW_CONSUMER", message, {"buffer": size}))

    async def __anext__(self) -> TopicMessage:
        item: Any = await super().__anext__()
        return TopicMessage(item.topic, item.message, item.message_id, item.metadata, item.timestamp)

    def _invoke(self, item: Any) -> Any:
        assert self._callback is not None
        if self._with_metadata:
            return self._callback(item.topic, item.message, item.metadata)
        return self._callback(item.topic, item.message)
