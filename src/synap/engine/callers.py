"""What the engine needs to know of whoever asks.

The engine does no I/O: what goes out beside the return value of `Engine.execute` goes through the `Caller` it was
handed.
"""

from __future__ import annotations

import enum
from heapq import merge
from itertools import islice
from typing import Any, Callable, Collection, Dict, Generator, List, Optional, Set, Tuple, Union

from synap.commands import Answer, Item, MessageAnswer
from synap.errors import SynapError

__all__ = [
    "MISSING",
    "STEP",
    "WAITING",
    "Caller",
    "Effects",
    "Item",
    "Number",
    "Signal",
    "Steps",
    "in_order",
    "run",
]


class Signal(enum.Enum):
    """What stands in for an answer."""

    WAITING = "waiting"
    MISSING = "missing"


WAITING = Signal.WAITING
"""The answer will come later, through `Caller.answer` or `Caller.refuse`."""
MISSING = Signal.MISSING
"""No answer is remembered."""

Number = Union[int, str]
"""What tells the requests of one session apart: a number on lanes that count, a text elsewhere."""


Steps = Generator[None, None, Any]
"""Something that takes a while: yields where it may be interrupted, and returns its answer."""
STEP = 500
"""Things that are done between two places where steps may be interrupted."""


def in_order(names: Collection[str]) -> Steps:
    """Return names sorted: parts of them one after the other, then merged."""
    every = list(names)
    parts: List[List[str]] = []
    for at in range(0, len(every), STEP):
        parts.append(sorted(every[at : at + STEP]))
        yield
    if len(parts) < 2:
        return parts[0] if parts else []
    found: List[str] = []
    merged = merge(*parts)
    while len(found) < len(every):
        found += islice(merged, STEP)
        yield
    return found


def run(steps: Steps) -> Any:
    """Run steps to their end, and return what they return."""
    try:
        while True:
            next(steps)
    except StopIteration as done:
        return done.value


class Caller:
    """One conversation with the engine: a connection, or a client in this process.

    Its methods are called in the middle of a change, so they only take note: they don't raise, and don't call the
    engine.

    `session` names it across reconnects and restarts; what it wrote is remembered under that name and the number
    (or text) of the request, so that a repeated write is answered and not done again. An empty `session` is not
    remembered.
    """

    __slots__ = ("session", "subscriptions", "waiting")

    def __init__(self, session: str = "") -> None:
        self.session = session
        self.subscriptions: Dict[int, Any] = {}
        """Live subscriptions by their id. Kept by the engine."""
        self.waiting: Set[Number] = set()
        """Numbers of the requests that wait for an answer. Kept by the engine."""

    def answer(self, number: Any, answer: Optional[Union[Answer, MessageAnswer]]) -> None:
        """Take the answer to a request that had to wait (None: nothing came in time)."""
        raise NotImplementedError

    def refuse(self, number: Any, error: SynapError) -> None:
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

    def broken(self) -> None:
        """Learn that `push` raised, against its contract, so that the subscription ended. The exception is handled."""

    def try_push(self, subscription_id: int, item: Item) -> bool:
        """Push an item to one subscriber of several; what it raises ends its own subscription and harms no other's."""
        try:
            return self.push(subscription_id, item)
        except Exception:
            self.broken()
            return False


class Effects:
    """What goes out beside answers: at once, or, while an atomic batch runs, once it holds."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held: Optional[List[Tuple[Callable[..., Any], Tuple[Any, ...]]]] = None

    def do(self, effect: Callable[..., Any], *arguments: Any) -> None:
        """Run `effect` now, or hold it until `release`."""
        if self.held is None:
            effect(*arguments)
        else:
            self.held.append((effect, arguments))

    def hold(self) -> None:
        """Keep effects from here on."""
        self.held = []

    def drop(self) -> None:
        """Forget the effects that were held."""
        self.held = None

    def release(self) -> None:
        """Run the effects that were held, in order."""
        held, self.held = self.held or [], None
        for effect, arguments in held:
            effect(*arguments)
