"""What the engine needs to know of whoever asks.

The engine does no I/O: what goes out beside the return value of `Engine.execute` goes through the `Caller` it was handed.
"""

from __future__ import annotations

from typing import Dict, Optional, Set, Union

from synap.commands import Answer, Item, MessageAnswer
from synap.errors import SynapError

__all__ = ["Caller", "Item"]

class Caller:
    """One conversation with the engine: a connection, or a client in this process.

    `session` names it across reconnects and restarts; what it wrote is remembered under that name and the number
    of the request, so that a repeated write is answered and not done again. An empty `session` is not remembered.
    """

    __slots__ = ("session", "subscriptions", "waiting")

    def __init__(self, session: str = "") -> None:
        self.session = session
        self.subscriptions: Dict[int, object] = {}
        """Live subscriptions by their id. Kept by the engine."""
        self.waiting: Set[int] = set()
        """Numbers of the requests that wait for an answer. Kept by the engine."""

    def answer(self, number: int, answer: Optional[Union[Answer, MessageAnswer]]) -> None:
        """Take the answer to a request that had to wait (None: nothing came in time)."""
        raise NotImplementedError

    def refuse(self, number: int, error: SynapError) -> None:
        """Take the error of a request that had to wait (its queue was deleted, the service drains)."""
        raise NotImplementedError

    def push(self, subscription_id: int, item: Item) -> bool:
        """Take a pushed item; False where there is no room for it now.

        An event that was not taken stays in its room: the engine stops pushing to that subscription until
        `Engine.resume`. A topic message that was not taken ends the subscription with `SLOW_CONSUMER`.
        """
        raise NotImplementedError

    def ended(self, subscription_id: int, error: SynapError) -> None:
        """Learn that the engine ended a subscription, and why."""
        raise NotImplementedError
