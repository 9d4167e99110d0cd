"""Hooks around each call of a client, and around each item that is delivered to a callback.

A hook is a function that returns a context manager; tracing and metrics are built on it
(`synap.contrib.opentelemetry`). Clients made while no hook is registered don't pay for them: their calls are not
wrapped.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, ContextManager, List, Tuple

from synap.config import Target

__all__ = ["Call", "Delivery", "Hook", "add_hook", "current_hooks"]


class Call:
    """A call of a client: `command` as in the table of commands, its `payload`, the service it goes to.

    The payload may be changed before the call is made, such as a message's `headers`. `result` is there once the call
    has succeeded; one that failed leaves the context manager with its `SynapError`. Retries are within one call.
    """

    __slots__ = ("command", "payload", "result", "target")

    def __init__(self, command: str, payload: Any, target: Target) -> None:
        self.command = command
        self.payload = payload
        self.target = target
        self.result: Any = None


class Delivery:
    """An item of a subscription while its callback runs: a `StreamEvent`, or a topic's message with its metadata."""

    __slots__ = ("item", "room", "target")

    def __init__(self, item: Any, room: str, target: Target) -> None:
        self.item = item
        self.room = room
        """The room, empty for a topic's message."""
        self.target = target


Hook = Callable[[Any], ContextManager[Any]]
"""Takes a `Call` or a `Delivery`; returns the context manager that is entered around it."""

_hooks: Tuple[Hook, ...] = ()


def add_hook(hook: Hook) -> Callable[[], None]:
    """Register `hook` for clients that are made from now on; returns a function that unregisters it.

    Exceptions of a hook reach the caller, so it should raise none of its own.
    """
    global _hooks
    _hooks = (*_hooks, hook)

    def remove() -> None:
        global _hooks
        _hooks = tuple(other for other in _hooks if other is not hook)

    return remove


def current_hooks() -> Tuple[Hook, ...]:
    """Return the registered hooks."""
    return _hooks


def entered(hooks: Tuple[Hook, ...], about: Any) -> contextlib.ExitStack:
    """Enter all hooks for a call or a delivery, in order; leaving the stack leaves them."""
    stack = contextlib.ExitStack()
    with stack:
        managers: List[ContextManager[Any]] = [hook(about) for hook in hooks]
        for manager in managers:
            stack.enter_context(manager)
        return stack.pop_all()
