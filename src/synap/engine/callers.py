"""The engine's interface to its callers, and helpers for work that is done in steps.

The engine does no I/O: all output but the return value of `Engine.execute` goes through the `Caller`.
"""

from __future__ import annotations

import enum
from heapq import merge
from itertools import islice
from typing import Any, Callable, Collection, Dict, Generator, List, Optional, Protocol, Set, Tuple, Union

from synap.commands import Answer, Item, MessageAnswer
from synap.errors import SynapError


class Signal(enum.Enum):
    """Stands in for an answer."""

    WAITING = "waiting"
    MISSING = "missing"


WAITING = Signal.WAITING
"""The answer will come later, through `Caller.answer` or `Caller.refuse`."""
MISSING = Signal.MISSING
"""No answer is remembered."""

Number = Union[int, str]
"""Identifies a request within its session: a number on lanes that count, a text elsewhere."""


Steps = Generator[Any, None, Any]
"""A long computation: yields where it may be interrupted, and returns its answer."""
STEP = 500
"""Items that are processed between two places where steps may be interrupted."""


def in_order(names: Collection[str]) -> Steps:
    """Return names sorted, in steps: chunks are sorted, then merged."""
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


def at_once(steps: Steps, size: int) -> Union[Steps, Any]:
    """Run steps that go over few things to their end; those that go over many are returned."""
    return steps if size > STEP else run(steps)


def until(steps: Steps, over: Callable[[], bool]) -> Steps:
    """Run steps as long as they aren't `over`; returns what they return, else None."""
    while not over():
        try:
            yield next(steps)
        except StopIteration as done:
            return done.value
    steps.close()
    return None


class Subscribed(Protocol):
    """A live subscription, whoever keeps it."""

    def named(self) -> List[str]:
        """Return what it is subscribed to: a room, or patterns of topics."""


class Caller:
    """A connection, or a client in this process, as the engine sees it.

    Its methods are called in the middle of a change, so they only record: they don't raise, and don't call the engine.

    `session` names it across reconnects and restarts; what it wrote is remembered under that name and the number
    (or text) of the request, so that a repeated write is answered and not done again. An empty `session` is not
    remembered.
    """

    __slots__ = ("session", "subscriptions", "waiting")

    def __init__(self, session: str = "") -> None:
        self.session = session
        self.subscriptions: Dict[int, Subscribed] = {}
        """Live subscriptions by their id. Kept by the engine."""
        self.waiting: Set[Number] = set()
        """Numbers of the requests that wait for an answer. Kept by the engine."""

    def answer(self, number: Any, answer: Optional[Union[Answer, MessageAnswer]]) -> None:
        """Receive the answer to a request that had to wait (None: nothing came in time)."""
        raise NotImplementedError

    def refuse(self, number: Any, error: SynapError) -> None:
        """Receive the error of a request that had to wait (its queue was deleted, the service drains)."""
        raise NotImplementedError

    def push(self, subscription_id: int, item: Item) -> bool:
        """Receive a pushed item; returns False where the buffer is full.

        An event that was not taken stays in its room: the engine stops pushing to that subscription until
        `Engine.resume`. A topic message that was not taken ends the subscription with `SLOW_CONSUMER`.
        """
        raise NotImplementedError

    def ended(self, subscription_id: int, error: SynapError) -> None:
        """Called when the engine ended a subscription, with the reason."""
        raise NotImplementedError

    def broken(self) -> None:
        """Called when `push` raised, against its contract, so that the subscription ended. The exception is handled."""

    def try_push(self, subscription_id: int, item: Item) -> bool:
        """Push an item; an exception ends this subscription and does not reach the publisher or other subscribers."""
        try:
            return self.push(subscription_id, item)
        except Exception:  # of one subscriber: the others get the item
            self.broken()
            return False


class Effects:
    """Side effects (answers to waiters, pushes): run at once, or, while an atomic batch runs, once it has succeeded."""

    __slots__ = ("held", "recipients")

    def __init__(self) -> None:
        self.held: Optional[List[Tuple[Callable[..., Any], Tuple[Any, ...]]]] = None
        self.recipients = 0
        """How many waiters and subscriptions the deferred effects reach, counted for each effect."""

    def do(self, effect: Callable[..., Any], *arguments: Any, to: int = 1) -> None:
        """Run `effect` now, or defer it until `release`; `to`: how many waiters or subscriptions it reaches."""
        if self.held is None:
            effect(*arguments)
        else:
            self.held.append((effect, arguments))
            self.recipients += to

    def hold(self) -> None:
        """Defer effects from here on."""
        self.held = []
        self.recipients = 0

    def drop(self) -> None:
        """Discard the deferred effects."""
        self.held = None

    def release(self) -> None:
        """Run the deferred effects, in order."""
        held, self.held = self.held or [], None
        for effect, arguments in held:
            effect(*arguments)
