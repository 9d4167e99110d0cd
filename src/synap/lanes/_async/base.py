"""What a lane is: one way to reach a service.

Lanes make one attempt and say precisely how it failed; the client above decides about retries and subscribes anew after
a connection was lost.
"""

from __future__ import annotations

from typing import Any, Awaitable, Callable, Dict, Optional, Tuple

from msgspec import Struct

from synap.commands import Command
from synap.config import ClientConfig, Target
from synap.wire.codec import Codec
from synap.wire.conversation import Listener

__all__ = ["AsyncLane"]


def _nothing(*about: object) -> None:
    """Do nothing: the default callback."""


class AsyncLane:
    """One way to reach a service.

    Whoever made it may set `connected`, called when a connection was made where there was none, and `disconnected`,
    called with the reason when one was lost. Whoever notices calls them; they don't block.
    """

    def __init__(self, config: ClientConfig, target: Target, codec: Codec) -> None:
        self.config = config
        self.target = target
        self.codec = codec
        self.connected: Callable[[], None] = _nothing
        self.disconnected: Callable[[str], None] = _nothing
        self.closed = False
        """Whether `close` was called: nothing is opened any more."""

    async def connect(self, deadline: Optional[float] = None) -> None:
        """Reach the service by `deadline` (of `time.monotonic`), so that what is wrong shows now.

        Raises `ConnectionError`, `AuthenticationError`.
        """
        raise NotImplementedError

    def call(
        self, command: Command, payload: Struct, *, ticket: Any, began: float, timeout: Optional[float]
    ) -> Awaitable[Any]:
        """Make one attempt at a request and return its decoded result.

        `ticket` is what `ticket()` gave for this request, the same at every attempt: a service that has
        done the request already answers it again. `timeout`: seconds for all attempts, from `began` (of
        `time.monotonic`).

        Raises what the service answered; `CONNECTION_FAILED` where nothing was sent; `CONNECTION_LOST` or `TIMEOUT`,
        with `may_have_happened` set for a write, where it may have been. Cancelling it disturbs no other call, and
        a message that a cancelled `consume` was given goes back to its queue.
        """
        raise NotImplementedError

    def ticket(self) -> Any:
        """Make the identity of one request, kept over all attempts at it."""
        raise NotImplementedError

    def drop(self, ticket: Any) -> None:
        """Forget a ticket: no further attempt is made with it (answered, or given up)."""

    async def subscribe(
        self, command: Command, payload: Struct, listener: Listener, deadline: float
    ) -> Tuple[Any, Any]:
        """Subscribe by `deadline`; returns a handle for `unsubscribe` and the decoded answer.

        Items may reach `listener` before this returns.
        """
        raise NotImplementedError

    async def unsubscribe(self, handle: Any) -> None:
        """End a subscription; nothing reaches its listener afterwards. Silent where the connection is gone."""
        raise NotImplementedError

    async def health(self, deadline: float) -> Dict[str, Any]:
        """Ask for the state of the service by `deadline`, needing no key beyond the connection's."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of everything, for good.

        Calls in flight fail with `CONNECTION_LOST`, further ones with `CONNECTION_FAILED`.
        """
        raise NotImplementedError

    def abandon(self) -> None:
        """Forget all sockets without a word on them: this process is a fork and they belong to its parent."""
        raise NotImplementedError
