"""The interface of a lane: one way to reach a service.

A lane makes one attempt and raises exactly how it failed; the client above retries, and subscribes again after a
connection was lost.
"""

from __future__ import annotations

from typing import Any, Awaitable, Callable, Dict, Tuple

from msgspec import Struct

from synap.commands import Command
from synap.config import ClientConfig, Target
from synap.wire.codec import Codec
from synap.wire.conversation import Listener


def _nothing(*about: object) -> None:
    """Do nothing: the default callback."""


class AsyncLane:
    """One way to reach a service.

    `connected` is called when the lane connects, `disconnected` with the reason when the connection is lost, on any
    thread, while no lock of the lane is held. They must not block.
    """

    def __init__(self, config: ClientConfig, target: Target, codec: Codec) -> None:
        self.config = config
        self.target = target
        self.codec = codec
        self.connected: Callable[[], None] = _nothing
        self.disconnected: Callable[[str], None] = _nothing
        self.closed = False
        """Whether `close` was called: nothing is opened any more."""

    async def connect(self, deadline: float) -> None:
        """Connect by `deadline` (of `time.monotonic`), so that errors surface now and not with the first call.

        Raises `ConnectionError`, `AuthenticationError`.
        """
        raise NotImplementedError

    def call(self, command: Command, payload: Struct, ticket: Any, began: float, timeout: float) -> Awaitable[Any]:
        """Make one attempt at a request and return its decoded result.

        `ticket` is the request's identity from `ticket()`, the same for every attempt: a service that has executed the
        request already answers it again. `timeout`: seconds for all attempts, from `began` (of `time.monotonic`).

        Raises the service's error; `CONNECTION_FAILED` where nothing was sent; `CONNECTION_LOST` or `TIMEOUT`, with
        `may_have_happened` set for a write, where something may have been. Cancelling it affects no other call, and a
        message that was leased by a cancelled `consume` goes back to its queue.
        """
        raise NotImplementedError

    def ticket(self) -> Any:
        """Return the identity of a new request, for all attempts at it."""
        raise NotImplementedError

    def drop(self, ticket: Any) -> None:
        """Release a ticket: no further attempt is made with it."""

    async def subscribe(
        self, command: Command, payload: Struct, listener: Listener, deadline: float
    ) -> Tuple[Any, Any]:
        """Subscribe by `deadline`; returns a handle for `unsubscribe` and the decoded answer.

        Items may reach `listener` before this returns.
        """
        raise NotImplementedError

    async def unsubscribe(self, handle: Any) -> None:
        """End a subscription; its listener is not called afterwards. Does nothing where the connection is gone."""
        raise NotImplementedError

    async def health(self, deadline: float) -> Dict[str, Any]:
        """Return the health of the service, by `deadline`. Needs no key beyond the connection's."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close all connections, for good.

        Calls in flight fail with `CONNECTION_LOST`, further ones with `CONNECTION_FAILED`.
        """
        raise NotImplementedError

    def abandon(self) -> None:
        """Drop all sockets without sending anything: this process is a fork, and they belong to its parent."""
        raise NotImplementedError
